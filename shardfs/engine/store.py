"""The door of the engine: one open store.

Role: composes the engine's parts over one device, and runs the background work in a nursery of its
own. Keys are bytes; a value is a record (kept in the tree) or a shard (pieces of chunks outside
it).

Invariants:
    I1. A batch is visible whole, at once; it becomes durable whole, in the order applied.
    I2. A chunk is live from the batch that first refers to it until the delta that drops the
        last reference is durable.
    I3. A writable store serves nothing before recovery's result is durable.

Ordering, for an open: recovery (reads only) -> flush of what was found -> superblock logs
started afresh, one copy after the other -> serve. For a close: commit -> clean record -> flush.

Not here: files (fuse/), one module each for everything this one composes.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from shardfs import limits
from shardfs.engine.admission import SHORT_ENTRY_BYTES
from shardfs.engine.applying import Applier
from shardfs.engine.batch import Batch, check_key
from shardfs.engine.dependency import Dependency
from shardfs.engine.device import Buffer, Device
from shardfs.engine.evacuation import Evacuator
from shardfs.engine.extents import Extents
from shardfs.engine.figures import space_figures, space_parts, statistics_of
from shardfs.engine.gathering import Gatherer
from shardfs.engine.health import Health, HealthState
from shardfs.engine.lookups import Lookups
from shardfs.engine.lsm.entry import TOMBSTONE, encode_record, encode_shard
from shardfs.engine.maintenance import Maintenance
from shardfs.engine.memory import StoreMemory
from shardfs.engine.opening import Parts, open_parts
from shardfs.engine.options import StoreOptions
from shardfs.engine.pieces import Locator, Piece, Shard
from shardfs.engine.recent_shards import RecentShards
from shardfs.engine.shards import ShardData
from shardfs.engine.stats import Space, SpaceParts, StoreStatistics
from shardfs.engine.superblock_record import Identity
from shardfs.engine.temperature import Temperature
from shardfs.errors import LimitError, ShardfsError

_log = logging.getLogger(__name__)


class Store(Lookups):
    """One open store. Made by `Store.open`; everything runs on the one trio thread."""

    def __init__(self, parts: Parts, options: StoreOptions) -> None:
        self.health: Health = parts.health
        self.notes: tuple[str, ...] = parts.notes
        self.damage: str = parts.replayed.damage
        self._parts = parts
        self._scheduler = parts.scheduler
        self._extents: Extents = parts.extents
        self._committer = parts.committer
        self._checkpointer = parts.checkpointer
        shards, recent = (
            ShardData(parts.chunks, parts.extents),
            RecentShards(limits.DECODED_BYTES_MAX),
        )
        self._memory = StoreMemory(parts, recent)
        self._applier = Applier(
            parts.extents, parts.tree, parts.committer, parts.health, shards, self._applied
        )
        self._temperature = Temperature(parts.extents)
        self._evacuator = Evacuator(
            parts.extents,
            parts.chunks,
            parts.tree,
            shards,
            self._temperature,
            partial(self._applier.batch, essential=True),
            self._applier.apply,
        )
        gatherer = Gatherer(
            parts.extents, parts.tree, shards, self._applier.batch, self._applier.apply
        )
        super().__init__(parts.tree, parts.chunks, shards, recent, gatherer)
        self._maintenance = Maintenance(parts, self._evacuator, gatherer, options.commit_interval_s)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, device: Device, *, options: StoreOptions | None = None
    ) -> AsyncIterator[Store]:
        """Open the store on `device`; leaving the context closes it in order.

        Args:
            device: stays the caller's to close.
            options: see StoreOptions.

        Raises:
            NotShardfsError, IncompatibleError, CorruptionError: see recovery.py.
            DeviceError: the device could not be read or written.
        """
        options = options or StoreOptions()
        failure: Exception | None = None
        async with trio.open_nursery() as writes:
            try:
                parts = await open_parts(
                    device,
                    writes,
                    read_only=options.read_only,
                    cache_bytes=options.cache_bytes,
                    tolerant=options.tolerant,
                )
            except Exception as error:
                failure = error
            else:
                store = cls(parts, options)
                writable = store.health.state is HealthState.HEALTHY
                try:
                    async with trio.open_nursery() as background:
                        if options.background and writable:
                            store._maintenance.start(background)
                        try:
                            yield store
                        except Exception as error:
                            failure = error
                        background.cancel_scope.cancel()
                finally:
                    with trio.CancelScope(shield=True):
                        await store._close(writable)
        if failure is not None:
            # Out here, where no nursery wraps it into a group: callers catch it by its class.
            raise failure

    @property
    def identity(self) -> Identity:
        """Which store it is, and its geometry."""
        return self._extents.identity

    # --- key-value door ---------------------------------------------------------------------

    async def put(self, key: bytes, value: Buffer) -> Dependency:
        """Set a key to a value.

        Args:
            key: 1 to limits.KEY_BYTES_MAX bytes.
            value: at most limits.QUEUED_BYTES_MAX bytes.

        Returns:
            Persistent once the value survives a power cut; `sync` makes it so.

        Raises:
            LimitError, NoSpaceError, ReadOnlyError: nothing was changed.
            DeviceError, CorruptionError: the old value's entry could not be read.
        """
        length = len(value)
        if not 0 < len(key) <= limits.KEY_BYTES_MAX:
            check_key(key)
        if length > limits.QUEUED_BYTES_MAX:
            raise LimitError(
                f"a value of {length} bytes is larger than {limits.QUEUED_BYTES_MAX}; "
                "split it over several keys"
            )
        if not self._maintenance.admission.admits_at_once(length, len(key) + SHORT_ENTRY_BYTES):
            await self.admit(length)
        old = None
        if not self._tree.is_surely_absent(key):
            old = await self._load(key)
        # No await from here on: what was loaded is current until the batch is applied.
        batch = self._applier.batch()
        if length <= limits.INLINE_VALUE_BYTES_MAX:
            return self._replace(batch, key, old, encode_record(bytes(value)), ())
        self._applier.require_room(length)
        replaced = old.pieces if isinstance(old, Shard) else ()
        stream = self._temperature.stream_for_new(replaced, length)
        pieces = self._shards.append_pieces(key, 0, (value,), stream=stream)
        return self._replace(batch, key, old, encode_shard(pieces), pieces)

    async def delete(self, key: bytes) -> Dependency:
        """Remove a key; nothing happens if there is none.

        Returns:
            Persistent once the removal survives a power cut.

        Raises:
            LimitError, ReadOnlyError, DeviceError, CorruptionError: nothing was changed.
        """
        check_key(key)
        if not self._maintenance.admission.admits_at_once(0, len(key) + SHORT_ENTRY_BYTES):
            await self.admit()
        old = await self._load(key)
        if old is None:
            return self._committer.applied()
        return self._replace(self.batch(essential=True), key, old, TOMBSTONE, ())

    # --- records and shards -----------------------------------------------------------------

    def batch(self, *, essential: bool = False, answered: bool = False) -> Batch:
        """An empty batch. `essential` batches free space or keep a promise already made: they
        may use the reserve when the device is full. See Batch for `answered`."""
        return self._applier.batch(essential=essential, answered=answered)

    def apply(self, batch: Batch) -> Dependency:
        """Make a batch visible, all of it at once.

        Returns:
            Persistent once the batch survives a power cut; `sync` makes it so.

        Raises:
            StaleError: a shard has changed since its base was read; nothing was changed.
            NoSpaceError: the device is full and the batch is not essential.
            ReadOnlyError, StoreClosedError: the store takes no changes.
        """
        return self._applier.apply(batch)

    def append(self, owner: bytes, offset: int, buffers: Sequence[Buffer]) -> Locator:
        """Write one chunk of data; to be referenced by a batch in the same critical section.

        See ShardData.append for arguments and further errors.

        Raises:
            NoSpaceError, ReadOnlyError, StoreClosedError: nothing was written.
        """
        self._applier.require_open()
        return self._shards.append(owner, offset, buffers)

    def append_pieces(
        self,
        owner: bytes,
        offset: int,
        buffers: Sequence[Buffer],
        *,
        replaced: Sequence[Piece] = (),
    ) -> tuple[Piece, ...]:
        """Write data of any length as chunks that fill extents up; else as `append`.

        Args:
            replaced: pieces that the data takes the place of; they tell how long it will live.

        Returns:
            Pieces that cover [offset, offset + total length) of the shard.
        """
        self._applier.require_open()
        stream = self._temperature.stream_for_new(replaced, sum(map(len, buffers)))
        return self._shards.append_pieces(owner, offset, buffers, stream=stream)

    def is_durable(self, key: bytes) -> bool:
        """Whether the present value of a key would survive a power cut; True if it has none."""
        return self._committer.applied_to(key).is_persistent()

    def pending_keys(self) -> list[bytes]:
        """Keys with changes that are not durable; some twice."""
        return self._committer.pending_keys()

    async def sync(self, dependency: Dependency | None = None) -> None:
        """Return when `dependency` is persistent; by default, all that was applied before.

        Durable when: returned. Callers share flushes. Raises:
            DeviceError, ReadOnlyError: it cannot be made durable.
        """
        dependency = dependency or self._committer.applied()
        if not dependency.is_persistent():
            await self._committer.commit()
            await self._scheduler.settle(dependency)
        self._maintenance.notice()

    async def sync_key(self, key: bytes) -> None:
        """As `sync`, for a key's value and all applied before it; at once if that is durable."""
        if not (dependency := self._committer.applied_to(key)).is_persistent():
            await self._committer.commit(dependency)
        self._maintenance.notice()

    @property
    def is_flushing(self) -> bool:
        """Whether the device flushes."""
        return self._scheduler.is_flushing

    def admits_at_once(self, length: int = 0) -> bool:
        """Whether `admit` would let the caller in without waiting; then it need not be called.

        Args:
            length: bytes of data that will be appended next.
        """
        return self._maintenance.admission.admits_at_once(length, limits.RECORD_BYTES_MAX)

    async def admit(self, length: int = 0) -> None:
        """Wait a little as the background work falls behind (pacing.py); wait longer while too much
        is queued for the device, or is behind the last checkpoint, or while garbage is in the way.

        Args:
            length: bytes of data that will be appended next.

        Checkpoints: only then.

        Raises:
            DeviceError, ReadOnlyError: what is queued cannot be written.
        """
        if self._scheduler.queued_bytes > limits.QUEUED_BYTES_MAX:
            await self._scheduler.admit()
        await self._maintenance.admission.admit(length)

    def require_room(self, length: int) -> None:
        """Raises:
        NoSpaceError: `length` more bytes of data have no room beside what is promised.
        """
        self._applier.require_room(length)

    def require_tree_room(self) -> None:
        """For a batch that may use the reserve, and leaves longer entries than there were.

        Raises:
            NoSpaceError: the tree has outgrown what is kept for it by too much already.
        """
        self._applier.require_tree_room()

    def reserve(self, length: int) -> None:
        """Set space aside for `length` bytes that will be appended later.

        Raises:
            NoSpaceError: there is not that much left; nothing was set aside.
        """
        self._applier.reserve(length)

    def release(self, length: int) -> None:
        """Give back what `reserve` set aside."""
        self._applier.release(length)

    def space(self) -> Space:
        """How full the store is."""
        return space_figures(self._extents, self._applier.reserved_bytes)

    def space_parts(self) -> SpaceParts:
        """Where the bytes of the device are: parts that add up to its size."""
        return space_parts(self._parts, self._applier.reserved_bytes)

    def statistics(self) -> StoreStatistics:
        """Counts since the open, sizes as of now."""
        return statistics_of(self._parts, self._gatherer, self._maintenance.debts)

    # --- maintenance ------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Write the memtable as a run (see checkpoint.py)."""
        await self._checkpointer.checkpoint()

    async def compact(self) -> bool:
        """Merge one set of runs if a level is full; whether one was merged."""
        return await self._checkpointer.compact()

    async def reclaim(self) -> int:
        """Free dead extents, or else empty some that are mostly garbage; how many were freed."""
        return await self._maintenance.make_room()

    async def gather(self) -> int:
        """Rewrite one shard that lies scattered, in fewer pieces; bytes written."""
        return await self._gatherer.gather(idle_s=0)

    async def reclaim_dead(self) -> int:
        """Free the extents that are wholly dead, and move nothing; how many."""
        return await self._maintenance.reclamation.reclaim()

    def memory_use(self) -> dict[str, int]:
        """Bytes held in memory, by what for."""
        return self._memory.use()

    def limit_caches(self, bytes_max: int) -> None:
        """Hold no more than that in caches from now on."""
        self._memory.limit(bytes_max)

    async def _close(self, opened_writable: bool) -> None:
        self._applier.is_closed = True
        if not opened_writable:
            return
        try:
            self.health.require_writable()
            await self._committer.commit()
            await self._maintenance.merging.checkpoint_if_due()
            await self._scheduler.settle(await self._committer.write_record(clean=True))
        except ShardfsError as error:
            self.health.make_read_only(str(error))
            _log.error("closing without a clean record: %s", error)

    # --- helpers ----------------------------------------------------------------------------

    def _applied(self, batch: Batch) -> None:
        if batch.piece_counts:
            self._gatherer.changed(batch)
        self._maintenance.notice()

    def _replace(
        self,
        batch: Batch,
        key: bytes,
        old: bytes | Shard | None,
        value: bytes,
        pieces: tuple[Piece, ...],
    ) -> Dependency:
        """Apply a change of kind, record to shard or back, that Batch itself forbids."""
        batch.changes[key] = value
        batch.refer(old.pieces if isinstance(old, Shard) else (), pieces)
        return self.apply(batch)
