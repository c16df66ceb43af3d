"""Waiting for the kernel's next request: awake while they keep coming, asleep when they stop.

Role: most of what a small call costs is a server that falls asleep and is woken. So after a
request the session loop looks again and again whether the next one has come, for a short while
(the *window*), before it sleeps. pyfuse3 takes everything it needs of trio from one name of its
own module; while a mount is served, a `Polling` stands there.

Invariants:
    I1. Other tasks get their turn after YIELD_REQUESTS requests at the latest, and all the time
        while nothing comes.
    I2. With the adaptive window nothing is spun for when requests are rarer than WINDOW_NS_MAX:
        an idle mount sleeps.
    I3. One task reads requests at a time; when its handler has to wait, another reads.
    I4. Who waits is cancelled, or told that the session ends, as with trio itself.
    I5. Nobody spins while another task could run: what wakes one (a thread that has finished, a
        socket, another task) ends the looks, and the next OTHERS_PASSES passes of trio's loop are
        the others', with one look each.
    I6. Nobody spins while the device flushes, unless something else is asked for meanwhile: the
        kernel's worker may need this very core.
    I7. What handlers have put off (staging.py) is done when no request is there to be read, and
        has been done when nobody reads requests but asleep.

A task that has answered and finds another one asleep in its place has that one wait awake again:
the next request of the same program is near.

The window grows while waiting pays: when a request came soon after falling asleep. It shrinks when
one did not come within it. When someone else wants the core (a look that takes LOST_NS has lost
it), there is no spinning for a while, longer each time.

Not here: what kernel and server agree on (handshake.py), what a request does (operations.py).
"""

from __future__ import annotations

import select
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pyfuse3
import trio
from trio._core import _run as trio_run

from shardfs.fuse.handshake import Handshake

ADAPTIVE: Final = -1
"""In place of a window in microseconds: find out."""
OFF: Final = 0
WINDOW_NS_MAX: Final = 150_000
"""A request that comes later than this after the last one is not worth waiting for."""
WINDOW_NS_MIN: Final = 20_000
YIELD_REQUESTS: Final = 8
"""Requests served before other tasks have their turn, if no handler waits anyway."""
LOOKS: Final = 64
"""Looks at the device between two turns of other tasks."""
REQUEST_LOOKS: Final = 4
"""Looks at the device alone between two that ask whether another task can run."""
OTHERS_PASSES: Final = 3
"""Passes of trio's loop from a thread's word that it has finished to the answer of the request that
has waited for it: the callback's, the waiting task's, and that of whom this one has woken."""
LOST_NS: Final = 1_000_000
"""LOOKS looks take some 50 microseconds; when they take this long, someone else has the core."""
PAUSE_NS_MIN: Final = 5_000_000
PAUSE_NS_MAX: Final = 320_000_000


def _nothing() -> None:
    """Nothing has been put off."""


class Window:
    """How long to wait awake, nanoseconds: adapted to what happens, or fixed.

    Args:
        poll_us: microseconds, OFF or ADAPTIVE.
    """

    def __init__(self, poll_us: int) -> None:
        self._is_adaptive = poll_us == ADAPTIVE
        self._window_ns = 0 if self._is_adaptive else poll_us * 1000
        self._pause_ns = PAUSE_NS_MIN
        self._paused_until_ns = 0

    @property
    def window_ns(self) -> int:
        """The window, pauses left aside."""
        return self._window_ns

    def at(self, now_ns: int) -> int:
        """The window for a wait that begins now; 0: sleep at once."""
        return self._window_ns if now_ns >= self._paused_until_ns else 0

    def came(self) -> None:
        """The request came while waiting awake."""
        self._pause_ns = max(PAUSE_NS_MIN, self._pause_ns - PAUSE_NS_MIN)

    def slept(self, waited_ns: int) -> None:
        """The request came so long after the wait began, and found the server asleep."""
        if not self._is_adaptive:
            return
        if waited_ns <= WINDOW_NS_MAX:
            self._window_ns = min(max(2 * self._window_ns, WINDOW_NS_MIN), WINDOW_NS_MAX)
        else:
            self._window_ns //= 2
            if self._window_ns < WINDOW_NS_MIN:
                self._window_ns = 0

    def lost_core(self, now_ns: int) -> None:
        """Someone else wants the core: let them have it."""
        if self._is_adaptive:
            self._paused_until_ns = now_ns + self._pause_ns
            self._pause_ns = min(2 * self._pause_ns, PAUSE_NS_MAX)


class Turn:
    """The right to read requests (I3); takes the place of trio.Lock in pyfuse3.

    A task that comes back before another had its turn keeps it, without any switch of tasks.
    Others wait in line; one of them is called when the right becomes free, and runs as soon as
    the task that had it waits for anything.
    """

    def __init__(self, has_answered: Callable[[], None] = lambda: None) -> None:
        """Args: has_answered: called when a task comes back and has to wait for the right."""
        self._has_answered = has_answered
        self._is_taken = False
        self.is_called = False
        """A task in the line has been called, and has not run yet."""
        self._line = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        """Wait for the right. Checkpoints: only if it is taken."""
        if self._is_taken:
            self._has_answered()
        while self._is_taken:
            await self._line.park()
            self.is_called = False
        self._is_taken = True

    async def __aexit__(self, *_: object) -> None:
        self._is_taken = False
        if self._line and not self.is_called:
            self.is_called = True
            self._line.unpark()


