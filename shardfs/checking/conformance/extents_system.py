"""The engine below its tree beside the model of extents, while a store is open.

Role: chunks are appended to extents, some with a reference to them and some without; references
are replaced and dropped; extents in which nothing is referred to are freed. References are
entries of the memtable and become durable with a delta, as a store's do; there are neither runs
nor checkpoints.

What is checked, beside what the model of extents says (extents_model.I1 to I6):
    C1.  A read of a referenced chunk gives what was appended, through the cache or not; of
         a chunk in an extent that was reset since, an error.
    C2.  No extent is freed to which something persistent refers.
    C3.  After a crash the references are those after a prefix of all changes, with at least
         those that were called persistent; each can be read.
    C4.  An append that was to wait for another is not on the device without it.
    C5.  An extent's live bytes are those that are referred to.

Not here: how a store is opened, closed and crashed (extents_lives.py), the sequences
(extents_world.py).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from shardfs import limits
from shardfs.checking.conformance.case import Coverage
from shardfs.checking.conformance.store_devices import EXTENT_BYTES
from shardfs.checking.models.extents_model import ExtentsModel, Position, UnreadableError
from shardfs.engine.chunks import locator_bytes
from shardfs.engine.dependency import PERSISTENT, Dependency
from shardfs.engine.extent import Extent
from shardfs.engine.layout import ExtentState, Kind, Stream
from shardfs.engine.lsm.entry import TOMBSTONE, decode_value, encode_shard
from shardfs.engine.opening import Parts
from shardfs.engine.pieces import Locator, Piece, Shard
from shardfs.engine.reclaim import reclaim_dead
from shardfs.errors import CorruptionError

STREAMS = (Stream.DATA, Stream.SURVIVORS, Stream.RUNS, Stream.HOT)
SLOTS = 6
_POOL = random.Random(0xE47E).randbytes(96 * limits.KIB)
_POOL_STEP = 67
_REMEMBERED = 64

References = dict[int, Position]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Something appended: where the engine and where the model say it is."""

    locator: Locator
    position: Position
    persistent: Dependency
    after: Position | None
    """What it was to wait for."""


