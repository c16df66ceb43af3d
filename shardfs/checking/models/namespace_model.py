"""The reference namespace: what POSIX says of names, in dictionaries.

Role: an executable specification of names and attributes. Each operation either does all it
should, as one numbered change, or raises FileError and does nothing. Paths are "a/b"; "" is the
root.

Invariants (what an application may rely on after a crash):
    I1. The tree is as after some number of the changes made, in the order made: no change is
        there in part (a rename is seen old or new), and none without those before it.
    I2. It has at least the changes made before the last sync that returned, and for each fsync,
        fdatasync or fsyncdir that returned all those up to the last change of what it was called
        for, which is when its attributes last changed, times included: `durable`.

Not here: owners, times beside those set by the user, device files, permissions; contents
(content_model.py).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from shardfs.errors import FileError

NOREPLACE = 1
EXCHANGE = 2


class Kind(StrEnum):
    """What a name stands for."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


@dataclass(frozen=True, eq=False)
class Node:
    """Something with names. Two names of one Node are hard links.

    Args:
        target: where a symbolic link points.
    """

    kind: Kind
    target: str = ""


@dataclass(frozen=True)
class Attributes:
    """What can be set of a node.

    Args:
        mode: permission bits; None: as the file system made it.
        mtime_ns: the time that a user has set, if nothing was written since.
    """

    mode: int | None = None
    mtime_ns: int | None = None
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


class Tree(NamedTuple):
    """All names at one moment. Never changed."""

    names: dict[str, Node]
    attributes: dict[Node, Attributes]


