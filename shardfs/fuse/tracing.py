"""Watches the requests of a mount while somebody listens: which call, on what, how long, what came.

Role: `Tracer` puts a watching handler before each of the mount's when the first listener comes, and
takes them away when the last has gone. A listener has a buffer of its own. The requests over the
control socket, one conversation about one mount:

    trace-begin  calls, slower_us     listen from now on: to these calls (none: all) that took at
                                      least so many microseconds
    trace-more                        {"calls": [...], "dropped": n}: what has come since, at most
                                      CALLS_PER_ANSWER; waits up to ANSWER_WITHIN_S for some

Invariants:
    I1. Without listeners requests go the same way as if this module were not there.
    I2. A listener that does not keep up loses the oldest calls, and is told how many; the mount
        never waits for one.
    I3. A watched request gives and raises what it would have without.

Not here: what a call is about (calls.py), paths (call_paths.py).
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from time import perf_counter_ns
from typing import Any, Final, Protocol

import pyfuse3
import trio

from shardfs import clock
from shardfs.errors import UsageError
from shardfs.fuse.call_paths import CallPaths
from shardfs.fuse.calls import Call, call_of, subject_of
from shardfs.fuse.control import Answer, Conversation, Request
from shardfs.fuse.filesystem import FileSystem

CALLS_KEPT_MAX: Final = 8192
CALLS_PER_ANSWER: Final = 1024
ANSWER_WITHIN_S: Final = 1.0

Handler = Callable[..., Awaitable[Any]]


class Watchable(Protocol):
    """What is asked of a mount (session.Mount fits)."""

    @property
    def file_system(self) -> FileSystem:
        """What it serves."""

    @property
    def operations(self) -> Any:
        """Its request handlers: guarded methods, looked up anew for each request."""


class Listener:
    """Hears calls; see `Tracer.listen`."""

    def __init__(self, calls: frozenset[str], slower_ns: int) -> None:
        self._calls = calls
        self._slower_ns = slower_ns
        self._heard: deque[Call] = deque(maxlen=CALLS_KEPT_MAX)
        self._dropped = 0
        self._waiting = trio.lowlevel.ParkingLot()

    def hear(self, call: Call) -> None:
        """A call was answered."""
        if call.took_ns < self._slower_ns or (self._calls and call.call not in self._calls):
            return
        if len(self._heard) == CALLS_KEPT_MAX:
            self._dropped += 1
        self._heard.append(call)
        self._waiting.unpark_all()

    async def more(self) -> tuple[list[Call], int]:
        """Calls that were not told yet, the oldest first, and how many were lost before them."""
        if not self._heard:
            with trio.move_on_after(ANSWER_WITHIN_S):
                await self._waiting.park()
        count = min(len(self._heard), CALLS_PER_ANSWER)
        calls = [self._heard.popleft() for _ in range(count)]
        dropped, self._dropped = self._dropped, 0
        return calls, dropped


class Tracer:
    """The listeners of one mount."""

    def __init__(self, mount: Watchable) -> None:
        self._operations = mount.operations
        self._handles = mount.file_system.handles
        self._listeners: set[Listener] = set()

    @property
    def calls(self) -> frozenset[str]:
        """What can be listened to: the names of handlers."""
        names = dir(type(self._operations))
        return frozenset(
            name for name in names if hasattr(getattr(type(self._operations), name), "__wrapped__")
        )

    def listen(self, listener: Listener) -> None:
        """Let it hear every call from now on."""
        if not self._listeners:
            watching = vars(self._operations)
            for name in self.calls:
                watching[name] = partial(self._watched, name, getattr(self._operations, name))
        self._listeners.add(listener)

    def leave(self, listener: Listener) -> None:
        """Tell it nothing any more."""
        self._listeners.discard(listener)
        if not self._listeners:
            for name in self.calls:
                vars(self._operations).pop(name, None)  # I1: the class's own is found again

    async def _watched(self, name: str, handler: Handler, *args: Any, **kwargs: Any) -> Any:
        """A request, watched (I3)."""
        subject = subject_of(name, args, self._handles)
        begun_ns, started_ns = clock.now_ns(), perf_counter_ns()
        number, result = 0, None
        try:
            result = await handler(*args, **kwargs)
            return result
        except pyfuse3.FUSEError as error:
            number = error.errno
            raise
        except trio.Cancelled:
            number = errno.EINTR
            raise
        finally:
            took_ns = perf_counter_ns() - started_ns
            call = call_of(name, subject, (begun_ns, took_ns), result, number)
            for listener in self._listeners:
                listener.hear(call)


class TraceConversation:
    """Answers the requests about tracing, and has everything else answered by others.

    Args:
        tracer: of the mount.
        mount: the same mount.
        others: answers the other requests.
    """

    def __init__(self, tracer: Tracer, mount: Watchable, others: Conversation) -> None:
        self._tracer = tracer
        self._others = others
        self._paths = CallPaths(mount.file_system)
        self._listener: Listener | None = None
        self._requests: Mapping[str, Callable[[Request], Awaitable[Answer]]] = {
            "trace-begin": self._begin,
            "trace-more": self._more,
        }

    async def answer(self, request: Request) -> Answer:
        """The result of one request.

        Raises:
            ShardfsError: it cannot be answered.
        """
        handler = self._requests.get(request["request"], self._others.answer)
        return await handler(request)

    async def aclose(self) -> None:
        """The connection has ended."""
        self._end()
        await self._others.aclose()

    def _end(self) -> None:
        if self._listener is not None:
            self._tracer.leave(self._listener)
            self._listener = None

    async def _begin(self, request: Request) -> Answer:
        await trio.lowlevel.checkpoint()
        wanted, slower_us = request.get("calls", []), request.get("slower_us", 0)
        if not isinstance(wanted, list) or not isinstance(slower_us, int | float):
            raise UsageError("the request needs a list 'calls' and a number 'slower_us'")
        calls = frozenset(map(str, wanted))
        unknown = sorted(calls - self._tracer.calls)
        if unknown:
            known = ", ".join(sorted(self._tracer.calls))
            raise UsageError(f"there is no call {unknown[0]!r}; there are {known}")
        self._end()
        self._listener = Listener(calls, int(slower_us * 1000))
        self._tracer.listen(self._listener)
        return {}

    async def _more(self, _request: Request) -> Answer:
        if self._listener is None:
            raise UsageError("nothing is traced; begin with trace-begin")
        calls, dropped = await self._listener.more()
        paths = await self._paths.of(calls)
        return {
            "calls": [_answer(call, *names) for call, names in zip(calls, paths, strict=True)],
            "dropped": dropped,
        }


def _answer(call: Call, path: str, target: str) -> Answer:
    return {
        "time_ns": call.begun_ns,
        "call": call.call,
        "path": path or None,
        "target": target or None,
        "detail": call.detail,
        "duration_us": round(call.took_ns / 1000, 1),
        "result": errno.errorcode.get(call.errno, str(call.errno)) if call.errno else "ok",
        "bytes": call.length if call.length >= 0 else None,
        "ino": call.found or call.ino or None,
        "pid": call.pid or None,
    }
