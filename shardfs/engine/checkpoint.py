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

Ordering: run chunks -> flush -> manifest -> flush -> superblock record -> flush -> old runs,
old manifest and covered deltas are dead. A power cut in between leaves the old tree in force
and some unreferenced chunks, which nothing counts as live.

Not here: what to merge (lsm/compaction.py), freeing extents (reclaim.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import trio

from shardfs import limits
from shardfs.engine.cache import Cache
from shardfs.engine.chunks import ChunkStore, locator_bytes
from shardfs.engine.commit import Committer, Freeze
from shardfs.engine.dependency import all_of
from shardfs.engine.extents import Extents, Usage
from shardfs.engine.layout import Kind, Stream
from shardfs.engine.lsm.compaction import (
    choose_runs,
    copy_segment,
    hides_much,
    merge_runs,
    write_memtable,
)
from shardfs.engine.lsm.manifest import Manifest, encode_manifest
from shardfs.engine.lsm.merge import Run
from shardfs.engine.lsm.segment import Segment, SegmentWriter
from shardfs.engine.lsm.tree import Tree
from shardfs.engine.pacing import Slices
from shardfs.engine.pieces import Locator
from shardfs.engine.scheduler import Scheduler

_log = logging.getLogger(__name__)

_ENTRIES_WORTH_TIDYING = 256


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
        self._usage = usage
        self._next_run_id = 1 + max((run.run_id for run in tree.runs), default=0)
        self._lock = trio.Lock()
        self._merging = trio.Lock()
        self.merge_pace: Callable[[], float] | None = None
        """How urgent merging is, 0 to 1 (pacing.py); without it merging never rests."""
        self.checkpoint_pace: Callable[[], float] | None = None
        """The same for checkpoints that are paced."""
        extents.space.tree_bytes = sum(run.total_bytes for run in tree.runs)

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
            writer = self._writer(
                level=0, slices=Slices(self._urgency_of_checkpoint) if paced else None
            )
            try:
                await write_memtable(frozen, writer, is_oldest=not self._tree.runs)
                runs = (*self._tree.runs, *_as_run(writer, 0))
                await self._install(runs, writer, freeze)
            except BaseException:
                self._abandon(writer)
                raise
            self._committer.frozen = None
            _log.debug("checkpoint at delta %d: %d entries", freeze.number, len(frozen))

    @property
    def hides_much(self) -> bool:
        """Whether what is newer than the oldest run may hide a good part of it, and is worth it."""
        newer = len(self._tree.memtable)
        runs = self._tree.runs
        if newer + sum(run.entry_count for run in runs) < _ENTRIES_WORTH_TIDYING:
            return False
        return bool(runs) and hides_much(runs, newer)

    async def compact(self, *, thorough: bool = False) -> bool:
        """Merge one set of runs, if any level is full and the device has room for the result.

        Args:
            thorough: merge all runs as well when the newer ones may hide much of the oldest, as on
                a device that is short of space.

        Rests between slices as far as `merge_pace` allows, unless somebody else waits to merge.

        Returns:
            Whether something was merged: call again until False.

        Raises:
            DeviceError, CorruptionError, ReadOnlyError, NoSpaceError: the old runs stay.
        """
        async with self._merging:
            thorough |= self._extents.space.is_short
            chosen = choose_runs(self._tree.runs, thorough=thorough)
            room = self._extents.free_bytes - 2 * self._extents.extent_bytes
            if not chosen or sum(run.total_bytes for run in chosen) > room:
                return False
            # Levels fall along the sequence: what is merged across levels stays at the oldest's.
            level = chosen[0].level + (chosen[-1].level == chosen[0].level)
            level = min(level, limits.LEVEL_COUNT_MAX - 1)
            is_oldest = chosen[0] is self._tree.runs[0]
            writer = self._writer(level=level, slices=Slices(self._urgency_of_merge))
            try:
                await merge_runs(chosen, writer, is_oldest=is_oldest)
                async with self._lock:
                    # A checkpoint may have come meanwhile; it only adds behind.
                    at = self._tree.runs.index(chosen[0])
                    behind = self._tree.runs[at + len(chosen) :]
                    runs = (*self._tree.runs[:at], *_as_run(writer, level), *behind)
                    await self._install(runs, writer, None)
            except BaseException:
                self._abandon(writer)
                raise
            await self._give_up(segment for run in chosen for segment in run.segments)
            _log.debug("merged %d runs of level %d", len(chosen), chosen[0].level)
            return True

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
            writer = self._writer(level=run.level if run is not None else 0)
            try:
                if run is not None:
                    writer.run_id = run.run_id
                for segment in doomed:
                    await copy_segment(segment, writer)
                async with self._lock:
                    await self._install(
                        _replaced(self._tree.runs, run, doomed, writer), writer, None
                    )
            except BaseException:
                self._abandon(writer)
                raise
            await self._give_up(doomed)
            return True

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

    def _writer(self, *, level: int, slices: Slices | None = None) -> SegmentWriter:
        run_id = self._next_run_id
        self._next_run_id += 1
        return SegmentWriter(self._chunks, self._extents, self._cache, run_id, level, slices)

    async def _install(
        self, runs: tuple[Run, ...], writer: SegmentWriter, freeze: Freeze | None
    ) -> None:
        root = self._committer.root
        usage = freeze.usage if freeze is not None else self._usage
        checkpoint = freeze.number if freeze is not None else root.checkpoint
        metas = tuple(segment.meta for run in runs for segment in run.segments)
        payload = encode_manifest(Manifest(checkpoint, metas, usage))
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
            self._extents.space.tree_bytes = sum(run.total_bytes for run in runs)
            self._usage = usage
            writer.credited.clear()
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


def _as_run(writer: SegmentWriter, level: int) -> tuple[Run, ...]:
    if not writer.segments:
        return ()
    return (Run(writer.segments[0].meta.run_id, level, tuple(writer.segments)),)
