"""Choosing runs to merge, and merging them.

Role: tiered merging: when a level holds limits.RUNS_PER_LEVEL_MAX runs, all of them become one
run of the next level. Every entry is rewritten once a level, so write amplification of the
metadata grows with the logarithm of its size; the data itself is never moved by it. Source:
O'Neil et al., "The log-structured merge-tree", 1996; tiering as in Dayan et al., "Monkey",
SIGMOD 2017, 2.

Invariants:
    I1. Runs that are merged are neighbours in age, so that order among versions is kept.
    I2. A tombstone is dropped only when no older run is left outside the merge.

Not here: making the result part of the tree (checkpoint.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice

import trio

from shardfs import limits
from shardfs.engine.lsm.entry import TOMBSTONE
from shardfs.engine.lsm.memtable import Memtable
from shardfs.engine.lsm.merge import Run, load_page
from shardfs.engine.lsm.segment import Segment, SegmentWriter
from shardfs.engine.pacing import share_between

_HIDDEN_FRACTION_MAX = 0.2
_KEY_END = b"\xff" * (limits.KEY_BYTES_MAX + 1)


def hides_much(runs: Sequence[Run], newer_entries: int = 0) -> bool:
    """Whether newer runs, and so many entries beside, may hide a good part of the oldest run."""
    newer = newer_entries + sum(run.entry_count for run in runs[1:])
    return newer > 0 and newer >= _HIDDEN_FRACTION_MAX * runs[0].entry_count


def choose_runs(runs: Sequence[Run], *, thorough: bool = False) -> list[Run]:
    """The runs to merge next, oldest first; empty when the tree is in shape.

    Args:
        runs: of the tree, oldest first (so levels fall along the sequence).
        thorough: all runs are merged as soon as the newer ones may hide a good part of the
            oldest: what was deleted or replaced is given back, at the price of writing.
    """
    if thorough and len(runs) > 1 and hides_much(runs):
        return list(runs)
    for level in range(limits.LEVEL_COUNT_MAX - 1):
        chosen = [run for run in runs if run.level == level]
        if len(chosen) >= limits.RUNS_PER_LEVEL_MAX:
            return chosen
    return []


def merge_debt(runs: Sequence[Run]) -> float:
    """How far merging is behind, for pacing.py: 0 while no level is full, 1 when one holds three
    times as many runs as it should."""
    levels = Counter(run.level for run in runs)
    bound = limits.RUNS_PER_LEVEL_MAX
    return share_between(max(levels.values(), default=0), bound - 1, 3 * bound)


async def write_memtable(table: Memtable, writer: SegmentWriter, *, is_oldest: bool) -> None:
    """Write a frozen memtable as a run.

    Args:
        is_oldest: there are no runs at all, so tombstones mean nothing.

    Checkpoints: as the writer's slices do.
    """
    keys = table.ordered()
    while some := list(islice(keys, limits.MERGE_PAGE_ENTRIES)):
        kept = []
        for key in some:
            value = table.entries[key]
            if not (is_oldest and value == TOMBSTONE):
                kept.append((key, value))
        await writer.add(kept)
    await writer.finish()


async def merge_runs(chosen: Sequence[Run], writer: SegmentWriter, *, is_oldest: bool) -> None:
    """Write the merge of the chosen runs.

    Args:
        chosen: oldest first.
        is_oldest: no older run exists outside `chosen` (I2).

    Checkpoints: as the writer's slices do, and at least once a page.

    Raises:
        DeviceError, CorruptionError: a run cannot be read; nothing has been replaced.
    """
    start = b""
    while True:
        page = await load_page(chosen, start, _KEY_END, limits.MERGE_PAGE_ENTRIES, writer.slices)
        kept = []
        for key in sorted(page.entries):
            value = page.entries[key]
            if not (is_oldest and value == TOMBSTONE):
                kept.append((key, value))
        await writer.slices.spend(len(page.entries) // 2)
        await writer.add(kept)
        if page.horizon is None:
            break
        start = page.horizon + b"\0"
        await trio.lowlevel.checkpoint()
    await writer.finish()


async def copy_segment(segment: Segment, writer: SegmentWriter) -> None:
    """Write the entries of one segment again, as a segment of their own.

    Checkpoints: as the writer's slices do, and at least once a block.

    Raises:
        DeviceError, CorruptionError: the segment cannot be read; nothing has been replaced.
    """
    for number in range(len(segment.index.blocks)):
        block = await segment.block(number)
        await writer.add(list(zip(block.keys, block.values, strict=True)))
        await trio.lowlevel.checkpoint()
    await writer.finish()
