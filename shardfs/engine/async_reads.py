"""Reads past the page cache that the kernel carries out by itself, without a thread.

Role: going to a worker thread and back costs as much as a fast disk takes for a read. Linux' own
asynchronous calls (io_submit(2)) begin a read and return. The end of a small one is waited for here
for a moment, which is all that a fast disk needs, and by the event loop where that was not enough;
a large one is left to the event loop at once.

Invariants:
    I1. The thread never waits for the disk longer than PATIENCE_NS at a time, and hardly ever for
        one that does not answer within it: see `_Trust`.
    I2. Memory is not used again before the kernel has let go of it.
    I3. What cannot be done here (no such calls, a full queue, an error) is answered with None, and
        nothing has happened: the caller asks in another way, and reports.

Not here: what is read so (block_device.py), memory for large requests (direct_io.py).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Final

import trio

from shardfs import limits
from shardfs.engine.direct_io import LENT_BYTES, address_of_view
from shardfs.engine.kernel_requests import IOCB_FLAG_RESFD, Request, Requests

READ_BYTES_MAX: Final = 60 * limits.KIB
"""Of what is wanted; with the rest of the first and the last block it fits into a slot."""
PATIENCE_NS: Final = 400_000
"""A read of a few blocks from flash memory takes a tenth to half of that."""
_SLOTS: Final = 32
_SLOT_BYTES: Final = 64 * limits.KIB
_TRUST_MAX: Final = 8
_DISTRUSTED_READS: Final = 64

# linux/aio_abi.h
_IOCB_CMD_PREAD: Final = 0
_RWF_NOWAIT: Final = 8


class _Slot:
    """One request at a time: what the kernel is asked, and the memory it fills."""

    def __init__(self, number: int, descriptor: int, memory: memoryview, address: int) -> None:
        self.memory, self.address = memory, address
        self.filled: memoryview | None = None
        """What the kernel fills in place of that; kept whatever becomes of the reader (I2)."""
        self.event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.request = Request(
            data=number,
            rw_flags=_RWF_NOWAIT,
            opcode=_IOCB_CMD_PREAD,
            descriptor=descriptor,
            buffer=address,
            flags=IOCB_FLAG_RESFD,
            event_descriptor=self.event,
        )
        self._requests = (ctypes.c_void_p * 1)(ctypes.addressof(self.request))
        self.requests_at = ctypes.addressof(self._requests)
        self.result: int | None = None


class _Trust:
    """Whether something is worth a try: not with a disk that has disappointed lately."""

    def __init__(self) -> None:
        self._trust = _TRUST_MAX
        self._passed_over = 0

    def is_left(self) -> bool:
        """Try. Where there is little trust that is done now and then only."""
        if self._trust > 0:
            return True
        self._passed_over += 1
        return self._passed_over % _DISTRUSTED_READS == 0

    def learn(self, was_right: bool) -> None:
        """How the try has ended: trust is lost twice as fast as it is won."""
        self._trust = min(_TRUST_MAX, self._trust + 1) if was_right else max(-1, self._trust - 2)


class AsyncReads:
    """Reads of one descriptor that was opened with O_DIRECT.

    Args:
        descriptor: stays open until `close`.
        sector_bytes: what places and lengths are multiples of.
    """

    def __init__(self, descriptor: int, sector_bytes: int) -> None:
        self._descriptor = descriptor
        self._sector_bytes = sector_bytes
        self._is_fast = _Trust()
        self._takes_large = _Trust()
        self._slots: list[_Slot] = []
        self._idle: list[_Slot] = []
        self._is_begun = False
        self._kernel: Requests | None = None

    async def read(
        self, offset: int, length: int, memory: memoryview | None = None
    ) -> bytes | memoryview | None:
        """The bytes as the device has them, or None (I3).

        Requires: at most READ_BYTES_MAX, or memory for them.

        Args:
            memory: what is to be filled, if that is large; it, its place and its length are whole
                blocks.

        Checkpoints: only when it takes long; the read runs to its end all the same.
        """
        if memory is not None:
            if length > LENT_BYTES or not self._takes_large.is_left():
                return None
            is_filled = await self._carry_out(offset, length, memory) is not None
            self._takes_large.learn(is_filled)
            return memory if is_filled else None
        skip = offset % self._sector_bytes
        size = -(-(skip + length) // self._sector_bytes) * self._sector_bytes
        slot = await self._carry_out(offset - skip, size, None)
        return None if slot is None else bytes(slot.memory[skip : skip + length])

    async def _carry_out(self, offset: int, size: int, memory: memoryview | None) -> _Slot | None:
        """Read whole sectors, into the slot's own memory if no other is given; None: see I3."""
        if not self._is_begun:
            self._is_begun = True
            self._set_up()
        kernel = self._kernel
        if not self._idle or kernel is None or not kernel.is_ours:
            return None
        slot = self._idle[-1]
        slot.filled = memory
        slot.request.buffer = slot.address if memory is None else address_of_view(memory)
        if not _begin(kernel, slot, offset, size):
            return None
        self._idle.pop()
        if memory is None and self._is_fast.is_left():
            self._reap(kernel, _SOON)
            self._is_fast.learn(slot.result is not None)
        while slot.result is None:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.wait_readable(slot.event)
            _drain(slot.event)
            self._reap(kernel, _NOW)
        slot.filled = None
        self._idle.append(slot)
        return slot if slot.result == size else None

    def close(self) -> None:
        """Let go of everything. Requires: nobody reads."""
        assert len(self._idle) == len(self._slots), "the kernel may still write to a slot"
        if self._kernel is not None:
            self._kernel.close()
        for slot in self._slots:
            os.close(slot.event)

    def _set_up(self) -> None:
        """Where the kernel has no such calls, or grants no more of them: no slots."""
        try:
            self._kernel = Requests(_SLOTS)
        except OSError:
            return
        self._memory = mmap.mmap(-1, _SLOTS * _SLOT_BYTES)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        whole = memoryview(self._memory)
        self._slots = [
            _Slot(number, self._descriptor, whole[at : at + _SLOT_BYTES], address + at)
            for number, at in enumerate(range(0, len(whole), _SLOT_BYTES))
        ]
        self._idle = list(self._slots)

    def _reap(self, kernel: Requests, patience_at: int) -> None:
        """Note what has ended; wait that long for the first."""
        try:
            events = kernel.ended(patience_at)
        except OSError:
            return  # a signal, say: what has ended is told the next time
        for event in events:
            self._slots[event.data].result = event.result


def _begin(kernel: Requests, slot: _Slot, offset: int, size: int) -> bool:
    slot.result = None
    slot.request.offset, slot.request.length = offset, size
    try:
        kernel.submit(slot.requests_at)
    except OSError:
        return False
    return True


def _drain(event: int) -> None:
    try:
        os.eventfd_read(event)
    except BlockingIOError:
        return  # it ended before it was waited for


_now_timespec = (ctypes.c_long * 2)(0, 0)
_soon_timespec = (ctypes.c_long * 2)(0, PATIENCE_NS)
_NOW: Final = ctypes.addressof(_now_timespec)
_SOON: Final = ctypes.addressof(_soon_timespec)
