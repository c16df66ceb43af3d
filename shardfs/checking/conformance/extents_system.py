"""The engine below its tree, on a simulated device, beside the model of extents.

Role: chunks are appended to extents, some with a reference to them and some without; references
are replaced and dropped; extents in which nothing is referred to are freed. References are
entries of the memtable and become durable with a delta, as a store's do; there are neither runs
nor checkpoints. A life is one opening; it ends in a close, a crash, or a cut at any operation of
the device.

What is checked, beside what the model of extents says (extents_model.I1 to I6):
    C1.  A read of a referenced chunk gives what was appended, through the cache or not; of
         a chunk in an extent that was reset since, an error.
    C2.  No extent is freed to which something persistent refers.
    C3.  After a crash the references are those after a prefix of all changes, with at least
         those that were called persistent; each can be read.
    C4.  An append that was to wait for another is not on the device without it.
    C5.  An extent's live bytes are those that are referred to.
    C6.  After a clean close everything is persistent. No call fails without a fault.

Not here: the sequences (extents_world.py), devices and excuses (store_devices.py).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import trio

from shardfs import limits
from shardfs.checking.conformance.case import Coverage
from shardfs.checking.conformance.store_devices import (
    EXTENT_BYTES,
    SEEDS,
    Settings,
    device_after,
    excuses,
    formatted,
    loses_bytes,
    may_turn_read_only,
)
from shardfs.checking.models.extents_model import (
    ExtentsModel,
    Found,
    Position,
    UnreadableError,
)
from shardfs.checking.power_cuts import Operation as DeviceOperation
from shardfs.checking.power_cuts import PowerCutPoint
from shardfs.checking.schedule import Control
from shardfs.engine.chunks import locator_bytes
from shardfs.engine.dependency import PERSISTENT, Dependency, all_of
from shardfs.engine.layout import ExtentState, Kind, Stream
from shardfs.engine.lsm.entry import TOMBSTONE, decode_value, encode_shard
from shardfs.engine.opening import Parts, open_parts
from shardfs.engine.pieces import Locator, Piece, Shard
from shardfs.engine.reclaim import reclaim_dead
from shardfs.errors import CorruptionError, DeviceError, NoSpaceError, ReadOnlyError, ShardfsError

STREAMS = (Stream.DATA, Stream.SURVIVORS, Stream.RUNS)
SLOTS = 6
_CACHE_BYTES = 64 * limits.KIB
_POOL = random.Random(0xE47E).randbytes(96 * limits.KIB)
_POOL_STEP = 67
_REMEMBERED = 64

References = dict[int, Position]
Action = Callable[["ExtentsSystem"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Something appended: where the engine and where the model say it is."""

    locator: Locator
    position: Position
    persistent: Dependency
    after: Position | None
    """What it was to wait for."""


@dataclass(frozen=True, slots=True)
class Past:
    """What a crash goes back to."""

    kind: str
    point: PowerCutPoint | None
    model: ExtentsModel
    durable: int
    applied: int


