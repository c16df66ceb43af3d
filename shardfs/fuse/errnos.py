"""The only map from exceptions to errno values, and the guard that keeps a mount alive.

Role: pyfuse3 ends the mount when a handler raises anything but FUSEError. `guarded` turns every
exception into one; what nobody expected is logged with its traceback and answered with EIO.

It also counts: `durations` of the handlers' object says how often each was called and how long it
took, `answers` how often each errno was the answer. That costs a fraction of a microsecond.

Invariants:
    I1. A guarded handler raises FUSEError or trio.Cancelled (a BaseException), nothing else.
    I2. `unanswered` handlers (forget, release), whose caller waits for no answer, raise nothing.

Not here: deciding what is an error (namespace.py and its neighbours raise FileError).
"""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import pyfuse3

from shardfs.errors import (
    CorruptionError,
    DeviceError,
    FileError,
    LimitError,
    NoSpaceError,
    ReadOnlyError,
    StoreClosedError,
)
from shardfs.fuse.durations import SUM, Durations

_log = logging.getLogger(__name__)


class Counting(Protocol):
    """Has handlers, and counts their calls."""

    durations: dict[str, Durations]
    """Handler -> how long its calls took; a defaultdict or the like, which begins with nothing."""
    answers: dict[int, int]
    """errno -> how often it was the answer; the same."""

    async def meet(self, error: Exception) -> None:
        """Called before a request is answered with what stands for `error`; raises nothing."""


P = ParamSpec("P")
S = TypeVar("S", bound=Counting)
R = TypeVar("R")

_ERRNOS: Final[tuple[tuple[type[Exception], int], ...]] = (
    (NoSpaceError, errno.ENOSPC),
    (ReadOnlyError, errno.EROFS),
    (CorruptionError, errno.EIO),
    (DeviceError, errno.EIO),
    (LimitError, errno.EFBIG),
    (StoreClosedError, errno.EIO),
)
_LOGGED: Final = (CorruptionError, DeviceError, StoreClosedError)


def errno_of(error: Exception, handler: str) -> int:
    """The errno that answers a request whose handler raised `error`; logs what the log should know.

    Args:
        handler: the request's name, for the log.
    """
    if isinstance(error, FileError):
        return error.errno
    for kind, number in _ERRNOS:
        if isinstance(error, kind):
            if isinstance(error, _LOGGED):
                _log.error("%s failed: %s", handler, error)
            return number
    _log.error("%s met a bug; the request is answered with EIO", handler, exc_info=error)
    return errno.EIO


def guarded(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """A request handler that raises nothing but FUSEError (I1)."""

    name = handler.__name__
    now_ns = time.perf_counter_ns

    @functools.wraps(handler)
    async def guard(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        begun_ns = now_ns()
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            number = errno_of(error, name)
            self.answers[number] += 1
            await self.meet(error)
        finally:
            took_ns = now_ns() - begun_ns
            durations = self.durations[name]
            durations[took_ns.bit_length()] += 1
            durations[SUM] += took_ns
        raise pyfuse3.FUSEError(number)

    return guard


def unanswered(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, None]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, None]]:
    """A request handler that raises nothing at all (I2)."""

    name = handler.__name__
    now_ns = time.perf_counter_ns

    @functools.wraps(handler)
    async def guard(self: S, /, *args: Any, **kwargs: Any) -> None:
        begun_ns = now_ns()
        try:
            await handler(self, *args, **kwargs)
        except Exception as error:
            errno_of(error, name)
        finally:
            took_ns = now_ns() - begun_ns
            durations = self.durations[name]
            durations[took_ns.bit_length()] += 1
            durations[SUM] += took_ns

    return guard
