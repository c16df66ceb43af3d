"""fuse/polling.py: when it spins, when it sleeps, and that others get their turn."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyfuse3
import pytest
import trio

from shardfs.fuse import polling
from shardfs.fuse.polling import ADAPTIVE, OFF, Polling, Turn, Window, standing_in


class CountedLooks:
    """select.poll that counts what it was asked, and lets the test do something at a look."""

    count = 0
    at_look: dict[int, Callable[[], object]]

    def __init__(self) -> None:
        self._poll = _REAL_POLL()
        self.register = self._poll.register

    def poll(self, timeout: int) -> list[tuple[int, int]]:
        type(self).count += 1
        self.at_look.get(self.count, lambda: None)()
        return self._poll.poll(timeout)


_REAL_POLL = select.poll


class Kernel:
    """A pipe in place of the FUSE device, and a clock that the test moves.

    Args:
        look_ns: what one reading of the clock takes.
    """

    def __init__(self, look_ns: int = 1_000) -> None:
        self.reading, self.writing = os.pipe()
        self.now = 0
        self.look_ns = look_ns
        self.asleep_ns = 0
        """How long the next sleep lasts."""

    def send(self) -> None:
        os.write(self.writing, b"x")

    def receive(self) -> None:
        os.read(self.reading, 1)

    def now_ns(self) -> int:
        self.now += self.look_ns
        return self.now

    async def sleep(self, descriptor: int) -> None:
        await trio.lowlevel.wait_readable(descriptor)
        self.now += self.asleep_ns

    def polling(self, poll_us: int) -> Polling:
        return Polling(poll_us, sleep=self.sleep, now_ns=self.now_ns)


@contextmanager
def kernel(look_ns: int = 1_000) -> Iterator[Kernel]:
    made = Kernel(look_ns)
    try:
        yield made
    finally:
        os.close(made.reading)
        os.close(made.writing)


async def serve(kernel: Kernel, waiting: Polling, asleep_ns: int) -> None:
    """Wait for one request, which is there at once, and take it."""
    kernel.asleep_ns = asleep_ns
    kernel.send()
    await waiting.wait_readable(kernel.reading)
    kernel.receive()


async def test_the_window_grows_while_requests_keep_coming() -> None:
    with kernel() as device:
        waiting = device.polling(ADAPTIVE)
        for _ in range(20):
            await serve(device, waiting, 30_000)
        assert (waiting.waits, waiting.sleeps) == (20, 1)
        assert waiting.window.window_ns == polling.WINDOW_NS_MIN


async def test_rare_requests_are_slept_for() -> None:
    with kernel() as device:
        waiting = device.polling(ADAPTIVE)
        for _ in range(20):
            await serve(device, waiting, 10 * polling.WINDOW_NS_MAX)
        assert waiting.sleeps == waiting.waits == 20
        assert waiting.window.window_ns == 0


async def test_the_window_closes_when_requests_stop() -> None:
    window = Window(ADAPTIVE)
    for _ in range(10):
        window.slept(50_000)
    assert window.at(1) == polling.WINDOW_NS_MAX
    closings = 0
    while window.at(1):
        window.slept(10**9)
        closings += 1
    assert closings <= 4


async def test_a_fixed_window_stays_and_off_is_off() -> None:
    with kernel() as device:
        waiting = device.polling(50)
        for _ in range(5):
            await serve(device, waiting, 10**9)
        assert (waiting.sleeps, waiting.window.window_ns) == (0, 50_000)
        waiting.obey(OFF)
        for _ in range(5):
            await serve(device, waiting, 1_000)
        assert (waiting.sleeps, waiting.window.window_ns) == (5, 0)


async def test_it_does_not_spin_when_someone_else_wants_the_core() -> None:
    with kernel(look_ns=2 * polling.LOST_NS) as device:
        waiting = device.polling(ADAPTIVE)
        waiting.window.slept(1)
        device.send()  # not seen by the first look
        window = waiting.window
        assert window.at(0)
        window.lost_core(0)
        assert not window.at(polling.PAUSE_NS_MIN - 1)
        assert window.at(polling.PAUSE_NS_MIN)
        window.lost_core(0)
        assert not window.at(2 * polling.PAUSE_NS_MIN - 1)
        for _ in range(100):
            window.lost_core(0)
        assert window.at(polling.PAUSE_NS_MAX)


async def test_losing_the_core_ends_the_wait_awake() -> None:
    with kernel(look_ns=2 * polling.LOST_NS) as device:
        waiting = device.polling(ADAPTIVE)
        waiting.window.slept(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiting.wait_readable, device.reading)
            await trio.testing.wait_all_tasks_blocked()
            assert waiting.sleeps == 1
            device.send()


@pytest.mark.parametrize("poll_us", [ADAPTIVE, 100])
async def test_others_have_their_turn(poll_us: int) -> None:
    with kernel() as device:
        waiting = device.polling(poll_us)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(10 * polling.YIELD_REQUESTS):
                await serve(device, waiting, 1_000)
            nursery.cancel_scope.cancel()
        assert turns >= 7


async def test_the_looks_end_when_another_task_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished thread's word had to wait for up to 64 looks, twice."""
    looks_at: dict[str, int] = {}
    with kernel() as other, kernel() as device:
        waiting = device.polling(10**6)
        CountedLooks.count = 0
        CountedLooks.at_look = {10: other.send}
        monkeypatch.setattr(select, "poll", CountedLooks)

        async def finished() -> None:
            await trio.lowlevel.wait_readable(other.reading)
            looks_at["finished"] = CountedLooks.count
            woken.set()

        async def answered() -> None:
            await woken.wait()
            looks_at["answered"] = CountedLooks.count
            device.send()

        woken = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(finished)
            nursery.start_soon(answered)
            await trio.testing.wait_all_tasks_blocked()
            await waiting.wait_readable(device.reading)
    late = 10 + polling.REQUEST_LOOKS
    assert looks_at["finished"] <= late + 2
    assert looks_at["answered"] <= late + 4
    assert CountedLooks.count <= late + 8