class NamespaceModel:
    """Every tree there has been, one for each change."""

    def __init__(self, tree: Tree | None = None) -> None:
        root = Node(Kind.DIRECTORY)
        self.history = [tree or Tree({"": root}, {root: Attributes()})]
        self.durable = 0
        """Changes that survive any crash (I2)."""
        self.changed: dict[Node, int] = {}
        """Number of the last change of each node."""

    @property
    def moment(self) -> int:
        """Number of changes made."""
        return len(self.history) - 1

    @property
    def tree(self) -> Tree:
        """As a reader sees it."""
        return self.history[-1]

    # --- looking

    def lookup(self, path: str) -> Node:
        """What a path stands for. Symbolic links are not followed."""
        steps = path.split("/") if path else []
        names = self.tree.names
        for count in range(len(steps)):
            above = names.get("/".join(steps[:count]))
            if above is None:
                raise FileError(errno.ENOENT)
            if above.kind is not Kind.DIRECTORY:
                raise FileError(errno.ENOTDIR)
        if path not in names:
            raise FileError(errno.ENOENT)
        return names[path]

    def list(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        self.directory(path)
        return children(self.tree, path)

    def attributes(self, path: str) -> Attributes:
        """What was set of a node."""
        return self.tree.attributes[self.lookup(path)]

    # --- changing

    def create(self, path: str) -> None:
        """An empty file."""
        self._add(path, Node(Kind.FILE))

    def mkdir(self, path: str) -> None:
        """An empty directory."""
        self._add(path, Node(Kind.DIRECTORY))

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._add(path, Node(Kind.SYMLINK, target))

    def link(self, old: str, new: str) -> None:
        """One more name for a file or symbolic link."""
        node = self.lookup(old)
        self.directory(parent_of(new))
        if node.kind is Kind.DIRECTORY:
            raise FileError(errno.EPERM)
        self._add(new, node)

    def unlink(self, path: str) -> None:
        """Take a name from a file or symbolic link."""
        if self.lookup(path).kind is Kind.DIRECTORY:
            raise FileError(errno.EISDIR)
        self._change(without(self.tree.names, path), path)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        if self.lookup(path).kind is not Kind.DIRECTORY:
            raise FileError(errno.ENOTDIR)
        if children(self.tree, path):
            raise FileError(errno.ENOTEMPTY)
        self._change(without(self.tree.names, path), path)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        """Move a name: replacing (0), NOREPLACE, or EXCHANGE."""
        source = self.lookup_in_directory(old)
        target = self.lookup_in_directory(new)
        if source is None or (target is None and flags == EXCHANGE):
            raise FileError(errno.ENOENT)
        if target is not None and flags == NOREPLACE:
            raise FileError(errno.EEXIST)
        if source.kind is Kind.DIRECTORY and new.startswith(f"{old}/"):
            raise FileError(errno.EINVAL)
        if old.startswith(f"{new}/"):
            raise FileError(errno.EINVAL if flags == EXCHANGE else errno.ENOTEMPTY)
        if source is target:
            return
        if target is not None and flags != EXCHANGE:
            self._require_replaceable(source, target, new)
        moved = {}
        for path, node in self.tree.names.items():
            if flags != EXCHANGE and path == new:
                continue
            place = moved_path(path, old, new)
            if flags == EXCHANGE and place == path:
                place = moved_path(path, new, old)
            moved[place] = node
        self._change(moved, old, new)

    def set_mode(self, path: str, mode: int) -> None:
        """chmod(2)."""
        self._amend(path, lambda before: replace(before, mode=mode))

    def set_mtime(self, path: str, mtime_ns: int) -> None:
        """utimensat(2)."""
        self._amend(path, lambda before: replace(before, mtime_ns=mtime_ns))

    def get_xattr(self, path: str, name: str) -> bytes:
        """The value of an extended attribute."""
        xattrs = self.attributes(path).xattrs
        if name not in xattrs:
            raise FileError(errno.ENODATA)
        return xattrs[name]

    def set_xattr(self, path: str, name: str, value: bytes) -> None:
        """Give an extended attribute a value."""
        self._amend(path, lambda before: replace(before, xattrs={**before.xattrs, name: value}))

    def remove_xattr(self, path: str, name: str) -> None:
        """Take an extended attribute away."""
        self.get_xattr(path, name)
        xattrs = dict(self.attributes(path).xattrs)
        del xattrs[name]
        self._amend(path, lambda before: replace(before, xattrs=xattrs))

    # --- inside

    def lookup_in_directory(self, path: str) -> Node | None:
        """What a path stands for; None when only its last name is missing."""
        self.directory(parent_of(path))
        return self.tree.names.get(path)

    def directory(self, path: str) -> Node:
        """The directory of that path."""
        node = self.lookup(path)
        if node.kind is not Kind.DIRECTORY:
            raise FileError(errno.ENOTDIR)
        return node

    def _require_replaceable(self, source: Node, target: Node, path: str) -> None:
        if source.kind is Kind.DIRECTORY and target.kind is not Kind.DIRECTORY:
            raise FileError(errno.ENOTDIR)
        if source.kind is not Kind.DIRECTORY and target.kind is Kind.DIRECTORY:
            raise FileError(errno.EISDIR)
        if children(self.tree, path):
            raise FileError(errno.ENOTEMPTY)

    def _add(self, path: str, node: Node) -> None:
        if self.lookup_in_directory(path) is not None:
            raise FileError(errno.EEXIST)
        self._change({**self.tree.names, path: node}, path)

    def _amend(self, path: str, change: Callable[[Attributes], Attributes]) -> None:
        node = self.lookup(path)
        attributes = dict(self.tree.attributes)
        attributes[node] = change(attributes[node])
        self.history.append(Tree(self.tree.names, attributes))
        self.changed[node] = self.moment

    def _change(self, names: dict[str, Node], *entries: str) -> None:
        """One numbered change. Directories whose entries change have a time of their own.

        Args:
            entries: the paths that it was asked for: what is there, before or after, and the
                directories that they are in, change.
        """
        attributes = self.tree.attributes
        old = self.tree.names
        stale = {
            parent_of(path)
            for path in old.keys() | names.keys()
            if path and old.get(path) is not names.get(path)
        }
        attributes = dict(attributes)
        touched = {
            tree[place]
            for tree in (old, names)
            for entry in entries
            for place in (entry, parent_of(entry))
            if place in tree
        }
        for node in touched:
            attributes.setdefault(node, Attributes())
        for path in sorted(stale):
            for tree in (old, names):
                if path in tree:
                    attributes[tree[path]] = replace(attributes[tree[path]], mtime_ns=None)
        self.history.append(Tree(names, attributes))
        self.changed.update(dict.fromkeys(touched, self.moment))


def parent_of(path: str) -> str:
    """The directory of a path."""
    return path.rpartition("/")[0]


def children(tree: Tree, path: str) -> list[str]:
    """The names in a directory, sorted."""
    return sorted(
        each.rpartition("/")[2] for each in tree.names if each and parent_of(each) == path
    )


def moved_path(path: str, old: str, new: str) -> str:
    """Where a path is when `old` has become `new`."""
    if path == old or path.startswith(f"{old}/"):
        return new + path.removeprefix(old)
    return path


def without(names: dict[str, Node], path: str) -> dict[str, Node]:
    """All names but one."""
    return {each: node for each, node in names.items() if each != path}
