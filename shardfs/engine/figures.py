"""Gathers the figures of an open store: where its bytes are, what it has done since the open.

Role: looks at the store's parts and adds up; what comes out are the frozen values of stats.py.

Not here: counting (each component counts for itself), how much may be written (space.py).
"""

from __future__ import annotations

from shardfs.engine.extents import Extents
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.opening import Parts
from shardfs.engine.stats import Space, StoreStatistics


def space_figures(extents: Extents, reserved_bytes: int) -> Space:
    """Where the bytes of the device are.

    Args:
        extents: of the store.
        reserved_bytes: set aside for data that is still to be appended (Store.reserve).
    """
    total = live = written = 0
    for extent in extents.all:
        if extent.state is not ExtentState.SUPERBLOCK:
            total += extents.extent_bytes
        live += extent.live_bytes
        written += extent.write_pointer
    free = max(0, extents.space.user_bytes() - reserved_bytes)
    return Space(total, free, reserved_bytes, live, max(0, written - live))


def statistics_of(parts: Parts) -> StoreStatistics:
    """Counts since the open, sizes as of now."""
    runs = parts.tree.runs
    cache = parts.cache.statistics()
    counts = parts.device.counts
    levels = max((run.level for run in runs), default=-1) + 1
    return StoreStatistics(
        health=str(parts.health.state),
        reason=parts.health.reason,
        durable_delta=parts.committer.durable_number,
        pending_bytes=parts.committer.pending_bytes,
        queued_bytes=parts.scheduler.queued_bytes,
        memtable_entries=len(parts.tree.memtable),
        memtable_bytes=parts.tree.memtable.bytes_held,
        runs=len(runs),
        levels=tuple(sum(run.level == level for run in runs) for level in range(levels)),
        tree_bytes=sum(run.total_bytes for run in runs),
        extents_free=parts.extents.free_count,
        extents_total=len(parts.extents.all),
        cache_hits=cache.hits,
        cache_misses=cache.misses,
        cache_bytes=cache.held_bytes,
        device_reads=counts.reads,
        device_read_bytes=counts.read_bytes,
        device_writes=counts.writes,
        device_write_bytes=counts.write_bytes,
        device_flushes=counts.flushes,
        stream_bytes={
            stream.name.lower(): parts.extents.space.written_bytes[stream]
            for stream in Stream
            if stream is not Stream.NONE
        },
    )
