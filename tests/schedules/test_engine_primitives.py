"""The engine's small primitives under every schedule: cache, dependencies, shared flushes.

Role: each program is small enough for all schedules with a few preemptions, and often for all
schedules at all. The numbers of schedules are asserted: a change in what a primitive awaits shows.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio

from shardfs.checking.schedule import (
    Control,
    Exhaustive,
    Priorities,
    Program,
    Random,
    ScheduleFailure,
    check,
)
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.cache import Cache
from shardfs.engine.dependency import PERSISTENT, Dependency, all_of
from shardfs.engine.health import Health
from shardfs.engine.scheduler import Scheduler
from shardfs.errors import DeviceError, ShardfsError

BLOCK = 4096
KEY = (1, 1, 0)


def exhaust(program: Program[object], *, deviations_max: int | None = None) -> int:
    """Every schedule, or all with so many deviations; how many there are."""
    exploration = check(program, Exhaustive(deviations_max=deviations_max), runs_max=50_000)
    assert exploration.complete
    return exploration.runs


# --- cache ------------------------------------------------------------------------------------


class Shelf:
    """A cache with a loader that counts, and fails as often as it is told."""

    def __init__(self, bytes_max: int = 100, failures: int = 0) -> None:
        self.cache = Cache(bytes_max)
        self.failures = failures
        self.loads = 0
        self.loading: dict[int, int] = {}

    async def load(self, number: int, size: int = 10) -> object:
        """What Cache.load gives for a key; at most one loader a key runs at a time."""

        async def loader() -> tuple[object, int]:
            self.loading[number] = self.loading.get(number, 0) + 1
            assert self.loading[number] == 1, "two loaders of one key at once"
            try:
                await trio.lowlevel.checkpoint()
                if self.failures:
                    self.failures -= 1
                    raise DeviceError("read", 0, 0, 5)
                self.loads += 1
                return f"value {number}", size
            finally:
                self.loading[number] -= 1

        value = await self.cache.load((number, 1, 0), loader)
        assert value == f"value {number}"
        return value

    def check_at_rest(self) -> None:
        """Nothing is being loaded, and the sizes add up."""
        assert not self.cache._loading
        held = sum(size for _, size in self.cache._values.values())
        statistics = self.cache.statistics()
        assert statistics.held_bytes == held <= statistics.bytes_max


async def three_miss_on_one_key(control: Control) -> None:
    """One load for all."""
    shelf = Shelf()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(shelf.load, 1)
    assert shelf.loads == 1
    assert shelf.cache.statistics().misses == 1
    shelf.check_at_rest()


async def the_first_loader_fails(control: Control) -> None:
    """Its caller gets the error, and the others one load between them."""
    shelf = Shelf(failures=1)
    errors = 0

    async def ask() -> None:
        nonlocal errors
        try:
            await shelf.load(1)
        except DeviceError:
            errors += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert (errors, shelf.loads) == (1, 1)
    shelf.check_at_rest()


async def any_loader_is_cancelled(control: Control) -> None:
    """The others still get the value; nobody waits for ever."""
    shelf = Shelf()
    answers = []

    async def ask(name: str) -> None:
        with control.cancellable(name) as scope:
            answers.append(await shelf.load(1))
        assert scope.cancel_called or answers

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "first")
        nursery.start_soon(ask, "second")
    assert len(answers) >= shelf.loads
    shelf.check_at_rest()
    await shelf.load(1)
    assert shelf.loads == 1 or not answers


async def values_push_each_other_out(control: Control) -> None:
    """Three keys, room for two; and one value larger than the whole cache."""
    shelf = Shelf(bytes_max=20)
    async with trio.open_nursery() as nursery:
        for number in (1, 2, 3, 1):
            nursery.start_soon(shelf.load, number)
        nursery.start_soon(shelf.load, 4, 21)
    shelf.check_at_rest()


def test_cache_single_flight() -> None:
    assert exhaust(three_miss_on_one_key) == 30


def test_cache_loader_failure() -> None:
    assert exhaust(the_first_loader_fails) == 60


def test_cache_loader_cancellation() -> None:
    assert exhaust(any_loader_is_cancelled) == 64


def test_cache_eviction() -> None:
    assert exhaust(values_push_each_other_out, deviations_max=2) > 100
    check(values_push_each_other_out, Priorities(depth=3), runs_max=200)


# --- dependencies -----------------------------------------------------------------------------


async def waiters_and_a_conjunction(control: Control) -> None:
    """Two halves settle in either order; nobody wakes too early, everybody wakes."""
    first, second = Dependency(), Dependency()
    both = first & second
    woken = 0

    async def wait(dependency: Dependency) -> None:
        nonlocal woken
        await dependency.wait()
        assert dependency.is_persistent()
        woken += 1

    async def settle(dependency: Dependency) -> None:
        await trio.lowlevel.checkpoint()
        dependency.resolve()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, both)
        nursery.start_soon(wait, first)
        nursery.start_soon(settle, first)
        nursery.start_soon(settle, second)
    assert woken == 2
    assert both.is_persistent()


async def one_half_fails(control: Control) -> None:
    """Whoever waits for the whole gets the failure, before or after the other half settles."""
    first, second = Dependency(), Dependency()
    whole = all_of((first, second, PERSISTENT))
    failures = 0

    async def wait() -> None:
        nonlocal failures
        try:
            with control.cancellable() as scope:
                await whole.wait()
        except DeviceError:
            failures += 1
        else:
            assert scope.cancelled_caught, "it can only fail"

    async def fail() -> None:
        first.fail(DeviceError("write", 0, BLOCK, 5))

    async def settle() -> None:
        second.resolve()

    async with trio.open_nursery() as nursery:
        for work in (wait, wait, fail, settle):
            nursery.start_soon(work)
    assert whole.failure is not None


def test_dependency_waits() -> None:
    assert exhaust(waiters_and_a_conjunction) == 394


def test_dependency_failure() -> None:
    assert exhaust(one_half_fails, deviations_max=3) > 100


# --- shared flushes ---------------------------------------------------------------------------


class Desk:
    """A scheduler on a simulated device, and a client that writes blocks and flushes."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.device = SimulatedDevice(64 * BLOCK)
        self.health = Health()
        self.scheduler = Scheduler(self.device, self.health, nursery)
        self.before = PERSISTENT

    def submit(self, extent: int, block: int, content: int) -> Dependency:
        """Write one block."""
        persistent = Dependency()
        self.scheduler.submit(
            extent,
            block * BLOCK,
            (bytes((content,)) * BLOCK,),
            BLOCK,
            self.before,
            persistent,
            lambda: None,
        )
        return persistent

    def require_durable(self, block: int, content: int) -> None:
        """The block survives a power cut that loses everything unflushed."""
        left = self.device.power_cut().image()[block * BLOCK : (block + 1) * BLOCK]
        # Not compared in the assert: pytest would explain the difference byte by byte.
        is_there = left == bytes((content,)) * BLOCK
        assert is_there, f"block {block} is lost"


