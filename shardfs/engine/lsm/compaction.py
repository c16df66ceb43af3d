"""Choosing runs to merge, and merging them a segment at a time.

Role: the shape of the tree. Runs are merged by tiers: when limits.RUNS_PER_LEVEL_MAX runs of a
level stand side by side, they become one run of the next. Beside that all runs become one as
soon as half of the tree is estimated to be garbage: entries that newer ones hide, and the
tombstones that hide them. So what only grows is written once a level and what changes does not
pile up. Source: tiering and its costs as in Dayan and Idreos, "Dostoevsky", SIGMOD 2018, 3; the
trigger by garbage is our own in place of a size ratio.

A merge goes in steps of one segment of output. After a step the sources are cut off behind the
last key it took (Segment.behind), so they and the result hold each key once, and the tree is whole
between steps. A merge of any size needs room for one step.

Invariants:
    I1. Runs that are merged are neighbours in age, so that order among versions is kept.
    I2. A tombstone is dropped if, and only if, no older run may hold its key, as key ranges and
        filters say.
    I3. A step takes for each key the newest value in the sources, and all keys up to its end.

Not here: making the result part of the tree, and which merges are under way (checkpoint.py).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import islice

import trio

from shardfs import limits
from shardfs.engine.lsm.entry import ENTRY_FIXED_BYTES, TOMBSTONE, Block
from shardfs.engine.lsm.filter import hash_of
from shardfs.engine.lsm.memtable import Memtable
from shardfs.engine.lsm.merge import Run, candidates
from shardfs.engine.lsm.segment import Segment
from shardfs.engine.lsm.segment_writer import SegmentWriter
from shardfs.engine.pacing import Slices, share_between
from shardfs.errors import UNREADABLE

GARBAGE_SHARE_MAX = 0.5
"""Of the tree's bytes; beyond it all runs are merged."""
GARBAGE_SHARE_SHORT = 1 / 6
"""The same where space is short, or nothing else is to be done."""
SAMPLES = 64
_SAMPLE_COST = 3
_TOMBSTONE_BYTES = ENTRY_FIXED_BYTES + 1 + 18
_INPUT_SEGMENTS_PER_STEP = 4
_BLOCK_COST = 48


def choose_runs(runs: Sequence[Run], *, busy: Collection[int] = ()) -> list[Run]:
    """The runs to merge next for the sake of their number, oldest first; empty when the tree is in
    shape.

    Args:
        runs: of the tree, oldest first (so levels fall along the sequence).
        busy: ids of runs that are not to be taken.
    """
    for level in range(limits.LEVEL_COUNT_MAX):
        side_by_side: list[Run] = []
        for run in runs:
            if run.level == level and run.run_id not in busy:
                side_by_side.append(run)
                if len(side_by_side) == limits.RUNS_PER_LEVEL_MAX:
                    return side_by_side
            else:
                side_by_side = []
    return []


async def holds_garbage(runs: Sequence[Run], share: float, slices: Slices) -> bool:
    """Whether about this share of the tree, or more, is garbage. Checkpoints: as `slices` does."""
    if not runs or share > 1:
        return False
    garbage = await garbage_bytes(runs, slices)
    return garbage > 0 and garbage >= share * sum(run.total_bytes for run in runs)


async def garbage_bytes(runs: Sequence[Run], slices: Slices) -> float:
    """An estimate of the bytes that merging all runs would save. Checkpoints: as `slices` does."""
    garbage = 0.0
    for number, run in enumerate(runs):
        if number:
            keys = sampled(run)
            garbage += await hidden_bytes(keys, run.entry_count, runs[:number], slices)
        garbage += _TOMBSTONE_BYTES * run.tombstone_count
    return garbage


