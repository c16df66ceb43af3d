"""Cuts the power at every step of a workload, and looks at what opens afterwards.

Role: a History knows what a workload has applied and what was called persistent; Moments pair
it with the device at each submitted write, flush, reset and discard; `check_moments` opens the
states that a cut at each moment may leave, and compares.

What is checked in each state:
    C1  The store opens by itself, healthy, without any repair.
    C2  Its content is the state after a prefix of the applied batches: each batch is there
        wholly or not at all, and none without those before it.
    C3  The prefix holds every batch whose dependency had been called persistent.
    C4  The account of live bytes agrees with what the content refers to; in samples, fsck is
        clean as well, with all data, before recovery (read-only) and after.
    C5  In samples, what an opened store shows survives the next cut; and it goes on: something
        new can be written, made durable, and found again together with all that was recovered.

Not here: workloads (workloads.py); which states there are (shardfs.checking.power_cuts).
"""

from __future__ import annotations

import functools
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
import trio.testing

from shardfs.checking.power_cuts import Choice, Operation, PowerCutPoint
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.dependency import Dependency
from shardfs.engine.fsck import check_store
from shardfs.engine.liveness import live_bytes
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.pieces import Shard
from shardfs.engine.space import DATA_STREAMS
from shardfs.engine.store import Store
from shardfs.errors import NoSpaceError

KIB = 1024
EXTENT_BYTES = 64 * KIB
EXTENT_COUNT = 32
OPTIONS = StoreOptions(background=False)
PROOF_KEY, PROOF = b"\xff written after recovery", b"proof" * 200

Content = dict[bytes, bytes]


class CrashFinding(AssertionError):
    """A crash state that breaks a promise; the message names what replays it."""


def run_in_order(function: Callable[..., Awaitable[Any]], *arguments: object, seed: int = 0) -> Any:
    """trio.run with a jumping clock and an order of tasks that depends on the seed alone."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    with pytest.MonkeyPatch.context() as patch:
        # trio has no public way to say this.
        patch.setattr("trio._core._run._r", random.Random(seed))
        patch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
        return trio.run(functools.partial(function, *arguments), clock=clock)


# --- what has happened ----------------------------------------------------------------------------


@dataclass(slots=True)
class History:
    """The applied batches of one store, in order, across its re-openings."""

    states: list[Content] = field(default_factory=lambda: [{}])
    pending: list[tuple[int, Dependency]] = field(default_factory=list)
    persistent: int = 0

    @property
    def content(self) -> Content:
        """What a reader sees now."""
        return self.states[-1]

    def begin(self, changes: dict[bytes, bytes | None]) -> None:
        """A batch is about to be applied: from now on it may be found after a cut."""
        state = {**self.content, **{k: v for k, v in changes.items() if v is not None}}
        for key in (key for key, value in changes.items() if value is None):
            state.pop(key, None)
        self.states.append(state)

    def applied(self, dependency: Dependency) -> None:
        """The batch begun last is applied; `dependency` tells when it is persistent."""
        self.pending.append((len(self.states) - 1, dependency))

    def refused(self) -> None:
        """The batch begun last was not applied: it must not be found."""
        self.states.pop()

    def all_persistent(self) -> None:
        """The store was closed, or synced as a whole."""
        self.persistent = len(self.states) - 1
        self.pending.clear()

    def poll(self) -> int:
        """How many batches have been called persistent so far."""
        for number, dependency in self.pending:
            if dependency.is_persistent():
                self.persistent = max(self.persistent, number)
        self.pending = [each for each in self.pending if each[0] > self.persistent]
        return self.persistent


@dataclass(frozen=True, slots=True)
class Moment:
    """One submitted operation, and what a cut right then may leave."""

    operation: Operation
    point: PowerCutPoint
    states: tuple[Content, ...]
    first_number: int

    def describe(self) -> str:
        """For findings."""
        operation = self.operation
        return (
            f"at step {operation.step} ({operation.kind} of {operation.length} bytes at byte "
            f"{operation.offset}), batches {self.first_number} to "
            f"{self.first_number + len(self.states) - 1} allowed"
        )


class Recorder:
    """Collects the moments of one device's life."""

    def __init__(self, device: SimulatedDevice, history: History) -> None:
        self.device = device
        self.history = history
        self.moments: list[Moment] = []
        device.observer = self._observe

    def _observe(self, operation: Operation) -> None:
        persistent = self.history.poll()
        states = tuple(self.history.states[persistent:])
        point = self.device.power_cut_point()
        self.moments.append(Moment(operation, point, states, persistent))


