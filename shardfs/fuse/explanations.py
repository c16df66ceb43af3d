"""Explains where space is: what lives in an extent, and where a file lies on the device.

Role: answers the requests "extent", "extent-files" and "path" of inspection.py about one store.

Invariants:
    I1. Nothing is changed. Answers are bounded: long lists come in pages or are cut at
        EXTENTS_LISTED_MAX, and say so.
    I2. Bytes "on the device" are those of whole frames, so that those of all files in an extent
        add up to its live bytes.
    I3. What of the tree cannot be read is gone round, and said.

Not here: why an extent is not free (engine/occupancy.py), finding names (paths.py).
"""

from __future__ import annotations

import stat
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Final

import trio

from shardfs import limits
from shardfs.engine.careful_scan import LostRange, scan_around
from shardfs.engine.liveness import live_bytes
from shardfs.engine.occupancy import extent_figures, references, tree_contents
from shardfs.engine.pieces import Piece, Shard, locators
from shardfs.engine.store import Store
from shardfs.errors import UNREADABLE, CorruptionError
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import (
    decode_file_key,
    entries_start,
    inode_key,
    orphan_key,
    shard_key,
    shards_end,
)
from shardfs.fuse.paths import find_paths
from shardfs.fuse.records import Inode, decode_entry, decode_inode
from shardfs.fuse.requests import Answer

EXTENTS_LISTED_MAX: Final = 1024
TROUBLES_MAX: Final = 100
_FILES_NAMED_AT_ONCE: Final = 4096


@dataclass
class _Usage:
    """What is added up of one file, or of many."""

    files: int = 0
    shards: int = 0
    pieces: int = 0
    chunks: int = 0
    stored_bytes: int = 0
    device_bytes: int = 0
    overwritten_bytes: int = 0
    extents: dict[int, int] = field(default_factory=dict)
    lost: list[LostRange] = field(default_factory=list)

    def add(self, shard: Shard) -> None:
        """Take in one shard."""
        chunks = locators(shard.pieces)
        stored = sum(piece.length for piece in shard.pieces)
        self.shards += 1
        self.pieces += len(shard.pieces)
        self.chunks += len(chunks)
        self.stored_bytes += stored
        self.overwritten_bytes += sum(each.length for each in chunks.values()) - stored
        for (extent, _), size in live_bytes(shard.pieces).items():
            self.device_bytes += size
            self.extents[extent] = self.extents.get(extent, 0) + size


