"""Reading files: the bytes that the store has of them, across shards, chunks and holes.

Role: finds the pieces of what is wanted and joins what the store reads of them; what no piece
covers is a hole and reads as zeros.

Invariants:
    I1. What is read is pinned until all of it has been: no reset comes between two pieces.
    I2. Damage is an error only of what is still there: a shard that was changed while it was read
        is read again.

Ordering: a large read asks for all its pieces at once, in the order of the file.

Not here: dirty data (writeback.py), verifying (chunks.py), changing (files.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from shardfs import limits
from shardfs.engine.layout import Bytes
from shardfs.engine.pieces import Piece, Shard, overlapped
from shardfs.errors import CorruptionError, DeviceError
from shardfs.fuse.dirty import split
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.keys import shard_key

SHARD_BYTES: Final = limits.SHARD_BYTES
_READS_AT_ONCE_MAX: Final = 8
_BYTES_AT_ONCE_MIN: Final = 128 * limits.KIB
"""Shorter reads do not pay for tasks of their own."""


class FileReads:
    """Reads of one store's files."""

    def __init__(self, store: StoreDoor) -> None:
        self._store = store

    async def read(self, ino: int, offset: int, length: int) -> Bytes:
        """The bytes [offset, offset + length); holes, and what lies beyond the end, are zeros.

        Checkpoints: not when everything is cached.

        Raises:
            DeviceError, CorruptionError
        """
        index, start = divmod(offset, SHARD_BYTES)
        if start + length <= SHARD_BYTES:
            parts = await self._read_shard(ino, index, start, start + length)
        else:
            parts = []
            for index, start, end in split(offset, length):
                parts += await self._read_shard(ino, index, start, end)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read_shard(self, ino: int, index: int, start: int, end: int) -> list[Bytes]:
        key = shard_key(ino, index)
        try:
            shard = await self._store.get_shard(key)
            while shard is not None:
                try:
                    return await self._read_pieces(shard, start, end)
                except CorruptionError:
                    # Not if the shard was changed, and its chunks dropped, before we could pin
                    # them.
                    current = await self._store.get_shard(key)
                    if current == shard:
                        raise
                    shard = current
        except CorruptionError as error:
            at = index * SHARD_BYTES
            where = f"inode {ino} bytes {at + start} to {at + end - 1}"
            raise CorruptionError(str(error), where) from error
        return [bytes(end - start)]

    async def _read_pieces(self, shard: Shard, start: int, end: int) -> list[Bytes]:
        found = overlapped(shard.pieces, start, end - start)
        if len(found) == 1 and found[0].start <= start and end <= found[0].end:
            # Reading a chunk pins it, and nothing can have happened to it before.
            piece = found[0]
            skip = piece.skip + start - piece.start
            return [await self._store.read_chunk(piece.locator, skip, end - start)]
        spans = [(max(start, piece.start), min(end, piece.end)) for piece in found]
        with self._store.pinned(found):
            if 1 < len(found) <= _READS_AT_ONCE_MAX and end - start >= _BYTES_AT_ONCE_MIN:
                contents = await self._read_at_once(found, spans)
            else:
                contents = [
                    await self._read_piece(*each) for each in zip(found, spans, strict=True)
                ]
        parts: list[Bytes] = []
        position = start
        for (first, last), content in zip(spans, contents, strict=True):
            if first > position:
                parts.append(bytes(first - position))
            parts.append(content)
            position = last
        if position < end:
            parts.append(bytes(end - position))
        return parts

    async def _read_piece(self, piece: Piece, span: tuple[int, int]) -> Bytes:
        first, last = span
        return await self._store.read_chunk(
            piece.locator, piece.skip + first - piece.start, last - first
        )

    async def _read_at_once(
        self, pieces: Sequence[Piece], spans: Sequence[tuple[int, int]]
    ) -> list[Bytes]:
        """The same of each: the device has all requests before the first is answered, and in the
        order of the file, for what lies below it reads ahead."""
        contents: list[Bytes] = [b""] * len(pieces)
        errors: list[DeviceError | CorruptionError] = []

        async def read(number: int) -> None:
            try:
                contents[number] = await self._read_piece(pieces[number], spans[number])
            except (DeviceError, CorruptionError) as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for number in range(1, len(pieces)):
                nursery.start_soon(read, number)
            await read(0)  # begins before the others do
        if errors:
            raise errors[0]
        return contents
