"""The scheduler: order, shared flushes, and what a failure does to those who wait."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from shardfs import limits
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.dependency import PERSISTENT, Dependency, all_of
from shardfs.engine.device import Buffer
from shardfs.engine.health import Health
from shardfs.engine.scheduler import Scheduler
from shardfs.errors import DeviceError, ReadOnlyError

BLOCK = limits.BLOCK_BYTES
EXTENT_BYTES = 64 * BLOCK
EXTENTS = 8

logged = pytest.mark.expected_warnings("the store is now read-only")


class RecordingDevice(SimulatedDevice):
    """Notes when each write and flush begins and ends."""

    def __init__(self, seed: int = 0, checkpoints_max: int = 4) -> None:
        super().__init__(
            EXTENTS * EXTENT_BYTES,
            zoned_bytes=EXTENT_BYTES,
            seed=seed,
            checkpoints_max=checkpoints_max,
        )
        self.events: list[tuple[str, int, int]] = []

    async def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        length = sum(len(buffer) for buffer in buffers)
        self.events.append(("write", offset, length))
        await super().write(offset, buffers)
        self.events.append(("written", offset, length))

    async def flush(self) -> None:
        number = self.counts.flushes
        self.events.append(("flush", number, 0))
        await super().flush()
        self.events.append(("flushed", number, 0))

    def index(self, kind: str, offset: int) -> int:
        """Position of the event that covers the byte at `offset`."""
        for at, (name, start, length) in enumerate(self.events):
            if name == kind and start <= offset < start + length:
                return at
        raise AssertionError(f"no {kind} of byte {offset}")


class Writer:
    """Submits blocks at the write pointers of a few extents."""

    def __init__(self, scheduler: Scheduler, device: RecordingDevice) -> None:
        self.scheduler = scheduler
        self.device = device
        self.pointers = [0] * EXTENTS
        self.written: list[int] = []

    def submit(self, extent: int, before: Dependency = PERSISTENT, blocks: int = 1) -> Dependency:
        offset = extent * EXTENT_BYTES + self.pointers[extent]
        self.pointers[extent] += blocks * BLOCK
        persistent = Dependency()
        data = bytes([extent + 1]) * (blocks * BLOCK)

        def on_written() -> None:
            self.written.append(offset)

        self.scheduler.submit(extent, offset, (data,), len(data), before, persistent, on_written)
        return persistent


async def settle_under_watch(scheduler: Scheduler, dependency: Dependency) -> None:
    with trio.fail_after(100):
        await scheduler.settle(dependency)


@pytest.mark.parametrize("seed", range(25))
async def test_order_holds_for_random_graphs(seed: int) -> None:
    rng = random.Random(seed)
    device = RecordingDevice(seed)
    flushed_at: dict[Dependency, int] = {}

    def note(dependency: Dependency) -> None:
        flushed_at[dependency] = len(device.events)

    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(device, Health(), nursery)
        writer = Writer(scheduler, device)
        submitted: list[tuple[int, Dependency, list[Dependency]]] = []
        for _ in range(40):
            earlier = [persistent for _, persistent, _ in submitted[-6:]]
            before = rng.sample(earlier, rng.randint(0, min(2, len(earlier))))
            extent = rng.randrange(EXTENTS)
            offset = extent * EXTENT_BYTES + writer.pointers[extent]
            persistent = writer.submit(extent, all_of(before))
            persistent.on_settled(functools.partial(note, persistent))
            submitted.append((offset, persistent, before))
            if rng.random() < 0.3:
                await trio.lowlevel.checkpoint()
            if rng.random() < 0.1:
                nursery.start_soon(settle_under_watch, scheduler, persistent)
        await settle_under_watch(scheduler, all_of(each for _, each, _ in submitted))
    for offset, persistent, before in submitted:
        assert persistent.is_persistent()
        written = device.index("written", offset)
        seen = device.events[: flushed_at[persistent]]
        assert any(
            name == "flush" and ("flushed", number, 0) in seen[at:]
            for at, (name, number, _) in enumerate(seen)
            if at > written
        ), "persistent before a flush that began after the write had ended"
        started = device.index("write", offset)
        assert all(flushed_at[each] <= started for each in before)
    assert scheduler.queued_bytes == 0
    assert len(writer.written) == len(submitted)


async def test_neighbours_share_one_write_and_callers_share_one_flush() -> None:
    device = RecordingDevice()
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(device, Health(), nursery)
        writer = Writer(scheduler, device)
        each = [writer.submit(0) for _ in range(10)]
        for dependency in each:
            nursery.start_soon(settle_under_watch, scheduler, dependency)
    assert device.counts.writes <= 2
    assert device.counts.flushes == 1


async def test_a_flush_that_covers_everything_is_not_followed_by_another() -> None:
    device = RecordingDevice(checkpoints_max=10)
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(device, Health(), nursery)
        writer = Writer(scheduler, device)
        writer.submit(0)
        await scheduler.write_out()
        nursery.start_soon(scheduler.flush)
        while not device.counts.flushes:
            await trio.lowlevel.checkpoint()
        await scheduler.flush()
    assert device.counts.flushes == 1


async def test_waiting_for_what_was_submitted_ignores_what_comes_later() -> None:
    """Somebody who writes without a pause must not keep a sync waiting."""
    device = RecordingDevice()
    stop = False

    async def keep_writing() -> None:
        while not stop and writer.pointers[0] < EXTENT_BYTES:
            if scheduler.queued_bytes < 3 * BLOCK:
                writer.submit(0)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(device, Health(), nursery)
        writer = Writer(scheduler, device)
        nursery.start_soon(keep_writing)
        while not writer.pointers[0]:
            await trio.lowlevel.checkpoint()
        await scheduler.write_out()
        assert writer.pointers[0] < EXTENT_BYTES, "it returned only when the writer had ended"
        stop = True


@logged
async def test_a_failed_write_fails_what_is_behind_it_and_nothing_hangs() -> None:
    device = RecordingDevice()
    health = Health()
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(device, health, nursery)
        writer = Writer(scheduler, device)
        first = writer.submit(0)
        await settle_under_watch(scheduler, first)
        device.fail("write", EXTENT_BYTES, EXTENT_BYTES)
        bad = writer.submit(1)
        dependent = writer.submit(2, bad)
        chained = writer.submit(3, dependent)
        blocked = Dependency()
        behind_blocked = writer.submit(4, blocked)
        await trio.lowlevel.checkpoint()
        behind = writer.submit(1)
        with pytest.raises(DeviceError):
            await settle_under_watch(scheduler, bad)
        await trio.testing.wait_all_tasks_blocked()
        for dependency in (dependent, chained, behind, behind_blocked):
            assert dependency.failure is not None
        assert first.is_persistent()
        late = writer.submit(5)
        assert isinstance(late.failure, ReadOnlyError)
        with pytest.raises(ReadOnlyError):
            await scheduler.flush()
    assert scheduler.queued_bytes == 0
    with pytest.raises(ReadOnlyError):
        health.require_writable()


@logged
async def test_a_failed_flush_fails_all_it_covered_and_all_behind_it() -> None:
    device = RecordingDevice()
    device.fail("flush")
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(device, Health(), nursery)
        writer = Writer(scheduler, device)
        covered = [writer.submit(extent) for extent in range(3)]
        dependent = writer.submit(5, covered[0])
        with pytest.raises(DeviceError):
            await settle_under_watch(scheduler, dependent)
        for dependency in (*covered, dependent):
            assert dependency.failure is not None
            with pytest.raises((DeviceError, ReadOnlyError)):
                await dependency.wait()


@logged
async def test_a_write_that_ends_after_a_failed_flush_never_counts() -> None:
    device = RecordingDevice(checkpoints_max=1)
    async with trio.open_nursery() as nursery:
        health = Health()
        scheduler = Scheduler(device, health, nursery)
        writer = Writer(scheduler, device)
        late = writer.submit(0)
        health.make_read_only("a flush failed")
        with trio.fail_after(10), pytest.raises(ReadOnlyError):
            await late.wait()


@logged
@pytest.mark.parametrize("seed", range(30))
async def test_a_failure_anywhere_settles_everything(seed: int) -> None:
    rng = random.Random(seed)
    device = RecordingDevice(seed)
    device.fail(rng.choice(["write", "write", "flush"]), skip=rng.randrange(6))
    every: list[Dependency] = []
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(device, Health(), nursery)
        writer = Writer(scheduler, device)
        for _ in range(60):
            before = rng.choice(every[-5:]) if every and rng.random() < 0.6 else PERSISTENT
            every.append(writer.submit(rng.randrange(EXTENTS), before))
            if rng.random() < 0.3:
                await trio.lowlevel.checkpoint()
        with trio.fail_after(100):
            for dependency in every:
                with contextlib.suppress(DeviceError, ReadOnlyError):
                    await scheduler.settle(dependency)
    assert all(dependency.settled for dependency in every)
    assert scheduler.queued_bytes == 0


async def test_a_cancelled_nursery_still_finishes_writes() -> None:
    """Closing in order, inside a shield, relies on it."""
    device = RecordingDevice()
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(device, Health(), nursery)
        writer = Writer(scheduler, device)
        nursery.cancel_scope.cancel()
        persistent = writer.submit(0)
        with trio.CancelScope(shield=True):
            await settle_under_watch(scheduler, persistent)
        assert persistent.is_persistent()


async def test_a_cancelled_flush_leaves_its_writes_to_the_next() -> None:
    device = RecordingDevice(checkpoints_max=5)
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(device, Health(), nursery)
        writer = Writer(scheduler, device)
        persistent = writer.submit(0)
        await scheduler.write_out()
        with trio.CancelScope() as scope:
            scope.cancel()
            await scheduler.flush()
        assert not persistent.is_persistent()
        await settle_under_watch(scheduler, persistent)


async def test_admission_waits_until_the_queue_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "QUEUED_BYTES_MAX", 4 * BLOCK)
    device = RecordingDevice()
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(device, Health(), nursery)
        writer = Writer(scheduler, device)
        first = writer.submit(0, blocks=3)
        writer.submit(1, first, blocks=4)
        assert scheduler.queued_bytes == 7 * BLOCK
        with trio.fail_after(10):
            await scheduler.admit()
        assert scheduler.queued_bytes <= 4 * BLOCK
