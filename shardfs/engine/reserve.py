"""The extents that user data may not take, and what they are needed for.

Role: how many extents are the reserve of a device, and the sum of what it has to hold at worst;
how long the delta log and the memtable may grow, which are parts of that sum.

Invariants:
    I1. The sum of the needs is at most the reserve, for every device that mkfs makes
        (tests/engine/test_reserve.py).
    I2. Whoever writes from the reserve is bounded by what is said here: the log and the memtable
        by `log_bytes_max` and by those who wait while they are longer (admission.py,
        reclamation.py), the evacuator by `entry_bytes_per_batch`.

Not here: the superblock, which has extents of its own; the tree, which has a share that grows
with it (space.py).
"""

from __future__ import annotations

from typing import NamedTuple

from shardfs import limits

_LOG_SHARE = 32
"""The memtable, and the delta log, may each grow to this part of the reserve."""
_SURVIVING_STREAMS = 2
"""SURVIVORS and HOT: what is left of their open extents is not for new data."""
_EXTENTS_MOVED_TO = 1
"""Emptying an extent fills at most one other one, besides the rest of an open one."""
_EXTENTS_LOGGED_TO = 1
"""What is moved out of one is logged in the rest of an open one, and at most one more."""


class Needs(NamedTuple):
    """Extents that parts of the reserve take at worst.

    log: two generations of the delta log, one from before a checkpoint and one that grows during
        it; the rest of an extent that the older one begins in; the spares.
    checkpoint: the run of the older generation, and a manifest.
    moving: where what is live of an extent to be emptied goes.
    streams: open extents that are not filled by new data.
    """

    log: int
    checkpoint: int
    moving: int
    streams: int


def reserve_extents(extent_count: int) -> int:
    """Extents kept for deltas, runs and reclamation, out of this many."""
    return max(limits.RESERVE_EXTENTS_MIN, int(extent_count * limits.RESERVE_FRACTION))


def log_bytes_max(reserve: int, extent_bytes: int) -> int:
    """Length of the delta log at which a checkpoint is due."""
    return min(limits.DELTA_LOG_BYTES_MAX, reserve * extent_bytes // _LOG_SHARE)


def memtable_bytes_max(reserve: int, extent_bytes: int) -> int:
    """Bytes that the memtable will take as a run at which a checkpoint is due."""
    return min(limits.MEMTABLE_BYTES_MAX, reserve * extent_bytes // _LOG_SHARE)


def record_bytes_max(chunk_bytes_max: int) -> int:
    """Length of the longest entry of a store with chunks up to this length."""
    return min(limits.RECORD_BYTES_MAX, chunk_bytes_max // 2)


def entry_bytes_per_batch(chunk_bytes_max: int) -> int:
    """No further shard joins a batch of the evacuator that has so many bytes of entries."""
    return record_bytes_max(chunk_bytes_max)


def needs(reserve: int, extent_bytes: int, chunk_bytes_max: int) -> Needs:
    """What the reserve of a device has to hold at worst (I1).

    Args:
        reserve: extents of it.
        extent_bytes, chunk_bytes_max: of the store.
    """
    batch = entry_bytes_per_batch(chunk_bytes_max) + record_bytes_max(chunk_bytes_max)
    # Who adds to the log waits when it is overdue: one batch may have been let in just before.
    log = limits.OVERDUE_FACTOR * log_bytes_max(reserve, extent_bytes) + batch
    memtable = limits.OVERDUE_FACTOR * memtable_bytes_max(reserve, extent_bytes) + batch
    # What is left at an extent's end is less than the frame that did not fit.
    log_extent = extent_bytes - _frame_bytes(min(limits.DELTA_PART_BYTES, chunk_bytes_max))
    run_extent = extent_bytes - _frame_bytes(min(2 * limits.RUN_BLOCK_BYTES, chunk_bytes_max))
    manifest = _frame_bytes(chunk_bytes_max)
    return Needs(
        log=_extents(2 * log, log_extent) + 1 + limits.META_SPARE_EXTENTS,
        checkpoint=_extents(memtable + manifest, run_extent),
        moving=_EXTENTS_MOVED_TO,
        streams=_SURVIVING_STREAMS,
    )


def free_extents_to_go_on(reserve: int, extent_bytes: int, chunk_bytes_max: int) -> int:
    """Free extents with which reclamation can go on at worst: for a checkpoint, for what it moves,
    and for the log that tells of it. Args: as of `needs`."""
    worst = needs(reserve, extent_bytes, chunk_bytes_max)
    return worst.checkpoint + worst.moving + _EXTENTS_LOGGED_TO


def _frame_bytes(payload_bytes: int) -> int:
    return payload_bytes + limits.BLOCK_BYTES


def _extents(length: int, extent_bytes: int) -> int:
    return -(-length // extent_bytes)
