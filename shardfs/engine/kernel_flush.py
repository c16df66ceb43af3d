"""A flush that the kernel carries out beside us: no thread of ours, and none of its wake-ups.

Role: fdatasync(2) as a request of Linux' asynchronous I/O (io_submit(2), IOCB_CMD_FDSYNC). A worker
of the kernel does what a thread would do, and an eventfd tells trio's loop that it is done. Handing
over to a thread costs two switches of Python's lock and waking another core, some 70 microseconds
of the 210 that the flush of a small write takes; this costs 10.

Invariants:
    I1. The answer is fdatasync's: the same error is reported, once for each open file description.
    I2. A device that hangs holds up the kernel's worker and who waits for this flush, nobody else.
    I3. One flush at a time for each object; who wants a second meanwhile takes a thread.

Not here: what follows an error (block_device.py), when to flush (scheduler.py).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from typing import Final

import trio

# linux/aio_abi.h
_IOCB_CMD_FDSYNC: Final = 3
IOCB_FLAG_RESFD: Final = 1
NUMBERS: Final = {
    "x86_64": (206, 207, 208, 209),
    "aarch64": (0, 1, 4, 2),
    "riscv64": (0, 1, 4, 2),
}.get(platform.machine() if sys.maxsize > 2**32 else "")
"""Of io_setup, io_destroy, io_getevents and io_submit; None: a machine we know none of."""
_CALL: Final = ctypes.PyDLL(None, use_errno=True).syscall
"""With Python's lock held: none of these calls waits for a device."""


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


def _checked(answer: int, name: str) -> int:
    if answer < 0:
        raise OSError(ctypes.get_errno(), name)
    return answer


class KernelFlush:
    """Flushes of one descriptor, by the kernel.

    Args:
        descriptor: open for writing; stays open until `close`.

    Raises:
        OSError: there is no such thing here; a thread has to do it.
    """

    def __init__(self, descriptor: int) -> None:
        if NUMBERS is None:
            raise OSError(errno.ENOSYS, "io_setup")
        setup, self._destroy, self._get_events, self._submit = map(ctypes.c_long, NUMBERS)
        self._process = os.getpid()
        """The kernel's part does not follow into a child."""
        self._context = ctypes.c_ulong(0)
        _checked(_CALL(setup, ctypes.c_int(1), ctypes.byref(self._context)), "io_setup")
        self._done = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._request = Request(
            opcode=_IOCB_CMD_FDSYNC,
            descriptor=descriptor,
            flags=IOCB_FLAG_RESFD,
            event_descriptor=self._done,
        )
        self._requests = (ctypes.POINTER(Request) * 1)(ctypes.pointer(self._request))
        self._event = Event()
        self._event_at = ctypes.byref(self._event)
        self._one = ctypes.c_long(1)
        self.is_busy = False
        """A flush is under way (I3)."""

    def begin(self) -> None:
        """Have the kernel begin. Requires: not busy.

        Raises:
            OSError: it does not take this; a thread has to do it.
        """
        assert not self.is_busy
        if self._process != os.getpid():
            raise OSError(errno.EINVAL, "io_submit")
        _checked(_CALL(self._submit, self._context, self._one, self._requests), "io_submit")
        self.is_busy = True

    async def end(self) -> None:
        """Wait until it has ended, even if cancelled. Requires: begun.

        Raises:
            OSError: what fdatasync answers.
        """
        try:
            await trio.lowlevel.wait_readable(self._done)
        except trio.Cancelled:  # which comes again, once what has begun is done (device.I3)
            with trio.CancelScope(shield=True):
                await trio.lowlevel.wait_readable(self._done)
        os.eventfd_read(self._done)
        self.is_busy = False
        one = self._one
        _checked(
            _CALL(self._get_events, self._context, one, one, self._event_at, None), "io_getevents"
        )
        if self._event.result < 0:
            raise OSError(-self._event.result, "fdatasync")

    def close(self) -> None:
        """Requires: not busy."""
        assert not self.is_busy
        if self._process == os.getpid():
            _CALL(self._destroy, self._context)
        os.close(self._done)
