"""What stands in an extent, from its first byte to its last: frames, and what is between them.

Role: walks an extent head by head and names every byte of it, on damaged devices too. Frames of an
earlier life of the extent, or of another store, are told apart from those that count.

Invariants:
    I1. The spans of a walk follow each other without gaps or overlaps, and cover the extent.
    I2. Memory is bounded: a window of the extent, whatever its size. Any bytes give spans.

Not here: what refers to a frame (places.py), what is in it (dissection.py).
"""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Awaitable, Callable
from enum import StrEnum
from typing import Final, NamedTuple

from shardfs import limits
from shardfs.engine.framing import Frame, decode_head, head_bytes, verify_granules
from shardfs.engine.layout import FRAME_MAGIC, INCARNATION_SHIFT, Bytes
from shardfs.engine.pacing import Slices
from shardfs.errors import CorruptionError, DeviceError

_WINDOW_BYTES: Final = 1 * limits.MIB
_HEAD_BYTES_MAX: Final = head_bytes(limits.KEY_BYTES_MAX, limits.CHUNK_BYTES_MAX)
_SPAN_COST: Final = 4

Read = Callable[[int, int], Awaitable[Bytes]]
"""(offset within the extent, length) to its bytes; raises DeviceError."""


class SpanKind(StrEnum):
    """What a part of an extent is, by its bytes alone."""

    FRAME = "frame"
    """A frame with a valid head, of this life of the extent."""
    STALE = "stale"
    """The same, of an earlier life, or of another store."""
    ZEROS = "zeros"
    BYTES = "bytes"
    """Nothing that decodes: a damaged or cut-off frame, or never this store's."""
    UNREADABLE = "unreadable"


class Span(NamedTuple):
    """Bytes [start, end) of an extent."""

    start: int
    end: int
    kind: SpanKind
    frame: Frame | None = None

    @property
    def payload_start(self) -> int:
        """First byte of the frame's payload within the extent."""
        assert self.frame is not None
        return self.start + self.frame.payload_offset


class FrameWalk:
    """One walk over one extent.

    Args:
        read: reads the extent.
        length: bytes of the extent to walk over.
        store_id: frames of other stores are stale; None: any store's count.
        epoch: so are frames of another epoch; None: any counts.
    """

    def __init__(self, read: Read, length: int, *, store_id: int | None, epoch: int | None) -> None:
        self._read = read
        self._length = length
        self._store_id = store_id
        self._epoch = epoch
        self._window = b""
        self._start = 0

    async def spans(self, slices: Slices | None = None) -> AsyncGenerator[Span, None]:
        """Every span, in order. Checkpoints: as `slices` does, and for reads."""
        slices = slices or Slices()
        held: Span | None = None
        at = 0
        while at < self._length:
            span = await self._span_at(at)
            at = span.end
            if held is not None and held.frame is None and held.kind is span.kind:
                held = held._replace(end=span.end)
            else:
                if held is not None:
                    yield held
                held = span
            await slices.spend(_SPAN_COST)
        if held is not None:
            yield held

    async def _span_at(self, at: int) -> Span:
        try:
            await self._see(at, _HEAD_BYTES_MAX)
            frame = self._head_at(at)
            if frame is None:
                return await self._between(at)
            end = min(self._length, at + frame.total_bytes)
            return Span(at, await self._end_of(at, end, frame), self._kind_of(frame), frame)
        except DeviceError:
            return Span(at, min(self._length, _next_block(at)), SpanKind.UNREADABLE)

    async def _between(self, at: int) -> Span:
        """What stands between frames: zeros, or anything else, up to where that changes."""
        await self._see(at, _WINDOW_BYTES // 2)
        end = self._next_head(at)
        data = memoryview(self._window)[at - self._start : end - self._start]
        zeros = _leading_zeros(data)
        if zeros == len(data):
            return Span(at, end, SpanKind.ZEROS)
        first = at + zeros - (at + zeros) % limits.BLOCK_BYTES
        if first > at:
            return Span(at, first, SpanKind.ZEROS)
        stop = _next_block(at)
        while stop < end:
            block = data[stop - at : stop - at + limits.BLOCK_BYTES]
            if _leading_zeros(block) == len(block):
                break
            stop += limits.BLOCK_BYTES
        return Span(at, min(stop, end), SpanKind.BYTES)

    def _next_head(self, at: int) -> int:
        """Where the next valid head may begin behind `at`, or how far there is none."""
        end = self._start + len(self._window)
        is_last = end >= self._length
        found = at + limits.FRAME_ALIGNMENT_BYTES
        while True:
            place = self._window.find(FRAME_MAGIC, found - self._start)
            if place < 0:
                # The magic bytes may be cut off by the end of the window.
                cut = end - end % limits.FRAME_ALIGNMENT_BYTES - limits.FRAME_ALIGNMENT_BYTES
                return end if is_last or cut <= at else cut
            found = self._start + place
            is_cut_off = not is_last and end - found < _HEAD_BYTES_MAX
            if found % limits.FRAME_ALIGNMENT_BYTES == 0 and (
                is_cut_off or self._head_at(found) is not None
            ):
                return found
            found += 1

    def _head_at(self, at: int) -> Frame | None:
        if not self._window.startswith(FRAME_MAGIC, at - self._start):
            return None
        try:
            return decode_head(self._window, at - self._start)
        except CorruptionError:
            return None

    def _kind_of(self, frame: Frame) -> SpanKind:
        is_of_this_life = self._epoch is None or frame.epoch == self._epoch
        is_of_this_store = self._store_id is None or frame.store_id == self._store_id
        return SpanKind.FRAME if is_of_this_life and is_of_this_store else SpanKind.STALE

    async def _end_of(self, at: int, end: int, frame: Frame) -> int:
        """Where the frame ends: sooner, where a crash cut it off and the store went on writing at
        the next block."""
        block = at + limits.BLOCK_BYTES - at % limits.BLOCK_BYTES
        if block >= end:
            return end
        await self._see(block, _HEAD_BYTES_MAX)
        later = self._head_at(block)
        is_later = (
            later is not None
            and later.store_id == frame.store_id
            and later.sequence >> INCARNATION_SHIFT > frame.sequence >> INCARNATION_SHIFT
        )
        if is_later and not await self._is_whole(at, frame):
            return block
        return end

    async def _is_whole(self, at: int, frame: Frame) -> bool:
        """Whether the payload is there; what looks like a head in it may be a user's bytes."""
        try:
            payload = await self._read(at + frame.payload_offset, frame.payload_bytes)
            verify_granules(payload, frame.checksums, 0, "frame")
        except (CorruptionError, DeviceError):
            return False
        return len(payload) == frame.payload_bytes

    async def _see(self, at: int, length: int) -> None:
        """Have these bytes in the window, as far as the extent goes and can be read."""
        end = min(at + length, self._length)
        if self._start <= at and end <= self._start + len(self._window):
            return
        wanted = min(_WINDOW_BYTES, self._length - at)
        try:
            data = await self._read(at, wanted)
        except DeviceError:
            data = await self._read(at, min(self._length, _next_block(at)) - at)
        self._window, self._start = bytes(data), at
        if not data:
            raise DeviceError("read", at, wanted, errno.EIO)


def _next_block(at: int) -> int:
    """The first block that begins behind a byte."""
    return at - at % limits.BLOCK_BYTES + limits.BLOCK_BYTES


def _leading_zeros(data: memoryview) -> int:
    raw = bytes(data)
    return len(raw) - len(raw.lstrip(b"\0"))
