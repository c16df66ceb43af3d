"""Bytes of one file that were written and not yet given to the engine.

Role: a map from byte ranges to the buffers that write(2) brought, cut at shard boundaries.
Sequential writing appends to the last segment, a random overwrite inserts one, small appends
grow a bytearray; file data is copied only where that is cheaper than keeping it alive.

Invariants:
    I1. A shard's segments are sorted, disjoint and not empty; none crosses a shard boundary.
    I2. A buffer handed out by `runs` is not changed afterwards: growing stops at `seal`.
    I3. Kept memory stays below twice the dirty bytes: a rest smaller than half of its buffer is
        copied out of it.
    I4. `bytes` is the sum of the segments' lengths, `segments` their number.

Not here: when to flush (flusher.py) and what a chunk is (files.py).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

from shardfs import limits
from shardfs.engine.layout import Bytes

SHARD_BYTES: Final = limits.SHARD_BYTES
_SMALL_BYTES: Final = 32 * limits.KIB
"""Writes below this size are gathered in a bytearray."""
_GATHERED_BYTES_MAX: Final = 256 * limits.KIB
_READY_BYTES_MIN: Final = 1 * limits.MIB


class Run(NamedTuple):
    """Adjacent dirty bytes of one shard."""

    start: int
    length: int
    buffers: list[Bytes]


class _Segment:
    """Dirty bytes [start, end) of one shard, as buffers in order."""

    __slots__ = ("buffers", "end", "start")

    def __init__(self, start: int, end: int, buffers: list[Bytes]) -> None:
        self.start = start
        self.end = end
        self.buffers = buffers

    def append(self, data: Bytes) -> None:
        """Add bytes at the end."""
        last = self.buffers[-1]
        if len(data) >= _SMALL_BYTES:
            self.buffers.append(data)
        elif isinstance(last, bytearray) and len(last) + len(data) <= _GATHERED_BYTES_MAX:
            last += data
        else:
            self.buffers.append(bytearray(data))
        self.end += len(data)

    def cut(self, start: int, end: int) -> _Segment:
        """The part [start, end) as a segment of its own. Requires: a part, not empty."""
        return _Segment(start, end, [_keep(part) for part in self.parts(start, end)])

    def parts(self, start: int, end: int) -> Iterator[memoryview]:
        """The bytes [start, end), where they lie."""
        position = self.start
        for buffer in self.buffers:
            length = len(buffer)
            first, last = max(start - position, 0), min(end - position, length)
            if first < last:
                yield memoryview(buffer)[first:last]
            position += length
            if position >= end:
                return


def _keep(part: memoryview) -> Bytes:
    """The part, copied if its buffer would be mostly dead weight or could grow (I2, I3)."""
    base = part.obj
    assert isinstance(base, bytes | bytearray)
    if isinstance(base, bytearray) or 2 * len(part) < len(base):
        return bytes(part)
    return part


class DirtyRanges:
    """The dirty bytes of one file. Offsets are bytes within the file."""

    def __init__(self) -> None:
        self.bytes = 0
        self.segments = 0
        """Number of separate ranges."""
        self.end = 0
        """No dirty byte is, or since the last truncate was, at or above this offset."""
        self._shards: dict[int, list[_Segment]] = {}

    def __bool__(self) -> bool:
        return bool(self._shards)

    @property
    def memory_bytes(self) -> int:
        """About how much memory this holds."""
        return self.bytes + self.segments * limits.DIRTY_PART_MEMORY_BYTES

    def shards(self) -> list[int]:
        """Indexes of the shards with dirty bytes, ascending."""
        return sorted(self._shards)

    def count(self, index: int) -> int:
        """Number of separate ranges of a shard."""
        return len(self._shards.get(index, ()))

    def cost(self, offset: int, length: int) -> int:
        """Upper bound for how much `write` of such a range adds to `bytes`: exact for appends."""
        if offset >= self.end:
            return length
        missing = length
        for index, start, end in split(offset, length):
            for segment in self._overlapping(index, start, end):
                missing -= min(end, segment.end) - max(start, segment.start)
        return missing

    def write(self, offset: int, data: bytes) -> bool:
        """Take `data` at `offset`; a later write covers an earlier one.

        Returns:
            True when a shard has become worth flushing: written up to its end.
        """
        if not data:
            return False
        ready = False
        length = len(data)
        self.end = max(self.end, offset + length)
        for index, start, end in split(offset, length):
            at = index * SHARD_BYTES + start - offset
            part = data if end - start == length else memoryview(data)[at : at + end - start]
            segments = self._shards.setdefault(index, [])
            if not segments or segments[-1].end < start:
                segments.append(_Segment(start, end, [part]))
                self.segments += 1
                self.bytes += end - start
            elif segments[-1].end == start:
                segments[-1].append(part)
                self.bytes += end - start
            else:
                self._overwrite(segments, _Segment(start, end, [part]))
            if end == SHARD_BYTES:
                ready = ready or segments[-1].end - segments[-1].start >= _READY_BYTES_MIN
        return ready

    def read(self, offset: int, length: int) -> list[tuple[int, bytes]]:
        """(offset, bytes) of what is dirty in a range, copied, ascending."""
        found = []
        for index, start, end in split(offset, length):
            base = index * SHARD_BYTES
            for segment in self._overlapping(index, start, end):
                first, last = max(start, segment.start), min(end, segment.end)
                found.append((base + first, b"".join(segment.parts(first, last))))
        return found

    def truncate(self, length: int) -> int:
        """Forget everything at and above `length`.

        Returns:
            The number of dirty bytes forgotten.
        """
        before = self.bytes
        boundary, keep = divmod(length, SHARD_BYTES)
        for index in [index for index in self._shards if index >= boundary]:
            segments = self._shards[index]
            kept = []
            if index == boundary:
                kept = [_up_to(keep, each) for each in segments if each.start < keep]
            self._replace(index, segments, kept)
        self.end = min(self.end, length)
        return before - self.bytes

    def runs(self, index: int, start: int, count_max: int) -> list[Run]:
        """The first `count_max` runs of a shard's segments that begin at or above `start`."""
        runs: list[Run] = []
        for segment in self._shards.get(index, ()):
            if segment.start < start:
                continue
            if runs and runs[-1].start + runs[-1].length == segment.start:
                last = runs[-1]
                length = last.length + segment.end - segment.start
                runs[-1] = Run(last.start, length, last.buffers + segment.buffers)
            elif len(runs) == count_max:
                break
            else:
                length = segment.end - segment.start
                runs.append(Run(segment.start, length, list(segment.buffers)))
        return runs

    def remove(self, index: int, start: int, end: int) -> int:
        """Forget a shard's bytes [start, end): they are in the engine's hands.

        Returns:
            The number of bytes forgotten.
        """
        before = self.bytes
        segments = self._shards.get(index, [])
        kept = []
        for segment in segments:
            if segment.end <= start or segment.start >= end:
                kept.append(segment)
                continue
            if segment.start < start:
                kept.append(segment.cut(segment.start, start))
            if segment.end > end:
                kept.append(segment.cut(end, segment.end))
        self._replace(index, segments, kept)
        return before - self.bytes

    def is_growing(self, index: int) -> bool:
        """The shard is the last one and not written up to its end: more is likely to come."""
        segments = self._shards.get(index)
        if not segments:
            return False
        return segments[-1].end < SHARD_BYTES and (index + 1) * SHARD_BYTES >= self.end

    def seal(self, index: int) -> None:
        """Let no buffer of a shard grow any more: the engine may still hold it (I2)."""
        for segment in self._shards.get(index, ()):
            segment.buffers = [bytes(b) if isinstance(b, bytearray) else b for b in segment.buffers]

    def _replace(self, index: int, segments: list[_Segment], kept: list[_Segment]) -> None:
        self.bytes += _length(kept) - _length(segments)
        self.segments += len(kept) - len(segments)
        if kept:
            self._shards[index] = kept
        else:
            self._shards.pop(index, None)

    def _overlapping(self, index: int, start: int, end: int) -> list[_Segment]:
        segments = self._shards.get(index)
        if not segments:
            return []
        first = bisect_right(segments, start, key=_end_of)
        last = bisect_left(segments, end, key=_start_of)
        return segments[first:last]

    def _overwrite(self, segments: list[_Segment], added: _Segment) -> None:
        """Insert a segment, cutting away what it covers."""
        start, end = added.start, added.end
        first = bisect_right(segments, start, key=_end_of)
        last = bisect_left(segments, end, key=_start_of)
        rests = []
        covered = 0
        for segment in segments[first:last]:
            covered += min(end, segment.end) - max(start, segment.start)
            if segment.start < start:
                rests.append(segment.cut(segment.start, start))
            if segment.end > end:
                rests.append(segment.cut(end, segment.end))
        segments[first:last] = sorted([*rests, added], key=_start_of)
        self.segments += len(rests) + 1 - (last - first)
        self.bytes += end - start - covered


def split(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(shard, start, end) of the parts of a byte range; start and end are within the shard."""
    end = offset + length
    while offset < end:
        index, start = divmod(offset, SHARD_BYTES)
        part = min(SHARD_BYTES - start, end - offset)
        yield index, start, start + part
        offset += part


def _up_to(end: int, segment: _Segment) -> _Segment:
    return segment if segment.end <= end else segment.cut(segment.start, end)


def _length(segments: list[_Segment]) -> int:
    return sum([segment.end - segment.start for segment in segments])


def _start_of(segment: _Segment) -> int:
    return segment.start


def _end_of(segment: _Segment) -> int:
    return segment.end
