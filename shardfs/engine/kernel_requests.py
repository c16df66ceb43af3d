"""Linux' asynchronous calls (io_submit(2) and its kin): structures, numbers and a context of them.

Role: what requests that the kernel carries out by itself have in common, whatever they ask for.

Invariants:
    I1. A context is used in the process that made it only: the kernel's part does not follow into
        a child.

Not here: what is asked for (kernel_flush.py, async_reads.py).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Callable
from typing import Final

# linux/aio_abi.h
IOCB_FLAG_RESFD: Final = 1
NUMBERS: Final = {
    "x86_64": (206, 207, 208, 209),
    "aarch64": (0, 1, 4, 2),
    "riscv64": (0, 1, 4, 2),
}.get(platform.machine() if sys.maxsize > 2**32 else "")
"""Of io_setup, io_destroy, io_getevents and io_submit; None: a machine we know none of."""


class Request(ctypes.Structure):
    """struct iocb."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("descriptor", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("event_descriptor", ctypes.c_uint32),
    )


class Event(ctypes.Structure):
    """struct io_event."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("request", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result_2", ctypes.c_int64),
    )


_WITH_LOCK: Final = ctypes.PyDLL(None, use_errno=True)
"""For calls that never wait: other threads do not get their turn meanwhile."""
_WITHOUT_LOCK: Final = ctypes.CDLL(None, use_errno=True)


def _call(library: ctypes.CDLL, *kinds: type) -> Callable[..., int]:
    """syscall(2) for arguments of these kinds behind the number."""
    function = library["syscall"]  # one of its own, unlike library.syscall
    function.argtypes = (ctypes.c_long, *kinds)
    function.restype = ctypes.c_long
    return function


_CONTEXT, _COUNT, _AT = ctypes.c_ulong, ctypes.c_long, ctypes.c_void_p
_setup = _call(_WITH_LOCK, _COUNT, _AT)
_submit = _call(_WITH_LOCK, _CONTEXT, _COUNT, _AT)
_destroy = _call(_WITHOUT_LOCK, _CONTEXT)
_events = (_CONTEXT, _COUNT, _COUNT, _AT, _AT)
_get_at_once = _call(_WITH_LOCK, *_events)
_get = _call(_WITHOUT_LOCK, *_events)


class Requests:
    """A context of at most `count` requests under way.

    Raises:
        OSError: there is no such thing here, or the kernel grants no more of them.
    """

    def __init__(self, count: int) -> None:
        if NUMBERS is None:
            raise OSError(errno.ENOSYS, "io_setup")
        setup, self._destroy_number, getevents, submit = NUMBERS
        context = ctypes.c_ulong(0)
        if _setup(setup, count, ctypes.addressof(context)) < 0:
            raise OSError(ctypes.get_errno(), "io_setup")
        self._process = os.getpid()
        self._context = context.value
        self._ended = (Event * count)()
        self._submit_words = (submit, self._context, 1)
        self._get_words = (getevents, self._context, 1, count, ctypes.addressof(self._ended))

    @property
    def is_ours(self) -> bool:
        """This process has made it (I1)."""
        return os.getpid() == self._process

    def submit(self, requests_at: int) -> None:
        """Begin a request.

        Args:
            requests_at: address of an array of one pointer to a Request.

        Raises:
            OSError: the kernel does not take it.
        """
        if _submit(*self._submit_words, requests_at) != 1:
            raise OSError(ctypes.get_errno(), "io_submit")

    def ended(self, patience_at: int | None = None) -> list[Event]:
        """What has ended.

        Args:
            patience_at: address of a timespec: how long to wait for the first, others having their
                turn meanwhile. None: one has ended, so nobody waits.

        Raises:
            OSError: the kernel cannot tell.
        """
        get = _get_at_once if patience_at is None else _get
        count = get(*self._get_words, patience_at)
        if count < 0:
            raise OSError(ctypes.get_errno(), "io_getevents")
        return self._ended[:count]

    def close(self) -> None:
        """Let go of it. Requires: nothing is under way."""
        if self.is_ours:
            _destroy(self._destroy_number, self._context)
