"""Reads the tree and the delta log of a store that is at work, and says what of them has rotted.

Role: what `fsck` finds of the manifest, the runs and the log, without stopping anybody: blocks are
read from the device again, though the cache holds them. A friend of the store: it looks at its
parts.

Invariants:
    I1. Nothing is changed. What is read is pinned only while it is read, and what has been merged,
        moved or freed meanwhile is no damage.
    I2. The log is read as the next recovery would, up to what was durable when reading began.
    I3. Memory: one block, and one extent of the log.

Not here: data (fuse/scrub.py), heads of frames and accounts (fsck.py), the superblock.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import NamedTuple

from shardfs.engine.chunks import locator_bytes
from shardfs.engine.delta_log import first_unreadable_delta, log_bytes
from shardfs.engine.pieces import Locator
from shardfs.engine.store import Store
from shardfs.errors import UNREADABLE

Paced = Callable[[int], Awaitable[bool]]
"""Waits until so many bytes may be read; False: stop here."""


class Rotten(NamedTuple):
    """A part of the tree that cannot be read as it was written.

    what: "manifest", "run index", "run block" or "delta log".
    extent, offset: where its frame begins.
    start, end: the keys [start, end) that hang on it; both empty if it is not known.
    """

    what: str
    extent: int
    offset: int
    start: bytes
    end: bytes
    trouble: str


class _Part(NamedTuple):
    what: str
    locator: Locator
    start: bytes
    end: bytes


async def verify_tree(store: Store, paced: Paced) -> AsyncGenerator[Rotten, None]:
    """Read everything once; what has rotted."""
    for part in [*_parts(store)]:
        if not await paced(locator_bytes(part.locator)):
            return
        extent = store._extents.at(part.locator.extent)
        if extent.epoch != part.locator.epoch:
            continue
        with store._extents.pinned(extent.index):
            try:
                await store._chunks.get(part.locator, 0, part.locator.length)
            except UNREADABLE as error:
                if part.locator in {each.locator for each in _parts(store)}:
                    place = (part.locator.extent, part.locator.offset)
                    yield Rotten(part.what, *place, part.start, part.end, str(error))
    async for each in _verify_log(store, paced):
        yield each


def _parts(store: Store) -> Iterator[_Part]:
    """Every chunk of the tree as it is now."""
    manifest = store._committer.root.manifest
    if manifest is not None:
        yield _Part("manifest", manifest, b"", b"")
    for run in store._tree.runs:
        for segment in run.segments:
            meta, index = segment.meta, segment.index
            yield _Part("run index", meta.index_locator, meta.first_key, meta.last_key + b"\0")
            ends = [*index.first_keys[1:], meta.last_key + b"\0"]
            for start, end, block in zip(index.first_keys, ends, index.blocks, strict=True):
                if end > meta.first_key and block != meta.index_locator:
                    yield _Part("run block", block, start, end)


async def _verify_log(store: Store, paced: Paced) -> AsyncGenerator[Rotten, None]:
    root, durable = store._committer.root, store._committer.durable_number
    if not await paced(log_bytes(root, store._extents)):
        return
    try:
        place = await first_unreadable_delta(root, store._extents, durable)
    except UNREADABLE as error:
        yield Rotten("delta log", root.log_extent, root.log_offset, b"", b"", str(error))
        return
    if place is None or store._committer.root != root:
        return  # a checkpoint came in between: the log was let go of while it was read
    number, extent, offset = place
    text = f"delta {number} cannot be read; deltas up to {durable} are durable"
    yield Rotten("delta log", extent, offset, b"", b"", text)