class Explanations:
    """Explains one open store.

    Args:
        store: open, for reading at least.
        file_system: of the mount that serves it, if one does.
    """

    def __init__(self, store: Store, file_system: FileSystem | None) -> None:
        self._store = store
        self._file_system = file_system

    async def extent(self, number: int) -> Answer:
        """What there is to say of an extent, but for the files in it.

        Raises:
            UsageError: there is no such extent.
        """
        await trio.lowlevel.checkpoint()
        answer = asdict(extent_figures(self._store, number))
        answer["contents"] = [
            {"name": name, "bytes": size} for name, size in tree_contents(self._store, number)
        ]
        return answer

    async def files_in(self, number: int) -> AsyncGenerator[Answer, None]:
        """The files whose bytes live in an extent, one shard after the other: inode, names, ranges
        of bytes within the file, and bytes on the device. At the end {"lost": "..."} for what of
        the tree cannot be read.
        """
        lost: list[LostRange] = []
        waiting: list[tuple[bytes, list[Piece], int]] = []
        async for found in references(self._store, number, lost):
            await trio.lowlevel.checkpoint()
            waiting.append(found)
            if len(waiting) == _FILES_NAMED_AT_ONCE:
                async for answer in self._named(waiting, lost):
                    yield answer
                waiting = []
        async for answer in self._named(waiting, lost):
            yield answer
        for trouble in _troubles(lost):
            yield {"lost": trouble}

    async def _named(
        self, found: list[tuple[bytes, list[Piece], int]], lost: list[LostRange]
    ) -> AsyncIterator[Answer]:
        owners = [_owner(key) for key, _, _ in found]
        wanted = {owner[0] for owner in owners if owner is not None}
        paths = await find_paths(self._store, wanted, lost=lost)
        for (key, pieces, size), owner in zip(found, owners, strict=True):
            if owner is None:
                yield {"key": key.hex(), "bytes": size}
                continue
            ino, index = owner
            start = index * limits.SHARD_BYTES
            yield {
                "ino": ino,
                "paths": paths.get(ino, []),
                "removed": None if ino in paths or lost else await self._removed(ino),
                "bytes": size,
                "ranges": _ranges(pieces, start),
            }

    async def path(self, ino: int, inode: Inode) -> Answer:
        """Where a file, or everything below a directory, lies, as far as the tree can be read."""
        usage = _Usage()
        if inode.is_directory:
            await self._add_directory(ino, usage)
        else:
            await self._add_file(ino, usage)
        needs_names = inode.nlink > 1 or inode.nlink == 0
        paths = await find_paths(self._store, {ino}, lost=usage.lost) if needs_names else {}
        extents = [self._part_of(number, size) for number, size in usage.extents.items()]
        extents.sort(key=lambda each: -each["bytes"])
        return {
            "ino": ino,
            "kind": _kind(inode),
            "names": inode.nlink if not inode.is_directory else 1,
            "paths": paths.get(ino, []),
            "removed": await self._removed(ino) if inode.nlink == 0 else None,
            "size": inode.size,
            "files": usage.files,
            "stored_bytes": usage.stored_bytes,
            "device_bytes": usage.device_bytes,
            "overwritten_bytes": usage.overwritten_bytes,
            "shards": usage.shards,
            "pieces": usage.pieces,
            "chunks": usage.chunks,
            "extent_count": len(extents),
            "garbage_held_bytes": sum(each["garbage_bytes"] for each in extents),
            "extents": extents[:EXTENTS_LISTED_MAX],
            "lost": _troubles(usage.lost),
        }

    def _part_of(self, number: int, size: int) -> Answer:
        figures = extent_figures(self._store, number)
        return {
            "extent": number,
            "state": figures.state,
            "stream": figures.stream,
            "bytes": size,
            "live_bytes": figures.live_bytes,
            "garbage_bytes": figures.garbage_bytes,
            "holds": [hold.kind for hold in figures.holds],
        }

    async def _add_file(self, ino: int, usage: _Usage) -> None:
        usage.files += 1
        start, end = shard_key(ino, 0), shards_end(ino)
        async for _, value in scan_around(self._store, start, end, usage.lost):
            await trio.lowlevel.checkpoint()
            if isinstance(value, Shard):
                usage.add(value)

    async def _add_directory(self, ino: int, usage: _Usage) -> None:
        """Every regular file below, those with several names once."""
        linked: set[int] = set()
        known = {ino}
        waiting = [ino]
        while waiting:
            directory = waiting.pop()
            start, end = entries_start(directory), entries_start(directory + 1)
            async for key, value in scan_around(self._store, start, end, usage.lost):
                await trio.lowlevel.checkpoint()
                try:
                    entry = decode_entry(value if isinstance(value, bytes) else b"")
                    inode = None if entry.is_directory else await self._inode(entry.ino)
                except UNREADABLE as error:
                    usage.lost.append(LostRange.at(key, error))
                    continue
                if entry.is_directory and entry.ino not in known:
                    known.add(entry.ino)
                    waiting.append(entry.ino)
                elif entry.type == stat.S_IFREG >> 12 and entry.ino not in linked:
                    if inode is not None and inode.nlink > 1:
                        linked.add(entry.ino)
                    await self._add_file(entry.ino, usage)

    async def _removed(self, ino: int) -> str | None:
        """What is known of an inode without a name: why it is still there."""
        if self._file_system is not None and self._file_system.orphans.is_held(ino):
            return "open"
        try:
            if await self._store.get_record(orphan_key(ino)) is None:
                return None
        except UNREADABLE:
            return None
        return "being-freed" if self._file_system is not None else "freed-by-next-mount"

    async def _inode(self, ino: int) -> Inode | None:
        record = await self._store.get_record(inode_key(ino))
        return None if record is None else decode_inode(record)


def _troubles(lost: list[LostRange]) -> list[str]:
    """What of the tree cannot be read, in words; the same block once."""
    return list(dict.fromkeys(each.trouble for each in lost))[:TROUBLES_MAX]


def _owner(key: bytes) -> tuple[int, int] | None:
    """(inode, shard index) of a shard's key; None if it is no file's."""
    try:
        decoded = decode_file_key(key)
    except CorruptionError:
        return None
    return None if decoded.shard is None else (decoded.ino, decoded.shard)


def _ranges(pieces: list[Piece], start: int) -> list[list[int]]:
    """[start, length] of the bytes of the file, neighbours joined."""
    ranges: list[list[int]] = []
    for piece in pieces:
        if ranges and sum(ranges[-1]) == start + piece.start:
            ranges[-1][1] += piece.length
        else:
            ranges.append([start + piece.start, piece.length])
    return ranges


def _kind(inode: Inode) -> str:
    if inode.is_directory:
        return "directory"
    if inode.is_regular:
        return "file"
    return "symlink" if inode.is_symlink else "special"