async def test_who_only_waits_for_its_turn_does_not_end_the_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each request gave way to the next reader in the line, for nothing: it took twice as long."""
    CountedLooks.count = 0
    monkeypatch.setattr(select, "poll", CountedLooks)
    with kernel() as device:
        yields = 0

        class Counting(Polling):
            async def _yield(self) -> None:
                nonlocal yields
                yields += 1
                await super()._yield()

        waiting = Counting(1_000, now_ns=device.now_ns)
        turn = waiting.Lock()
        CountedLooks.at_look = {1: device.send, 9: device.send}

        async def next_reader() -> None:
            async with turn:
                pass

        async with trio.open_nursery() as nursery:
            async with turn:
                nursery.start_soon(next_reader)
                await trio.testing.wait_all_tasks_blocked()
                await waiting.wait_readable(device.reading)
                device.receive()
            async with turn:
                await waiting.wait_readable(device.reading)
        assert (CountedLooks.count, yields) == (9, 0)


async def test_nobody_looks_while_the_device_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    with kernel() as device:
        waiting = Polling(10**6, is_flushing=lambda: is_flushing, sleep=device.sleep)
        CountedLooks.count = 0
        CountedLooks.at_look = {}
        monkeypatch.setattr(select, "poll", CountedLooks)
        is_flushing = True
        device.send()
        await waiting.wait_readable(device.reading)
        assert (CountedLooks.count, waiting.sleeps) == (0, 1)
        is_flushing = False
        await waiting.wait_readable(device.reading)
        assert (CountedLooks.count, waiting.sleeps) == (1, 1)


async def test_an_answer_ends_the_sleep_of_the_one_who_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After an fsync the next requests found the server asleep."""
    CountedLooks.count = 0
    CountedLooks.at_look = {}
    monkeypatch.setattr(select, "poll", CountedLooks)
    with kernel() as device:
        is_flushing = False
        flushed = trio.Event()
        waiting = Polling(1_000, is_flushing=lambda: is_flushing, now_ns=device.now_ns)
        turn = waiting.Lock()

        async def fsync() -> None:
            nonlocal is_flushing
            async with turn:
                await waiting.wait_readable(device.reading)
                device.receive()
            is_flushing = True
            await flushed.wait()
            is_flushing = False
            async with turn:
                pass

        async def next_request() -> None:
            async with turn:
                await waiting.wait_readable(device.reading)

        device.send()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fsync)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(next_request)
            await trio.testing.wait_all_tasks_blocked()
            assert (CountedLooks.count, waiting.sleeps) == (1, 1)
            flushed.set()
            await trio.testing.wait_all_tasks_blocked()
            assert CountedLooks.count > polling.LOOKS, "awake again"
            assert waiting.sleeps == 2, "for the window"
            device.send()


async def test_the_end_and_cancellation_are_noticed() -> None:
    with kernel() as device:
        for poll_us in (OFF, 1_000):
            waiting = device.polling(poll_us)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_expect_end, waiting, device.reading)
                await trio.lowlevel.checkpoint()
                waiting.notify_closing(device.reading)
            waiting = device.polling(10**9)
            with trio.CancelScope() as scope:
                scope.cancel()
                await waiting.wait_readable(device.reading)
            assert scope.cancelled_caught


async def _expect_end(waiting: Polling, descriptor: int) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await waiting.wait_readable(descriptor)


async def test_one_reads_at_a_time_and_another_takes_over() -> None:
    turn = Turn()
    served: list[str] = []
    gate = trio.Event()

    async def reader(name: str, waits_at: int) -> None:
        for number in range(5):
            async with turn:
                served.append(name)
            if number == waits_at:
                await gate.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader, "a", 2)
        await trio.testing.wait_all_tasks_blocked()
        assert served == ["a"] * 3
        nursery.start_soon(reader, "b", 9)
        await trio.testing.wait_all_tasks_blocked()
        assert served == ["a"] * 3 + ["b"] * 5
        gate.set()
    assert served.count("a") == 5


async def test_nobody_is_forgotten_in_the_line() -> None:
    turn = Turn()
    inside = 0
    done = 0

    async def reader() -> None:
        nonlocal inside, done
        for _ in range(20):
            async with turn:
                inside += 1
                assert inside == 1
                await trio.lowlevel.checkpoint()
                inside -= 1
            await trio.lowlevel.checkpoint()
        done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(reader)
        with trio.move_on_after(1):
            async with turn:
                await trio.sleep_forever()
    assert done == 5


def test_pyfuse3_gets_its_trio_back() -> None:
    with standing_in(Polling()) as _:
        assert isinstance(vars(pyfuse3)["trio"], Polling)
    assert vars(pyfuse3)["trio"] is trio


def test_pyfuse3_asks_for_nothing_that_is_not_there() -> None:
    """A canary: what pyfuse3's main loop takes from the name trio, as of the version pinned."""
    waiting = Polling()
    for name in ("Lock", "open_nursery", "ClosedResourceError", "lowlevel"):
        assert hasattr(waiting, name)
    for name in ("wait_readable", "notify_closing", "current_task", "current_trio_token"):
        assert hasattr(waiting.lowlevel, name)