class ExtentsSystem:
    """The system and its model.

    Args:
        coverage: counts what happens.
        free_max: free extents to begin each life with, so that those freed are soon used again;
            None: all there are, without the engine's reserve.
    """

    parts: Parts

    def __init__(self, coverage: Coverage, free_max: int | None) -> None:
        self.coverage = coverage
        self.model = ExtentsModel(EXTENT_BYTES, limits.BLOCK_BYTES, epoch=1)
        self.chunks: dict[Position, Chunk] = {}
        self.states: list[References] = [{}]
        self.durable = 0
        self._applied: list[tuple[int, Dependency]] = []
        self._unsettled: list[Chunk] = []
        self._values = 0
        self._free_max = free_max

    # --- for operations -----------------------------------------------------------------------

    @property
    def _floor(self) -> int:
        return self.parts.extents.reserve if self._free_max is None else 0

    @property
    def references(self) -> References:
        """What is referred to now, by slot."""
        return self.states[-1]

    def append(self, size: int, stream: Stream, key: bytes, after: Chunk | None = None) -> Chunk:
        """Append a chunk of `size` bytes that no other chunk has."""
        parts = self.parts
        parts.health.require_writable()
        self._values += 1
        start = self._values * _POOL_STEP % (len(_POOL) - limits.CHUNK_BYTES_MAX // 16)
        data = (b"%d:" % self._values + _POOL[start : start + size])[:size]
        before = after.persistent if after is not None else PERSISTENT
        locator, persistent = parts.chunks.put(
            Kind.DATA, stream, key, 0, (data,), before, floor=self._floor
        )
        assert locator.epoch == self.model.epoch(locator.extent), "a chunk of another epoch"
        position = self.model.append(locator.extent, data, locator_bytes(locator), locator.offset)
        chunk = Chunk(locator, position, persistent, after.position if after else None)
        self.chunks[position] = chunk
        self._unsettled.append(chunk)
        return chunk

    def refer(self, slot: int, chunk: Chunk | None) -> None:
        """Let a slot refer to a chunk that was just appended, or to nothing."""
        parts = self.parts
        key = key_of(slot)
        value = TOMBSTONE
        riders = []
        if chunk is not None:
            parts.extents.credit(chunk.locator.extent, locator_bytes(chunk.locator))
            value = encode_shard((Piece(0, chunk.locator.length, 0, chunk.locator),))
            riders.append((chunk.locator, chunk.persistent))
        old = self.references.get(slot)
        if old is not None:
            number = parts.committer.next_number
            parts.extents.debit(old.extent, old.epoch, old.length, number)
        parts.tree.set(key, value)
        parts.committer.add({key: value}, riders)
        state = {**self.references, slot: chunk.position} if chunk else dict(self.references)
        if chunk is None:
            del state[slot]
        self.states.append(state)
        self._applied.append((len(self.states) - 1, parts.committer.applied()))

    async def read(self, position: Position, start: int, length: int, *, cached: bool) -> None:
        """Read a part of a chunk, and compare (C1)."""
        locator = self.chunks[position].locator
        start = min(start, locator.length)
        length = min(length, locator.length - start)
        try:
            expected = self.model.read(position)[start : start + length]
        except UnreadableError:
            if not length:
                return
            try:
                await self.parts.chunks.get(locator, start, length)
            except CorruptionError:
                return
            raise AssertionError(f"{position} can be read after its reset") from None
        if cached:
            found = bytes(await self._read_cached(locator))[start : start + length]
        else:
            found = bytes(await self.parts.chunks.get(locator, start, length))
        assert found == expected, f"{position} reads {found[:12]!r}, not {expected[:12]!r}"

    async def commit(self) -> None:
        """Make all changes durable, if there are any; write pointers go with them."""
        if not self.parts.committer.applied().is_persistent():
            pointers = self.model.write_pointers()
            await self.parts.committer.commit()
            self.model.record(pointers)

    async def write_record(self, *, clean: bool = False) -> None:
        """Make a superblock record durable, and all write pointers with it."""
        pointers = self.model.write_pointers()
        parts = self.parts
        await parts.scheduler.settle(await parts.committer.write_record(clean=clean))
        self.model.record(pointers)

    async def free(self) -> None:
        """Free what is dead (C2)."""
        parts, committer = self.parts, self.parts.committer
        self.poll()
        dead: list[Extent] = []
        mark_free = parts.extents.mark_free

        def watched(extent: Extent) -> None:
            for number in range(self.durable, len(self.states)):
                for position in self.states[number].values():
                    assert (position.extent, position.epoch) != (extent.index, extent.epoch), (
                        f"extent {extent.index} is freed, and {position} is referred to"
                    )
            self.model.reset(extent.index)
            dead.append(extent)
            mark_free(extent)

        vars(parts.extents)["mark_free"] = watched
        try:
            freed = await reclaim_dead(parts.extents, committer, parts.scheduler)
        finally:
            del vars(parts.extents)["mark_free"]
        assert freed == len(dead)
        for extent in dead:
            self.model.persist_reset(extent.index)
        self.coverage.counts["extents freed"] += freed

    def poll(self) -> None:
        """Take note of what has become persistent."""
        for chunk in self._unsettled:
            if chunk.persistent.is_persistent():
                self.model.persist(chunk.position)
        self._unsettled = [each for each in self._unsettled if not each.persistent.settled]
        for number, dependency in self._applied:
            if dependency.is_persistent():
                self.durable = max(self.durable, number)
        self._applied = [each for each in self._applied if each[0] > self.durable]

    # --- after an opening ---------------------------------------------------------------------

    def locators_found(self) -> dict[int, Locator]:
        """What the engine refers to, by slot."""
        found = {}
        for key, value in self.parts.tree.memtable.entries.items():
            shard = decode_value(value)
            if isinstance(shard, Shard):
                found[slot_of(key)] = shard.pieces[0].locator
        return found

    def pointer_found(self, index: int) -> int:
        """The write pointer; of an extent that the delta log uses, none of ours."""
        extent = self.parts.extents.all[index]
        ours = extent.state is not ExtentState.FREE and extent.stream in STREAMS
        return extent.write_pointer if ours else 0

    def take_references(self) -> None:
        """C3: the references found are a state that is allowed, and count from now on."""
        found = self.locators_found()
        for number in range(len(self.states) - 1, self.durable - 1, -1):
            state = self.states[number]
            if {slot: self.chunks[each].locator for slot, each in state.items()} == found:
                self.states = [state]
                self.durable = 0
                return
        raise AssertionError(
            f"the references found are {found}, of no state from {self.durable} to "
            f"{len(self.states) - 1}"
        )

    def check_account(self) -> None:
        """C5."""
        live: dict[int, int] = {}
        for position in self.references.values():
            live[position.extent] = live.get(position.extent, 0) + position.length
        for extent in self.parts.extents.all:
            expected = live.get(extent.index, 0)
            assert extent.live_bytes == expected, (
                f"extent {extent.index} counts {extent.live_bytes} live bytes, "
                f"but {expected} are referred to"
            )

    async def is_whole(self, chunk: Chunk) -> bool:
        """Whether the device has all of a chunk."""
        locator = chunk.locator
        return await self.parts.chunks.is_whole(
            locator.extent, locator.epoch, locator.offset, locator.sequence
        )

    async def check_order(self, chunk: Chunk) -> None:
        """C4, of a chunk that is whole."""
        before = self.chunks.get(chunk.after) if chunk.after is not None else None
        if before is None:
            return
        extent = self.parts.extents.all[before.position.extent]
        if extent.epoch != before.position.epoch or extent.stream not in STREAMS:
            return  # it may have been reset since
        assert await self.is_whole(before), (
            f"{chunk.position} is on the device, and {before.position}, for which it was to wait, "
            "is not"
        )

    def forget_chunks(self) -> None:
        """Keep what can be read, and some of what must not be read any more."""
        kept = {}
        for position, chunk in self.chunks.items():
            readable = position in self.references.values()
            reset = position.epoch < self.model.epoch(position.extent)
            if readable or reset:
                kept[position] = Chunk(chunk.locator, position, PERSISTENT, None)
        self.chunks = dict(list(kept.items())[-_REMEMBERED:])

    async def _read_cached(self, locator: Locator) -> bytes:
        """As a segment reads its blocks."""

        async def load() -> tuple[bytes, int]:
            data = bytes(await self.parts.chunks.get(locator, 0, locator.length))
            return data, len(data)

        key = (locator.extent, locator.epoch, locator.offset)
        return bytes(await self.parts.cache.load(key, load))


def key_of(slot: int) -> bytes:
    """The key of a slot."""
    return b"slot%d" % slot


def slot_of(key: bytes) -> int:
    """The slot of a key."""
    return int(key.removeprefix(b"slot"))
