"""Gives up what a shard's data has lost, and writes what is left of it elsewhere.

Role: for each shard, the chunks that cannot be read as they were written are let go of: their good
granules are written again, the others are recorded as lost (layout.DAMAGED_EXTENT).

Invariants:
    I1. What was readable stays readable, with the same bytes; what was not is an error to read,
        before and after.
    I2. A shard changes in one batch, in which its copies are first referred to.

Not here: finding damage without mending it (fsck.py), which file it hits (fuse/data_repair.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from shardfs.engine.fsck import is_meant, read_head
from shardfs.engine.layout import Kind
from shardfs.engine.pieces import Locator, Piece, Shard, granule_bytes, locators
from shardfs.engine.store import Store
from shardfs.errors import UNREADABLE


class Loss(NamedTuple):
    """What became of one shard.

    lost: (start, end) of bytes within the shard that nobody can read any more.
    copied_bytes: written elsewhere.
    """

    lost: tuple[tuple[int, int], ...]
    copied_bytes: int


async def give_up_damage(store: Store, key: bytes, shard: Shard) -> Loss | None:
    """Let go of the damaged chunks of a shard; None if there are none.

    Requires: nobody else changes the store.

    Raises:
        NoSpaceError, ReadOnlyError: nothing was changed.
    """
    parts: list[tuple[Piece, bytes | None]] = []
    with store.pinned(shard.pieces):
        bad = [
            each.sequence
            for each in locators(shard.pieces).values()
            if not await _is_whole(store, key, each)
        ]
        if not bad:
            return None
        for piece in shard.pieces:
            if piece.locator.sequence in bad and not piece.is_damaged:
                parts += [part async for part in _parts(store, piece)]
            else:
                parts.append((piece, None))
    # No await from here on: a copy is referred to before anything else runs (I2).
    batch = store.batch(essential=True)
    pieces: list[Piece] = []
    copied_bytes = 0
    for piece, data in parts:
        if data is None:
            pieces.append(piece)
        else:
            pieces += store.append_pieces(key, piece.start, (data,), replaced=(piece,))
            copied_bytes += len(data)
    batch.put_shard(key, tuple(pieces), shard)
    store.apply(batch)
    lost = tuple(
        (piece.start, piece.end)
        for piece, _ in parts
        if piece.is_damaged and piece.locator.sequence in bad
    )
    return Loss(lost, copied_bytes)


async def _is_whole(store: Store, key: bytes, locator: Locator) -> bool:
    try:
        await store.read_chunk(locator, 0, locator.length)
        frame = await read_head(store, locator)
    except UNREADABLE:
        return False
    return is_meant(frame, locator, Kind.DATA, key, None)


async def _parts(store: Store, piece: Piece) -> AsyncIterator[tuple[Piece, bytes | None]]:
    """The piece cut at the edges of its granules, neighbours of a kind joined: each part with its
    bytes, or, recorded as lost, with None."""
    good: list[bytes] = []
    good_start = at = piece.start
    granule = granule_bytes(piece.locator.length)
    while at < piece.end:
        skip = piece.skip + at - piece.start
        length = granule - skip % granule
        end = min(at + length, piece.end)
        try:
            good.append(bytes(await store.read_chunk(piece.locator, skip, end - at)))
        except UNREADABLE:
            if good:
                yield piece.part(good_start, at), b"".join(good)
            good, good_start = [], end
            yield piece.part(at, end).as_damaged(), None
        at = end
    if good:
        yield piece.part(good_start, at), b"".join(good)
