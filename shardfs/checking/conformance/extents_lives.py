"""The lives of one sequence on the engine below its tree: opened, used, ended, opened again.

Role: a life is one opening; it ends in a close, a crash, or a cut at any operation of the device.
At each opening, what is found is held against the model (extents_system.C3 to C5,
extents_model.I4 to I6).

Invariants, beside those:
    C6.  After a clean close everything is persistent. No call fails without a fault.
    C7.  After bytes that were persistent are lost, what can be read is still what was appended.

Not here: what is compared while a store is open (extents_system.py), the sequences
(extents_world.py), devices and excuses (store_devices.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import trio

from shardfs import limits
from shardfs.checking.conformance.case import Coverage
from shardfs.checking.conformance.extents_system import STREAMS, ExtentsSystem
from shardfs.checking.conformance.store_devices import (
    SEEDS,
    Settings,
    device_after,
    excuses,
    formatted,
    loses_bytes,
    may_turn_read_only,
)
from shardfs.checking.models.extents_model import ExtentsModel, Found
from shardfs.checking.power_cuts import Operation as DeviceOperation
from shardfs.checking.power_cuts import PowerCutPoint
from shardfs.checking.schedule import Control
from shardfs.engine.dependency import all_of
from shardfs.engine.opening import open_parts
from shardfs.errors import CorruptionError, DeviceError, NoSpaceError, ReadOnlyError, ShardfsError

_CACHE_BYTES = 64 * limits.KIB

Action = Callable[["ExtentsLives"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Past:
    """What a crash goes back to."""

    kind: str
    point: PowerCutPoint | None
    model: ExtentsModel
    durable: int
    applied: int


class ExtentsLives(ExtentsSystem):
    """The system and its model, through all lives of one sequence.

    Args:
        control: draws what the operations leave open.
        coverage: counts what happens.
        settings: the device.
        free_max: see ExtentsSystem.
    """

    def __init__(
        self, control: Control, coverage: Coverage, settings: Settings, free_max: int | None
    ) -> None:
        super().__init__(coverage, free_max)
        self.control = control
        self.settings = settings
        self.device = formatted(settings.geometry).power_cut()
        self.ending: Past | None = None
        self._cut_after = 0
        self._cut_kind = ""
        self._bytes_were_lost = False

    async def run(self, actions: Iterator[Action]) -> None:
        """All actions, in as many lives as they end."""
        while await self._live(actions):
            pass

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
            self.poll()
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
            self.poll()
            assert self.durable == len(self.states) - 1, "a change is not persistent"
            self.check_account()
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
        self.poll()
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
            self.poll()
            past = self._past(past.kind, self.device.power_cut_point())
        assert past.point is not None
        self.model, self.durable = past.model, past.durable
        del self.states[past.applied :]
        self._applied = []
        self._unsettled = []
        self.device = device_after(self.device, past.point, past.kind, self.control)
        if past.kind != "clean":
            self.coverage.crash_states.add(self.device.digest())

    # --- what an opening finds, and what a failure means --------------------------------------

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
                extent.index: Found(extent.epoch, self.pointer_found(extent.index))
                for extent in parts.extents.all[limits.SUPERBLOCK_EXTENTS :]
            }
        )
        free = parts.extents._free
        while self._free_max is not None and len(free) > self._free_max:
            free.pop()
        self.take_references()
        self.check_account()
        for chunk in list(self.chunks.values()):
            extent = parts.extents.all[chunk.position.extent]
            # What no delta and no record names may have been reset again: the extent was free.
            must = extent.stream in STREAMS and chunk.position[:3] in whole
            if must or (chunk.after is not None and await self.is_whole(chunk)):
                assert await self.is_whole(chunk), f"{chunk.position} was persistent"
                await self.check_order(chunk)
        for position in self.references.values():
            await self._tolerating(self.read(position, 0, position.length, cached=False))
        self.forget_chunks()

    async def _look_at_what_is_left(self) -> None:
        """After bytes were lost: what can be read is what was appended. The sequence ends."""
        by_locator = {chunk.locator: chunk.position for chunk in self.chunks.values()}
        for locator in self.locators_found().values():
            position = by_locator.get(locator)
            if position is not None and position.epoch == self.model.epoch(position.extent):
                await self._tolerating(self.read(position, 0, position.length, cached=False))
        self.coverage.counts["lives after lost bytes"] += 1
