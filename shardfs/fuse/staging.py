"""Changes of names that have been answered, and go to the store a little later, several at once.

Role: giving a change to the store takes as long as finding out that it may be made, and encodes the
inode of the same directory each time. So a change that is inodes and names only is *staged* here:
it is in the caches, and was answered. It is applied while the server would have nothing to do but
wait for the kernel's next request, or with those after it, as one batch in which each inode is
encoded once. Whoever looks into the store or makes something durable goes through this door, which
applies first what is staged.

Invariants:
    I1. At most CHANGES_MAX changes are staged, and what they will take is known (`ahead_bytes`): a
        change that grows needs that much more room. None is staged any more when admission looks at
        what is free (`admit`).
    I2. What is staged was found to be allowed: room, and a store that takes changes. It is applied
        whatever comes: from the reserve, and to a store that has turned read-only meanwhile, where
        it is seen and, like all that was not durable, never becomes durable.
    I3. Batches reach the store in the order in which changes were answered: a group is one batch,
        and goes before any other.
    I4. Nothing stays staged when nothing happens (`settle` by polling.py, and by the flusher).

A power cut loses what is staged, as it loses what was applied and not committed.

Not here: reading staged inodes and entries by number and name (tables.py).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any, Final

from shardfs.engine.dependency import Dependency
from shardfs.engine.pieces import Shard
from shardfs.fuse.change import Change, EntryName, fill
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.records import Entry, Facts, Inode

_log = logging.getLogger(__name__)

CHANGES_MAX: Final = 16
CHANGE_BYTES_MAX: Final = 2048
"""What a change takes at most in the tree, which may take twice its size: two names of 255 bytes,
three inodes, a mark."""


class StagedStore:
    """The door of a store, with the changes staged before it.

    Args:
        store: what it leads to.
    """

    def __init__(self, store: StoreDoor) -> None:
        self.behind: Final = store
        """What the door leads to."""
        self.inodes: dict[int, Inode | None] = {}
        """Staged, and as they will be."""
        self.entries: dict[EntryName, Entry | None] = {}
        self._records: dict[bytes, bytes] = {}
        self._facts: Facts | None = None
        self._count = 0
        self.ahead_bytes = 0
        """What the staged changes will take, at most."""
        # What nothing that is staged has to do with leads straight on.
        self.identity = store.identity
        self.health = store.health
        self.get_shard = store.get_shard
        self.find_record = store.find_record
        self.bring = store.bring
        self.find_shard = store.find_shard
        self.batch = store.batch
        self.append_pieces = store.append_pieces
        self.pinned = store.pinned
        self.read_chunk = store.read_chunk
        self.require_room = store.require_room
        self.require_tree_room = store.require_tree_room
        self.reserve = store.reserve
        self.release = store.release
        self.admits_at_once = store.admits_at_once
        self.reclaim = store.reclaim
        self.space = store.space
        self.memory_use = store.memory_use
        self.limit_caches = store.limit_caches

    @property
    def is_flushing(self) -> bool:
        """See StoreDoor."""
        return self.behind.is_flushing

    def stage(self, change: Change, facts: Facts | None) -> None:
        """Take a change in.

        Args:
            change: without a batch of its own. If it grows, its room has been seen to.
            facts: as it leaves them, if it changes them.

        Raises:
            ReadOnlyError: nothing was changed.
        """
        self.health.require_writable()
        if self._count >= CHANGES_MAX:
            self.settle()
        self._count += 1
        self.ahead_bytes += CHANGE_BYTES_MAX
        self.inodes.update(change.inodes)
        self.entries.update(change.entries)
        if change.records:
            self._records.update(change.records)
        if facts is not None:
            self._facts = facts

    def settle(self) -> None:
        """Apply what is staged."""
        if not self._count:
            return
        staged = self.inodes, self.entries, self._records, self._facts
        self.inodes, self.entries, self._records, self._facts = {}, {}, {}, None
        self._count = self.ahead_bytes = 0
        batch = self.behind.batch(essential=True, answered=True)
        try:
            fill(batch, *staged)
            self.behind.apply(batch)
        except Exception as error:  # a bug: what was answered is lost, and must not be built upon
            _log.error("changes that were answered cannot be applied", exc_info=error)
            self.health.make_read_only(f"changes of names were lost: {error!r}")

    # --- what has to see the staged changes: see StoreDoor

    async def get_record(self, key: bytes) -> bytes | None:
        """See StoreDoor."""
        self.settle()
        return await self.behind.get_record(key)

    async def records(self, start: bytes, end: bytes, count_max: int) -> list[tuple[bytes, bytes]]:
        """See StoreDoor."""
        self.settle()
        return await self.behind.records(start, end, count_max)

    def scan(self, start: bytes, end: bytes) -> AsyncIterator[tuple[bytes, bytes | Shard]]:
        """See StoreDoor."""
        self.settle()
        return self.behind.scan(start, end)

    def apply(self, batch: Any) -> Dependency:
        """See StoreDoor."""
        self.settle()
        return self.behind.apply(batch)

    def is_durable(self, key: bytes) -> bool:
        """See StoreDoor."""
        self.settle()
        return self.behind.is_durable(key)

    async def sync(self, dependency: Dependency | None = None) -> None:
        """See StoreDoor."""
        self.settle()
        await self.behind.sync(dependency)

    async def sync_key(self, key: bytes) -> None:
        """See StoreDoor."""
        self.settle()
        await self.behind.sync_key(key)

    async def admit(self, length: int = 0) -> None:
        """See StoreDoor."""
        self.settle()
        await self.behind.admit(length)
