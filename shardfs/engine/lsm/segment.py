"""One segment of a sorted run: blocks, and an index with a filter.

Role: a run is a sequence of segments with disjoint, rising key ranges. A segment is a number of
block chunks and one index chunk that names them; the manifest names the index. The index and
the filter are held in memory while the store is open; blocks come through the cache.

Invariants:
    I1. The index names every block of the segment with its first key, in order.
    I2. Keys below `first_key` of the manifest do not count: a merge has taken them already.

Not here: writing one (segment_writer.py), which segment to ask (tree.py).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from shardfs import limits
from shardfs.engine.cache import Cache
from shardfs.engine.chunks import ChunkStore, locator_bytes
from shardfs.engine.layout import BLOCK_REFERENCE, RUN_INDEX_HEADER, Bytes
from shardfs.engine.lsm.entry import (
    Block,
    decode_block,
)
from shardfs.engine.lsm.filter import Filter
from shardfs.engine.pieces import Locator, decode_locator, encode_locator
from shardfs.errors import CorruptionError, DeviceError

_DECODED_ENTRY_BYTES = 120
_BROUGHT_BYTES_MAX = 512 * limits.KIB
_GAP_BYTES_MAX = 32 * limits.KIB
"""Reading so much that is not wanted costs less than one more request."""


class SegmentMeta(NamedTuple):
    """What the manifest says of a segment."""

    run_id: int
    level: int
    entry_count: int
    tombstone_count: int
    total_bytes: int
    first_key: bytes
    last_key: bytes
    index_locator: Locator


class SegmentIndex(NamedTuple):
    """A decoded run index."""

    run_id: int
    entry_count: int
    first_keys: list[bytes]
    blocks: list[Locator]
    filter: Filter


def encode_index(
    run_id: int, entry_count: int, references: Sequence[bytes], filter_data: bytes
) -> bytes:
    """The payload of a run index chunk.

    Args:
        references: of each block, in order (`encode_reference`).
    """
    head = RUN_INDEX_HEADER.pack(run_id, entry_count, len(references), len(filter_data))
    return b"".join((head, *references, filter_data))


def encode_reference(first_key: bytes, locator: Locator) -> bytes:
    """What a run index says of one block."""
    return BLOCK_REFERENCE.pack(len(first_key)) + first_key + encode_locator(locator)


def decode_index(data: Bytes) -> SegmentIndex:
    """The run index in `data`.

    Raises:
        CorruptionError: cut short, too long, or out of order.
    """
    run_id, entry_count, block_count, filter_bytes = RUN_INDEX_HEADER.unpack(data)
    offset = RUN_INDEX_HEADER.size
    first_keys: list[bytes] = []
    blocks = []
    for _ in range(block_count):
        (key_bytes,) = BLOCK_REFERENCE.unpack(data, offset)
        offset += BLOCK_REFERENCE.size
        key = bytes(data[offset : offset + key_bytes])
        locator, offset = decode_locator(data, offset + key_bytes)
        if first_keys and key <= first_keys[-1]:
            raise CorruptionError("the blocks of a run index are out of order", "tree")
        first_keys.append(key)
        blocks.append(locator)
    if not blocks or offset + filter_bytes != len(data):
        raise CorruptionError("a run index has a wrong length", "tree")
    return SegmentIndex(
        run_id, entry_count, first_keys, blocks, Filter.decode(bytes(data[offset:]))
    )


class Segment:
    """An open segment: its index in memory, its blocks on the device.

    Args:
        meta: from the manifest.
        index: decoded from the chunk that `meta.index_locator` names.
        chunks: where blocks are read.
        cache: where decoded blocks are kept.
    """

    def __init__(
        self, meta: SegmentMeta, index: SegmentIndex, chunks: ChunkStore, cache: Cache
    ) -> None:
        self.meta = meta
        self.index = index
        self._chunks = chunks
        self._cache = cache

    @classmethod
    async def open(cls, meta: SegmentMeta, chunks: ChunkStore, cache: Cache) -> Segment:
        """Read the segment's index; one device read.

        Raises:
            DeviceError, CorruptionError: it cannot be read.
        """
        data = await chunks.get(meta.index_locator, 0, meta.index_locator.length)
        index = decode_index(data)
        if index.run_id != meta.run_id or index.entry_count != meta.entry_count:
            raise CorruptionError("a run index does not match the manifest", "tree")
        return cls(meta, index, chunks, cache)

    @property
    def locators(self) -> list[Locator]:
        """Every chunk of the segment."""
        return [*self.index.blocks, self.meta.index_locator]

    @property
    def block_count(self) -> int:
        """Blocks that count (I2)."""
        return len(self.index.blocks) - self.block_number(self.meta.first_key)

    def first_keys(self, skipped: int, step: int) -> list[bytes]:
        """The first key of every `step`th block that counts (I2), but for the first `skipped`."""
        return self.index.first_keys[self.block_number(self.meta.first_key) + skipped :: step]

    def behind(self, key: bytes) -> Segment:
        """The segment without what is not behind `key` (I2)."""
        if key < self.meta.first_key:
            return self
        meta = self.meta._replace(first_key=key + b"\0")
        return Segment(meta, self.index, self._chunks, self._cache)

    def at_level(self, level: int) -> Segment:
        """The segment as part of a run of that level."""
        if level == self.meta.level:
            return self
        return Segment(self.meta._replace(level=level), self.index, self._chunks, self._cache)

    def block_number(self, key: bytes) -> int:
        """The block that holds `key` if any does, or the first one behind it."""
        return max(0, bisect_right(self.index.first_keys, key) - 1)

    def blocks_before(self, end: bytes, number: int, count_max: int) -> range:
        """The first blocks from `number` on that begin below `end`."""
        stop = bisect_left(self.index.first_keys, end, number)
        return range(number, min(stop, number + count_max))

    async def get(self, key: bytes) -> bytes | None:
        """The encoded value, or None when the key is not in this segment. Asks no filter.

        Checkpoints: only when the block is not cached; one device read.

        Raises:
            DeviceError, CorruptionError: the block cannot be read.
        """
        block = await self.block(self.block_number(key))
        at = bisect_left(block.keys, key)
        if at < len(block.keys) and block.keys[at] == key:
            return block.values[at]
        return None

    def cached_block(self, key: bytes) -> Block | None:
        """The block that holds `key` if any does, unless it would have to be read."""
        found: Block | None = self._cache.get(_cache_key(self.index.blocks[self.block_number(key)]))
        return found

    def is_cached(self, number: int) -> bool:
        """Whether a block need not be read and decoded; never checkpoints."""
        return self._cache.holds(_cache_key(self.index.blocks[number]))

    async def block(self, number: int) -> Block:
        """A decoded block, from the cache if it is there."""
        locator = self.index.blocks[number]
        key = _cache_key(locator)
        cached: Block | None = self._cache.get(key)
        if cached is not None:
            return cached

        async def load() -> tuple[Block, int]:
            return await _block_and_size(await self._chunks.get(locator, 0, locator.length))

        loaded: Block = await self._cache.load(key, load)
        return loaded

    async def bring(self, numbers: Sequence[int]) -> None:
        """Have blocks in the cache: those that lie side by side are one device read. No more than
        is sensible is brought, and trouble is left for who needs a block.

        Args:
            numbers: of blocks, ascending.
        """
        missing = [self.index.blocks[number] for number in numbers if not self.is_cached(number)]
        for group in _side_by_side(missing, min(_BROUGHT_BYTES_MAX, self._cache.bytes_max // 4)):
            if len(group) < 2:
                continue  # `block` does that as well
            try:
                payloads = await self._chunks.get_side_by_side(group)
            except (DeviceError, CorruptionError):
                continue
            for locator, payload in zip(group, payloads, strict=True):
                with suppress(CorruptionError):
                    await self._cache.load(_cache_key(locator), partial(_block_and_size, payload))


async def _block_and_size(payload: Bytes) -> tuple[Block, int]:
    """A block and what it takes in the cache."""
    block = decode_block(payload)
    return block, len(payload) + _DECODED_ENTRY_BYTES * len(block.keys)


def _side_by_side(locators: Sequence[Locator], bytes_max: int) -> Iterator[list[Locator]]:
    """Groups of chunks that are worth one read each."""
    group: list[Locator] = []
    for locator in locators:
        if group:
            last = group[-1]
            gap = locator.offset - last.offset - locator_bytes(last)
            length = locator.offset + locator_bytes(locator) - group[0].offset
            if (
                (locator.extent, locator.epoch) != (last.extent, last.epoch)
                or not 0 <= gap <= _GAP_BYTES_MAX
                or length > bytes_max
            ):
                yield group
                group = []
        group.append(locator)
    if group:
        yield group


class LostSegment(Segment):
    """A segment whose index cannot be read: every key in its range is lost, none is absent.

    So no older value of a key takes the place of one that may have been here.

    Args:
        meta: from the manifest.
        trouble: why it cannot be read.
    """

    def __init__(self, meta: SegmentMeta, trouble: str, chunks: ChunkStore, cache: Cache) -> None:
        index = SegmentIndex(
            meta.run_id, meta.entry_count, [meta.first_key], [meta.index_locator], Filter.of_all()
        )
        super().__init__(meta, index, chunks, cache)
        self.trouble = trouble

    def is_cached(self, number: int) -> bool:
        """Nothing will be read."""
        return True

    async def block(self, number: int) -> Block:
        """Raises:
        CorruptionError: always.
        """
        raise CorruptionError(f"a part of the tree is lost: {self.trouble}", "tree")


def _cache_key(locator: Locator) -> tuple[int, int, int]:
    return (locator.extent, locator.epoch, locator.offset)
