"""Writes a run as a sequence of segments, one key after the other.

Role: gathers entries into blocks, blocks and their filter into segments, and counts what it has
written as live.

Invariants:
    I1. Entries that share their first limits.CLUSTER_PREFIX_BYTES stay in one block while the
        block is under twice its target size.
    I2. What is written is live from that moment, and in `credited` until somebody refers to it or
        gives it up.

Ordering: nothing refers to a segment before the manifest does, and the manifest waits for every
chunk of it (checkpoint.py).

Not here: what is written (compaction.py), reading it (segment.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from shardfs import limits
from shardfs.engine.cache import Cache
from shardfs.engine.chunks import ChunkStore, locator_bytes
from shardfs.engine.dependency import Dependency
from shardfs.engine.extents import Extents
from shardfs.engine.layout import Kind, Stream
from shardfs.engine.lsm.entry import TOMBSTONE, block_bytes, encode_block
from shardfs.engine.lsm.filter import Filter
from shardfs.engine.lsm.segment import (
    Segment,
    SegmentIndex,
    SegmentMeta,
    encode_index,
    encode_reference,
)
from shardfs.engine.pacing import Slices
from shardfs.engine.pieces import Locator

_FILTER_BYTES_PER_ENTRY = 2
_FILTER_STEP = 128
_ENTRIES_PER_STEP = 32


class SegmentWriter:
    """Writes one run as a sequence of segments.

    Args:
        chunks, extents, cache: of the store.
        run_id: of the new run.
        level: of the new run.
        slices: gives way to other tasks.
        floor: free extents that must be left.
    """

    def __init__(
        self,
        chunks: ChunkStore,
        extents: Extents,
        cache: Cache,
        run_id: int,
        level: int,
        slices: Slices | None = None,
        *,
        floor: int = 0,
    ) -> None:
        self._floor = floor
        self._chunks = chunks
        self._extents = extents
        self._cache = cache
        self.run_id = run_id
        self._level = level
        self.slices = slices or Slices()
        self._entries: list[tuple[bytes, bytes]] = []
        self._entry_bytes = 0
        self._keys: deque[list[bytes]] = deque()
        self._key_count = 0
        self._blocks: list[tuple[bytes, Locator]] = []
        self._references: list[bytes] = []
        self._index_bytes = 0
        self._segment_bytes = 0
        self._tombstones = 0
        self._block_bytes_target = min(limits.RUN_BLOCK_BYTES, chunks.payload_bytes_max // 4)
        self.segment_bytes_max = min(limits.SEGMENT_BYTES_MAX, extents.extent_bytes)
        self.segments: list[Segment] = []
        self.written: list[Dependency] = []
        self.credited: list[Locator] = []

    async def add(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Append entries; keys must rise. Checkpoints: as `slices` does."""
        for start in range(0, len(entries), _ENTRIES_PER_STEP):
            some = entries[start : start + _ENTRIES_PER_STEP]
            await self.slices.spend(len(some))
            for entry in some:
                key, value = entry
                entry_bytes = len(key) + len(value)
                # Below its target a block is not full: that is a quarter of a chunk at most, and
                # an entry, which has two bytes or more, takes four times as much at most.
                if (
                    self._entry_bytes + entry_bytes >= self._block_bytes_target
                    and self._entries
                    and self._block_is_full(key, entry_bytes)
                ):
                    self._end_block()
                    await self._end_segment_if_full()
                self._entries.append(entry)
                self._entry_bytes += entry_bytes
                self._tombstones += value == TOMBSTONE

    @property
    def is_full(self) -> bool:
        """A segment is written, or so nearly that it had better end here than a block further."""
        return bool(self.segments) or (
            self._segment_bytes + self._entry_bytes >= self.segment_bytes_max * 7 // 8
            or self._index_bytes >= self._chunks.payload_bytes_max * 7 // 16
        )

    async def _end_segment_if_full(self) -> None:
        if (
            self._segment_bytes >= self.segment_bytes_max
            or self._index_bytes >= self._chunks.payload_bytes_max // 2
        ):
            await self._end_segment()

    def _block_is_full(self, key: bytes, entry_bytes: int) -> bool:
        count = len(self._entries) + 1
        if block_bytes(count, self._entry_bytes + entry_bytes) > self._chunks.payload_bytes_max:
            return True
        prefix = limits.CLUSTER_PREFIX_BYTES
        return self._entry_bytes >= self._block_bytes_target and (
            self._entry_bytes >= 2 * self._block_bytes_target
            or self._entries[-1][0][:prefix] != key[:prefix]
        )

    async def finish(self) -> None:
        """Write what is left; `segments` is complete afterwards. Checkpoints: as `slices` does."""
        if self._entries:
            self._end_block()
        if self._blocks:
            await self._end_segment()

    def _put(self, kind: Kind, owner: bytes, payload: bytes) -> Locator:
        locator, persistent = self._chunks.put(
            kind, Stream.RUNS, owner, self.run_id, (payload,), floor=self._floor
        )
        # Live from the moment it is written: reclamation must not take what no manifest names
        # yet (the class of ShardStore's issue 14).
        self._extents.credit(locator.extent, locator_bytes(locator))
        self.credited.append(locator)
        if not self.written or self.written[-1] is not persistent:
            self.written.append(persistent)  # neighbours are written together
        self._segment_bytes += locator_bytes(locator)
        return locator

    def _end_block(self) -> None:
        first_key = self._entries[0][0]
        locator = self._put(Kind.RUN_BLOCK, first_key, encode_block(self._entries))
        self._keys.append([key for key, _ in self._entries])
        self._key_count += len(self._entries)
        self._blocks.append((first_key, locator))
        self._references.append(encode_reference(first_key, locator))
        self._index_bytes += len(self._references[-1])
        self._index_bytes += _FILTER_BYTES_PER_ENTRY * len(self._entries)
        self._last_key = self._entries[-1][0]
        self._entries = []
        self._entry_bytes = 0

    async def _end_segment(self) -> None:
        count = self._key_count
        key_filter = Filter.of((), count)
        while self._keys:
            # A block's keys go with it: letting go of all of them at once takes long as well.
            keys = self._keys.popleft()
            for start in range(0, len(keys), _FILTER_STEP):
                some = keys[start : start + _FILTER_STEP]
                key_filter.add(some)
                await self.slices.spend(len(some) * 3 // 4)
        first_key = self._blocks[0][0]
        payload = encode_index(self.run_id, count, self._references, key_filter.encode())
        locator = self._put(Kind.RUN_INDEX, first_key, payload)
        meta = SegmentMeta(
            self.run_id,
            self._level,
            count,
            self._tombstones,
            self._segment_bytes,
            first_key,
            self._last_key,
            locator,
        )
        index = SegmentIndex(
            self.run_id,
            count,
            [key for key, _ in self._blocks],
            [block for _, block in self._blocks],
            key_filter,
        )
        self.segments.append(Segment(meta, index, self._chunks, self._cache))
        self._key_count = 0
        self._blocks = []
        self._references = []
        self._index_bytes = 0
        self._segment_bytes = 0
        self._tombstones = 0
