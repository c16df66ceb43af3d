"""Large requests past the kernel's page cache, from and to memory of our own.

Role: the second descriptor of a block device, opened with O_DIRECT, and the aligned memory that
it needs. Filling the page cache costs more than the copy into aligned memory: its pages must be
found, and written back by one more thread (docs/decisions/0017).

Invariants:
    I1. Requests here and through the page cache are coherent: before one of these the kernel
        writes back what is dirty in the range, and a write drops what is cached of it.
    I2. That works only if nobody dirties a folio that reaches into the range of a write meanwhile.
        So one writes here only in extents, one write at a time each, that are whole FOLIO_BYTES.
    I3. Memory that was lent for a read is not lent again while anybody can still look at it.
    I4. What is kept to be lent is as much as was ever lent at once, and at most 36 MiB.

Not here: which requests go this way (block_device.py), loops over short transfers of reads
(device_calls.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from shardfs import limits

FOLIO_BYTES: Final = 2 * limits.MIB
"""The page cache keeps a device in naturally aligned pieces of at most this size."""
_ALIGNMENT_BYTES: Final = limits.BLOCK_BYTES
"""Of places, lengths and memory; no less than any device's logical block."""
HUGE_PAGE_BYTES: Final = 2 * limits.MIB
"""What the engine reads or writes at once, 1 MiB and some blocks, is one device request if its
memory is one piece; in pages of 4 KiB it is several, because a device takes so many pieces only."""
LENT_BYTES: Final = limits.MIB + 128 * limits.KIB
"""Memory for one read: the largest chunk and the rest of its first and last block."""
_PARTS: Final = 16
_MEMORIES_MAX: Final = 2
"""Of _PARTS each: as many as the kernel's read-ahead has under way at once. What is taken anew for
a read is filled with zeros first, which takes the kernel as long as the copy of an answer."""
_COPIED_ALONE_BYTES_MIN: Final = 64 * limits.KIB

_new_bytearray = ctypes.pythonapi.PyByteArray_FromStringAndSize
_new_bytearray.restype = ctypes.py_object
_new_bytearray.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)


def open_direct(descriptor: int, *, read_only: bool) -> int | None:
    """One more descriptor of an open device, past the page cache; None where there is none."""
    flags = os.O_DIRECT | os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
    try:
        return os.open(f"/proc/self/fd/{descriptor}", flags)
    except OSError:
        return None  # no /proc, or a device that has no such way


class _Part(NamedTuple):
    """LENT_BYTES of a memory."""

    memory: mmap.mmap
    offset: int


class HugePages:
    """Parts of huge pages, lent for one read after the other (I3)."""

    def __init__(self) -> None:
        self._idle: list[_Part] = []
        self._lent: dict[int, weakref.ref[ctypes.Array[ctypes.c_char]]] = {}
        self._memories = 0

    def lend(self) -> memoryview | None:
        """LENT_BYTES, until nothing refers to a part of them any more; None: all are lent."""
        if not self._idle:
            if self._memories == _MEMORIES_MAX:
                return None
            self._memories += 1
            memory = _huge_pages(_PARTS * LENT_BYTES)
            self._idle = [_Part(memory, number * LENT_BYTES) for number in range(_PARTS)]
            self._idle.reverse()
        part = self._idle.pop()
        # Every view of it refers to this object, and to nothing else that could be asked.
        lease = (ctypes.c_char * LENT_BYTES).from_buffer(part.memory, part.offset)
        self._lent[id(lease)] = weakref.ref(lease, partial(self._take_back, id(lease), part))
        return memoryview(lease).cast("B")

    def _take_back(self, number: int, part: _Part, _: object) -> None:
        del self._lent[number]
        self._idle.append(part)


class AlignedRead:
    """Memory for one read; what is wanted lies somewhere in it.

    Args:
        offset, length: bytes of the device that are wanted.
        pages: where memory is to be had.
    """

    def __init__(self, offset: int, length: int, pages: HugePages) -> None:
        self.begin = offset - offset % _ALIGNMENT_BYTES
        """Where the read has to begin, byte of the device."""
        end = offset + length
        end += -end % _ALIGNMENT_BYTES
        self.view = _aligned(end - self.begin, pages)
        """What the read has to fill."""
        self.wanted = self.view[offset - self.begin :][:length].toreadonly()
        """What was asked for, once it is filled."""


class Bounce:
    """Aligned memory through which the bytes of one write after the other go."""

    def __init__(self) -> None:
        self._memory = _huge_pages(HUGE_PAGE_BYTES)
        self._address = _address_of(self._memory)

    def write(self, views: Sequence[memoryview], descriptor: int, offset: int) -> None:
        """Write the views one behind the other; place and total are whole blocks. Blocks.

        Raises:
            OSError
        """
        filled = 0
        for view in views:
            while view:
                part = view[: HUGE_PAGE_BYTES - filled]
                self._take(filled, part)
                filled += len(part)
                view = view[len(part) :]
                if filled == HUGE_PAGE_BYTES:
                    self._write_out(filled, descriptor, offset)
                    offset += filled
                    filled = 0
        self._write_out(filled, descriptor, offset)

    def _take(self, at: int, part: memoryview) -> None:
        """Copy; large parts in a way that lets other threads run, as assigning a slice does not."""
        length = len(part)
        if length >= _COPIED_ALONE_BYTES_MIN:
            ctypes.memmove(self._address + at, address_of_view(part), length)
        else:
            self._memory[at : at + length] = part

    def _write_out(self, length: int, descriptor: int, offset: int) -> None:
        with memoryview(self._memory) as whole:
            done = 0
            while done < length:
                with whole[done:length] as rest:
                    count = os.pwrite(descriptor, rest, offset + done)
                if not count:
                    raise OSError(errno.EIO, "the device takes no more bytes")
                done += count


def _aligned(length: int, pages: HugePages) -> memoryview:
    """So many bytes of memory that nobody has spent time on filling with zeros."""
    lent = pages.lend() if length <= LENT_BYTES else None
    if lent is not None:
        return lent[:length]
    memory = _uninitialised(length + _ALIGNMENT_BYTES)
    skipped = -_address_of(memory) % _ALIGNMENT_BYTES
    return memoryview(memory)[skipped : skipped + length]


def _huge_pages(length: int) -> mmap.mmap:
    """So many bytes of memory in few pages, where the kernel can spare such: for a direct request
    it has to find, hold and release each page, 256 small ones for a megabyte."""
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _uninitialised(length: int) -> bytearray:
    """Memory that nobody has spent time on filling with zeros."""
    memory: bytearray = _new_bytearray(None, length)
    return memory


class _Buffer(ctypes.Structure):
    """Py_buffer of Python's C interface."""

    _fields_ = (
        ("at", ctypes.c_void_p),
        ("owner", ctypes.c_void_p),
        ("length", ctypes.c_ssize_t),
        ("item_bytes", ctypes.c_ssize_t),
        ("is_read_only", ctypes.c_int),
        ("dimensions", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def address_of_view(view: memoryview) -> int:
    """Where its bytes are, one behind the other, as long as the view lives."""
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0)
    address = int(buffer.at)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return address


def _address_of(memory: bytearray | mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