class Polling:
    """What pyfuse3 takes for trio while one mount is served.

    Args:
        poll_us: the window, microseconds; OFF or ADAPTIVE.
        handshake: an exchange to be finished before requests come.
        is_flushing: whether the device flushes (I6).
        settle: what has been put off; done while there is nothing to do but wait, and before the
            server sleeps (I7).
    """

    ClosedResourceError = trio.ClosedResourceError
    open_nursery = staticmethod(trio.open_nursery)
    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)

    def __init__(
        self,
        poll_us: int = ADAPTIVE,
        handshake: Handshake | None = None,
        *,
        is_flushing: Callable[[], bool] = lambda: False,
        settle: Callable[[], None] = _nothing,
        sleep: Callable[[int], Awaitable[None]] = trio.lowlevel.wait_readable,
        now_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.lowlevel = self
        self.window = Window(poll_us)
        self.sleeps = 0
        """Waits that ended asleep."""
        self.waits = 0
        """Waits for a request."""
        self._handshake = handshake
        self._is_answered = False
        self._sleep = sleep
        self._now_ns = now_ns
        self._is_flushing = is_flushing
        self._settle = settle
        self._request: select.poll | None = None
        self._events: select.poll | None = None
        self._asleep_at: int | None = None
        """The descriptor that a task sleeps for."""
        self._turn: Turn | None = None
        self._since_yield = 0
        self._is_closing = False

    def obey(self, poll_us: int) -> None:
        """Wait like this from now on."""
        self.window = Window(poll_us)

    def notify_closing(self, descriptor: int) -> None:
        """The session ends: whoever waits gets a ClosedResourceError."""
        self._is_closing = True
        trio.lowlevel.notify_closing(descriptor)

    async def wait_readable(self, descriptor: int) -> None:
        """Return when the kernel has a request, or the session has ended.

        Raises:
            trio.ClosedResourceError: notify_closing was called.
        """
        if self._handshake is not None and not self._exchange(self._handshake):
            return
        self.waits += 1
        if self._since_yield >= YIELD_REQUESTS:
            await self._yield()
        started_ns = self._now_ns()
        while not await self._wait(descriptor, started_ns):
            started_ns = self._now_ns()

    async def _wait(self, descriptor: int, started_ns: int) -> bool:
        """Wait awake, then asleep; False: asleep, until another task had answered a request."""
        window_ns = 0 if self._is_flushing() else self.window.at(started_ns)
        if window_ns and await self._spin(descriptor, started_ns, window_ns):
            self._since_yield += 1
            self.window.came()
            return True
        self._settle()
        if self._is_closing:
            raise trio.ClosedResourceError
        self.sleeps += 1
        self._since_yield = 0
        self._asleep_at = descriptor
        try:
            await self._sleep(descriptor)
        except trio.ClosedResourceError:
            if self._is_closing or self._asleep_at is not None:
                raise
            return False  # see _has_answered
        finally:
            self._asleep_at = None
        self.window.slept(self._now_ns() - started_ns)
        return True

    def Lock(self) -> Turn:  # as pyfuse3 calls it
        """What pyfuse3 takes for trio.Lock."""
        self._turn = Turn(self._has_answered)
        return self._turn

    def _turn_is_called(self) -> bool:
        """A task is about to look whether it may read requests, and will find that it may not: no
        reason to give way."""
        return self._turn is not None and self._turn.is_called

    def _has_answered(self) -> None:
        """A request has been answered while another task waits for the next one."""
        descriptor = self._asleep_at
        if descriptor is None:
            return
        self._settle()
        if self.window.window_ns:
            self._asleep_at = None
            trio.lowlevel.notify_closing(descriptor)

    async def _spin(self, descriptor: int, started_ns: int, window_ns: int) -> bool:
        """Look for a request until the window ends; whether one has come. One look, and a pass of
        the loop, at a time while others can run (I5)."""
        runner = trio_run.GLOBAL_RUN_CONTEXT.runner
        if self._request is None or self._events is None:
            self._request, self._events = select.poll(), select.poll()
            self._request.register(descriptor, select.POLLIN)
            self._events.register(runner.io_manager._epoll, select.POLLIN)
        has_request, has_events = self._request.poll, self._events.poll
        others = 0
        while not self._is_closing:
            before_ns = self._now_ns()
            if has_request(0):
                return True
            self._settle()
            for _ in range(LOOKS // REQUEST_LOOKS):
                if len(runner.runq) > self._turn_is_called() or has_events(0):
                    others = OTHERS_PASSES + 1
                if others:
                    break
                for _ in range(REQUEST_LOOKS):
                    if has_request(0):
                        return True
            after_ns = self._now_ns()
            if after_ns - before_ns >= LOST_NS:
                self.window.lost_core(after_ns)
                return False
            if after_ns - started_ns >= window_ns:
                return False
            others = max(0, others - 1)
            await self._yield()
            if self._is_flushing():
                return False
        return False

    async def _yield(self) -> None:
        self._since_yield = 0
        await trio.lowlevel.checkpoint()

    def _exchange(self, handshake: Handshake) -> bool:
        """Finish the handshake when libfuse has answered; False: its message is to be read now."""
        if not self._is_answered:
            self._is_answered = True
            return False
        self._handshake = None
        handshake.finish()
        return True


@contextmanager
def standing_in(polling: Polling) -> Iterator[None]:
    """pyfuse3 takes `polling` for trio while the body runs."""
    names = vars(pyfuse3)
    real = names["trio"]
    names["trio"] = polling
    try:
        yield
    finally:
        names["trio"] = real
