"""Moves the tree forward: memtables become runs, runs are merged, manifests are installed.

Role: the only place where the set of runs changes, one change at a time.

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
from shardfs.engine.pieces import Locator
from shardfs.engine.scheduler import Scheduler
from shardfs.engine.space import MERGE_FLOOR_EXTENTS

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
        self._account()

    async def checkpoint(self, *, only_if_due: bool = False) -> None:
        """Write everything in the memtable as a run; the delta log starts anew behind it.

        Args:
            only_if_due: nothing is done unless `Committer.is_due`, once its turn has come.

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
            writer = self._writer(level=0)
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

    @property
    def hidden_bytes_max(self) -> int:
        """Upper bound for what merging everything, memory included, would give back."""
        oldest = self._tree.runs[0].total_bytes if self._tree.runs else 0
        space = self._extents.space
        return min(2 * (space.tree_bytes - oldest + space.memory_bytes), space.tree_share_bytes)

    async def compact(self, *, thorough: bool = False, whole: bool = False) -> bool:
        """Merge one set of runs, if any level is full and the device has room for the result.

        Args:
            thorough: merge all runs as well when the newer ones may hide much of the oldest, as on
                a device that is short of space.
            whole: merge all runs into one, if there is more than one.

        Returns:
            Whether something was merged: call again until False.

        Raises:
            DeviceError, CorruptionError, ReadOnlyError, NoSpaceError: the old runs stay.
        """
        async with self._lock:
            thorough |= self._extents.space.is_short
            chosen = choose_runs(self._tree.runs, thorough=thorough)
            if whole and len(self._tree.runs) > 1:
                chosen = list(self._tree.runs)
            size = sum(run.total_bytes for run in chosen)
            free = self._extents.free_count
            if not chosen or not self._extents.space.has_room_for_runs(size, free):
                return False
            # Levels fall along the sequence: what is merged across levels stays at the oldest's.
            level = chosen[0].level + (chosen[-1].level == chosen[0].level)
            level = min(level, limits.LEVEL_COUNT_MAX - 1)
            is_oldest = chosen[0] is self._tree.runs[0]
            writer = self._writer(level=level, floor=MERGE_FLOOR_EXTENTS)
            try:
                await merge_runs(chosen, writer, is_oldest=is_oldest)
                at = self._tree.runs.index(chosen[0])
                behind = self._tree.runs[at + len(chosen) :]
                runs = (*self._tree.runs[:at], *_as_run(writer, level), *behind)
                await self._install(runs, writer, None)
            except BaseException:
                self._abandon(writer)
                raise
            for run in chosen:
                for segment in run.segments:
                    for locator in segment.locators:
                        self._debit(locator)
            _log.debug("merged %d runs of level %d", len(chosen), chosen[0].level)
            return True

    async def empty(self, extent: int) -> bool:
        """Write what the tree has in one extent again, elsewhere; False if it has nothing there.

        Raises:
            DeviceError, CorruptionError, ReadOnlyError, NoSpaceError: it stays where it was.
        """
        async with self._lock:
            run = next((each for each in self._tree.runs if _segments_in(each, extent)), None)
            manifest = self._committer.root.manifest
            if run is None and (manifest is None or manifest.extent != extent):
                return False
            level = run.level if run is not None else 0
            writer = self._writer(level=level, floor=MERGE_FLOOR_EXTENTS)
            try:
                if run is None:
                    await self._install(self._tree.runs, writer, None)
                    return True
                doomed = _segments_in(run, extent)
                kept = {each.meta.first_key: each for each in run.segments if each not in doomed}
                writer.run_id = run.run_id
                for segment in doomed:
                    await copy_segment(segment, writer)
                kept |= {each.meta.first_key: each for each in writer.segments}
                again = run._replace(segments=tuple(kept[key] for key in sorted(kept)))
                runs = tuple(again if each is run else each for each in self._tree.runs)
                await self._install(runs, writer, None)
            except BaseException:
                self._abandon(writer)
                raise
            for segment in doomed:
                for locator in segment.locators:
                    self._debit(locator)
            return True

    def _account(self) -> None:
        space = self._extents.space
        space.tree_bytes = sum(run.total_bytes for run in self._tree.runs)
        space.memory_bytes = self._tree.memory_bytes

    def _writer(self, *, level: int, floor: int = 0) -> SegmentWriter:
        run_id = self._next_run_id
        self._next_run_id += 1
        return SegmentWriter(self._chunks, self._extents, self._cache, run_id, level, floor=floor)

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
            self._account()
            self._usage = usage
            writer.credited.clear()
            if root.manifest is not None:
                self._debit(root.manifest)

    def _abandon(self, writer: SegmentWriter) -> None:
        for locator in writer.credited:
            self._debit(locator)
        writer.credited.clear()

    def _debit(self, locator: Locator) -> None:
        self._extents.debit(locator.extent, locator.epoch, locator_bytes(locator))


def _segments_in(run: Run, extent: int) -> list[Segment]:
    return [
        segment
        for segment in run.segments
        if any(locator.extent == extent for locator in segment.locators)
    ]


def _as_run(writer: SegmentWriter, level: int) -> tuple[Run, ...]:
    if not writer.segments:
        return ()
    return (Run(writer.segments[0].meta.run_id, level, tuple(writer.segments)),)