# --- stores ---------------------------------------------------------------------------------------


@functools.cache
def _empty_device(sector_bytes: int, zoned: bool) -> SimulatedDevice:
    device = SimulatedDevice(
        EXTENT_COUNT * EXTENT_BYTES, sector_bytes, EXTENT_BYTES if zoned else None
    )
    identity = plan(
        device.size_bytes,
        sector_bytes,
        extent_bytes=EXTENT_BYTES,
        store_uuid=uuid.UUID(int=0x5EED),
    )
    run_in_order(format_device, device, replace(identity, created_ns=0))
    return device


def empty_device(
    *, sector_bytes: int = 512, zoned: bool = False, seed: int = 0, checkpoints_max: int = 3
) -> SimulatedDevice:
    """A device with an empty store. Requires: no trio run is going on."""
    device = _empty_device(sector_bytes, zoned).power_cut()
    device.reseed(seed, checkpoints_max)
    return device


async def read_content(store: Store) -> Content:
    """Every key and its bytes."""
    content = {}
    for key, value in await read_entries(store):
        if isinstance(value, Shard):
            value = await store.read_shard(value, 0, value.length)
        content[key] = bytes(value)
    return content


async def read_entries(store: Store) -> list[tuple[bytes, bytes | Shard]]:
    """Every key with its record or shard."""
    return [pair async for pair in store.scan(b"\0", b"\xff" * 64)]


async def check_account(store: Store) -> None:
    """C4: live bytes are what the content refers to."""
    live: dict[int, int] = {}
    for _, value in await read_entries(store):
        if isinstance(value, Shard):
            for (number, _), length in live_bytes(value.pieces).items():
                live[number] = live.get(number, 0) + length
    for extent in store._extents.all:
        if extent.stream in DATA_STREAMS:
            expected = live.pop(extent.index, 0)
            assert extent.live_bytes == expected, (
                f"extent {extent.index} counts {extent.live_bytes} live bytes, "
                f"but {expected} are referred to"
            )
    assert not live, f"extents {sorted(live)} are referred to, and hold no data"


# --- checking -------------------------------------------------------------------------------------


async def check_state(
    device: SimulatedDevice, states: Sequence[Content], *, goes_on: bool = True
) -> None:
    """C1 to C5 for one device."""
    seen_read_only = await _look(device) if goes_on else None
    async with open_quietly(device) as store:
        opened = device.power_cut()
        assert not store.health.reason, f"the store opened {store.health.reason}"
        content = await read_content(store)
        assert content in states, difference(content, states)
        await check_account(store)
        if seen_read_only is not None:
            await _check_clean(store, "recovered", data=False)
            assert seen_read_only == content, "a read-only open showed something else"
        if goes_on:
            proof = await _go_on(store, content)
            went_on = device.power_cut()
    if goes_on:
        await _check_content(opened, content, "a cut right after opening")
        await _check_content(went_on, proof, "a cut right after a sync")
        await _check_content(device.power_cut(), proof, "a clean close")


async def _look(device: SimulatedDevice) -> Content:
    """A read-only open, as fsck on an unmounted device makes it: it finds nothing amiss."""
    steps = device.step
    async with Store.open(device, options=replace(OPTIONS, read_only=True)) as store:
        content = await read_content(store)
        await _check_clean(store, "opened read-only", data=True)
    assert device.step == steps, "a read-only open has written"
    return content


async def _check_clean(store: Store, when: str, *, data: bool) -> None:
    report = await check_store(store, data=data)
    assert report.is_clean, f"fsck, {when}: " + "; ".join(map(str, report.findings[:3]))