async def callers_share_flushes(control: Control) -> int:
    """Three callers, a write and a flush each; every write durable when its flush returns."""
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)

        async def write_and_flush(number: int) -> None:
            persistent = desk.submit(number, number, 1 + number)
            await desk.scheduler.settle(persistent)
            assert persistent.is_persistent()
            desk.require_durable(number, 1 + number)

        async with trio.open_nursery() as callers:
            for number in range(3):
                callers.start_soon(write_and_flush, number)
    assert desk.device.counts.flushes <= 3
    assert desk.scheduler.queued_bytes == 0
    return desk.device.counts.flushes


async def flush_returns_late_enough(control: Control) -> None:
    """What was written before `flush` was called is durable when it returns, whoever flushes."""
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)

        async def work(number: int) -> None:
            persistent = desk.submit(number, number, 7)
            await desk.scheduler.write_out()
            await desk.scheduler.flush()
            desk.require_durable(number, 7)
            assert persistent.is_persistent()

        for number in range(3):
            nursery.start_soon(work, number)


async def a_flush_is_cancelled(control: Control) -> None:
    """The one who is cancelled while flushing leaves the work to the others."""
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)

        async def work(number: int) -> None:
            persistent = desk.submit(number, number, 9)
            with control.cancellable(f"flush {number}") as scope:
                await desk.scheduler.settle(persistent)
            if not scope.cancelled_caught:
                desk.require_durable(number, 9)

        async with trio.open_nursery() as callers:
            callers.start_soon(work, 0)
            callers.start_soon(work, 1)
        last = desk.submit(0, 2, 9)
        await desk.scheduler.settle(last)
        for block in range(3):
            desk.require_durable(block, 9)


