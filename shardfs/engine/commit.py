"""Group commit: the delta log, and the root of the tree.

Role: applied batches gather here; `commit` makes them durable as one delta for all who wait.
Data that those batches refer to rides along: delta and data are issued together and made
durable by one flush, unless the data is large, when it is flushed first.

Invariants:
    I1. Batches become durable in the order they were applied: deltas are numbered, issued and
        made durable one after the other, and a batch is wholly in one delta.
    I2. A delta refers only to data that is persistent, or that it names as a rider.
    I3. The delta log goes only into extents that a durable superblock record declares.

Ordering, for one commit: [superblock record if due] + [data] + [delta] -> one flush. With more
than limits.RIDER_BYTES_MAX, or RIDERS_MAX chunks, of unflushed data: data -> flush -> delta ->
flush. A power cut before the last flush may lose the delta and everything behind it, never a part
of it.

Not here: writing memtables as runs (checkpoint.py), reading the log back (recovery.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, NamedTuple

import trio

from shardfs import limits
from shardfs.engine.chunks import ChunkStore
from shardfs.engine.dependency import PERSISTENT, Dependency, all_of
from shardfs.engine.extent import TailFields, UsageSnapshot
from shardfs.engine.extents import Extents
from shardfs.engine.framing import frame_bytes
from shardfs.engine.health import Health
from shardfs.engine.layout import RIDER, Kind, Stream
from shardfs.engine.lsm.delta import PartContent, cut_parts, encode_part
from shardfs.engine.lsm.tree import Tree
from shardfs.engine.pacing import Slices
from shardfs.engine.pieces import Locator
from shardfs.engine.reserve import log_bytes_max, memtable_bytes_max
from shardfs.engine.scheduler import Scheduler
from shardfs.engine.superblock import Superblock
from shardfs.engine.superblock_record import Identity, Root
from shardfs.errors import DeviceError, ReadOnlyError, ShardfsError

_COST_AT_ONCE: Final = 16
"""What a delta of so few entries costs: it is one part, and takes no slice of its own."""

_LET_GO_PER_ENTRY: Final = 4
"""So many places are let go of in about the time that one entry takes."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """What a checkpoint needs to know of the moment its memtable was set aside."""

    number: int
    log_extent: int
    log_offset: int
    usage: UsageSnapshot
    durable: Dependency


@dataclass(slots=True, eq=False)
class _Riders:
    """Chunks of data that are written together, and not persistent yet."""

    persistent: Dependency
    locators: list[Locator] = field(default_factory=list)
    bytes: int = 0


class _Cut(NamedTuple):
    """What one delta will hold, and what it waits for."""

    number: int
    tails: list[TailFields]
    riders: list[Locator]
    changes: dict[bytes, bytes]
    data: Dependency
    before: Dependency
    usage: UsageSnapshot | None
    """Live bytes at the cut, if the memtable was set aside there."""
    gathered: dict[int, _Riders]
    """What the riders were chosen from, to be let go of."""


class Committer:
    """The delta log of one open store.

    Args:
        chunks, extents, scheduler, superblock, tree, health: of the store.
        root: as recovered.
        log_bytes: bytes of deltas behind the checkpoint, as recovered.
    """

    def __init__(
        self,
        chunks: ChunkStore,
        extents: Extents,
        scheduler: Scheduler,
        superblock: Superblock,
        tree: Tree,
        health: Health,
        root: Root,
        log_bytes: int,
    ) -> None:
        self._chunks = chunks
        self._extents = extents
        self._scheduler = scheduler
        self._superblock = superblock
        self._tree = tree
        self._health = health
        self._root = root
        self._log_bytes = log_bytes
        self._next_number = root.durable_delta + 1
        self._pending: dict[bytes, bytes] = {}
        self._pending_bytes = 0
        self._on_the_way: dict[bytes, bytes] = {}
        """Changes of the delta that is being written; of one that has failed, for ever."""
        self._riders: dict[int, _Riders] = {}
        self._next = Dependency()
        self._last = PERSISTENT
        self._committing = False
        self._ended: trio.Event | None = None
        """Set when the commit that is under way ends, if anybody waits for that."""
        self._record_lock = trio.Lock()
        self.persistent_checkpoint = root.checkpoint
        self._freeze_wanted = False
        self.frozen: Freeze | None = None
        self.fit_reserve()
        health.on_change(self._give_up)

    def fit_reserve(self) -> None:
        """Bound the memtable and the log: on a small device both take a part of the reserve."""
        extents = self._extents
        self.memtable_bytes_max = memtable_bytes_max(extents.reserve, extents.extent_bytes)
        self._log_bytes_max = log_bytes_max(extents.reserve, extents.extent_bytes)

    @property
    def next_number(self) -> int:
        """Number of the delta that the next applied batch will be in."""
        return self._next_number

    @property
    def durable_number(self) -> int:
        """Every delta up to this number is durable."""
        return self._root.durable_delta

    @property
    def root(self) -> Root:
        """What a superblock record written now says of the tree."""
        return self._root

    @property
    def pending_bytes(self) -> int:
        """Bytes of changes that are in no delta yet."""
        return self._pending_bytes

    @property
    def fill(self) -> float:
        """How full memtable and delta log, what is yet to go there included, are: the fuller of
        them; 1: a checkpoint is due."""
        memtable = self._tree.memtable
        return max(
            memtable.bytes_held / limits.MEMTABLE_BYTES_MAX,
            memtable.run_bytes / self.memtable_bytes_max,
            (self._log_bytes + self._pending_bytes) / self._log_bytes_max,
        )

    def takes(self, added_bytes: int) -> bool:
        """Whether so much more may come before the next checkpoint, and nobody wait for that."""
        least = min(self.memtable_bytes_max, self._log_bytes_max, limits.MEMTABLE_BYTES_MAX)
        return self.fill + added_bytes / least <= limits.OVERDUE_FACTOR

    @property
    def log_bytes(self) -> int:
        """Bytes of the delta log that a recovery would read."""
        return self._log_bytes

    @property
    def is_due(self) -> bool:
        """The memtable or the delta log has outgrown its bound: a checkpoint should run."""
        memtable = self._tree.memtable  # asked for at each change: `fill` at length
        return (
            memtable.bytes_held >= limits.MEMTABLE_BYTES_MAX
            or memtable.run_bytes >= self.memtable_bytes_max
            or self._log_bytes + self._pending_bytes >= self._log_bytes_max
        )

    @property
    def is_overdue(self) -> bool:
        """They have outgrown it so far that who adds to them should wait."""
        return self.fill >= limits.OVERDUE_FACTOR

    def add(self, changes: dict[bytes, bytes], riders: list[tuple[Locator, Dependency]]) -> None:
        """Take in one applied batch: encoded values, and the data they refer to anew."""
        pending, grown = self._pending, 0
        for key, value in changes.items():
            old = pending.get(key)
            grown += len(value) - len(old) if old is not None else len(key) + len(value)
            pending[key] = value
        self._pending_bytes += grown + RIDER.size * len(riders)
        for locator, persistent in riders:
            if not persistent.is_persistent():
                group = self._riders.get(id(persistent))
                if group is None:
                    group = self._riders[id(persistent)] = _Riders(persistent)
                group.locators.append(locator)
                group.bytes += frame_bytes(locator.key_bytes, locator.length)

    def applied(self) -> Dependency:
        """Persistent once every batch applied so far is durable."""
        return self._next if self._pending else self._last

    def applied_to(self, key: bytes) -> Dependency:
        """Persistent once every batch that has changed a key so far is durable."""
        if key in self._pending:
            return self._next
        return self._last if key in self._on_the_way else PERSISTENT

    def pending_keys(self) -> list[bytes]:
        """Keys with a change that is not durable; some twice."""
        return [*self._pending, *self._on_the_way]

    async def commit(self, target: Dependency | None = None) -> None:
        """Make batches durable; shared among callers.

        Args:
            target: what `applied` or `applied_to` gave: these and all applied before them. None:
                every batch applied before the call.

        Durable when: returned.

        Raises:
            DeviceError, ReadOnlyError, NoSpaceError: it cannot be made durable.
        """
        if target is None:
            target = self.applied()
        while not target.settled:
            if self._committing:
                await self._end_of_commit()
            else:
                # A commit that has begun is finished even if its leader is cancelled: others
                # wait for it.
                with trio.CancelScope(shield=True):
                    await self._commit_once()
        target.require_persistent()

    async def freeze(self) -> Freeze:
        """Commit, and set the memtable aside in the same breath, unless one is set aside.

        Durable when: returned, everything that is in the frozen memtable is.

        Raises:
            DeviceError, ReadOnlyError, NoSpaceError: the commit failed.
        """
        while self.frozen is None:
            self._health.require_writable()
            if self._committing:
                await self._end_of_commit()
                continue
            self._freeze_wanted = True
            with trio.CancelScope(shield=True):
                await self._commit_once()
        await self.frozen.durable.wait()
        return self.frozen

    def adopt(self, manifest: Locator, freeze: Freeze | None) -> None:
        """A new manifest is persistent; with `freeze`, the log now starts behind that place."""
        self._root = self._root._replace(manifest=manifest)
        if freeze is not None:
            self._root = self._root._replace(
                log_extent=freeze.log_extent,
                log_offset=freeze.log_offset,
                checkpoint=freeze.number,
            )

    async def write_record(self, *, clean: bool = False) -> Dependency:
        """Append a superblock record of the present state; not flushed.

        Durable when: the returned Dependency is persistent.

        Raises:
            DeviceError: a log could not be started afresh; the store is read-only.
        """
        async with self._record_lock:
            self._extents.ensure_spares()
            done = self._superblock.next_record()
            try:
                await self._superblock.write(
                    lambda: self._root, self._extents.take_changed, clean=clean
                )
            except DeviceError as error:
                # What it was to tell has happened already: a manifest was adopted, extents freed.
                self._health.make_read_only(str(error))
                raise
        return done

    async def change_identity(self, change: Callable[[], Identity]) -> None:
        """Say in both superblock copies, one after the other, that the store has another size.

        Args:
            change: gives the extents their new number, and the identity that says it.

        A power cut leaves the old size or the new one: whole logs begin with a snapshot, and say
        one size only.

        Durable when: returned.
        """
        async with self._record_lock:
            # What the records so far have promised is in both copies before one is given up.
            await self._scheduler.write_out()
            await self._scheduler.flush()
            try:
                self._superblock.resize(change())
                await self._superblock.start_logs(self._root, self._extents.entries(), 0)
            except BaseException:  # whatever breaks it off, ^C too
                # A record of one size in a log of the other, and nothing could be opened any more.
                self._health.make_read_only("a change of its size was broken off; mount it again")
                raise
        await self._scheduler.settle(await self.write_record())

    async def _commit_once(self) -> None:
        self._committing = True
        target = self._next
        try:
            if self._extents.has_changed:
                await self.write_record()
            target = self._next
            number = self._next_number
            log_bytes, written = await self._write_delta(self._cut_delta())
            if self._extents.needs_declaring:
                # The delta was larger than the extents that had been declared ahead.
                await self.write_record()
            for each in written:
                if not each.is_persistent():
                    await self._scheduler.settle(each)
            self._root = self._root._replace(durable_delta=number)
            self._log_bytes += log_bytes
            self._on_the_way = {}
            target.resolve()
        except ShardfsError as error:
            self._health.make_read_only(str(error))
            if not target.settled:
                target.fail(error)
            raise
        finally:
            self._committing = False
            ended, self._ended = self._ended, None
            if ended is not None:
                ended.set()

    async def _end_of_commit(self) -> None:
        if self._ended is None:
            self._ended = trio.Event()
        await self._ended.wait()

    def _give_up(self) -> None:
        """The store has turned read-only: nobody shall wait for what is in no delta yet."""
        if not self._next.settled:
            self._next.fail(ReadOnlyError(self._health.reason))

    def _cut_delta(self) -> _Cut:
        """Set everything pending aside for one delta, in one critical section: what is applied
        from here on, and the live bytes it changes, are the next one's."""
        self._extents.cut_all()
        number = self._next_number
        riders = [each for each in self._riders.values() if not each.persistent.is_persistent()]
        data = all_of([each.persistent for each in riders])
        before = PERSISTENT
        if (
            sum([each.bytes for each in riders]) > limits.RIDER_BYTES_MAX
            or sum([len(each.locators) for each in riders]) > limits.RIDERS_MAX
        ):
            before, riders = data, []
        tails = self._extents.take_touched()
        changes = self._on_the_way = self._pending
        self._pending = {}
        self._pending_bytes = 0
        gathered, self._riders = self._riders, {}
        self._last, self._next = self._next, Dependency()
        self._next_number = number + 1
        named = list(chain.from_iterable(each.locators for each in riders))
        usage = self._freeze_if_wanted()
        return _Cut(number, tails, named, changes, data, before, usage, gathered)

    async def _write_delta(self, cut: _Cut) -> tuple[int, list[Dependency]]:
        """Encode and append a delta, a part a slice; its bytes, and what it is durable with.

        Parts that are written while others are not count for nothing (lsm.delta.I1).
        """
        slices = Slices()
        if len(cut.tails) + len(cut.riders) > _COST_AT_ONCE * 8:
            await slices.spend(limits.SLICE_COST_MAX)  # the cut itself was a slice
        while cut.gathered:  # freeing thousands at once would take a millisecond
            await slices.spend(_let_go(cut.gathered) // _LET_GO_PER_ENTRY)
        contents = deque[PartContent]()
        for content in cut_parts(
            cut.tails, cut.riders, cut.changes, self._chunks.payload_bytes_max
        ):
            contents.append(content)
            if content.cost > _COST_AT_ONCE:
                await slices.spend(content.cost)
        durable = self._root.durable_delta
        written = [cut.data]
        length = 0
        parts = len(contents)
        for part in range(parts):
            content = contents.popleft()  # and is let go of with its turn, not all at the end
            payload = encode_part(cut.number, durable, part, parts, content)
            locator, persistent = self._chunks.put(
                Kind.DELTA, Stream.META, b"", cut.number, (payload,), cut.before
            )
            self._extents.all[locator.extent].last_delta = cut.number
            written.append(persistent)
            length += frame_bytes(0, len(payload))
            if contents:
                await slices.spend(content.cost)
        self._extents.cut_all()
        if cut.usage is not None:
            extent = self._extents.all[locator.extent]
            self.frozen = Freeze(
                cut.number, extent.index, extent.write_pointer, cut.usage, self._last
            )
        # Every commit takes whole blocks of the log.
        return length + -length % limits.BLOCK_BYTES, written

    def _freeze_if_wanted(self) -> UsageSnapshot | None:
        """Set the memtable aside if a checkpoint has asked for it; the live bytes as of now."""
        if not self._freeze_wanted or self._tree.frozen is not None:
            return None
        self._freeze_wanted = False
        self._tree.freeze()
        self._log_bytes = 0
        return self._extents.usage()


def _let_go(gathered: dict[int, _Riders]) -> int:
    """Free the places of one write; how many they were."""
    return len(gathered.popitem()[1].locators)
