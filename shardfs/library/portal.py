"""Calls from any thread into a volume that lives on a trio thread of its own.

Role: the one place outside the device that owns a thread: it runs trio, opens a volume there, and
has other threads' calls done by it.

Invariants:
    I1. A call returns what the volume's method returned, or raises what it raised, in the thread
        that called.
    I2. The thread ends with `close`, at the latest when the program does, and everything is durable
        then. What goes wrong at the end is raised by `close`. A portal that nobody refers to any
        more begins to end; nobody waits for that, since garbage is collected anywhere.
    I3. A child that was forked, and has no such thread, is refused rather than left waiting.

Not here: what can be called (volume.py).
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, TypeVar

import trio

from shardfs.errors import UsageError
from shardfs.library.volume import Volume

R = TypeVar("R")


class Portal:
    """A volume on its own thread, open when the constructor returns.

    Args:
        opening: opens the volume.

    Raises:
        ShardfsError: it cannot be opened.
    """

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[Volume]]) -> None:
        self._life = _Life(opening)
        self._life.begin()
        self.volume = self._life.opened()
        self._forgotten = weakref.finalize(self, self._life.begin_to_end)
        self._forgotten.atexit = False

    @property
    def is_closed(self) -> bool:
        """No more calls."""
        return not self._forgotten.alive

    def call(self, method: Callable[..., Awaitable[R]], *args: object) -> R:
        """Have a method of the volume done.

        Raises:
            OSError: see volume.I2.
            ValueError: it is closed.
        """
        if self.is_closed:
            raise ValueError("the disk is closed")
        return self._life.call(method, *args)

    def close(self) -> None:
        """End it; returns when everything is durable. May be called again.

        Raises:
            ShardfsError: it is not.
        """
        self._forgotten.detach()
        self._life.end()


class _Life:
    """The thread and what it shares; does not know its Portal, which may be collected."""

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[Volume]]) -> None:
        self._opening = opening
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="shardfs", daemon=True)
        self._has_begun = threading.Event()
        self._end = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._volume: Volume | None = None
        self._failure: BaseException | None = None

    def begin(self) -> None:
        """Start the thread; returns when the volume is open, or cannot be opened."""
        self._thread.start()
        self._has_begun.wait()

    def opened(self) -> Volume:
        """The volume.

        Raises:
            ShardfsError: it could not be opened.
        """
        if self._volume is None:
            self._thread.join()
            assert self._failure is not None
            raise self._failure
        return self._volume

    def call(self, method: Callable[..., Awaitable[R]], *args: object) -> R:
        """See Portal.call."""
        if os.getpid() != self._pid:
            raise UsageError("this disk was opened before a fork; open it anew, with shared=True")
        try:
            return trio.from_thread.run(method, *args, trio_token=self._token)
        except trio.RunFinishedError:
            raise ValueError("the disk is closed") from self._failure

    def begin_to_end(self) -> None:
        """Have the thread end, some time. Takes no lock: garbage is collected anywhere."""
        if os.getpid() == self._pid and self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._end.set)

    def end(self) -> None:
        """See Portal.close."""
        if os.getpid() != self._pid:
            return
        self.begin_to_end()
        self._thread.join()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _run(self) -> None:
        _living.add(self)
        try:
            trio.run(self._live)
        except BaseException as error:  # the end of the thread: whoever closes is told
            self._failure = error
        finally:
            _living.discard(self)
            self._has_begun.set()

    async def _live(self) -> None:
        async with self._opening() as volume:
            self._volume = volume
            self._token = trio.lowlevel.current_trio_token()
            self._has_begun.set()
            await self._end.wait()


_living: Final[set[_Life]] = set()


@atexit.register
def _end_all() -> None:
    """The program ends: so do all that were not closed."""
    for life in list(_living):
        life.end()
