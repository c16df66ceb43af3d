"""Finds what append-only storage still holds of deleted files.

Role: data that nobody refers to stays on the device until its extent is reclaimed; its frames still
tell which inode it belonged to, and older versions of name pages what that was called.

Invariants:
    I1. A file is deleted if its data is there and the tree has no inode for it.
    I2. Bytes given out matched their checksums; what is missing is said.

Not here: the scan (engine/salvage.py), which frame counts (frame_index.py).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import trio

from shardfs import limits
from shardfs.engine.careful_scan import LostRange
from shardfs.engine.device import Device
from shardfs.engine.store import Store
from shardfs.errors import UNREADABLE
from shardfs.fuse.frame_index import DataFrame, FrameIndex
from shardfs.fuse.keys import inode_key
from shardfs.fuse.paths import find_paths
from shardfs.fuse.records import NamedInode
from shardfs.fuse.salvage import Content, write_content


@dataclass(frozen=True)
class DeletedFile:
    """A file that was deleted.

    path: where it was; its name alone after "…/" if its directory is gone too; None: not known.
    size: its length in bytes, if it is known.
    found_bytes: so many are still there; all of it if `is_whole`.
    extents: numbers of those that hold its data, which it lasts as long as.
    """

    ino: int
    path: str | None
    size: int | None
    found_bytes: int
    is_whole: bool
    extents: tuple[int, ...]


async def deleted_files(
    store: Store, index: FrameIndex, lost: list[LostRange]
) -> AsyncIterator[DeletedFile]:
    """The deleted files of a store, by inode number.

    Args:
        lost: what of the tree cannot be read is added; an inode in it is not called deleted.
    """
    for ino in index.inos_with_data():
        await trio.lowlevel.checkpoint()
        key = inode_key(ino)
        try:
            if await store.get_record(key) is not None:
                continue
        except UNREADABLE as error:
            lost.append(LostRange.at(key, error))
            continue
        known = index.former(ino)
        size = store.identity.extent_bytes
        extents = dict.fromkeys(frame.at // size for frame in index.data(ino))
        found = _found_bytes(index, ino)
        inode = known.inode if known is not None else None
        is_whole = inode is not None and found >= inode.used
        yield DeletedFile(
            ino,
            await _path(store, known, lost),
            inode.size if inode is not None else None,
            found,
            is_whole,
            tuple(extents),
        )


def _found_bytes(index: FrameIndex, ino: int) -> int:
    """Bytes of the file that some whole frame covers."""
    end, total = -1, 0
    ranges = sorted(
        (_file_start(frame), _file_start(frame) + frame.length)
        for frame in index.data(ino)
        if not frame.damaged
    )
    for start, stop in ranges:
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total


def _file_start(frame: DataFrame) -> int:
    return frame.shard * limits.SHARD_BYTES + frame.start


async def _path(store: Store, known: NamedInode | None, lost: list[LostRange]) -> str | None:
    if known is None or not known.names:
        return None
    parent, name = known.names[0]
    paths = await find_paths(store, {parent}, lost=lost)
    above = paths[parent][0].rstrip("/") if parent in paths else "…"
    return f"{above}/{os.fsdecode(name)}"


async def bring_back(
    device: Device, index: FrameIndex, ino: int, descriptor: int
) -> tuple[Content, NamedInode | None]:
    """Write the content of a deleted file; what came of it, and what is known of the file.

    Args:
        descriptor: of an empty file.

    Raises:
        OSError: it cannot be written.
    """
    known = index.former(ino)
    inode = known.inode if known is not None else None
    return await write_content(device, index, ino, inode, descriptor), known
