"""Mistakes in the tree: memtables, runs, merging, deltas, manifests, and taking them back in.

Role: one part of the catalog; each mutant is as in canary.py.

Not here: races between the tree's tasks (concurrency.py).
"""

from __future__ import annotations

from typing import Final

from shardfs import limits
from shardfs.checking.canaries.canary import Canary
from shardfs.checking.canaries.planting import Edit, Setting
from shardfs.engine import recovery
from shardfs.engine.checkpoint import Checkpointer
from shardfs.engine.commit import Committer
from shardfs.engine.delta_log import _LogReader, read_log
from shardfs.engine.extent_table import ExtentTable
from shardfs.engine.lookups import Lookups
from shardfs.engine.lsm import compaction, merge
from shardfs.engine.lsm.memtable import Memtable
from shardfs.engine.lsm.segment import Segment
from shardfs.engine.lsm.segment_writer import SegmentWriter

RUNS: Final = (
    Canary(
        "read-error-ends-a-merge",
        "A merge takes a read error for the end of its runs: what lies behind is forgotten. (Live "
        "chunks are not moved yet; merging is what reads and rewrites.)",
        (
            Edit(
                compaction.merge_step,
                "except UNREADABLE:",
                "except __import__('shardfs').errors.DeviceError:\n"
                "    cursors = [each for each in cursors if each is not cursor]\n"
                "    continue\n"
                "except UNREADABLE:",
            ),
        ),
        ("concurrent", "store"),
    ),
    Canary(
        "scan-gives-what-was-given-back",
        "A scan gives a shard as it was when its page was read, whatever was reset since.",
        (
            Edit(
                Lookups.scan,
                "isinstance(value, Shard) and not self._shards.are_there(value.pieces)",
                "False",
            ),
        ),
        ("concurrent",),
    ),
    Canary(
        "tombstone-dropped-by-a-checkpoint",
        "A checkpoint drops tombstones although older runs hold the key.",
        (
            Edit(
                compaction.write_memtable,
                "!= TOMBSTONE or below.may_hold(key)",
                "!= TOMBSTONE",
            ),
        ),
        ("store",),
    ),
    Canary(
        "tombstone-dropped-by-a-merge",
        "A merge drops tombstones although an older run, left out of it, holds the key.",
        (
            Edit(
                compaction.merge_step,
                "!= TOMBSTONE or below.may_hold(key)",
                "!= TOMBSTONE",
            ),
        ),
        ("concurrent", "store"),
    ),
    Canary(
        "merge-settles-below-its-neighbours",
        "A merge of everything settles on the level of its size, whatever newer runs have or are "
        "being merged to.",
        (
            Edit(
                Checkpointer._settled_level,
                "settled = max(newer, default=0)",
                "settled = 0",
            ),
        ),
        ("store",),
    ),
    Canary(
        "older-run-wins-a-get",
        "A get asks the oldest run first.",
        (Edit(merge.candidates, "for run in reversed(runs):", "for run in runs:"),),
        ("store",),
    ),
    Canary(
        "older-run-wins-a-scan",
        "Where several runs hold a key, a scan takes the oldest value.",
        (
            Edit(
                merge.merge_parts,
                "merged.update(entries)",
                "merged = {**dict(entries), **merged}",
            ),
        ),
        ("store",),
    ),
    Canary(
        "filter-lacks-a-key",
        "The filter of a segment says no for the segment's last key.",
        (
            Edit(
                SegmentWriter._end_segment,
                "key_filter.add(some)",
                "is_last = not self._keys and start + len(some) == len(keys)\n"
                "key_filter.add(some[:-1] if is_last else some)",
            ),
        ),
        ("store",),
    ),
    Canary(
        "block-boundary-off-by-one",
        "The first key of a block is looked for in the block before it.",
        (
            Edit(
                Segment.block_number,
                "bisect_right(self.index.first_keys, key)",
                "bisect_left(self.index.first_keys, key)",
            ),
        ),
        ("store",),
    ),
    Canary(
        "scan-misses-its-first-key",
        "A scan leaves out the key it starts at if that is in the memtable.",
        (
            Edit(
                Memtable.range,
                "self._sorted.irange(start, end, (True, False))",
                "self._sorted.irange(start, end, (False, False))",
            ),
        ),
        ("store",),
    ),
)

