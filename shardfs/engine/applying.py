"""Applies batches: the tree, the account of live bytes, and the delta that makes them durable.

Role: the one place where the content of a store changes. A batch is looked at whole; then what it
makes live is credited and what it lets go of debited (liveness.py), its changes go into the
memtable, and into the next delta. Also keeps the promises of space: what was set aside for data
that will be appended later is not given to others.

Invariants:
    I1. A batch is applied in one critical section, or nothing of it is.
    I2. A piece of a chunk is counted live from the batch that first refers to it until one lets
        go of it.
    I3. Only essential batches, which free space or keep a promise, take what is promised.

Not here: what a batch may hold (batch.py), writing the delta (commit.py), appending data
(shards.py), who may come in (admission.py).
"""

from __future__ import annotations

from collections.abc import Callable

from shardfs.engine.batch import Batch
from shardfs.engine.commit import Committer
from shardfs.engine.dependency import Dependency
from shardfs.engine.extents import Extents
from shardfs.engine.health import Health, HealthState
from shardfs.engine.lsm.tree import Tree
from shardfs.engine.reserve import record_bytes_max
from shardfs.engine.shards import ShardData
from shardfs.errors import NoSpaceError, StaleError, StoreClosedError


class Applier:
    """Changes one open store.

    Args:
        extents, tree, committer, health, shards: of the store.
        on_applied: told of every batch that was applied.
    """

    def __init__(
        self,
        extents: Extents,
        tree: Tree,
        committer: Committer,
        health: Health,
        shards: ShardData,
        on_applied: Callable[[Batch], None],
    ) -> None:
        self._extents = extents
        self._tree = tree
        self._committer = committer
        self._health = health
        self._shards = shards
        self._on_applied = on_applied
        chunk_bytes_max = extents.identity.chunk_bytes_max
        self._record_bytes_max = record_bytes_max(chunk_bytes_max)
        self.is_closed = False
        """Nothing is taken any more."""

    @property
    def reserved_bytes(self) -> int:
        """Set aside by `reserve`."""
        return self._extents.space.reserved_bytes

    def require_open(self) -> None:
        """Raises:
        StoreClosedError, ReadOnlyError: the store takes no changes.
        """
        if self.is_closed:
            raise StoreClosedError("the store is closed")
        if self._health.state is not HealthState.HEALTHY:
            self._health.require_writable()

    def batch(self, *, essential: bool = False, answered: bool = False) -> Batch:
        """An empty batch; see Store.batch."""
        return Batch(self._record_bytes_max, essential=essential, answered=answered)

    def apply(self, batch: Batch) -> Dependency:
        """Make a batch visible, all of it at once.

        Returns:
            Persistent once the batch survives a power cut.

        Raises:
            StaleError, NoSpaceError, ReadOnlyError, StoreClosedError: nothing was changed; see
                Store.apply.
        """
        if self.is_closed or not batch.answered:
            self.require_open()
        extents, tree, committer = self._extents, self._tree, self._committer
        for key, base in batch.bases:
            generation = base.generation if base is not None else tree.generation
            if not tree.is_current(key, base, generation):
                raise StaleError(f"the shard {key.hex()} has changed")
        space = extents.space
        if not batch.essential and space.user_bytes() <= space.reserved_bytes:
            raise NoSpaceError("the device is full")
        for (extent, epoch), change in batch.live_changes.items():
            if change < 0:
                extents.debit(extent, epoch, -change, committer.next_number)
            else:
                extents.credit(extent, change)
        riders = []
        for locator in batch.added.values():
            persistent = self._shards.take_appended(locator)
            if persistent is not None:
                riders.append((locator, persistent))
        tree.update(batch.changes)
        space.memory_bytes = tree.memory_bytes
        committer.add(batch.changes, riders)
        self._on_applied(batch)
        return committer.applied()

    def require_room(self, length: int) -> None:
        """Raises:
        NoSpaceError: `length` more bytes of data have no room beside what is promised.
        """
        space = self._extents.space
        if length > space.user_bytes() - space.reserved_bytes:
            raise NoSpaceError(f"no room for {length} bytes")

    def require_tree_room(self) -> None:
        """For what may use the reserve, and makes the tree larger all the same: longer names.

        Raises:
            NoSpaceError: the tree has outgrown its share by too much already.
        """
        if self._extents.space.is_overdrawn:
            raise NoSpaceError("the device is full, and so is what is kept for its metadata")

    def reserve(self, length: int) -> None:
        """Set space aside for `length` bytes that will be appended later.

        Raises:
            NoSpaceError: there is not that much left; nothing was set aside.
        """
        self.require_room(length)
        self._extents.space.reserved_bytes += length

    def release(self, length: int) -> None:
        """Give back what `reserve` set aside."""
        assert length <= self.reserved_bytes, "more released than reserved"
        self._extents.space.reserved_bytes -= length
