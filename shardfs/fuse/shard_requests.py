"""Requests about shards: which there are, where they lie, what is in them, whether it is right.

Role: a part of what inspection.py answers, with these requests:

    shards-begin   path | ino     starts a list of the shards of a file, a directory and all below
                                  it, or ("") everything, nameless files included
    shards-more                   the next page of that list: {"shards": [...], "end": bool}
    shard          ino, index     one shard: its pieces, and where each of them lies
    file           path | ino     {"ino", "size", "shard_bytes"} of a file
    read           ino, index, start, length   bytes of a shard, base64, at most READ_BYTES_MAX
    verify         ino, index     what of a shard does not match its checksums

Items {"path": ..., "lost": "..."} of a list stand for what cannot be read.

Invariants:
    I1. What a mount has buffered is handed to the store first, so that answers speak of the newest
        content.
    I2. A list goes on behind what is damaged, says what it is, and ends on any tree of names.

Not here: how requests travel (control.py).
"""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import AsyncGenerator
from typing import Final

import trio

from shardfs import limits
from shardfs.engine.careful_scan import LostRange, scan_around
from shardfs.engine.chunks import payload_offset
from shardfs.engine.pieces import DIGEST_BYTES, Piece, Shard, granule_bytes
from shardfs.engine.store import Store
from shardfs.errors import UNREADABLE, CorruptionError, UsageError
from shardfs.fuse.door import behind
from shardfs.fuse.keys import (
    ORPHAN_PREFIX,
    ROOT_INO,
    decode_entry_key,
    decode_file_key,
    decode_marker_key,
    entries_start,
    shard_key,
    shards_end,
)
from shardfs.fuse.records import Entry, Inode, decode_entry
from shardfs.fuse.requests import Answer, Handlers, Pages, number_of, text_of
from shardfs.fuse.resolving import Resolver, clean_path

READ_BYTES_MAX: Final = 512 * limits.KIB
_SHARD_ID: Final = re.compile(r"(\d{1,19})\.(\d{1,19})")


def parse_shard_id(text: str) -> tuple[int, int] | None:
    """(inode, index) of a shard's name such as 12.0; None if it is none."""
    match = _SHARD_ID.fullmatch(text)
    return (int(match[1]), int(match[2])) if match is not None else None