async def writes_depend_on_each_other(control: Control) -> None:
    """A chain over two extents needs a flush for each link; order holds in every cut."""
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)

        def look(_: object) -> None:
            image = desk.device.power_cut().image()
            contents = [image[block * BLOCK] for block in range(3)]
            assert contents in ([0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]), contents

        desk.device.observer = look
        last = PERSISTENT
        for block in range(3):
            desk.before = last
            last = desk.submit(block % 2, block, 1)

        async def settle() -> None:
            await desk.scheduler.settle(last)
            look(None)

        nursery.start_soon(settle)
        nursery.start_soon(settle)
        nursery.start_soon(desk.scheduler.flush)


async def a_flush_fails(control: Control) -> None:
    """Every caller is told, nothing is called persistent, nobody hangs."""
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)
        desk.device.fail("flush", times=1)
        refused = 0

        async def work(number: int) -> None:
            nonlocal refused
            persistent = desk.submit(number, number, 3)
            try:
                await desk.scheduler.settle(persistent)
            except ShardfsError:
                refused += 1
            assert not persistent.is_persistent()

        async with trio.open_nursery() as callers:
            for number in range(2):
                callers.start_soon(work, number)
    assert refused == 2


FLUSHES: dict[str, Program[object]] = {
    "share": callers_share_flushes,
    "late enough": flush_returns_late_enough,
    "cancelled": a_flush_is_cancelled,
    "chain": writes_depend_on_each_other,
    "failing": a_flush_fails,
}


A_FLUSH_FAILS = pytest.mark.expected_warnings("the store is now read-only: device flush")


@pytest.mark.parametrize("name", FLUSHES)
@A_FLUSH_FAILS
def test_shared_flushes_with_one_deviation(name: str) -> None:
    assert exhaust(FLUSHES[name], deviations_max=1) >= 8


@pytest.mark.parametrize("name", FLUSHES)
@A_FLUSH_FAILS
def test_shared_flushes_sampled(name: str) -> None:
    check(FLUSHES[name], Priorities(depth=3, seed=1), runs_max=50)
    check(FLUSHES[name], Random(seed=1), runs_max=50)


def test_three_callers_share_one_flush_where_they_can() -> None:
    counts = set()

    async def program(control: Control) -> None:
        counts.add(await callers_share_flushes(control))

    check(program, Priorities(depth=3, seed=1), runs_max=200)
    assert min(counts) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FLUSHES)
@A_FLUSH_FAILS
def test_shared_flushes_with_three_deviations(name: str) -> None:
    assert exhaust(FLUSHES[name], deviations_max=3) > 100


# --- what these programs would catch ----------------------------------------------------------


async def _load_without_waiting(cache: Cache, key: Any, loader: Any) -> object:
    value = cache.get(key)
    if value is None:
        cache._misses += 1
        value, size = await loader()
        cache._put(key, value, size)
    return value


def test_planted_a_cache_that_loads_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "load", _load_without_waiting)
    with pytest.raises(ScheduleFailure, match="two loaders of one key"):
        exhaust(three_miss_on_one_key)


async def _join_the_running_flush(scheduler: Scheduler) -> None:
    """The classic mistake: a flush that began before the write was complete is taken for one
    that covers it."""
    if not scheduler.is_flushing:
        await scheduler._flush_once()
        return
    number = scheduler._flushes_started
    while scheduler._flushes_finished < number:
        await scheduler._park()


def test_planted_a_flush_that_began_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduler, "flush", _join_the_running_flush)
    with pytest.raises(ScheduleFailure, match="is lost"):
        check(flush_returns_late_enough, Priorities(depth=3, seed=1), runs_max=500)


def test_planted_a_dependency_that_forgets_a_waiter(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_callbacks(self: Dependency) -> None:
        callbacks, self._callbacks = self._callbacks, []
        if callbacks:
            callbacks[0]()

    monkeypatch.setattr(Dependency, "_run_callbacks", run_callbacks)
    with pytest.raises(ScheduleFailure, match="deadlock"):
        exhaust(waiters_and_a_conjunction)
