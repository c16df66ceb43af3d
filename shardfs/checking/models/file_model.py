"""The reference file system: names and contents together, and what a crash may leave of them.

Role: NamespaceModel with contents. Tells which content of a file goes to the store together with
which change of names, and judges what was found after a crash.

Invariants (what an application may rely on after a crash):
    I1. Names are as after some number of changes, and each file then has a content that was
        possible at that moment (namespace_model.I1, content_model).
    I2. A rename that replaces a file comes after the content of what is moved: the new name has
        the old file or the whole new one.
    I3. What fsync of a file makes durable: its data, and every change of names and truncation
        made before its last change or its last write. fdatasync is the same, and so is fsyncdir,
        without data. What a sync of everything makes durable: every change made before it was
        called, and all data.

Not here: the time after which the file system syncs by itself; whoever waits knows.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from shardfs.checking.models.content_model import ContentModel, Mark
from shardfs.checking.models.namespace_model import (
    EXCHANGE,
    Attributes,
    Kind,
    NamespaceModel,
    Node,
    Tree,
    children,
)
from shardfs.errors import FileError


class Found(NamedTuple):
    """What a real file system shows at one path.

    Args:
        ino: equal where two paths are names of one file.
        content: of a file; the target of a symbolic link; else empty.
    """

    ino: int
    kind: Kind
    mode: int
    nlink: int
    mtime_ns: int
    xattrs: Mapping[str, bytes]
    content: bytes = b""


class Promise(NamedTuple):
    """What a sync that has begun makes durable when it returns."""

    moment: int
    versions: dict[Node, int]


class FileMark(NamedTuple):
    """A point that `back_to` goes back to."""

    moment: int
    changed: dict[Node, int]
    contents: dict[Node, Mark]


class FileModel(NamespaceModel):
    """A tree of files, directories and symbolic links, with its past."""

    def __init__(self, tree: Tree | None = None) -> None:
        super().__init__(tree)
        self.contents: dict[Node, ContentModel] = {}

    def copy(self) -> FileModel:
        """As of now."""
        after = FileModel()
        after.history, after.durable = list(self.history), self.durable
        after.changed = dict(self.changed)
        after.contents = {node: each.copy() for node, each in self.contents.items()}
        return after

    # --- names that touch contents

    def create(self, path: str) -> None:
        """An empty file."""
        super().create(path)
        self.contents[self.lookup(path)] = ContentModel(b"", self.moment)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        """Move a name; content is stored before it replaces another file (I2)."""
        before = self.moment
        target = self.tree.names.get(new)
        super().rename(old, new, flags)
        content = self.contents.get(self.tree.names[new])
        replaced = self.moment > before and target is not None and flags != EXCHANGE
        if replaced and content is not None:
            content.store(before)

    # --- contents

    def file(self, path: str) -> Node:
        """The regular file of that path."""
        node = self.lookup(path)
        if node.kind is not Kind.FILE:
            raise FileError(errno.EISDIR if node.kind is Kind.DIRECTORY else errno.ELOOP)
        return node

    def write(self, node: Node, offset: int, data: bytes) -> None:
        """pwrite(2)."""
        self.contents[node].write(offset, data, self.moment)
        self._forget_time(node)
        self.changed[node] = self.moment

    def truncate(self, node: Node, length: int) -> None:
        """ftruncate(2)."""
        self.history.append(self.tree)
        self.contents[node].truncate(length, self.moment)
        self._forget_time(node)
        self.changed[node] = self.moment

    def read(self, node: Node) -> bytes:
        """The whole content."""
        return self.contents[node].content

    def store(self, node: Node) -> None:
        """The content of a file went to the store: what makes later changes durable, makes it."""
        self.contents[node].store(self.moment)

    def settle(self, node: Node, found: bytes) -> bool:
        """Writes may have been lost by a failing device: go on with what was found, if allowed."""
        return self.contents[node].settle(found, self.moment)

    def links(self, node: Node) -> int:
        """The number of names."""
        return list(self.tree.names.values()).count(node)

    def _forget_time(self, node: Node) -> None:
        attributes = dict(self.tree.attributes)
        attributes[node] = replace(attributes[node], mtime_ns=None)
        self.history[-1] = Tree(self.tree.names, attributes)

    # --- durability

    def begin_sync(self, node: Node) -> Promise:
        """fsync or fsyncdir is called (I3); `keep` when it has returned."""
        content = self.contents.get(node)
        versions = {} if content is None else {node: content.last}
        return Promise(self.changed.get(node, 0), versions)

    def begin_sync_of_all(self) -> Promise:
        """A sync of everything is called."""
        return Promise(self.moment, {node: each.last for node, each in self.contents.items()})

    def keep(self, promise: Promise) -> None:
        """The sync has returned without an error."""
        self.durable = max(self.durable, promise.moment)
        for node, version in promise.versions.items():
            if node in self.contents:
                self.contents[node].made_durable(version, promise.moment)

    def mark(self) -> FileMark:
        """For `back_to`."""
        marks = {node: content.mark() for node, content in self.contents.items()}
        return FileMark(self.moment, dict(self.changed), marks)

    def back_to(self, mark: FileMark) -> None:
        """Undo the changes made since: the file system has refused them."""
        del self.history[mark.moment + 1 :]
        self.changed = dict(mark.changed)
        for node in [node for node in self.contents if node not in mark.contents]:
            del self.contents[node]
        for node, each in mark.contents.items():
            self.contents[node].back_to(each)

    # --- judging

    def difference(self, found: Mapping[str, Found]) -> list[str]:
        """How what a reader finds now differs from what it should."""
        return self._compare(self.moment, found, exactly=True)

    def after_crash(self, found: Mapping[str, Found]) -> FileModel:
        """What goes on from what was found after a crash: what was found once is durable.

        Raises:
            AssertionError: no crash may leave that.
        """
        nearest: list[str] = []
        for moment in range(self.moment, self.durable - 1, -1):
            trouble = self._compare(moment, found, exactly=False)
            if not trouble:
                return self._continued(moment, found)
            if not nearest or len(trouble) < len(nearest):
                nearest = [f"as after change {moment}: {each}" for each in trouble]
        span = f"changes {self.durable} to {self.moment}"
        raise AssertionError(f"a crash may not leave this ({span}): {'; '.join(nearest[:4])}")

    def _compare(self, moment: int, found: Mapping[str, Found], *, exactly: bool) -> list[str]:
        tree = self.history[moment]
        paths = {path for path in tree.names if path}
        if paths != found.keys():
            missing, added = sorted(paths - found.keys()), sorted(found.keys() - paths)
            return [f"missing: {missing}, too much: {added}"] * max(1, len(missing) + len(added))
        trouble = []
        inodes: dict[Node, int] = {}
        for path, there in found.items():
            node = tree.names[path]
            if inodes.setdefault(node, there.ino) != there.ino:
                trouble.append(f"{path} is not the same file as its other name")
            wanted = {"kind": node.kind, "nlink": _links(tree, path)}
            wanted.update(_set_attributes(tree.attributes[node]))
            for name, value in wanted.items():
                if getattr(there, name) != value:
                    trouble.append(f"{path} has {name} {getattr(there, name)!r}, not {value!r}")
            trouble += self._compare_content(path, node, there.content, moment, exactly)
        if len(set(inodes.values())) < len(inodes):
            trouble.append("two files have the same inode")
        return trouble

    def _compare_content(
        self, path: str, node: Node, found: bytes, moment: int, exactly: bool
    ) -> list[str]:
        if node.kind is not Kind.FILE:
            return [] if found == node.target.encode() else [f"{path} points to {found!r}"]
        content = self.contents[node]
        if found == content.content if exactly else content.may_be(found, moment):
            return []
        return [f"{path} is {_brief(found)}; a reader saw {_brief(content.content)}"]

    def _continued(self, moment: int, found: Mapping[str, Found]) -> FileModel:
        tree = self.history[moment]
        after = FileModel(tree)
        for path, there in found.items():
            if there.kind is Kind.FILE:
                after.contents[tree.names[path]] = ContentModel(there.content)
        return after


def _links(tree: Tree, path: str) -> int:
    node = tree.names[path]
    if node.kind is not Kind.DIRECTORY:
        return list(tree.names.values()).count(node)
    below = [f"{path}/{name}" for name in children(tree, path)]
    return 2 + sum(tree.names[each].kind is Kind.DIRECTORY for each in below)


def _set_attributes(attributes: Attributes) -> dict[str, object]:
    """The attributes that are known."""
    known: dict[str, object] = {"xattrs": attributes.xattrs}
    if attributes.mode is not None:
        known["mode"] = attributes.mode
    if attributes.mtime_ns is not None:
        known["mtime_ns"] = attributes.mtime_ns
    return known


def _brief(content: bytes) -> str:
    return f"{len(content)} bytes, {content[:4].hex()}…{content[-4:].hex()}"
