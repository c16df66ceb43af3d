"""Gathers the figures of an open store: where its bytes are, what it has done since the open.

Role: looks at the store's parts and adds up; what comes out are the frozen values of stats.py.
Nothing is changed.

Not here: counting (each component counts for itself), how much may be written (space.py).
"""

from __future__ import annotations

from shardfs import limits
from shardfs.engine.debts import Debts
from shardfs.engine.extents import Extents
from shardfs.engine.gathering import Gatherer
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.opening import Parts
from shardfs.engine.space import DATA_STREAMS
from shardfs.engine.stats import Space, SpaceParts, StoreStatistics


def space_figures(extents: Extents, reserved_bytes: int) -> Space:
    """How full the store is; cheap enough for statfs.

    Args:
        extents: of the store.
        reserved_bytes: set aside for data that is still to be appended (Store.reserve).
    """
    free = max(0, extents.space.user_bytes() - reserved_bytes)
    return Space(extents.space.total_bytes, free, reserved_bytes)


def space_parts(parts: Parts, reserved_bytes: int) -> SpaceParts:
    """Where the bytes of the device are (stats.I1). Looks at every extent.

    Args:
        parts: of the store.
        reserved_bytes: set aside for data that is still to be appended (Store.reserve).
    """
    extents, left = parts.extents, parts.device.size_bytes

    def take(wanted: int) -> int:
        """That much of what no other part has."""
        nonlocal left
        taken = min(max(0, wanted), left)
        left -= taken
        return taken

    written = live = index = 0
    for extent in extents.all:
        is_sealed = extent.state is ExtentState.SEALED
        written += extents.extent_bytes if is_sealed else extent.write_pointer
        if extent.stream in DATA_STREAMS:
            live += extent.live_bytes
        elif extent.stream is Stream.RUNS:
            index += extent.live_bytes
    outside = take(left - extents.space.total_bytes)
    superblock = take(limits.SUPERBLOCK_EXTENTS * extents.extent_bytes)
    live, index = take(live), take(index)
    log = take(parts.committer.log_bytes)
    garbage = written - live - index - log
    # Reserves and packing are what remains, so that the parts add up whatever space.py sets aside.
    writable = extents.space.user_bytes()
    pending = take(min(reserved_bytes, writable))
    garbage = take(min(garbage, writable - pending))
    free = take(writable - pending - garbage)
    index_reserve = take(extents.space.tree_share_bytes - index)
    return SpaceParts(
        live_bytes=live,
        garbage_bytes=garbage,
        free_bytes=free,
        pending_bytes=pending,
        index_bytes=index,
        log_bytes=log,
        superblock_bytes=superblock,
        index_reserve_bytes=index_reserve,
        working_bytes=left,
        outside_bytes=outside,
    )


def statistics_of(parts: Parts, gatherer: Gatherer, debts: Debts) -> StoreStatistics:
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
        scattered_shards=gatherer.waiting_shards,
        gathered_shards=gatherer.gathered_shards,
        gathered_bytes=gatherer.gathered_bytes,
        stream_bytes={
            stream.name.lower(): parts.extents.space.written_bytes[stream]
            for stream in Stream
            if stream is not Stream.NONE
        },
        debts={
            "checkpoint": round(debts.log(), 4),
            "merging": round(debts.merges(), 4),
            "reclamation": round(debts.space(), 4),
            "queue": round(debts.queue(), 4),
        },
    )
