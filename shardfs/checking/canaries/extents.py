"""Mistakes in extents, the scheduler and the superblock: where writes go, and in which order.

Role: one part of the catalog; each mutant is as in canary.py.

Not here: what the writes hold (chunks.py), which batches they make durable (tree.py, store.py).
"""

from __future__ import annotations

from typing import Final

from shardfs import limits
from shardfs.checking.canaries.canary import Canary
from shardfs.checking.canaries.planting import Edit, Setting
from shardfs.engine import opening
from shardfs.engine.extents import Extents
from shardfs.engine.scheduler import Scheduler
from shardfs.engine.superblock import Superblock

RECLAMATION: Final = (
    Canary(
        "live-bytes-in-whole-pages",
        "An extent is taken for dead while a chunk just under a page is alive in it: live bytes "
        "are counted in whole pages.",
        (
            Edit(
                Extents.debit,
                "if not state.live_bytes and",
                "if not state.live_bytes // limits.BLOCK_BYTES and",
            ),
            Edit(
                Extents.dead,
                "if extent.live_bytes == 0",
                "if extent.live_bytes // limits.BLOCK_BYTES == 0",
            ),
        ),
        ("store",),
    ),
    Canary(
        "freed-before-what-dropped-it-is-durable",
        "An extent is freed as soon as nothing in memory refers to it; the delta that dropped the "
        "last reference may still be lost.",
        (
            Edit(
                Extents.dead,
                "extent.last_delta <= (checkpoint if extent.stream is Stream.META else "
                "durable_delta)",
                "extent.last_delta >= 0",
            ),
        ),
        ("store",),
    ),
    Canary(
        "epoch-not-raised",
        "Freeing an extent leaves its epoch: what deltas and caches say of its former life is "
        "taken for true of the new one.",
        (Edit(Extents.mark_free, "extent.epoch += 1\n", ""),),
        ("store",),
    ),
)

SUPERBLOCK: Final = (
    Canary(
        "log-extent-owned-at-once",
        "An extent of the delta log counts as the log's own at once, not with the superblock "
        "record that says so: after a crash nobody looks there.",
        (
            Setting(limits, "META_SPARE_EXTENTS", 0),
            Edit(
                Extents._allocate,
                "extent.declared = self._declared_by = self._superblock.next_record()",
                "extent.declared = PERSISTENT",
            ),
        ),
        ("store",),
        issue=6,
    ),
    Canary(
        "zone-pointers-not-compared",
        "Opening does not reset free zones in which a crash has left something: the soft write "
        "pointer is at the start, the hard one is not.",
        (
            Edit(
                opening._reset_free_zones,
                "extent.state is ExtentState.FREE and",
                "extent.state is ExtentState.SUPERBLOCK and",
            ),
        ),
        ("store",),
        issue=7,
    ),
    Canary(
        "buffers-held-until-persistent",
        "A write keeps its place in the pool until it is persistent, not until it is written: when "
        "all places are taken, those who wait for a superblock update wait for ever.",
        (
            Edit(Scheduler._write_group, "self._writing -= 1\n", ""),
            Edit(
                Scheduler._write_group,
                "self._issue_ready()\nself._made_progress()",
                "def give_back() -> None:\n"
                "    self._writing -= 1\n"
                "    self._issue_ready()\n"
                "group[-1].persistent.on_settled(give_back)\n"
                "self._made_progress()",
            ),
        ),
        ("concurrent", "store"),
        issue=12,
    ),
    Canary(
        "both-superblock-copies-at-once",
        "The second copy of the superblock is reset before the first, started afresh, is flushed.",
        (
            Edit(
                Superblock._start_logs,
                "await self._scheduler.settle(self._submit(copy, payload))",
                "self._submit(copy, payload)",
            ),
        ),
        ("store",),
    ),
)

WRITES: Final = (
    Canary(
        "persistent-once-written",
        "A write counts as persistent when the device has taken it, before any flush.",
        (
            Edit(
                Scheduler._write_group,
                "self._written.append(write.persistent)",
                "write.persistent.resolve()",
            ),
        ),
        ("store",),
    ),
    Canary(
        "flush-error-ignored",
        "A flush that failed is taken for one that succeeded.",
        (
            Edit(
                Scheduler._flush_once,
                "failure = error\nself._health.make_read_only(str(error))",
                "del error",
            ),
        ),
        ("concurrent", "store"),
    ),
    Canary(
        "write-error-ignored",
        "A write that failed is taken for one that succeeded.",
        (
            Edit(
                Scheduler._write_group,
                "except DeviceError as error:\n    failure = error",
                "except DeviceError:\n    failure = None",
            ),
        ),
        ("store",),
    ),
    Canary(
        "flush-that-began-before-the-write",
        "Who asks for a flush while one is running is content with that one, though it began "
        "before the write completed.",
        (
            Edit(
                Scheduler.flush,
                "wanted = self._flushes_started + (1 if self._written else 0)",
                "wanted = self._flushes_started + (0 if self.is_flushing else 1)",
            ),
            Edit(
                Scheduler._flush_once,
                "for dependency in batch:",
                "batch, self._written = batch + self._written, []\nfor dependency in batch:",
            ),
        ),
        ("concurrent", "store"),
    ),
)

CANARIES: Final = (*RECLAMATION, *SUPERBLOCK, *WRITES)