MANIFESTS: Final = (
    Canary(
        "manifest-named-before-it-is-persistent",
        "The superblock names a manifest that a crash may yet take away.",
        (
            Edit(
                Checkpointer._install,
                "await self._scheduler.settle(persistent)\n",
                "",
            ),
        ),
        ("store",),
    ),
    Canary(
        "checkpoint-one-delta-too-far",
        "A checkpoint claims to hold the delta that follows it.",
        (
            Edit(
                Committer.adopt,
                "checkpoint=freeze.number,",
                "checkpoint=freeze.number + 1,",
            ),
        ),
        ("store",),
    ),
    Canary(
        "old-manifest-stays-live",
        "The manifest that a new one replaces is never given up: its space is lost until the "
        "next opening.",
        (
            Edit(
                Checkpointer._install,
                "if root.manifest is not None:\n    self._debit(root.manifest)",
                "del root",
            ),
        ),
        ("store",),
    ),
    Canary(
        "usage-of-another-epoch",
        "Live bytes that a manifest counts in an extent are taken for its next life as well.",
        (Edit(recovery.load_tree, "if extent.epoch == usage.epoch:", "if usage.live_bytes:"),),
        ("store",),
    ),
)

DELTAS: Final = (
    Canary(
        "pointer-of-what-is-written",
        "A delta leaves out the write pointer of an extent while writes to it are pending, and "
        "these do not wait for the next delta: after a crash new writes go over live data.",
        (
            Edit(
                ExtentTable.take_touched,
                "extent.write_pointer, stream, change)",
                "0 if extent.writes_pending else extent.write_pointer, stream, change)",
            ),
        ),
        ("store",),
        issue=8,
    ),
    Canary(
        "deltas-of-earlier-lives-are-stale",
        "Recovery drops deltas that an earlier life of the store wrote, also durable ones: a disk "
        "that is taken away and brought back twice has lost what they held.",
        (
            Edit(
                read_log,
                "part.number > record.root.durable_delta\nand frame",
                "frame",
            ),
        ),
        ("store",),
        issue=4,
    ),
    Canary(
        "data-edge-skipped",
        "A delta with more data than may ride along does not wait for it.",
        (
            Setting(limits, "RIDER_BYTES_MAX", 4096),
            Edit(Committer._cut_delta, "before, riders = data, []", "riders = []"),
        ),
        ("store",),
    ),
    Canary(
        "batch-split-over-two-deltas",
        "A delta takes at most two entries, the rest goes into the next one.",
        (
            Edit(
                Committer._cut_delta,
                "changes = self._on_the_way = self._pending\n",
                "changes = self._on_the_way = dict(sorted(self._pending.items())[:2])\n",
            ),
            Edit(
                Committer._cut_delta,
                "self._pending = {}",
                "self._pending = dict(sorted(self._pending.items())[2:])",
            ),
        ),
        ("store",),
    ),
    Canary(
        "tail-of-another-epoch",
        "Recovery applies what a delta says of an extent also if the extent was freed since.",
        (Edit(recovery._apply, "if tail.epoch != extent.epoch:", "if tail.write_pointer < 0:"),),
        ("store",),
    ),
    Canary(
        "pointer-not-recovered",
        "Recovery moves the write pointer of an extent only when a delta is the first to name it.",
        (
            Edit(
                recovery._apply,
                "extent.order = sequence",
                "extent.order = sequence\nextent.write_pointer = tail.write_pointer",
            ),
            Edit(
                recovery._apply,
                "extent.write_pointer = max(extent.write_pointer, tail.write_pointer)",
                "pass",
            ),
        ),
        ("store",),
    ),
    Canary(
        "log-extent-end-off-by-one",
        "The last block of an extent of the delta log is not read.",
        (
            Edit(
                _LogReader.__init__,
                "extents.extent_bytes if limit is None else limit",
                "(extents.extent_bytes if limit is None else limit) - limits.BLOCK_BYTES",
            ),
        ),
        ("store",),
    ),
    Canary(
        "refused-delta-left-standing",
        "After a delta was refused, the log goes on behind it instead of in its place: the next "
        "recovery ends there again and loses what came later.",
        (
            Edit(
                recovery.replay_log,
                "_end_log(record, extents, chain, accepted)",
                "_end_log(record, extents, chain, log.deltas)",
            ),
        ),
        ("store",),
    ),
)

CANARIES: Final = (*RUNS, *MANIFESTS, *DELTAS)
