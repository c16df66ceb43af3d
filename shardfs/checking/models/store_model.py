"""The reference store: what the engine's Store means, in dictionaries.

Role: an executable specification of the door that the file system uses. It keeps everything in
memory, and knows which states a power cut may leave.

Invariants:
    I1. A batch is all or nothing, and visible as soon as `apply` returns.
    I2. After a power cut the store holds the state of some prefix of the applied batches, at least
        as long as what `sync` has returned for.
    I3. `put_shard` and `delete_shard` succeed only on the shard that is current.

Not here: space accounting in the engine's detail; a byte of payload costs a byte.
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import trio
from sortedcontainers import SortedDict
from xxhash import xxh3_64_digest

from shardfs import limits
from shardfs.engine.dependency import Dependency
from shardfs.engine.health import Health
from shardfs.engine.layout import Bytes
from shardfs.engine.lsm.tree import UNREAD, Unread
from shardfs.engine.pieces import Locator, Piece, Shard, encode_pieces, granule_bytes
from shardfs.errors import CorruptionError, DeviceError, LimitError, NoSpaceError, StaleError

State = SortedDict[bytes, bytes | Shard]


@dataclass(frozen=True)
class ModelIdentity:
    """Who a model store is."""

    uuid: uuid.UUID
    chunk_bytes_max: int


@dataclass(frozen=True)
class ModelSpace:
    """How full a model store is, bytes."""

    total_bytes: int
    free_bytes: int


@dataclass
class ModelBatch:
    """Changes to apply together: key -> new value (None deletes), and the expected shards."""

    essential: bool
    answered: bool = False
    changes: dict[bytes, bytes | tuple[Piece, ...] | None] = field(default_factory=dict)
    bases: dict[bytes, Shard | None] = field(default_factory=dict)

    def put(self, key: bytes, record: bytes) -> None:
        """Set a record."""
        assert 0 < len(key) <= limits.KEY_BYTES_MAX and len(record) <= limits.RECORD_BYTES_MAX
        self.changes[key] = record

    def delete(self, key: bytes) -> None:
        """Delete a record."""
        self.changes[key] = None

    def put_shard(self, key: bytes, pieces: tuple[Piece, ...], base: Shard | None) -> None:
        """Set a shard."""
        if len(encode_pieces(pieces)) > limits.RECORD_BYTES_MAX:
            raise LimitError(f"a shard of {len(pieces)} pieces is too fragmented")
        self.changes[key] = pieces
        self.bases[key] = base

    def delete_shard(self, key: bytes, base: Shard) -> None:
        """Delete a shard."""
        self.changes[key] = None
        self.bases[key] = base


class ModelStore:
    """A store of dictionaries.

    Args:
        total_bytes: payload bytes that fit.
        chunk_bytes_max: longest chunk, bytes.
    """

    def __init__(self, total_bytes: int = limits.GIB, chunk_bytes_max: int = limits.MIB) -> None:
        self.identity = ModelIdentity(uuid.UUID(int=7), chunk_bytes_max)
        self.health = Health()
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self.reserved_bytes = 0
        self.state: State = SortedDict()
        self.chunks: dict[int, bytes] = {}
        self.durable: State = SortedDict()
        self.unsynced: list[tuple[ModelBatch, Dependency]] = []
        self.sync_count = 0
        self.sync_error: Exception | None = None
        self._sequence = 0

    async def get_record(self, key: bytes) -> bytes | None:
        """The record at `key`."""
        await trio.lowlevel.checkpoint()
        value = self.state.get(key)
        assert not isinstance(value, Shard)
        return value

    def find_shard(self, key: bytes) -> Unread:
        """As find_record."""
        return UNREAD

    def find_record(self, key: bytes) -> Unread:
        """The record at `key` as far as it is in memory: never, so that each look may wait."""
        return UNREAD

    async def records(self, start: bytes, end: bytes, count_max: int) -> list[tuple[bytes, bytes]]:
        """The first records in [start, end)."""
        await trio.lowlevel.checkpoint()
        found: list[tuple[bytes, bytes]] = []
        for key in self.state.irange(start, end, (True, False)):
            value = self.state[key]
            if not isinstance(value, Shard):
                found.append((key, value))
            if len(found) == count_max:
                break
        return found

    async def bring(self, keys: Sequence[bytes]) -> None:
        """Nothing has to be read."""
        await trio.lowlevel.checkpoint()

    async def get_shard(self, key: bytes) -> Shard | None:
        """The shard at `key`."""
        await trio.lowlevel.checkpoint()
        value = self.state.get(key)
        assert value is None or isinstance(value, Shard)
        return value

    async def scan(self, start: bytes, end: bytes) -> AsyncIterator[tuple[bytes, bytes | Shard]]:
        """What lies in [start, end) now, ascending."""
        for key in list(self.state.irange(start, end, (True, False))):
            await trio.lowlevel.checkpoint()
            if key in self.state:
                yield key, self.state[key]

    @property
    def is_flushing(self) -> bool:
        """There is no device."""
        return False

    def memory_use(self) -> dict[str, int]:
        """Nothing that counts."""
        return {}

    def limit_caches(self, bytes_max: int) -> None:
        """There are none."""

    def batch(self, *, essential: bool = False, answered: bool = False) -> ModelBatch:
        """An empty batch."""
        return ModelBatch(essential, answered)

    def apply(self, batch: object) -> Dependency:
        """Make the batch visible."""
        assert isinstance(batch, ModelBatch)
        if not batch.answered:
            self.health.require_writable()
        if not batch.essential and not self.space().free_bytes:
            raise NoSpaceError("the store is full")
        for key, base in batch.bases.items():
            if self.state.get(key) != base:
                raise StaleError(f"shard {key.hex()} has changed")
        self._change(self.state, batch)
        dependency = Dependency()
        self.unsynced.append((batch, dependency))
        return dependency

    def append_pieces(
        self,
        owner: bytes,
        offset: int,
        buffers: Sequence[Bytes],
        *,
        replaced: Sequence[Piece] = (),
    ) -> tuple[Piece, ...]:
        """Write chunks; for the model it is all the same what they replace."""
        self.health.require_writable()
        data = b"".join(buffers)
        step = self.identity.chunk_bytes_max
        pieces = []
        for at in range(0, len(data), step):
            chunk = data[at : at + step]
            self._sequence += 1
            self.chunks[self._sequence] = chunk
            granule = granule_bytes(len(chunk))
            checksums = b"".join(
                xxh3_64_digest(chunk[start : start + granule])
                for start in range(0, len(chunk), granule)
            )
            locator = Locator(0, 0, 0, len(chunk), self._sequence, len(owner), checksums)
            pieces.append(Piece(offset + at, len(chunk), 0, locator))
        return tuple(pieces)

    def pinned(self, pieces: Sequence[Piece]) -> AbstractContextManager[None]:
        """Chunks are never dropped anyway."""
        return nullcontext()

    async def read_chunk(self, locator: Locator, start: int, length: int) -> bytes:
        """Part of a chunk."""
        await trio.lowlevel.checkpoint()
        data = self.chunks.get(locator.sequence)
        if data is None or not 0 <= start < start + length <= locator.length:
            raise CorruptionError(f"no bytes [{start}, {start + length}) in {locator}")
        return data[start : start + length]

    def is_durable(self, key: bytes) -> bool:
        """Every batch with the key has been synced."""
        return not self._unsynced_up_to(key)

    def _unsynced_up_to(self, key: bytes) -> int:
        """How many batches have to be synced for every one with the key to be."""
        numbers = [n for n, (batch, _) in enumerate(self.unsynced, 1) if key in batch.changes]
        return max(numbers, default=0)

    async def sync(self, dependency: Dependency | None = None) -> None:
        """Make everything applied so far persistent."""
        await trio.lowlevel.checkpoint()
        self._sync(len(self.unsynced))

    async def sync_key(self, key: bytes) -> None:
        """Make what a key has persistent, and what was applied before."""
        if self._unsynced_up_to(key):
            await trio.lowlevel.checkpoint()
            self._sync(self._unsynced_up_to(key))

    def _sync(self, count: int) -> None:
        """Make the oldest batches persistent."""
        self.sync_count += 1
        if self.sync_error is not None:
            raise self.sync_error
        pending, self.unsynced = self.unsynced[:count], self.unsynced[count:]
        for batch, each in pending:
            self._change(self.durable, batch)
            each.resolve()

    def require_tree_room(self) -> None:
        """Its records take no room."""

    def require_room(self, length: int) -> None:
        """Refuse what does not fit."""
        if length > self.space().free_bytes:
            raise NoSpaceError(f"no room for {length} bytes")

    def reserve(self, length: int) -> None:
        """Set space aside."""
        if length > self.space().free_bytes:
            raise NoSpaceError(f"no room for {length} bytes")
        self.reserved_bytes += length

    def release(self, length: int) -> None:
        """Give reserved space back."""
        assert 0 <= length <= self.reserved_bytes
        self.reserved_bytes -= length

    def admits_at_once(self, length: int = 0) -> bool:
        """It never waits."""
        return True

    async def admit(self, length: int = 0) -> None:
        """Never waits."""

    async def reclaim(self) -> int:
        """Space is free as soon as a batch gives it up."""
        await trio.lowlevel.checkpoint()
        return 0

    def space(self) -> ModelSpace:
        """How full the store is."""
        free = self.total_bytes - self.used_bytes - self.reserved_bytes
        return ModelSpace(self.total_bytes, max(0, free))

    def fail_device(self) -> None:
        """From now on nothing can be written or made persistent."""
        self.health.make_read_only("the device failed", expected=True)
        self.sync_error = DeviceError("write", 0, 4096, errno.EIO)

    def power_cut(self, survivors: int) -> ModelStore:
        """The store as found after a power cut that the first `survivors` unsynced batches outlive.

        Requires: 0 <= survivors <= len(self.unsynced).
        """
        after = ModelStore(self.total_bytes, self.identity.chunk_bytes_max)
        after.durable = self.durable.copy()
        for batch, _ in self.unsynced[:survivors]:
            self._change(after.durable, batch)
        after.state = after.durable.copy()
        after.used_bytes = sum(map(_shard_bytes, after.state.values()))
        after.chunks = dict(self.chunks)
        after._sequence = self._sequence
        return after

    def _change(self, state: State, batch: ModelBatch) -> None:
        for key, value in batch.changes.items():
            if state is self.state:
                self.used_bytes -= _shard_bytes(state.get(key))
                self.used_bytes += _piece_bytes(value) if isinstance(value, tuple) else 0
            if value is None:
                state.pop(key, None)
            elif isinstance(value, tuple):
                old = state.get(key)
                state[key] = Shard(value, old.generation + 1 if isinstance(old, Shard) else 0)
            else:
                state[key] = value


def _shard_bytes(value: bytes | Shard | None) -> int:
    return _piece_bytes(value.pieces) if isinstance(value, Shard) else 0


def _piece_bytes(pieces: tuple[Piece, ...]) -> int:
    return sum(piece.length for piece in pieces)
