"""Figures that the store gives about itself.

Role: frozen values, made on request; the command line and tests read the same ones.

Not here: counting (each component counts for itself).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Space:
    """Where the bytes of the device are. free_bytes is what a user can write now."""

    total_bytes: int
    free_bytes: int
    reserved_bytes: int
    live_bytes: int
    garbage_bytes: int


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Counts of one open store since it was opened; sizes as of now, in bytes."""

    health: str
    reason: str
    durable_delta: int
    pending_bytes: int
    queued_bytes: int
    memtable_entries: int
    memtable_bytes: int
    runs: int
    levels: tuple[int, ...]
    tree_bytes: int
    extents_free: int
    extents_total: int
    cache_hits: int
    cache_misses: int
    cache_bytes: int
    device_reads: int
    device_read_bytes: int
    device_writes: int
    device_write_bytes: int
    device_flushes: int
    stream_bytes: dict[str, int]
    """Written to the device, by the stream they belong to; the superblock's are not among them."""
