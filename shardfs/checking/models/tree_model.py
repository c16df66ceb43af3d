"""The reference file system: what POSIX says of names and contents, in dictionaries.

Role: an executable specification of namespace and content operations. Each either does all it
should or raises FileError and does nothing.

Not here: owners, modes, times, extended attributes; durability (store_model.py).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from shardfs.errors import FileError

NOREPLACE = 1
EXCHANGE = 2


@dataclass(eq=False)
class Node:
    """A file (children is None) or a directory."""

    children: dict[str, Node] | None = None
    content: bytearray = field(default_factory=bytearray)
    names: int = 0


class TreeModel:
    """A tree of files and directories. Paths are "a/b"; "" is the root."""

    def __init__(self) -> None:
        self.root = Node({}, names=1)

    def create(self, path: str) -> None:
        """An empty file."""
        self._add(path, Node())

    def mkdir(self, path: str) -> None:
        """An empty directory."""
        self._add(path, Node({}))

    def link(self, old: str, new: str) -> None:
        """One more name for a file."""
        node = self._find(old)
        self._children(new.rpartition("/")[0])
        if node.children is not None:
            raise FileError(errno.EPERM)
        self._add(new, node)

    def unlink(self, path: str) -> None:
        """Take a name from a file."""
        if self._find(path).children is not None:
            raise FileError(errno.EISDIR)
        self._drop(path)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        children = self._find(path).children
        if children is None:
            raise FileError(errno.ENOTDIR)
        if children:
            raise FileError(errno.ENOTEMPTY)
        self._drop(path)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        """Move a name, replacing (0), not replacing, or exchanging."""
        self._children(old.rpartition("/")[0])
        target = self._children(new.rpartition("/")[0]).get(new.rpartition("/")[2])
        source = self._find(old)
        if target is None and flags == EXCHANGE:
            raise FileError(errno.ENOENT)
        if target is not None and flags == NOREPLACE:
            raise FileError(errno.EEXIST)
        if source.children is not None and f"{new}/".startswith(f"{old}/") and old != new:
            raise FileError(errno.EINVAL)
        if f"{old}/".startswith(f"{new}/") and old != new:
            raise FileError(errno.EINVAL if flags == EXCHANGE else errno.ENOTEMPTY)
        if source is target:
            return
        if target is not None and flags != EXCHANGE:
            if source.children is not None and target.children is None:
                raise FileError(errno.ENOTDIR)
            if source.children is None and target.children is not None:
                raise FileError(errno.EISDIR)
            if target.children:
                raise FileError(errno.ENOTEMPTY)
        self._drop(old)
        if target is not None:
            self._drop(new)
            if flags == EXCHANGE:
                self._add(old, target)
        self._add(new, source)

    def write(self, path: str, offset: int, data: bytes) -> None:
        """pwrite(2)."""
        content = self._file(path).content
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data

    def truncate(self, path: str, length: int) -> None:
        """truncate(2)."""
        content = self._file(path).content
        del content[length:]
        content.extend(bytes(length - len(content)))

    def read(self, path: str) -> bytes:
        """The whole content."""
        return bytes(self._file(path).content)

    def shape(self) -> dict[str, int]:
        """Path -> number of names; 0 for directories."""
        return {path: 0 if node.children is not None else node.names for path, node in self.walk()}

    def walk(self) -> list[tuple[str, Node]]:
        """(path, node) of everything below the root."""
        found: list[tuple[str, Node]] = []
        pending = [("", self.root)]
        while pending:
            path, node = pending.pop()
            for name, child in (node.children or {}).items():
                found.append((f"{path}/{name}" if path else name, child))
                pending.append(found[-1])
        return found

    def _find(self, path: str) -> Node:
        node = self.root
        for name in path.split("/") if path else []:
            if node.children is None:
                raise FileError(errno.ENOTDIR)
            if name not in node.children:
                raise FileError(errno.ENOENT)
            node = node.children[name]
        return node

    def _children(self, path: str) -> dict[str, Node]:
        children = self._find(path).children
        if children is None:
            raise FileError(errno.ENOTDIR)
        return children

    def _file(self, path: str) -> Node:
        node = self._find(path)
        if node.children is not None:
            raise FileError(errno.EISDIR)
        return node

    def _add(self, path: str, node: Node) -> None:
        parent, _, name = path.rpartition("/")
        children = self._children(parent)
        if name in children:
            raise FileError(errno.EEXIST)
        children[name] = node
        node.names += 1

    def _drop(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        self._children(parent).pop(name).names -= 1