def sampled(run: Run) -> list[bytes]:
    """Some keys of the run, from all over it: first keys of blocks."""
    keys: list[bytes] = []
    blocks = sum(segment.block_count for segment in run.segments)
    step = -(-blocks // SAMPLES)
    skipped = 0
    for segment in run.segments:
        keys += segment.first_keys(skipped, step)
        skipped = (skipped - segment.block_count) % step
    return keys


async def hidden_bytes(
    keys: Sequence[bytes], count: int, older: Sequence[Run], slices: Slices
) -> float:
    """An estimate of the bytes in older runs that `count` entries hide.

    Args:
        keys: of some of the entries, about SAMPLES; they are looked for by filters.

    Checkpoints: as `slices` does.
    """
    hidden = 0.0
    for key in keys:
        segment = next(candidates(older, key), None)
        if segment is not None:
            hidden += segment.meta.total_bytes / segment.meta.entry_count
        await slices.spend(_SAMPLE_COST * len(older))
    return hidden * count / max(1, len(keys))


def merge_debt(runs: Sequence[Run]) -> float:
    """How far merging is behind, for pacing.py: 0 while no level is full, 1 when one holds three
    times as many runs as it should."""
    bound = limits.RUNS_PER_LEVEL_MAX
    if len(runs) < bound:
        return 0.0
    levels = Counter(run.level for run in runs)
    return share_between(max(levels.values(), default=0), bound - 1, 3 * bound)


class _Place:
    """Where rising keys stand in one run: at a segment."""

    __slots__ = ("_segments", "filter", "first_key", "last_key")

    def __init__(self, run: Run) -> None:
        self._segments = iter(run.segments)

    def go_on(self, key: bytes) -> bool:
        """To the segment that ends at `key` or behind it; False if there is none."""
        for segment in self._segments:
            if segment.meta.last_key >= key:
                self.first_key, self.last_key = segment.meta.first_key, segment.meta.last_key
                self.filter = segment.index.filter
                return True
        return False


class Below:
    """Tells of rising keys whether older runs may hold an entry of them (I2).

    A step asks for very many keys in a row: no run is searched for the segment of each.

    Args:
        older: oldest first. These are asked first: they are the largest, and mostly have what is
            deleted.
    """

    def __init__(self, older: Sequence[Run]) -> None:
        self._places = [place for place in map(_Place, older) if place.go_on(b"")]

    def may_hold(self, key: bytes) -> bool:
        """Whether one of them may hold the key. Requires: no key before was greater."""
        at, key_hash = 0, None
        places = self._places
        while at < len(places):
            place = places[at]
            if place.last_key < key and not place.go_on(key):
                del places[at]
                continue
            if place.first_key <= key:
                if key_hash is None:
                    key_hash = hash_of(key)
                if place.filter.may_contain(key_hash):
                    return True
            at += 1
        return False


async def write_memtable(table: Memtable, writer: SegmentWriter, older: Sequence[Run]) -> None:
    """Write a frozen memtable as a run.

    Args:
        older: all runs there are.

    Checkpoints: as the writer's slices do.
    """
    keys, below = table.ordered(), Below(older)
    while some := list(islice(keys, limits.MERGE_PAGE_ENTRIES)):
        kept = [
            (key, value)
            for key in some
            if (value := table.entries[key]) != TOMBSTONE or below.may_hold(key)
        ]
        await writer.add(kept)
    await writer.finish()


class _Cursor:
    """Where a merge stands in one run: a block, and the entries of it that are left."""

    def __init__(self, run: Run) -> None:
        self.run_id = run.run_id
        self._segments = iter(run.segments)
        self._segment: Segment | None = None
        self._number = 0
        self._at = 0
        self.block = Block([], [])

    async def fill(self) -> bool:
        """Read on if the block is used up; False at the end of the run."""
        while self._at == len(self.block.keys):
            if self._segment is None:
                self._segment = next(self._segments, None)
                if self._segment is None:
                    return False
                self._number = self._segment.block_number(self._segment.meta.first_key)
            self.block = await self._segment.block(self._number)
            self._at = bisect_left(self.block.keys, self._segment.meta.first_key)
            self._number += 1
            if self._number == len(self._segment.index.blocks):
                self._segment = None
        return True

    def take(self, horizon: bytes, into: dict[bytes, bytes]) -> None:
        """Move the entries up to and including `horizon`."""
        end = bisect_right(self.block.keys, horizon, self._at)
        into.update(
            zip(self.block.keys[self._at : end], self.block.values[self._at : end], strict=True)
        )
        self._at = end


async def merge_step(
    sources: Sequence[Run], older: Sequence[Run], writer: SegmentWriter, unreadable: set[int]
) -> bytes | None:
    """Write the merge of the sources from their first key on: one segment, or what there is.

    Args:
        sources: oldest first.
        older: every run of the tree that is older than the sources (I2).
        unreadable: the id of a run that turns out to be is added.

    Returns:
        The last key that was taken; None when all were.

    Checkpoints: as the writer's slices do, and at least once a block.

    Raises:
        DeviceError, CorruptionError: a run cannot be read; nothing has been replaced.
    """
    cursors, below = [_Cursor(run) for run in sources], Below(older)
    taken_bytes = 0
    while True:
        left = []
        for cursor in cursors:
            try:
                if await cursor.fill():
                    left.append(cursor)
            except UNREADABLE:
                unreadable.add(cursor.run_id)
                raise
        if not left:
            await writer.finish()
            return None
        horizon = min(cursor.block.keys[-1] for cursor in left)
        merged: dict[bytes, bytes] = {}
        for cursor in left:
            cursor.take(horizon, merged)
        taken_bytes += sum(map(len, merged)) + sum(map(len, merged.values()))
        kept = [
            (key, value)
            for key in sorted(merged)
            if (value := merged[key]) != TOMBSTONE or below.may_hold(key)
        ]
        await writer.slices.spend(len(merged) // 2 + _BLOCK_COST)
        await writer.add(kept)
        await trio.lowlevel.checkpoint()
        if writer.is_full or taken_bytes >= _INPUT_SEGMENTS_PER_STEP * writer.segment_bytes_max:
            await writer.finish()
            return horizon


def without(run: Run, horizon: bytes) -> Run:
    """What is left of a source when a step has taken all keys up to `horizon`."""
    left = [segment for segment in run.segments if segment.meta.last_key > horizon]
    if left:
        left[0] = left[0].behind(horizon)
    return run._replace(segments=tuple(left))


async def copy_segment(segment: Segment, writer: SegmentWriter) -> None:
    """Write the entries of one segment again, as a segment of their own.

    Checkpoints: as the writer's slices do, and at least once a block.

    Raises:
        DeviceError, CorruptionError: the segment cannot be read; nothing has been replaced.
    """
    cursor = _Cursor(Run(segment.meta.run_id, segment.meta.level, (segment,)))
    while await cursor.fill():
        entries: dict[bytes, bytes] = {}
        cursor.take(cursor.block.keys[-1], entries)
        await writer.add(list(entries.items()))
        await trio.lowlevel.checkpoint()
    await writer.finish()
