"""Merging sorted runs, a page at a time.

Role: the entries of several runs in a key range, the newest value of each key only. A page is
gathered by loading the blocks it needs from each run and merging them as dictionaries, which
costs well under a microsecond an entry, against several for a heap of iterators.

Invariants:
    I1. A page holds, for the range it covers, exactly what a merge of the whole runs would.

Not here: memtables (tree.py), dropping tombstones for good (compaction.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from shardfs.engine.lsm.filter import hash_of
from shardfs.engine.lsm.segment import Segment
from shardfs.engine.pacing import Slices

_PART_COST = 16
_DECODING_COST = 48
_SEGMENTS_FEW = 4
_COUNT_WORTH_BRINGING = 64
"""Who wants so many entries will want those behind them, too."""
_BLOCKS_BROUGHT = 8


class Run(NamedTuple):
    """One sorted run: its segments in key order."""

    run_id: int
    level: int
    segments: tuple[Segment, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of the run on the device."""
        return sum(segment.meta.total_bytes for segment in self.segments)

    @property
    def entry_count(self) -> int:
        """Entries of the run, tombstones included."""
        return sum(segment.meta.entry_count for segment in self.segments)

    @property
    def tombstone_count(self) -> int:
        """Tombstones among the entries."""
        return sum(segment.meta.tombstone_count for segment in self.segments)

    def segment_number(self, key: bytes) -> int:
        """The segment that holds `key` if any does, or the first one behind it."""
        return bisect_left(self.segments, key, key=lambda segment: segment.meta.last_key)

    def segment_of(self, key: bytes) -> Segment | None:
        """The segment whose key range holds `key`."""
        segments = self.segments
        if len(segments) > _SEGMENTS_FEW:
            segments = segments[self.segment_number(key) :][:1]
        for segment in segments:  # most runs have one: this is asked for each run by each look-up
            if key <= segment.meta.last_key:
                return segment if segment.meta.first_key <= key else None
        return None


class Page(NamedTuple):
    """Merged entries of [start, end_of_page); `horizon` is the last key covered, None for all."""

    entries: dict[bytes, bytes]
    horizon: bytes | None


async def load_page(
    runs: Sequence[Run], start: bytes, end: bytes, count: int, slices: Slices | None = None
) -> Page:
    """Merge the runs from `start`, for at most `count` entries of each.

    Args:
        runs: oldest first; a later run's value hides an earlier one's.
        start, end: the key range [start, end).
        count: entries to take from each run before stopping.
        slices: gives way between blocks; for work in the background.

    Checkpoints: only when blocks are not cached, and as `slices` does.

    Raises:
        DeviceError, CorruptionError: a block cannot be read.
    """
    parts = []
    for run in runs:
        parts.append(await _run_part(run, start, end, count, slices))
        if slices is not None:
            await slices.spend(_PART_COST)
    return merge_parts(parts)


def merge_parts(parts: Sequence[tuple[list[tuple[bytes, bytes]], bool]]) -> Page:
    """Merge what each source gave: (entries in order, whether that was all), oldest first."""
    horizons = [entries[-1][0] for entries, complete in parts if not complete]
    horizon = min(horizons, default=None)
    merged: dict[bytes, bytes] = {}
    for entries, _ in parts:
        merged.update(entries)
    if horizon is not None:
        merged = {key: value for key, value in merged.items() if key <= horizon}
    return Page(merged, horizon)


async def _run_part(
    run: Run, start: bytes, end: bytes, count: int, slices: Slices | None
) -> tuple[list[tuple[bytes, bytes]], bool]:
    entries: list[tuple[bytes, bytes]] = []
    for segment in run.segments[run.segment_number(start) :]:
        start = max(start, segment.meta.first_key)
        for number in range(segment.block_number(start), len(segment.index.blocks)):
            if segment.index.first_keys[number] >= end:
                return entries, True
            if len(entries) >= count:
                return entries, False
            if not segment.is_cached(number):
                if slices is not None:
                    await slices.spend(_DECODING_COST)
                elif count >= _COUNT_WORTH_BRINGING:
                    await segment.bring(segment.blocks_before(end, number, _BLOCKS_BROUGHT))
            block = await segment.block(number)
            first = bisect_left(block.keys, start)
            stop = bisect_left(block.keys, end)
            last = min(stop, first + count - len(entries))
            entries += zip(block.keys[first:last], block.values[first:last], strict=True)
            if last < stop:
                return entries, False
    return entries, True


def candidates(runs: Sequence[Run], key: bytes) -> Iterator[Segment]:
    """The segments, newest run first, that may hold `key`, as key ranges and filters say.

    Args:
        runs: oldest first.
    """
    key_hash = None
    for run in reversed(runs):
        segment = run.segment_of(key)
        if segment is None:
            continue
        if key_hash is None:
            key_hash = hash_of(key)
        if segment.index.filter.may_contain(key_hash):
            yield segment
