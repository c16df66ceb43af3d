"""Names the files of which the tree cannot be read any more.

Role: after damage to the tree, or to all of the superblock, fsck knows which keys a lost block or
run covered, and so which inodes and directories; and frames elsewhere on the device (name pages,
other runs, the log) still know names.

Invariants:
    I1. Nothing is written. Memory is bounded by FILES_MAX.

Not here: finding the damage (engine/fsck.py), mending it (repair.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from shardfs import limits
from shardfs.engine.device import Device
from shardfs.engine.findings import Finding, Report
from shardfs.engine.framing import decode_head
from shardfs.engine.layout import FRAME_HEADER
from shardfs.engine.lsm.segment import LostSegment
from shardfs.engine.options import StoreOptions
from shardfs.engine.recovery import read_superblock
from shardfs.engine.salvage import scan_device
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, DeviceError, ShardfsError
from shardfs.fuse.frame_index import FrameIndex
from shardfs.fuse.keys import (
    ENTRY_PREFIX,
    INO_MAX,
    INODE_PREFIX,
    ROOT_INO,
    decode_entry_key,
    decode_file_key,
    inode_key,
)

FILES_MAX: Final = 100
"""Files that are named of each range."""
_EXTENTS_LOOKED_AT: Final = 16
_ALL_KEYS: Final = (b"", b"\xff" * (limits.KEY_BYTES_MAX + 1))
_DEPTH_MAX: Final = 4096
_TOLERANT: Final = StoreOptions(read_only=True, background=False, tolerant=True)


async def lost_keys(device: Device) -> list[tuple[bytes, bytes]]:
    """Ranges [start, end) of keys that a store which cannot be opened in order has lost."""
    try:
        async with Store.open(device, options=_TOLERANT) as store:
            return [
                (segment.meta.first_key, segment.meta.last_key + b"\0")
                for run in store._tree.runs
                for segment in run.segments
                if isinstance(segment, LostSegment)
            ]
    except ShardfsError:
        return [_ALL_KEYS]


async def holds_frames(device: Device) -> bool:
    """Whether a store's frames stand where extents begin, though no superblock does. A few short
    reads, for every size that mkfs gives an extent."""
    size = limits.EXTENT_BYTES_MIN
    while size <= limits.EXTENT_BYTES_MAX:
        for number in range(limits.SUPERBLOCK_EXTENTS, _EXTENTS_LOOKED_AT):
            offset = number * size
            length = min(limits.BLOCK_BYTES, device.size_bytes - offset)
            if length < FRAME_HEADER.size:
                break
            try:
                decode_head(await device.read(offset, length))
            except (CorruptionError, DeviceError):
                continue
            return True
        size *= 2
    return False


async def name_lost(device: Device, report: Report, *, data: bool) -> None:
    """Add a finding for every lost range of keys, which says whose they are.

    Args:
        report: with its lost_keys.
        data: look through the whole device for names.
    """
    ranges = [part for each in report.lost_keys for part in files_of_keys(*each)]
    if not ranges:
        return
    with FrameIndex() as index:
        if data:
            await read_names(device, index)
        for prefix, first, last in sorted(set(ranges)):
            where = range_text(prefix, first, last)
            inos = [each for each in index.inos() if first <= each <= last]
            if prefix == ENTRY_PREFIX:
                inos = _children(index, first, last)
            names = _paths(index, inos)
            if names:
                where += f", among them {', '.join(names)}"
            elif not data:
                where += " (fsck --data looks for their names)"
            report.add(Finding("E3", "what the tree says of them cannot be read", where))


def files_of_keys(start: bytes, end: bytes) -> Iterable[tuple[bytes, int, int]]:
    """(prefix, first, last) of the inodes, and the directories, that a range of keys is about."""
    for prefix in (ENTRY_PREFIX, INODE_PREFIX):
        first, last = 0, INO_MAX
        if start[:1] == prefix:
            first = _number_in(start) or 0
        if end[:1] == prefix and (number := _number_in(end)) is not None:
            last = number - (end == inode_key(number))  # nothing of that one is before its record
        if start < prefix + b"\xff" * 16 and end > prefix and first <= last:
            yield prefix, first, last


def range_text(prefix: bytes, first: int, last: int) -> str:
    """What `files_of_keys` gives, in words."""
    what = "files with inode numbers" if prefix == INODE_PREFIX else "names in directories"
    return f"{what} {first} to {last}" if last < INO_MAX else f"{what} from {first} on"


def _number_in(key: bytes) -> int | None:
    """The inode, or the directory, of a key or of the first key behind one; None: it is no key."""
    for each in (key, key.removesuffix(b"\0")):
        try:
            if each[:1] == ENTRY_PREFIX:
                return decode_entry_key(each)[0]
            return decode_file_key(each).ino
        except CorruptionError:
            continue
    return None


async def read_names(device: Device, index: FrameIndex) -> None:
    """Take in every frame on a device."""
    async for found in scan_device(device):
        index.add(found)
    try:
        store_id = (await read_superblock(device)).identity.store_id
    except ShardfsError:
        index.finish()
    else:
        index.finish(store_id)


def _children(index: FrameIndex, first: int, last: int) -> list[int]:
    found = []
    for ino in index.inos():
        known = index.former(ino)
        if known is not None and any(first <= parent <= last for parent, _ in known.names):
            found.append(ino)
    return found


def _paths(index: FrameIndex, inos: list[int]) -> list[str]:
    """Paths of some of the inodes, as far as frames know them; and how many more there are."""
    names = [name for ino in inos[:FILES_MAX] for name in paths_of(index, ino)]
    if len(inos) > FILES_MAX:
        names.append(f"and {len(inos) - FILES_MAX} more")
    return names


def paths_of(index: FrameIndex, ino: int) -> list[str]:
    """Paths of an inode, as far as frames know them."""
    if ino == ROOT_INO:
        return ["/"]
    known = index.former(ino)
    if known is None or index.is_deleted(ino):
        return []
    return [
        path
        for parent, name in known.names
        if (path := _path_below(index, parent, os.fsdecode(name))) is not None
    ]


def _path_below(index: FrameIndex, parent: int, path: str) -> str | None:
    """The path of a name in a directory; None if nobody knows where that is."""
    for _ in range(_DEPTH_MAX):
        if parent == ROOT_INO:
            return f"/{path}"
        known = index.former(parent)
        if known is None or not known.names:
            return None
        parent, name = known.names[0]
        path = f"{os.fsdecode(name)}/{path}"
    return None
