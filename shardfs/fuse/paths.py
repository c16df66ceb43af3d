"""Finds the names of inodes, which do not know them themselves.

Role: one walk over all names finds those of the wanted inodes; their directories are then followed
up to the root, each of which knows its parent.

Invariants:
    I1. Memory grows with what is wanted, not with the number of files: at most NAMES_MAX names are
        kept of each.

Not here: what is done with the paths (fsck.py, explanations.py).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection
from typing import Final, Protocol

import trio

from shardfs.engine.careful_scan import LostRange, scan_around
from shardfs.engine.pieces import Shard
from shardfs.engine.store import Store
from shardfs.errors import UNREADABLE, CorruptionError
from shardfs.fuse.door import StoreDoor, behind
from shardfs.fuse.keys import ENTRY_PREFIX, ROOT_INO, decode_entry_key, entries_start, inode_key
from shardfs.fuse.records import Entry, decode_entry, decode_inode

NAMES_MAX: Final = 16
"""Names that are looked for of one inode; it may have more."""
_SLICE_ENTRIES: Final = 64
_DEPTH_MAX: Final = 4096
_ENTRIES_END: Final = behind(ENTRY_PREFIX)


async def find_paths(
    store: StoreDoor, wanted: Collection[int], *, lost: list[LostRange] | None = None
) -> dict[int, list[str]]:
    """Paths of the wanted inodes, such as "/folder/file"; none for those without a name.

    Entries that cannot be decoded are passed over.

    Args:
        lost: what of the tree cannot be read is added, and gone round; some names may be missing
            then. Requires: a Store.

    Raises:
        DeviceError, CorruptionError: the tree cannot be read, and `lost` is None.
    """
    readable: _Readable = store
    if lost is not None:
        assert isinstance(store, Store), "damage is gone round by looking at the tree's blocks"
        readable = _Patient(store, lost)
    found: dict[int, list[tuple[int, bytes]]] = {}
    missing = set(wanted) - {ROOT_INO}
    if missing:
        found = await _find_names(readable, ENTRY_PREFIX, _ENTRIES_END, missing)
    directories: dict[int, str | None] = {ROOT_INO: ""}
    paths = {ROOT_INO: ["/"]} if ROOT_INO in wanted else {}
    for ino, names in found.items():
        for parent, name in names:
            above = await _directory_path(readable, parent, directories)
            if above is not None:
                paths.setdefault(ino, []).append(f"{above}/{os.fsdecode(name)}")
    return paths


class _Readable(Protocol):
    """What is needed of a store, or of what is left of one."""

    def scan(self, start: bytes, end: bytes) -> AsyncIterator[tuple[bytes, bytes | Shard]]:
        """What lies in [start, end), ascending."""

    async def get_record(self, key: bytes) -> bytes | None:
        """The record at `key`."""


class _Patient:
    """A store whose damaged parts are gone round."""

    def __init__(self, store: Store, lost: list[LostRange]) -> None:
        self._store = store
        self._lost = lost

    def scan(self, start: bytes, end: bytes) -> AsyncIterator[tuple[bytes, bytes | Shard]]:
        """What can be read of [start, end)."""
        return scan_around(self._store, start, end, self._lost)

    async def get_record(self, key: bytes) -> bytes | None:
        """A record; None as well if it cannot be read."""
        try:
            return await self._store.get_record(key)
        except UNREADABLE as error:
            self._lost.append(LostRange.at(key, error))
            return None


async def _directory_path(store: _Readable, ino: int, known: dict[int, str | None]) -> str | None:
    """The path of a directory; None if it does not lead to the root."""
    chain: list[tuple[int, bytes]] = []
    at = ino
    while at not in known and len(chain) < _DEPTH_MAX:
        parent = await _parent(store, at)
        names = await _find_names(store, entries_start(parent), entries_start(parent + 1), {at})
        if not names:
            known[at] = None
            break
        chain.append((at, names[at][0][1]))
        at = parent
    path = known.get(at)
    for each, name in reversed(chain):
        path = None if path is None else f"{path}/{os.fsdecode(name)}"
        known[each] = path
    return path


async def _parent(store: _Readable, ino: int) -> int:
    """The directory that a directory is in; 0 if its inode does not say."""
    record = await store.get_record(inode_key(ino))
    try:
        return 0 if record is None else decode_inode(record).parent
    except CorruptionError:
        return 0


async def _find_names(
    store: _Readable, start: bytes, end: bytes, wanted: set[int]
) -> dict[int, list[tuple[int, bytes]]]:
    """(directory, name) of the wanted inodes' entries in a range of keys."""
    found: dict[int, list[tuple[int, bytes]]] = {}
    count = 0
    async for key, value in store.scan(start, end):
        count += 1
        if count % _SLICE_ENTRIES == 0:
            await trio.lowlevel.checkpoint()
        entry = _entry(value)
        if entry is None or entry.ino not in wanted:
            continue
        try:
            parent, _, name = decode_entry_key(key)
        except CorruptionError:
            continue
        names = found.setdefault(entry.ino, [])
        if len(names) < NAMES_MAX:
            names.append((parent, name))
    return found


def _entry(value: bytes | Shard) -> Entry | None:
    if isinstance(value, Shard):
        return None
    try:
        return decode_entry(value)
    except CorruptionError:
        return None