class ExtentsSystem:
    """The system and its model, through all lives of one sequence.

    Args:
        control: draws what the operations leave open.
        coverage: counts what happens.
        settings: the device.
        free_max: free extents to begin each life with, so that those freed are soon used again;
            None: all there are, without the engine's reserve.
    """

    parts: Parts

    def __init__(
        self, control: Control, coverage: Coverage, settings: Settings, free_max: int | None
    ) -> None:
        self.control = control
        self.coverage = coverage
        self.settings = settings
        self.device = formatted(settings.geometry).power_cut()
        self.model = ExtentsModel(EXTENT_BYTES, limits.BLOCK_BYTES, epoch=1)
        self.chunks: dict[Position, Chunk] = {}
        self.states: list[References] = [{}]
        self.durable = 0
        self.ending: Past | None = None
        self._applied: list[tuple[int, Dependency]] = []
        self._unsettled: list[Chunk] = []
        self._cut_after = 0
        self._cut_kind = ""
        self._values = 0
        self._free_max = free_max
        self._bytes_were_lost = False

    async def run(self, actions: Iterator[Action]) -> None:
        """All actions, in as many lives as they end."""
        while await self._live(actions):
            pass

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
        self._poll()
        dead = parts.extents.dead(
            committer.durable_number, committer.persistent_checkpoint, committer.root.log_extent
        )
        for extent in dead:
            for number in range(self.durable, len(self.states)):
                for position in self.states[number].values():
                    assert (position.extent, position.epoch) != (extent.index, extent.epoch), (
                        f"extent {extent.index} is freed, and {position} is referred to"
                    )
            self.model.reset(extent.index)
        freed = await reclaim_dead(parts.extents, committer, parts.scheduler)
        assert freed == len(dead)
        for extent in dead:
            self.model.persist_reset(extent.index)
        self.coverage.counts["extents freed"] += freed

    def plan_cut(self, device_operations: int, kind: str) -> None:
        """The power fails when so many more operations have been submitted to the device."""
        if not self._cut_after and self.ending is None:
            self._cut_after = device_operations
            self._cut_kind = kind
            self.device.observer = self._observe

    def end(self, kind: str) -> None:
        """This life ends, now."""
        point = None if kind == "clean" else self.device.power_cut_point()
        self.ending = self._past(kind, point)

    # --- one life -----------------------------------------------------------------------------

    async def _live(self, actions: Iterator[Action]) -> bool:
        self.ending = None
        self.device.reseed(self.control.draw(SEEDS), self.settings.checkpoints_max)
        failure: ShardfsError | None = None
        finished = False
        async with trio.open_nursery() as writes:
            try:
                self.parts = await open_parts(
                    self.device, writes, read_only=False, cache_bytes=_CACHE_BYTES
                )
            except ShardfsError as error:
                failure = error
            else:
                await self._check_opened()
                if not self._bytes_were_lost:
                    finished = await self._act_until_the_end(actions)
        if failure is not None:
            self._require_excused(failure)
            if self.ending is None:
                self.end("kill")
        if (finished and self.ending is None) or (self._bytes_were_lost and self.ending is None):
            return False
        self._begin_anew()
        return True

    async def _act_until_the_end(self, actions: Iterator[Action]) -> bool:
        """True: no actions were left."""
        finished = False
        while self.ending is None and not finished:
            action = next(actions, None)
            if action is None:
                finished = True
                break
            await self._tolerating(action(self))
            self._poll()
        if self.ending is None or self.ending.point is None:
            await self._tolerating(self._close())
        if not self.parts.health.reason:
            # Whoever still writes shall end: nothing that happens from here on has happened.
            self.parts.health.make_read_only("this life is over", expected=True)
        return finished

    async def _close(self) -> None:
        """As a store closes, and all that was appended is written as well (C6)."""
        parts = self.parts
        if not parts.health.reason:
            parts.extents.cut_all()
            await self.commit()
            await parts.scheduler.settle(all_of(chunk.persistent for chunk in self.chunks.values()))
            await self.write_record(clean=True)
            for chunk in self.chunks.values():
                assert chunk.persistent.is_persistent(), f"{chunk.position} is not persistent"
            self._poll()
            assert self.durable == len(self.states) - 1, "a change is not persistent"
            self._check_account()
        reason = parts.health.reason
        if reason and not may_turn_read_only(self.device.faults.struck):
            raise AssertionError(f"no fault was a reason to turn read-only: {reason}")

    def _observe(self, _: DeviceOperation) -> None:
        self._cut_after -= 1
        if self._cut_after == 0:
            self.device.observer = None
            if self.ending is None or self.ending.point is None:
                self.ending = self._past(self._cut_kind, self.device.power_cut_point())

    def _past(self, kind: str, point: PowerCutPoint | None) -> Past:
        self._poll()
        model = self.model if point is None else self.model.copy()
        return Past(kind, point, model, self.durable, len(self.states))

    def _begin_anew(self) -> None:
        past = self.ending
        assert past is not None
        self.device.observer, self._cut_after = None, 0
        self.coverage.counts[f"crash {past.kind}"] += 1
        struck = self.device.faults.struck
        self.coverage.counts.update({f"fault {name}": count for name, count in struck.items()})
        self._bytes_were_lost |= loses_bytes(struck)
        if past.point is None:
            self._poll()
            past = self._past(past.kind, self.device.power_cut_point())
        assert past.point is not None
        self.model, self.durable = past.model, past.durable
        del self.states[past.applied :]
        self._applied = []
        self._unsettled = []
        self.device = device_after(self.device, past.point, past.kind, self.control)
        if past.kind != "clean":
            self.coverage.crash_states.add(self.device.digest())

    def _poll(self) -> None:
        """Take note of what has become persistent."""
        for chunk in self._unsettled:
            if chunk.persistent.is_persistent():
                self.model.persist(chunk.position)
        self._unsettled = [each for each in self._unsettled if not each.persistent.settled]
        for number, dependency in self._applied:
            if dependency.is_persistent():
                self.durable = max(self.durable, number)
        self._applied = [each for each in self._applied if each[0] > self.durable]

    # --- checks -------------------------------------------------------------------------------

    async def _tolerating(self, work: Awaitable[object]) -> None:
        try:
            await work
        except NoSpaceError:
            self.coverage.counts["no space"] += 1
        except (DeviceError, ReadOnlyError, CorruptionError) as error:
            self._require_excused(error)

    def _require_excused(self, error: ShardfsError) -> None:
        self._bytes_were_lost |= loses_bytes(self.device.faults.struck)
        if self.ending is not None and isinstance(error, ReadOnlyError):
            return
        if not excuses(self.device.faults.struck, error) and not self._bytes_were_lost:
            raise error

    async def _check_opened(self) -> None:
        parts = self.parts
        if self._bytes_were_lost:
            await self._look_at_what_is_left()
            return
        assert not parts.health.reason, f"it opened {parts.health.reason}"
        whole = self.model.crash(
            {
                extent.index: Found(extent.epoch, self._pointer_found(extent.index))
                for extent in parts.extents.all[limits.SUPERBLOCK_EXTENTS :]
            }
        )
        free = parts.extents._free
        while self._free_max is not None and len(free) > self._free_max:
            free.pop()
        self._take_references()
        self._check_account()
        for chunk in list(self.chunks.values()):
            extent = parts.extents.all[chunk.position.extent]
            # What no delta and no record names may have been reset again: the extent was free.
            must = extent.stream in STREAMS and chunk.position[:3] in whole
            if must or (chunk.after is not None and await self._is_whole(chunk)):
                assert await self._is_whole(chunk), f"{chunk.position} was persistent"
                await self._check_order(chunk)
        for position in self.references.values():
            await self._tolerating(self.read(position, 0, position.length, cached=False))
        self._forget_chunks()

    async def _look_at_what_is_left(self) -> None:
        """After bytes were lost: what can be read is what was appended. The sequence ends."""
        by_locator = {chunk.locator: chunk.position for chunk in self.chunks.values()}
        for locator in self._locators_found().values():
            position = by_locator.get(locator)
            if position is not None and position.epoch == self.model.epoch(position.extent):
                await self._tolerating(self.read(position, 0, position.length, cached=False))
        self.coverage.counts["lives after lost bytes"] += 1

    def _locators_found(self) -> dict[int, Locator]:
        found = {}
        for key, value in self.parts.tree.memtable.entries.items():
            shard = decode_value(value)
            if isinstance(shard, Shard):
                found[slot_of(key)] = shard.pieces[0].locator
        return found

    def _pointer_found(self, index: int) -> int:
        """The write pointer; of an extent that the delta log uses, none of ours."""
        extent = self.parts.extents.all[index]
        ours = extent.state is not ExtentState.FREE and extent.stream in STREAMS
        return extent.write_pointer if ours else 0

    def _take_references(self) -> None:
        """C3: the references found are a state that is allowed, and count from now on."""
        found = self._locators_found()
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

    def _check_account(self) -> None:
        live: dict[int, int] = {}
        for position in self.references.values():
            live[position.extent] = live.get(position.extent, 0) + position.length
        for extent in self.parts.extents.all:
            expected = live.get(extent.index, 0)
            assert extent.live_bytes == expected, (
                f"extent {extent.index} counts {extent.live_bytes} live bytes, "
                f"but {expected} are referred to"
            )

    async def _is_whole(self, chunk: Chunk) -> bool:
        locator = chunk.locator
        return await self.parts.chunks.is_whole(
            locator.extent, locator.epoch, locator.offset, locator.sequence
        )

    async def _check_order(self, chunk: Chunk) -> None:
        before = self.chunks.get(chunk.after) if chunk.after is not None else None
        if before is None:
            return
        extent = self.parts.extents.all[before.position.extent]
        if extent.epoch != before.position.epoch or extent.stream not in STREAMS:
            return  # it may have been reset since
        assert await self._is_whole(before), (
            f"{chunk.position} is on the device, and {before.position}, for which it was to wait, "
            "is not"
        )

    def _forget_chunks(self) -> None:
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