async def _go_on(store: Store, content: Content) -> Content:
    """Makes a change durable, one that a full device takes if need be; the content then."""
    try:
        await store.sync(await store.put(PROOF_KEY, PROOF))
    except NoSpaceError:
        if content:
            key = min(content)
            await store.sync(await store.delete(key))
            return {other: value for other, value in content.items() if other != key}
        await store.checkpoint()
        await store.reclaim()
        await store.sync(await store.put(PROOF_KEY, PROOF))
    return {**content, PROOF_KEY: PROOF}


async def _check_content(device: SimulatedDevice, expected: Content, after: str) -> None:
    async with open_quietly(device) as store:
        content = await read_content(store)
        assert content == expected, f"after {after}: {difference(content, [expected])}"
        await check_account(store)


@asynccontextmanager
async def open_quietly(device: SimulatedDevice) -> AsyncIterator[Store]:
    """A store without background tasks."""
    async with Store.open(device, options=OPTIONS) as store:
        yield store


async def check_moments(
    origin: SimulatedDevice,
    moments: Iterable[Moment],
    *,
    states_per_moment: int,
    rng: random.Random,
    goes_on_every: int = 8,
) -> int:
    """Opens and checks crash states of each moment; how many there were."""
    count = 0
    for moment in moments:
        for choice in moment.point.choices(states_per_moment, rng):
            count += 1
            device = origin.after_power_cut(moment.point, choice)
            await check_choice(device, moment, choice, goes_on=count % goes_on_every == 0)
    return count


async def check_recovery_cuts(
    origin: SimulatedDevice,
    moments: Iterable[Moment],
    *,
    states_per_moment: int,
    cuts_per_recovery: int,
    rng: random.Random,
) -> int:
    """Cuts the power again while a crash state is opened and closed; how many states came out.

    Half of the first crashes are power cuts, half are kills, after which what was unflushed is
    read back and is still unflushed.
    """
    count = 0
    for moment in moments:
        for choice in moment.point.choices(states_per_moment, rng):
            first = origin.after_power_cut(moment.point, choice)
            if choice == moment.point.everything():
                first = origin.after_kill(moment.point)
            second = [
                replace(again, states=moment.states, first_number=moment.first_number)
                for again in await _recovery_moments(first)
            ]
            for again in second:
                for second_choice in again.point.choices(cuts_per_recovery, rng):
                    count += 1
                    device = first.after_power_cut(again.point, second_choice)
                    where = f"{moment.describe()}, surviving {choice}; then {again.describe()}"
                    await check_choice(device, again, second_choice, goes_on=False, where=where)
    return count


async def _recovery_moments(device: SimulatedDevice) -> list[Moment]:
    recorder = Recorder(device, History())
    async with open_quietly(device):
        pass
    device.observer = None
    return recorder.moments


async def check_choice(
    device: SimulatedDevice, moment: Moment, choice: Choice, *, goes_on: bool, where: str = ""
) -> None:
    """One crash state; a failure says which."""
    try:
        await check_state(device, moment.states, goes_on=goes_on)
    except Exception as error:
        what = "; ".join(f"{type(cause).__name__}: {cause}" for cause in causes_of(error))
        where = where or moment.describe()
        raise CrashFinding(f"{where}, surviving {choice}: {what}") from error


def causes_of(error: BaseException) -> list[BaseException]:
    """What an exception group holds in the end."""
    if isinstance(error, BaseExceptionGroup):
        return [cause for inner in error.exceptions for cause in causes_of(inner)]
    return [error]


def difference(content: Content, states: Sequence[Content]) -> str:
    """How what was found differs from the nearest allowed state."""

    def differing(state: Content) -> list[bytes]:
        return sorted(k for k in content.keys() | state.keys() if content.get(k) != state.get(k))

    nearest = min(range(len(states)), key=lambda number: len(differing(states[number])))

    def brief(value: bytes | None) -> str:
        return "absent" if value is None else f"{value[:12]!r}… ({len(value)} bytes)"

    lines = [
        f"{key!r} is {brief(content.get(key))}, not {brief(states[nearest].get(key))}"
        for key in differing(states[nearest])[:5]
    ]
    return f"no allowed state was found; nearest is number {nearest}: " + ", ".join(lines)