class ShardRequests:
    """The shards of one open store, in one conversation.

    Args:
        store: open, for reading at least.
        resolver: finds files in it.
        pages: of the conversation.

    handlers: what answers each request.
    """

    def __init__(self, store: Store, resolver: Resolver, pages: Pages) -> None:
        self._store = store
        self._resolver = resolver
        self._pages = pages
        self.handlers: Handlers = {
            "shards-begin": self._begin,
            "shards-more": self._more,
            "shard": self._shard,
            "file": self._file,
            "read": self._read,
            "verify": self._verify,
        }

    async def _begin(self, request: Answer) -> Answer:
        await self._pages.aclose()
        await self._resolver.hand_over_all()
        ino, inode = await self._resolver.asked_for(request)
        path = clean_path(text_of(request, "path")) if "path" in request else None
        return await self._pages.begin("shards", self._list(ino, inode, path))

    async def _more(self, _request: Answer) -> Answer:
        return await self._pages.more("shards")

    async def _list(self, ino: int, inode: Inode, path: str | None) -> AsyncGenerator[Answer, None]:
        """The shards of an inode and, for a directory, of all below it, then nameless files."""
        if not inode.is_directory:
            async for shard in self._shards_of(ino, path):
                yield shard
            return
        linked: set[int] = set()
        known = {ino}
        waiting = [(ino, path or "")]
        while waiting:
            directory, above = waiting.pop()
            async for below, entry in self._entries(directory, above):
                if isinstance(entry, str):
                    yield {"path": below, "lost": entry}
                elif entry.is_directory and entry.ino in known:
                    yield {"path": below, "lost": "a directory that has another name"}
                elif entry.is_directory:
                    known.add(entry.ino)
                    waiting.append((entry.ino, below))
                elif entry.type == stat.S_IFREG >> 12 and entry.ino not in linked:
                    async for shard in self._shards_of(entry.ino, below, linked):
                        yield shard
        if ino != ROOT_INO:
            return
        lost: list[LostRange] = []
        async for key, _ in scan_around(self._store, ORPHAN_PREFIX, behind(ORPHAN_PREFIX), lost):
            async for shard in self._shards_of(decode_marker_key(key), None):
                yield shard
        for each in lost:
            yield {"path": None, "lost": f"some removed files cannot be listed: {each.trouble}"}

    async def _entries(
        self, directory: int, above: str
    ) -> AsyncGenerator[tuple[str, Entry | str], None]:
        """Paths in a directory, each with its entry or why that cannot be read (I2)."""
        lost: list[LostRange] = []
        start, end = entries_start(directory), entries_start(directory + 1)
        async for key, value in scan_around(self._store, start, end, lost):
            await trio.lowlevel.checkpoint()
            below = above
            try:
                name = os.fsdecode(decode_entry_key(key)[2])
                below = f"{above}/{name}" if above else name
                entry = decode_entry(_record(value, key))
            except CorruptionError as error:
                yield below, str(error)
                continue
            yield below, entry
        for each in lost:
            yield above, f"some names in it cannot be read: {each.trouble}"

    async def _shards_of(
        self, ino: int, path: str | None, linked: set[int] | None = None
    ) -> AsyncGenerator[Answer, None]:
        if linked is not None:
            try:
                inode = await self._resolver.inode(ino)
                is_linked = inode is not None and inode.nlink > 1
            except UNREADABLE as error:
                yield {"path": path, "lost": f"inode {ino} cannot be read: {error}"}
                is_linked = True
            if is_linked:
                linked.add(ino)
        lost: list[LostRange] = []
        async for key, value in scan_around(self._store, shard_key(ino, 0), shards_end(ino), lost):
            await trio.lowlevel.checkpoint()
            index = decode_file_key(key).shard
            if isinstance(value, Shard) and index is not None:
                yield self._describe(key, ino, index, value) | {"path": path}
        for each in lost:
            yield {
                "path": path,
                "lost": f"some shards of inode {ino} cannot be read: {each.trouble}",
            }

    def _describe(self, key: bytes, ino: int, index: int, shard: Shard) -> Answer:
        return {
            "id": f"{ino}.{index}",
            "ino": ino,
            "index": index,
            "bytes": sum(piece.length for piece in shard.pieces),
            "pieces": len(shard.pieces),
            "persistent": self._store.is_durable(key),
        }

    async def _shard(self, request: Answer) -> Answer:
        ino, index = number_of(request, "ino"), number_of(request, "index")
        shard = await self._load(ino, index)
        key = shard_key(ino, index)
        answer = self._describe(key, ino, index, shard)
        answer["start"] = index * limits.SHARD_BYTES
        answer["shard_bytes"] = limits.SHARD_BYTES
        answer["pieces"] = [self._describe_piece(piece) for piece in shard.pieces]
        return answer

    def _describe_piece(self, piece: Piece) -> Answer:
        locator = piece.locator
        digests = locator.checksums
        start = self._store.identity.extent_offset(locator.extent)
        return {
            "start": piece.start,
            "length": piece.length,
            "skip": piece.skip,
            "address": start + payload_offset(locator) + piece.skip,
            "chunk": {
                "extent": locator.extent,
                "epoch": locator.epoch,
                "offset": locator.offset,
                "length": locator.length,
                "sequence": locator.sequence,
                "checksums": [
                    digests[at : at + DIGEST_BYTES].hex()
                    for at in range(0, len(digests), DIGEST_BYTES)
                ],
            },
        }

    async def _file(self, request: Answer) -> Answer:
        ino, inode = await self._resolver.asked_for(request)
        if inode.is_directory:
            named = f"/{request['path']}" if "path" in request else f"inode {ino}"
            raise UsageError(f"{named} is a directory; name a file")
        await self._resolver.hand_over(ino)
        size = inode.size if (current := await self._resolver.inode(ino)) is None else current.size
        if not inode.is_regular:
            size = 0
        return {"ino": ino, "size": size, "shard_bytes": limits.SHARD_BYTES}

    async def _read(self, request: Answer) -> Answer:
        ino, index = number_of(request, "ino"), number_of(request, "index")
        start, length = number_of(request, "start"), number_of(request, "length")
        if start + length > limits.SHARD_BYTES:
            raise UsageError(f"a shard has {limits.SHARD_BYTES} bytes")
        inode = await self._resolver.inode(ino)
        shard = await self._store.get_shard(shard_key(ino, index))
        if inode is None:
            raise UsageError(f"there is no inode {ino}")
        end = min(start + min(length, READ_BYTES_MAX), inode.size - index * limits.SHARD_BYTES)
        if end <= start:
            return {"data": ""}
        try:
            data = await self._store.read_shard(shard or Shard(()), start, end - start)
        except CorruptionError as error:
            raise CorruptionError(str(error), f"shard {ino}.{index}") from error
        return {"data": base64.b64encode(data).decode("ascii")}

    async def _verify(self, request: Answer) -> Answer:
        ino, index = number_of(request, "ino"), number_of(request, "index")
        shard = await self._load(ino, index)
        damaged: list[Answer] = []
        with self._store.pinned(shard.pieces):
            for piece in shard.pieces:
                damaged += await self._damage_of(piece, index * limits.SHARD_BYTES)
        return {
            "id": f"{ino}.{index}",
            "ino": ino,
            "index": index,
            "bytes": sum(piece.length for piece in shard.pieces),
            "damaged": damaged,
        }

    async def _damage_of(self, piece: Piece, base: int) -> list[Answer]:
        """Parts of a piece that cannot be read as they were written; `base`: of its shard."""
        try:
            await self._store.read_chunk(piece.locator, piece.skip, piece.length)
            return []
        except UNREADABLE:
            damaged = []
        granule = granule_bytes(piece.locator.length)
        at, end = piece.skip, piece.skip + piece.length
        while at < end:
            stop = min(end, at - at % granule + granule)
            try:
                await self._store.read_chunk(piece.locator, at, stop - at)
            except UNREADABLE as error:
                start = base + piece.start + at - piece.skip
                damaged.append({"start": start, "length": stop - at, "error": str(error)})
            at = stop
        return damaged

    async def _load(self, ino: int, index: int) -> Shard:
        """A shard that somebody asked for.

        Raises:
            UsageError: there is none.
        """
        await self._resolver.hand_over(ino)
        shard = await self._store.get_shard(shard_key(ino, index))
        if shard is None:
            raise UsageError(f"there is no shard {ino}.{index}; see: shardfs shards ls")
        return shard


def _record(value: bytes | Shard, key: bytes) -> bytes:
    if isinstance(value, Shard):
        raise CorruptionError("a shard stands where a record should", f"key {key.hex()}")
    return value
