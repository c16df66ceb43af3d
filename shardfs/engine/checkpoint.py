"""Moves the tree forward: memtables become runs, runs are merged, manifests are installed.

Role: the only place where the set of runs changes, one change at a time. A checkpoint does not
wait for a merge: merging holds a lock of its own, and the one for changes only to install.

Invariants:
    I1. A manifest is issued only when every chunk it newly names is persistent, and the
        superblock names a manifest only when it is persistent itself.
    I2. What a new manifest no longer names stays live until the superblock record that names
        the new one is persistent.
    I3. A memtable's run is installed only when the deltas it replaces are durable, so that
        everything its entries refer to is.
    I4. No run has a higher level than an older one, whatever is being merged beside it.

Ordering: run chunks -> flush -> manifest -> flush -> superblock record -> flush -> old runs,
old manifest and covered deltas are dead. A power cut in between leaves the old tree in force
and some unreferenced chunks, which nothing counts as live.

Not here: what to merge (lsm/compaction.py), freeing extents (reclaim.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import trio

from shardfs import limits
from shardfs.engine.cache import Cache
from shardfs.engine.chunks import ChunkStore, locator_bytes
from shardfs.engine.commit import Committer, Freeze
from shardfs.engine.dependency import all_of
from shardfs.engine.extent import Usage, UsageSnapshot
from shardfs.engine.extents import Extents
from shardfs.engine.layout import Kind, Stream
from shardfs.engine.lsm.compaction import (
    GARBAGE_SHARE_MAX,
    GARBAGE_SHARE_SHORT,
    SAMPLES,
    choose_runs,
    copy_segment,
    garbage_bytes,
    hidden_bytes,
    holds_garbage,
    merge_step,
    without,
    write_memtable,
)
from shardfs.engine.lsm.manifest import Manifest, encode_manifest
from shardfs.engine.lsm.merge import Run
from shardfs.engine.lsm.segment import Segment
from shardfs.engine.lsm.segment_writer import SegmentWriter
from shardfs.engine.lsm.set_aside import SetAside
from shardfs.engine.lsm.tree import Tree
from shardfs.engine.pacing import Slices
from shardfs.engine.pieces import Locator
from shardfs.engine.scheduler import Scheduler
from shardfs.engine.space import MERGE_FLOOR_EXTENTS
from shardfs.errors import UNREADABLE, CorruptionError, DeviceError

_log = logging.getLogger(__name__)

_MEMTABLE_BYTES_PER_RUN_BYTE = 4
"""A full memtable makes a run of at least this part of its size."""
_FORGOTTEN_AT_ONCE = 64
_TREE_BYTES_SMALL = 256 * limits.KIB
"""A tree smaller than this counts as this large: it is not rewritten for a few entries."""


class _Merge(NamedTuple):
    """A merge under way. The tree itself says how far it has come: see lsm/compaction.py."""

    sources: tuple[int, ...]
    target: int
    level: int
    is_whole: bool


class Checkpointer:
    """Installs runs and manifests of one open store.

    Args:
        chunks, extents, cache, scheduler, committer, tree: of the store.
        usage: the live bytes that the present manifest records.
    """

    def __init__(
        self,
        chunks: ChunkStore,
        extents: Extents,
        cache: Cache,
        scheduler: Scheduler,
        committer: Committer,
        tree: Tree,
        usage: tuple[Usage, ...],
    ) -> None:
        self._chunks = chunks
        self._extents = extents
        self._cache = cache
        self._scheduler = scheduler
        self._committer = committer
        self._tree = tree
        self._usage = UsageSnapshot.of(usage)
        self._next_run_id = 1 + max((run.run_id for run in tree.runs), default=0)
        self._merges: list[_Merge] = []
        self._set_aside = SetAside()
        self.entries_written = 0
        """Entries of every segment that was made part of the tree since the store was opened."""
        self._lock = trio.Lock()
        self._merging = trio.Lock()
        self.merge_pace: Callable[[], float] | None = None
        """How urgent merging is, 0 to 1 (pacing.py); without it merging never rests."""
        self.checkpoint_pace: Callable[[], float] | None = None
        """The same for checkpoints that are paced."""
        self._account()

    async def checkpoint(self, *, only_if_due: bool = False, paced: bool = False) -> None:
        """Write everything in the memtable as a run; the delta log starts anew behind it.

        Args:
            only_if_due: nothing is done unless `Committer.is_due`, once its turn has come.
            paced: rest between slices as `checkpoint_pace` allows, unless somebody else waits.

        Durable when: returned, all batches applied before the call are.

        Raises:
            DeviceError, ReadOnlyError, NoSpaceError: it failed; the old tree is in force.
        """
        async with self._lock:
            if only_if_due and not self._committer.is_due:
                return
            freeze = await self._committer.freeze()
            frozen = self._tree.frozen
            assert frozen is not None
            slices = Slices(self._urgency_of_checkpoint) if paced else None
            writer = self._writer(0, self._take_run_id(), slices)
            try:
                await write_memtable(frozen, writer, self._tree.runs)
                runs = (*self._tree.runs, *_as_run(writer.run_id, 0, writer.segments))
                await self._install(runs, writer, freeze)
            except BaseException:  # cancelled too: what was written is garbage
                self._abandon(writer)
                raise
            self._committer.frozen = None
            _log.debug("checkpoint at delta %d: %d entries", freeze.number, len(frozen))
        slices = Slices()
        while frozen.forget(_FORGOTTEN_AT_ONCE):
            await slices.spend(_FORGOTTEN_AT_ONCE)

    @property
    def has_unwritten(self) -> bool:
        """The memtable holds entries."""
        return bool(self._tree.memtable)

    @property
    def hidden_bytes_max(self) -> int:
        """Upper bound for what merging everything, memory included, would give back."""
        oldest = self._tree.runs[0].total_bytes if self._tree.runs else 0
        space = self._extents.space
        return min(2 * (space.tree_bytes - oldest + space.memory_bytes), space.tree_share_bytes)

    @property
    def is_merging(self) -> bool:
        """A merge is under way: some of its steps are yet to be made."""
        return bool(self._merges)

    async def garbage_bytes(self) -> float:
        """About how many bytes merging all of the tree, memory included, would save; 0 if it
        cannot be. Checkpoints: every slice."""
        if self._set_aside.ids():
            return 0.0
        slices = Slices()
        runs, memtable = self._tree.runs, self._tree.memtable
        step = -(-len(memtable) // SAMPLES) or 1
        keys = list(islice(memtable.entries, 0, None, step))
        garbage = await hidden_bytes(keys, len(memtable), runs, slices)
        return garbage + await garbage_bytes(runs, slices)

    async def garbage_share(self) -> float:
        """About how much of the tree that is, 0 to 1."""
        garbage = await self.garbage_bytes()
        total_bytes = sum(run.total_bytes for run in self._tree.runs)
        return min(1.0, garbage / max(total_bytes, _TREE_BYTES_SMALL))

    async def compact(self, *, garbage_share_max: float = GARBAGE_SHARE_MAX) -> bool:
        """One step of a merge, if the tree is out of shape and the device has room for a segment.

        A run that turns out to be unreadable is left as it is, and its neighbours are merged
        without it (lsm/set_aside.py); the log says so. Rests between slices as far as `merge_pace`
        allows, unless somebody else waits to merge.

        Args:
            garbage_share_max: all runs are merged when more of the tree than this may be garbage;
                less is tolerated on a device that is short of space.

        Returns:
            Whether something was done: call again until False.

        Raises:
            DeviceError, ReadOnlyError, NoSpaceError: it failed; the old runs stay.
        """
        async with self._merging:
            if self._extents.space.is_short:
                garbage_share_max = min(garbage_share_max, GARBAGE_SHARE_SHORT)
            slices = Slices(self._urgency_of_merge)
            await self._choose(garbage_share_max, slices)
            if not self._merges:
                return False
            # The smallest first: it is the newest, and keeps what is looked into few.
            merge = min(self._merges, key=self._bytes_left)
            writer = self._writer(merge.level, merge.target, slices, floor=MERGE_FLOOR_EXTENTS)
            wanted = min(self._bytes_left(merge), writer.segment_bytes_max * 5 // 4)
            if not self._extents.space.has_room_for_runs(wanted, self._extents.free_count):
                return False
            unreadable: set[int] = set()
            try:
                await self._step(merge, writer, unreadable)
            except UNREADABLE as error:
                if not unreadable and isinstance(error, DeviceError):
                    raise
                self._merges.remove(merge)
                for run_id in unreadable:
                    self._set_aside.add(run_id, is_rot=isinstance(error, CorruptionError))
                _log.warning("a run cannot be merged, and is left as it is: %s", error)
            return True

    async def _choose(self, garbage_share_max: float, slices: Slices) -> None:
        """Begin the merge that is due, if any, beside those under way."""
        runs = self._tree.runs
        busy = {run_id for merge in self._merges for run_id in (*merge.sources, merge.target)}
        busy |= self._set_aside.ids()
        if not busy and await holds_garbage(runs, garbage_share_max, slices):
            chosen = list(runs)
        else:
            chosen = choose_runs(runs, busy=busy)
        if not chosen:
            return
        runs = self._tree.runs  # a checkpoint may have come meanwhile; it only adds behind
        # Levels fall along the sequence (I4): what is merged across levels stays at the oldest's.
        level = chosen[0].level + (chosen[-1].level == chosen[0].level)
        level = min(level, limits.LEVEL_COUNT_MAX - 1, *self._levels_before(chosen[0]))
        sources = tuple(run.run_id for run in chosen)
        is_whole = len(chosen) == len(runs) and level == chosen[0].level
        self._merges.append(_Merge(sources, self._take_run_id(), level, is_whole))

    def _levels_before(self, run: Run) -> list[int]:
        """The levels of all older runs, and of what these are being merged to."""
        older = self._tree.runs[: self._tree.runs.index(run)]
        ids = {each.run_id for each in older}
        merges = [each.level for each in self._merges if not ids.isdisjoint(each.sources)]
        return [each.level for each in older] + merges

    def _sources(self, merge: _Merge) -> list[Run]:
        return [run for run in self._tree.runs if run.run_id in merge.sources]

    def _bytes_left(self, merge: _Merge) -> int:
        return sum(run.total_bytes for run in self._sources(merge))

    async def _step(self, merge: _Merge, writer: SegmentWriter, unreadable: set[int]) -> None:
        sources = self._sources(merge)
        older = self._tree.runs[: self._tree.runs.index(sources[0])]
        older = tuple(run for run in older if run.run_id != merge.target)
        try:
            horizon = await merge_step(sources, older, writer, unreadable)
            left = [without(run, horizon) for run in sources] if horizon is not None else []
            left = [run for run in left if run.segments]
            async with self._lock:
                # A checkpoint may have come meanwhile; it only adds behind.
                before = self._tree.runs
                newer = before[before.index(sources[-1]) + 1 :]
                result = self._result(merge, writer, newer, is_finished=not left)
                await self._install((*older, *result, *left, *newer), writer, None)
        except BaseException:  # cancelled too: what was written is garbage
            self._abandon(writer)
            raise
        if not left:
            self._merges.remove(merge)
            self._set_aside.keep({run.run_id for run in self._tree.runs})
        kept = {segment.meta.index_locator for run in left for segment in run.segments}
        await self._give_up(
            segment
            for run in sources
            for segment in run.segments
            if segment.meta.index_locator not in kept
        )
        _log.debug("merged a part of runs %s into %d", merge.sources, merge.target)

    def _result(
        self, merge: _Merge, writer: SegmentWriter, newer: Sequence[Run], *, is_finished: bool
    ) -> tuple[Run, ...]:
        """What the merge has made so far."""
        target = [run for run in self._tree.runs if run.run_id == merge.target]
        segments = [*(segment for run in target for segment in run.segments), *writer.segments]
        level = merge.level
        if is_finished and merge.is_whole:
            beside = [each.level for each in self._merges if each is not merge]
            level = self._settled_level(segments, level, [run.level for run in newer] + beside)
        return _as_run(merge.target, level, segments)

    def _settled_level(self, merged: Sequence[Segment], level: int, newer: Sequence[int]) -> int:
        """The level of what all runs have become: as high as its size needs, and as the levels are
        that newer runs have or are being merged to (I4). So the number of levels follows the size
        of the tree, however often it has been rewritten."""
        run_bytes = sum(segment.meta.total_bytes for segment in merged)
        settled = max(newer, default=0)
        base_bytes = self._committer.memtable_bytes_max // _MEMTABLE_BYTES_PER_RUN_BYTE
        while settled < level and run_bytes > base_bytes * limits.RUNS_PER_LEVEL_MAX**settled:
            settled += 1
        return settled

    async def empty(self, extent: int) -> bool:
        """Write what the tree has in one extent again, elsewhere; False if it has nothing there.

        Raises:
            DeviceError, CorruptionError, ReadOnlyError, NoSpaceError: it stays where it was.
        """
        async with self._merging:
            run, doomed = await self._find_segments(extent)
            manifest = self._committer.root.manifest
            if run is None and (manifest is None or manifest.extent != extent):
                return False
            writer = self._writer(
                run.level if run else 0, run.run_id if run else 0, floor=MERGE_FLOOR_EXTENTS
            )
            try:
                for segment in doomed:
                    await copy_segment(segment, writer)
                async with self._lock:
                    await self._install(
                        _replaced(self._tree.runs, run, doomed, writer), writer, None
                    )
            except BaseException:  # cancelled too: what was written is garbage
                self._abandon(writer)
                raise
            await self._give_up(doomed)
            return True

    def _account(self) -> None:
        space = self._extents.space
        space.tree_bytes = sum(run.total_bytes for run in self._tree.runs)
        space.memory_bytes = self._tree.memory_bytes

    async def _find_segments(self, extent: int) -> tuple[Run | None, list[Segment]]:
        """The oldest run that has something in the extent, and its segments that do."""
        slices = Slices()
        for run in self._tree.runs:
            found = []
            for segment in run.segments:
                if any(locator.extent == extent for locator in segment.locators):
                    found.append(segment)
                await slices.spend(1 + len(segment.index.blocks) // 16)
            if found:
                return run, found
        return None, []

    def _urgency_of_checkpoint(self) -> float:
        """Whoever waits for the lock that it holds lets it have no rest."""
        if self.checkpoint_pace is None or self._lock.statistics().tasks_waiting:
            return 1.0
        return self.checkpoint_pace()

    def _urgency_of_merge(self) -> float:
        if self.merge_pace is None or self._merging.statistics().tasks_waiting:
            return 1.0
        return self.merge_pace()

    def _take_run_id(self) -> int:
        run_id = self._next_run_id
        self._next_run_id += 1
        return run_id

    def _writer(
        self, level: int, run_id: int, slices: Slices | None = None, *, floor: int = 0
    ) -> SegmentWriter:
        parts = (self._chunks, self._extents, self._cache)
        return SegmentWriter(*parts, run_id, level, slices, floor=floor)

    async def _install(
        self, runs: tuple[Run, ...], writer: SegmentWriter, freeze: Freeze | None
    ) -> None:
        usage = freeze.usage if freeze is not None else self._usage
        usage_data = await usage.encoded(writer.slices)
        root = self._committer.root
        checkpoint = freeze.number if freeze is not None else root.checkpoint
        metas = tuple(segment.meta for run in runs for segment in run.segments)
        payload = encode_manifest(Manifest(checkpoint, metas, ()), usage_data)
        locator, persistent = self._chunks.put(
            Kind.MANIFEST, Stream.RUNS, b"", checkpoint, (payload,), all_of(writer.written)
        )
        self._extents.credit(locator.extent, locator_bytes(locator))
        writer.credited.append(locator)
        self._extents.cut_all()
        await self._scheduler.settle(persistent)
        with trio.CancelScope(shield=True):
            # From here on the new manifest may be what a crash leaves: no turning back.
            self._committer.adopt(locator, freeze)
            await self._scheduler.settle(await self._committer.write_record())
            self._committer.persistent_checkpoint = checkpoint
            self._tree.install(runs, drop_frozen=freeze is not None)
            self._account()
            self._usage = usage
            writer.credited.clear()
            self.entries_written += sum(segment.meta.entry_count for segment in writer.segments)
            if root.manifest is not None:
                self._debit(root.manifest)

    def _abandon(self, writer: SegmentWriter) -> None:
        for locator in writer.credited:
            self._debit(locator)
        writer.credited.clear()

    async def _give_up(self, segments: Iterable[Segment]) -> None:
        """The chunks of these segments are referred to no more."""
        slices = Slices()
        with trio.CancelScope(shield=True):  # half of it would leave garbage that counts as live
            for segment in segments:
                for locator in segment.locators:
                    self._debit(locator)
                    await slices.spend(1)

    def _debit(self, locator: Locator) -> None:
        self._extents.debit(locator.extent, locator.epoch, locator_bytes(locator))


def _replaced(
    runs: tuple[Run, ...], changed: Run | None, doomed: list[Segment], writer: SegmentWriter
) -> tuple[Run, ...]:
    """The runs, with what was written in place of some segments of one of them."""
    if changed is None:
        return runs
    kept = {each.meta.first_key: each for each in changed.segments if each not in doomed}
    kept |= {each.meta.first_key: each for each in writer.segments}
    again = changed._replace(segments=tuple(kept[key] for key in sorted(kept)))
    return tuple(again if each is changed else each for each in runs)


def _as_run(run_id: int, level: int, segments: Sequence[Segment]) -> tuple[Run, ...]:
    """The run of these segments, or nothing if there are none."""
    if not segments:
        return ()
    return (Run(run_id, level, tuple(segment.at_level(level) for segment in segments)),)
