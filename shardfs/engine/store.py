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
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from operator import itemgetter

import trio

from shardfs import limits
from shardfs.engine.admission import SHORT_ENTRY_BYTES
from shardfs.engine.applying import Applier
from shardfs.engine.batch import Batch, check_key
from shardfs.engine.chunks import ChunkStore
from shardfs.engine.dependency import Dependency
from shardfs.engine.device import Buffer, Device
from shardfs.engine.evacuation import Evacuator
from shardfs.engine.extents import Extents
from shardfs.engine.figures import space_figures, space_parts, statistics_of
from shardfs.engine.gathering import Gatherer
from shardfs.engine.health import Health, HealthState
from shardfs.engine.lsm.entry import TOMBSTONE, decode_value, encode_record, encode_shard
from shardfs.engine.lsm.tree import Unread
from shardfs.engine.maintenance import Maintenance
from shardfs.engine.memory import StoreMemory
from shardfs.engine.opening import Parts, open_parts
from shardfs.engine.options import StoreOptions
from shardfs.engine.pieces import Entry, Locator, Piece, Shard
from shardfs.engine.recent_shards import RecentShards
from shardfs.engine.shards import ShardData
from shardfs.engine.stats import Space, SpaceParts, StoreStatistics
from shardfs.engine.superblock_record import Identity
from shardfs.engine.temperature import Temperature
from shardfs.errors import CorruptionError, LimitError, ShardfsError

_log = logging.getLogger(__name__)


class Store:
    """One open store. Made by `Store.open`; everything runs on the one trio thread."""

    def __init__(self, parts: Parts, options: StoreOptions) -> None:
        self.health: Health = parts.health
        self.notes: tuple[str, ...] = parts.notes
        self.damage: str = parts.replayed.damage
        self._parts = parts
        self._scheduler = parts.scheduler
        self._extents: Extents = parts.extents
        self._chunks: ChunkStore = parts.chunks
        self._tree = parts.tree
        self.bring = parts.tree.bring
        self._committer = parts.committer
        self._checkpointer = parts.checkpointer
        self._shards = ShardData(parts.chunks, parts.extents)
        self._recent = RecentShards(limits.DECODED_BYTES_MAX)
        self._memory = StoreMemory(parts, self._recent)
        self._applier = Applier(
            parts.extents, parts.tree, parts.committer, parts.health, self._shards, self._applied
        )
        self._temperature = Temperature(parts.extents)
        self._evacuator = Evacuator(
            parts.extents,
            parts.chunks,
            parts.tree,
            self._shards,
            self._temperature,
            partial(self._applier.batch, essential=True),
            self._applier.apply,
        )
        self._gatherer = Gatherer(
            parts.extents, parts.tree, self._shards, self._applier.batch, self._applier.apply
        )
        self._maintenance = Maintenance(
            parts, self._evacuator, self._gatherer, options.commit_interval_s
        )

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
        old = None if self._tree.is_surely_absent(key) else await self._load(key)
        # No await from here on: what was loaded is current until the batch is applied.
        batch = self._applier.batch()
        if length <= limits.INLINE_VALUE_BYTES_MAX:
            return self._replace(batch, key, old, encode_record(bytes(value)), ())
        self._applier.require_room(length)
        replaced = old.pieces if isinstance(old, Shard) else ()
        stream = self._temperature.stream_for_new(replaced, length)
        pieces = self._shards.append_pieces(key, 0, (value,), stream=stream)
        return self._replace(batch, key, old, encode_shard(pieces), pieces)

    async def get(self, key: bytes, start: int = 0, length: int | None = None) -> bytes | None:
        """The value of a key, or bytes [start, start+length) of it; None when there is none.

        Raises:
            DeviceError, CorruptionError: it cannot be read as it was written.
        """
        check_key(key)
        value = await self._load(key)
        if value is None:
            return None
        if isinstance(value, bytes):
            return value[start:] if length is None else value[start : start + length]
        stop = value.length if length is None else min(value.length, start + length)
        return await self.read_shard(value, start, max(0, stop - start))

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

    async def get_record(self, key: bytes) -> bytes | None:
        """The record of a key, or None. Checkpoints: only when a tree block is not cached.

        Raises:
            DeviceError, CorruptionError: the tree cannot be read there.
        """
        value = await self._load(key)
        if isinstance(value, Shard):
            raise CorruptionError("a shard stands where a record should", f"key {key.hex()}")
        return value

    def find_record(self, key: bytes) -> bytes | Unread | None:
        """What get_record gives, or UNREAD where it would wait; see Tree.find_record."""
        return self._tree.find_record(key)

    async def records(self, start: bytes, end: bytes, count_max: int) -> list[tuple[bytes, bytes]]:
        """The first records of [start, end); see Tree.records."""
        return await self._tree.records(start, end, count_max)

    async def get_shard(self, key: bytes) -> Shard | None:
        """The shard of a key, or None. Checkpoints: only when a tree block is not cached.

        Raises:
            DeviceError, CorruptionError: the tree cannot be read there.
        """
        value = await self._load(key)
        if isinstance(value, bytes):
            raise CorruptionError("a record stands where a shard should", f"key {key.hex()}")
        return value

    async def scan(self, start: bytes, end: bytes) -> AsyncGenerator[Entry, None]:
        """Records (as bytes) and shards of [start, end), in key order.

        Changes made while scanning may or may not be seen; what does not change is seen once. A
        shard can be read until the next one is asked for; later, its data may have been moved,
        and has to be looked up again.

        Raises:
            DeviceError, CorruptionError: the tree cannot be read there.
        """
        while True:
            page = await self._tree.page(start, end)
            generation = self._tree.generation
            found = [(key, decode_value(page.entries[key], generation)) for key in page.entries]
            pieces = [
                piece for _, value in found if isinstance(value, Shard) for piece in value.pieces
            ]
            with self._shards.pinned(pieces):
                for key, value in sorted(found, key=itemgetter(0)):
                    if value is not None:
                        yield key, value
            if page.horizon is None:
                return
            start = page.horizon + b"\0"

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

    async def read_chunk(self, locator: Locator, start: int, length: int) -> bytes | memoryview:
        """Bytes [start, start+length) of a chunk's payload, verified; at most one device read.

        Raises:
            DeviceError, CorruptionError: they cannot be read as they were written.
        """
        return await self._chunks.get(locator, start, length)

    def pinned(self, pieces: Sequence[Piece]) -> AbstractContextManager[None]:
        """Keeps the chunks of these pieces from being reclaimed while the body runs."""
        return self._shards.pinned(pieces)

    async def read_shard(self, shard: Shard, start: int, length: int) -> bytes:
        """Bytes [start, start+length) of a shard; holes and what lies behind it are zeros.

        Raises:
            DeviceError, CorruptionError: they cannot be read as they were written.
        """
        return await self._shards.read(shard.pieces, start, length)

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

    async def _load(self, key: bytes) -> bytes | Shard | None:
        """The value of a key, current at the moment of return."""
        value = self._tree.find(key)
        if value is None:
            value = await self._tree.get(key)
        if value is None or value == TOMBSTONE:
            return None
        found = self._recent.shard_or_record(key, value, self._tree.generation)
        if isinstance(found, Shard):
            self._gatherer.seen(key, found)
        return found

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
