"""What the file system asks of the store below it, as protocols.

Role: the engine's Store fits StoreDoor; so does the reference model that tests use
(checking/models/store_model.py). Everything in this room takes a StoreDoor.

Ordering: batches become persistent in the order applied, each all or nothing. `append_pieces`
and the `apply` that refers to its pieces stand in one critical section, with no await in between.

Not here: the engine (shardfs.engine.store).
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from shardfs.engine.dependency import Dependency
from shardfs.engine.health import Health
from shardfs.engine.layout import Bytes
from shardfs.engine.lsm.tree import Unread
from shardfs.engine.pieces import Locator, Piece, Shard


class IdentityDoor(Protocol):
    """Who the store is; fixed when it was formatted."""

    @property
    def uuid(self) -> uuid.UUID:
        """Unique to this store."""

    @property
    def chunk_bytes_max(self) -> int:
        """Length of the largest chunk."""


class SpaceDoor(Protocol):
    """How full the store is, bytes."""

    @property
    def total_bytes(self) -> int:
        """What could hold user data at best."""

    @property
    def free_bytes(self) -> int:
        """What can be written now."""


class BatchDoor(Protocol):
    """Changes that happen together or not at all; see StoreDoor.apply."""

    def put(self, key: bytes, record: bytes) -> None:
        """Set a record."""

    def delete(self, key: bytes) -> None:
        """Delete a record; there need not be one."""

    def put_shard(self, key: bytes, pieces: tuple[Piece, ...], base: Shard | None) -> None:
        """Set a shard. `base`: what get_shard or scan gave (None: there was none)."""

    def delete_shard(self, key: bytes, base: Shard) -> None:
        """Delete a shard, given as get_shard or scan gave it."""


class StoreDoor(Protocol):
    """The file system's view of a store."""

    @property
    def identity(self) -> IdentityDoor:
        """Who the store is."""

    @property
    def health(self) -> Health:
        """Whether the store takes changes."""

    async def get_record(self, key: bytes) -> bytes | None:
        """The record at `key`. Checkpoints: not when cached."""

    def find_shard(self, key: bytes) -> Shard | Unread | None:
        """What get_shard gives, or UNREAD: then it would have to wait.

        Raises:
            CorruptionError: no shard stands where one should.
        """

    def find_record(self, key: bytes) -> bytes | Unread | None:
        """What get_record gives, or UNREAD: then it would have to wait.

        Raises:
            CorruptionError: no record stands where one should.
        """

    async def records(self, start: bytes, end: bytes, count_max: int) -> list[tuple[bytes, bytes]]:
        """The first records in [start, end), ascending. Checkpoints: not when cached."""

    async def bring(self, keys: Sequence[bytes]) -> None:
        """Have what will soon be asked for in memory, by few reads of the device; trouble is left
        for who asks. Checkpoints: not when cached."""

    async def get_shard(self, key: bytes) -> Shard | None:
        """The shard at `key`. Checkpoints: not when cached."""

    def scan(self, start: bytes, end: bytes) -> AsyncIterator[tuple[bytes, bytes | Shard]]:
        """What lies in [start, end), ascending."""

    def batch(self, *, essential: bool = False, answered: bool = False) -> BatchDoor:
        """An empty batch. An `essential` one keeps a promise, and may use the reserve; an
        `answered` one, of records only, is taken by a read-only store as well, and seen there."""

    def apply(self, batch: Any) -> Dependency:
        """Make a batch (one that `batch` gave) visible.

        Raises:
            StaleError: a base is no longer current; nothing was changed.
            NoSpaceError: the store is full and the batch not essential; nothing was changed.
            ReadOnlyError: nothing was changed.
        """

    def append_pieces(
        self,
        owner: bytes,
        offset: int,
        buffers: Sequence[Bytes],
        *,
        replaced: Sequence[Piece] = (),
    ) -> tuple[Piece, ...]:
        """Write chunks for the shard `owner`, to be placed there at byte `offset`.

        Args:
            buffers: gathered; must not change any more.
            replaced: pieces that the data takes the place of; they tell how long it will live.
        """

    def pinned(self, pieces: Sequence[Piece]) -> AbstractContextManager[None]:
        """Keeps the chunks of these pieces readable while the body runs."""

    async def read_chunk(self, locator: Locator, start: int, length: int) -> Bytes:
        """Part of a chunk, verified.

        Raises:
            DeviceError, CorruptionError
        """

    def is_durable(self, key: bytes) -> bool:
        """Whether the present value of a key would survive a power cut; True if it has none. False
        also while it may be on its way."""

    async def sync(self, dependency: Dependency | None = None) -> None:
        """Return when `dependency` (default: all applied before) is persistent."""

    async def sync_key(self, key: bytes) -> None:
        """Return when the present value of a key is persistent, and all that was applied before
        it. Checkpoints: not when it is."""

    @property
    def is_flushing(self) -> bool:
        """Whether the device flushes."""

    def require_room(self, length: int) -> None:
        """Raises:
        NoSpaceError: `length` more bytes of data have no room beside what is reserved.
        """

    def require_tree_room(self) -> None:
        """For a change that may use the reserve, and leaves longer entries than there were.

        Raises:
            NoSpaceError: that much is not to be had any more, either.
        """

    def reserve(self, length: int) -> None:
        """Set space aside, bytes.

        Raises:
            NoSpaceError: not enough is free.
        """

    def release(self, length: int) -> None:
        """Give reserved space back, bytes."""

    def admits_at_once(self, length: int = 0) -> bool:
        """Whether `admit` would not wait: then it need not be called."""

    async def admit(self, length: int = 0) -> None:
        """Wait while too much is queued for the device, or garbage is in the way of `length` bytes
        of data to be appended next. Checkpoints: only then."""

    async def reclaim(self) -> int:
        """Make space of dead data free now rather than by and by; how many extents."""

    def space(self) -> SpaceDoor:
        """How full the store is."""

    def memory_use(self) -> dict[str, int]:
        """Bytes that the store holds in memory, by what for."""

    def limit_caches(self, bytes_max: int) -> None:
        """Hold no more than that in caches from now on."""


def behind(prefix: bytes) -> bytes:
    """The first key behind all that begin with a prefix."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


async def scan_some(
    store: StoreDoor, start: bytes, end: bytes, count_max: int
) -> list[tuple[bytes, bytes | Shard]]:
    """The first `count_max` items in [start, end)."""
    found: list[tuple[bytes, bytes | Shard]] = []
    if count_max <= 0:
        return found
    items = store.scan(start, end)
    async for item in items:
        found.append(item)
        if len(found) == count_max:
            break
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()
    return found
