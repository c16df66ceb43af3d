"""Mistakes that take two tasks to show: an await too many, a look too few.

Role: one part of the catalog; each mutant is as in canary.py.

Not here: mistakes that one task alone runs into (the other parts).
"""

from __future__ import annotations

from typing import Final

from shardfs.checking.canaries.canary import Canary
from shardfs.checking.canaries.planting import Edit
from shardfs.engine.cache import Cache
from shardfs.engine.checkpoint import Checkpointer
from shardfs.engine.commit import Committer
from shardfs.engine.extents import Extents
from shardfs.engine.lsm.segment_writer import SegmentWriter
from shardfs.engine.lsm.tree import Tree
from shardfs.engine.store import Store

CANARIES: Final = (
    Canary(
        "unwritten-chunk-forgotten",
        "A chunk is read from the device from the moment its write is queued, not from when it is "
        "done: its locator is of no use in between.",
        (
            Edit(
                Extents.cut,
                "    for offset in tail.frames:\n        del self._unwritten[extent.index, offset]",
                "    pass",
            ),
            Edit(
                Extents.cut,
                "self._scheduler.submit(",
                "for offset in tail.frames:\n"
                "    del self._unwritten[extent.index, offset]\n"
                "self._scheduler.submit(",
            ),
        ),
        ("concurrent", "store"),
        issue=11,
    ),
    Canary(
        "list-overtaken-by-a-checkpoint",
        "A list goes on with the runs it began with when a checkpoint has moved removals from "
        "memory into a new one: what was removed is listed.",
        (
            Edit(
                Tree.page,
                "if generation == self.generation:\n    return self._with",
                "if generation <= self.generation:\n    return self._with",
            ),
        ),
        ("concurrent",),
        issue=13,
    ),
    Canary(
        "new-run-not-yet-live",
        "Chunks of a run count as live only from when its manifest is persistent: reclamation "
        "takes an extent that a merge or checkpoint has just filled.",
        (
            Edit(
                SegmentWriter._put,
                "self._extents.credit(locator.extent, locator_bytes(locator))\n"
                "self.credited.append(locator)\n",
                "",
            ),
            Edit(
                Checkpointer._install,
                "self._extents.cut_all()\nawait self._scheduler.settle(persistent)",
                "self._extents.cut_all()\n"
                "await self._scheduler.settle(persistent)\n"
                "for segment in writer.segments:\n"
                "    for each in segment.locators:\n"
                "        self._extents.credit(each.extent, locator_bytes(each))\n"
                "        writer.credited.append(each)",
            ),
        ),
        ("concurrent",),
        issue=14,
    ),
    Canary(
        "creation-over-a-removal",
        "A batch that changes a shard succeeds although another batch has removed the shard since "
        "it was looked at.",
        (
            Edit(
                Tree.is_current,
                "return value == encode_shard(base.pieces)",
                "return value in (TOMBSTONE, encode_shard(base.pieces))",
            ),
        ),
        ("concurrent", "files"),
        issue=16,
    ),
    Canary(
        "put-with-a-stale-base",
        "Between looking at the old value and putting the new one a put lets others run.",
        (
            Edit(
                Store.put,
                "old = await self._load(key)",
                "old = await self._load(key)\nawait trio.lowlevel.checkpoint()",
            ),
        ),
        ("concurrent",),
    ),
    Canary(
        "sync-joins-a-running-commit",
        "A sync that finds a commit under way takes that one for its own.",
        (
            Edit(
                Committer.commit,
                "await self._end_of_commit()",
                "await self._end_of_commit()\nreturn",
            ),
        ),
        ("concurrent", "store"),
    ),
    Canary(
        "memtable-dropped-with-the-frozen-one",
        "A checkpoint that is done drops what was put while it ran.",
        (
            Edit(
                Tree.install,
                "self.frozen = None",
                "self.frozen = None\nself.memtable = Memtable()",
            ),
        ),
        ("concurrent", "store"),
    ),
    Canary(
        "frozen-hides-newer",
        "A list takes the frozen memtable's value over that of the newer one.",
        (
            Edit(
                Tree._with_memory,
                "for table in (self.frozen, self.memtable):",
                "for table in (self.memtable, self.frozen):",
            ),
        ),
        ("concurrent",),
    ),
    Canary(
        "usage-as-of-the-install",
        "A manifest records live bytes as of its installation, not as of the delta it goes up to: "
        "recovery counts what came between twice.",
        (
            Edit(
                Checkpointer._install,
                "usage = freeze.usage if freeze is not None else self._usage",
                "usage = self._extents.usage()",
            ),
        ),
        ("store", "concurrent"),
    ),
    Canary(
        "pinned-extent-freed",
        "Reclamation frees an extent that somebody is reading.",
        (Edit(Extents.dead, "extent.pins == 0", "extent.pins >= 0"),),
        ("concurrent",),
    ),
    Canary(
        "failed-load-wakes-nobody",
        "Those who wait for a cached block are not woken when reading it fails.",
        (
            Edit(
                Cache.load,
                "    load.done.set()",
                "    if load.value is not None:\n        load.done.set()",
            ),
        ),
        ("concurrent",),
    ),
)
