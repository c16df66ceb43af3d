"""The only map from exceptions to errno values, and the guard that keeps a mount alive.

Role: pyfuse3 ends the mount when a handler raises anything but FUSEError. `guarded` turns every
exception into one; what nobody expected is logged with its traceback and answered with EIO.

It also counts: `requests` of the handlers' object has the number of calls of each.

Invariants:
    I1. A guarded handler raises FUSEError or trio.Cancelled (a BaseException), nothing else.
    I2. `unanswered` handlers (forget, release), whose caller waits for no answer, raise nothing.

Not here: deciding what is an error (namespace.py and its neighbours raise FileError).
"""

from __future__ import annotations

import errno
import functools
import logging
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

_log = logging.getLogger(__name__)


class Counting(Protocol):
    """Has handlers, and counts their calls."""

    requests: dict[str, int]
    """Handler -> number of calls; a defaultdict or the like, which begins with zeros."""

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

    @functools.wraps(handler)
    async def guard(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.requests[name] += 1
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            number = errno_of(error, name)
            await self.meet(error)
        raise pyfuse3.FUSEError(number)

    return guard


def unanswered(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, None]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, None]]:
    """A request handler that raises nothing at all (I2)."""

    name = handler.__name__

    @functools.wraps(handler)
    async def guard(self: S, /, *args: Any, **kwargs: Any) -> None:
        self.requests[name] += 1
        try:
            await handler(self, *args, **kwargs)
        except Exception as error:
            errno_of(error, name)

    return guard
