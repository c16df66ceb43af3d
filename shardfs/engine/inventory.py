"""Lists what a store consists of: its extents, and the runs of its tree.

Role: looks at the store's parts and puts what they say side by side. A friend of the store.

Invariants:
    I1. Nothing is changed, and no block of the tree is read: indexes and filters are in memory.

Not here: one extent in detail (occupancy.py), what single bytes are (places.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from shardfs.engine.layout import Stream
from shardfs.engine.lsm.compaction import merge_debt
from shardfs.engine.occupancy import extent_figures
from shardfs.engine.pacing import Slices
from shardfs.engine.stats import ExtentFigures, LevelFigures, RunFigures, TreeFigures
from shardfs.engine.store import Store

_EXTENT_COST = 8


async def all_extents(store: Store) -> AsyncIterator[ExtentFigures]:
    """Every extent, without what holds it. Checkpoints: every slice."""
    slices = Slices()
    number = 0
    while number < len(store._extents.all):  # it may be made smaller meanwhile
        yield extent_figures(store, number, with_holds=False)
        number += 1
        await slices.spend(_EXTENT_COST)


async def tree_figures(store: Store) -> TreeFigures:
    """The shape of the tree, and what it costs. Checkpoints: every slice."""
    parts = store._parts
    garbage_bytes = await parts.checkpointer.garbage_bytes()
    tree, committer = parts.tree, parts.committer
    runs = tuple(
        RunFigures(
            run_id=run.run_id,
            level=run.level,
            segments=len(run.segments),
            blocks=sum(segment.block_count for segment in run.segments),
            entries=run.entry_count,
            tombstones=run.tombstone_count,
            run_bytes=run.total_bytes,
            first_key=run.segments[0].meta.first_key,
            last_key=run.segments[-1].meta.last_key,
        )
        for run in tree.runs
    )
    levels = tuple(
        LevelFigures(
            level,
            sum(run.level == level for run in runs),
            sum(run.entries for run in runs if run.level == level),
            sum(run.run_bytes for run in runs if run.level == level),
        )
        for level in sorted({run.level for run in runs})
    )
    written = parts.extents.space.written_bytes
    return TreeFigures(
        memtable_entries=len(tree.memtable),
        memtable_bytes=tree.memtable.bytes_held,
        frozen_entries=len(tree.frozen) if tree.frozen is not None else 0,
        checkpoint=committer.root.checkpoint,
        durable_delta=committer.durable_number,
        log_bytes=committer.log_bytes,
        checkpoint_debt=committer.fill,
        merge_debt=merge_debt(tree.runs),
        is_merging=parts.checkpointer.is_merging,
        tree_bytes=sum(run.run_bytes for run in runs),
        garbage_bytes=round(garbage_bytes),
        stream_bytes={
            each.name.lower(): written[each] for each in Stream if each is not Stream.NONE
        },
        levels=levels,
        runs=runs,
    )
