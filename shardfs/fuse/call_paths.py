"""Paths of what traced calls are about; inodes do not know their names.

Role: learns names from the calls themselves. What no call has named is looked for by one walk over
all names, while there are not too many.

Invariants:
    I1. Nothing is looked up while a request is answered: only when somebody asks for paths.
    I2. Bounded: NAMES_MAX names are remembered; a walk is made for files of at most WALK_INODES_MAX
        inodes, else a path is "inode:N", which `shardfs why` takes.

Not here: the calls (calls.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Final

from shardfs.errors import ShardfsError
from shardfs.fuse.calls import Call
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.paths import find_paths

_log = logging.getLogger(__name__)

NAMES_MAX: Final = 65536
WALK_INODES_MAX: Final = 200_000
_DEPTH_MAX: Final = 4096
_NAMELESS: Final = frozenset({b"", b".", b".."})
_REMOVING: Final = frozenset({"unlink", "rmdir"})

Name = tuple[int, bytes]


class CallPaths:
    """Names that were learned in one conversation.

    Args:
        file_system: what the calls are about.
    """

    def __init__(self, file_system: FileSystem) -> None:
        self._file_system = file_system
        self._names: dict[int, Name] = {}
        """Inode -> directory and name, as calls have told."""
        self._inodes: dict[Name, int] = {}
        self._walked: dict[int, str] = {}
        """Inode -> path, as a walk has found it; empty: it has found none."""

    async def of(self, calls: Sequence[Call]) -> list[tuple[str, str]]:
        """The path of each call, and that of its target; empty where there is none to tell.

        Args:
            calls: in the order in which they were answered.
        """
        if len(self._inodes) + len(self._walked) > NAMES_MAX:
            self._names.clear()
            self._inodes.clear()
            self._walked.clear()
        await self._walk(calls)
        paths = []
        for call in calls:
            self._learn(call)
            target = self._path_of(*call.target) if call.target is not None else ""
            paths.append((self._path_of(call.ino, call.name), target))
            if call.call == "rename" and not call.errno:
                self._renamed(call)
        return paths

    async def _walk(self, calls: Sequence[Call]) -> None:
        """Look for inodes that no call has named."""
        told = {call.found for call in calls if call.name}
        wanted = {call.ino for call in calls} | {
            call.target[0] for call in calls if call.target is not None
        }
        missing = wanted - told - self._names.keys() - self._walked.keys() - {0, ROOT_INO}
        if not missing:
            return
        found: dict[int, list[str]] = {}
        if self._file_system.tables.inode_count <= WALK_INODES_MAX:
            try:
                found = await find_paths(self._file_system.store, missing)
            except ShardfsError as error:
                _log.info("no paths for what is traced: %s", error)
        for ino in missing:
            self._walked[ino] = found[ino][0] if ino in found else ""

    def _learn(self, call: Call) -> None:
        if call.errno or call.name in _NAMELESS or call.call in _REMOVING or not call.found:
            return
        self._name(call.found, (call.ino, call.name))

    def _name(self, ino: int, name: Name) -> None:
        before = self._names.get(ino)
        if before is not None and self._inodes.get(before) == ino:
            del self._inodes[before]
        self._names[ino] = name
        self._inodes[name] = ino

    def _renamed(self, call: Call) -> None:
        """What calls have told stays true; what a walk has found below the old name does not."""
        assert call.target is not None
        moved = self._inodes.pop((call.ino, call.name), None)
        old = self._path_of(call.ino, call.name)
        if moved is not None:
            self._name(moved, call.target)
        for ino, path in list(self._walked.items()):
            if path == old or path.startswith(f"{old}/"):
                del self._walked[ino]

    def _path_of(self, ino: int, name: bytes = b"") -> str:
        """The path of an inode, or of a name in that directory."""
        if not ino:
            return ""
        parts = [os.fsdecode(name)] if name else []
        for _ in range(_DEPTH_MAX):
            if ino == ROOT_INO:
                return "/" + "/".join(reversed(parts))
            if ino in self._names:
                ino, above = self._names[ino]
                parts.append(os.fsdecode(above))
                continue
            break
        start = self._walked.get(ino) or f"inode:{ino}"
        return "/".join([start, *reversed(parts)])
