"""Short reads of what the page cache has, copied by the thread that asks.

Role: finds out whether the page cache has a range and copies it, without ever waiting for a disk.

Invariants:
    I1. Nothing here begins to read from a device, where the kernel can tell that it would
        (cachestat(2), Linux 6.5): that sleeps while the device's queue is full.

Not here: what is not cached (block_device.py).
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from shardfs.engine.device_calls import UNSUPPORTED

_CACHESTAT: Final = 451
"""Number of the system call: Linux 6.5 and later, the same on every architecture."""
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_LIBC: Final = ctypes.PyDLL(None, use_errno=True)
"""For calls that never wait: other threads do not get their turn meanwhile."""
_cachestat = _LIBC["syscall"]
_cachestat.argtypes = (
    *(ctypes.c_long, ctypes.c_uint),
    *(ctypes.c_void_p, ctypes.c_void_p),
    ctypes.c_uint,
)
_cachestat.restype = ctypes.c_long


class CachedReads:
    """Reads of what the page cache has of one device.

    Args:
        descriptor: stays open as long as this is used.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._looks = CacheLooks(descriptor)
        self._tells_cached = True
        self.is_possible = True
        """The device takes such reads."""

    def read(self, offset: int, length: int) -> tuple[memoryview, int]:
        """Memory for the range, and how many bytes at its front are read; empty: not cached."""
        if not self._may_be_cached(offset, length):
            return memoryview(b""), 0
        view = memoryview(bytearray(length))
        try:
            return view, os.preadv(self._descriptor, [view], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return view, 0
        except OSError as error:
            if error.errno in UNSUPPORTED:
                self.is_possible = False
            return view, 0  # who reads in another way will try again, and report

    def _may_be_cached(self, offset: int, length: int) -> bool:
        """Whether reading with RWF_NOWAIT is worth a try (I1)."""
        if not self._tells_cached:
            return True
        try:
            return self._looks.has(offset, length)
        except OSError:
            self._tells_cached = False
            return True


class CacheLooks:
    """Looks at what the page cache has of one device; for one thread. The call's structures are
    made once: making them took longer than the call."""

    def __init__(self, descriptor: int) -> None:
        self._wanted = (ctypes.c_uint64 * 2)()
        self._found = (ctypes.c_uint64 * 5)()
        self._words = (
            *(_CACHESTAT, descriptor),
            *(ctypes.addressof(self._wanted), ctypes.addressof(self._found)),
            0,
        )

    def has(self, offset: int, length: int) -> bool:
        """Whether it has all of a range, or is about to. Never waits.

        Raises:
            OSError: the kernel does not tell.
        """
        wanted = self._wanted
        wanted[0], wanted[1] = offset, length
        if _cachestat(*self._words):
            raise OSError(ctypes.get_errno(), "cachestat")
        pages = (offset + length - 1) // _PAGE_BYTES - offset // _PAGE_BYTES + 1
        return self._found[0] >= pages
