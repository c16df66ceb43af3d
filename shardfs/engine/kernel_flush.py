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
from typing import Final

import trio

from shardfs.engine.kernel_requests import IOCB_FLAG_RESFD, Request, Requests

# linux/aio_abi.h
_IOCB_CMD_FDSYNC: Final = 3


class KernelFlush:
    """Flushes of one descriptor, by the kernel.

    Args:
        descriptor: open for writing; stays open until `close`.

    Raises:
        OSError: there is no such thing here; a thread has to do it.
    """

    def __init__(self, descriptor: int) -> None:
        self._kernel = Requests(1)
        self._done = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._request = Request(
            opcode=_IOCB_CMD_FDSYNC,
            descriptor=descriptor,
            flags=IOCB_FLAG_RESFD,
            event_descriptor=self._done,
        )
        self._pointers = (ctypes.c_void_p * 1)(ctypes.addressof(self._request))
        self._pointers_at = ctypes.addressof(self._pointers)
        self.is_busy = False
        """A flush is under way (I3)."""

    def begin(self) -> None:
        """Have the kernel begin. Requires: not busy.

        Raises:
            OSError: it does not take this; a thread has to do it.
        """
        assert not self.is_busy
        if not self._kernel.is_ours:
            raise OSError(errno.EINVAL, "io_submit")
        self._kernel.submit(self._pointers_at)
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
        (event,) = self._kernel.ended()
        if event.result < 0:
            raise OSError(-event.result, "fdatasync")

    def close(self) -> None:
        """Requires: not busy."""
        assert not self.is_busy
        self._kernel.close()
        os.close(self._done)
