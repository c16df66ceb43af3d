"""Reads the delta log back, and tells an end that a crash made from one that damage made.

Role: walks the extents of the log from the checkpoint on, takes whole deltas while they are
consecutive, and looks a little way past the end for deltas that came later.

Invariants:
    I1. A delta whose number is not called durable by the superblock counts only if it was written
        by the incarnation of the superblock record: what an earlier one left is a refused rest.
    I2. Deltas are issued one after the other, each when those before it are durable, and each
        carries that number (commit.I1). So a delta behind the end which calls the first missing
        one durable proves damage; a crash leaves none, because the end is then later.
    I3. Looking past an end costs one read at most, unless something of this incarnation follows;
        after an orderly close, whose record knows the last delta, nobody looks.

Not here: what becomes of deltas (recovery.py), writing them (commit.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from shardfs import limits
from shardfs.engine.extent import Extent
from shardfs.engine.extents import Extents
from shardfs.engine.framing import Frame, decode_frame, decode_head, is_cut_short
from shardfs.engine.layout import FRAME_MAGIC, INCARNATION_SHIFT, ExtentState, Kind, Stream
from shardfs.engine.lsm.delta import DeltaPart, decode_delta
from shardfs.engine.superblock_record import Record, Root
from shardfs.errors import CorruptionError

_READ_STEP_BYTES = 64 * limits.KIB


class LoggedDelta(NamedTuple):
    """A whole delta: its first sequence number, its parts, and where it ends in each extent."""

    sequence: int
    parts: list[DeltaPart]
    ends: dict[int, int]


@dataclass(slots=True)
class FoundLog:
    """What the log holds.

    Args:
        deltas: whole and consecutive behind the checkpoint; riders not yet looked at.
        durable: the highest number known to have been durable, whatever is found of it.
    """

    durable: int
    deltas: list[LoggedDelta] = field(default_factory=list)


def log_chain(root: Root, extents: Extents) -> list[Extent]:
    """The extents of the delta log in the order written, from where reading starts."""
    chain = sorted(
        (each for each in extents.all if each.stream is Stream.META), key=lambda each: each.order
    )
    start = next((index for index, each in enumerate(chain) if each.index == root.log_extent), 0)
    return chain[start:]


def log_start(root: Root, extent: Extent) -> int:
    """The byte of an extent of the log where reading starts."""
    return root.log_offset if extent.index == root.log_extent else 0


def log_bytes(root: Root, extents: Extents) -> int:
    """Bytes of the log from where reading starts."""
    chain = log_chain(root, extents)
    return sum(each.write_pointer - log_start(root, each) for each in chain)


async def first_unreadable_delta(
    root: Root, extents: Extents, durable: int
) -> tuple[int, int, int] | None:
    """(number, extent, byte of the extent) of the first delta behind the checkpoint, up to
    `durable`, that cannot be read whole; None: all can.

    Raises:
        DeviceError: the log cannot be read.
    """
    number, parts = root.checkpoint + 1, 0
    place, is_read_to_its_end = (root.log_extent, root.log_offset), True
    for extent in log_chain(root, extents):
        if number > durable:
            return None
        reader = _LogReader(extents, extent, log_start(root, extent), extent.write_pointer)
        before = (number, parts)
        with extents.pinned(extent.index):
            while number <= durable and (taken := await reader.next()) is not None:
                part = taken[1]
                if (part.number, part.part) != (number, parts):
                    break
                parts += 1
                if parts == part.parts:
                    number, parts = number + 1, 0
        if is_read_to_its_end or (number, parts) != before:
            place = (extent.index, reader.offset)
            is_read_to_its_end = reader.offset >= extent.write_pointer
    return None if number > durable else (number, *place)


async def read_log(record: Record, extents: Extents, chain: list[Extent]) -> FoundLog:
    """The deltas in the extents of `chain`, and what those behind the end say.

    Raises:
        DeviceError: the log cannot be read.
    """
    log = FoundLog(record.root.durable_delta)
    open_parts: list[DeltaPart] = []
    open_ends: dict[int, int] = {}
    number = record.root.checkpoint + 1
    readers = []
    for extent in chain:
        limit = extent.write_pointer if extent.state is ExtentState.SEALED else None
        reader = _LogReader(extents, extent, log_start(record.root, extent), limit)
        readers.append(reader)
        while (taken := await reader.next()) is not None:
            frame, part = taken
            fits = part.number == number and part.part == len(open_parts)
            stale = (
                part.number > record.root.durable_delta
                and frame.sequence >> INCARNATION_SHIFT != record.incarnation
            )
            if not fits or stale:
                break
            if part.part == 0:
                sequence = frame.sequence
            open_parts.append(part)
            open_ends[extent.index] = reader.offset
            if len(open_parts) == part.parts:
                log.deltas.append(LoggedDelta(sequence, open_parts, open_ends))
                log.durable = max(log.durable, part.durable)
                open_parts, open_ends = [], {}
                number += 1
    if not record.clean:  # after an orderly close the record itself knows the last delta
        log.durable = max(log.durable, await _durable_behind_the_end(record, log, readers))
    return log


async def _durable_behind_the_end(record: Record, log: FoundLog, readers: list[_LogReader]) -> int:
    """The highest number that anything behind the last delta found calls durable (I2)."""
    ends = log.deltas[-1].ends if log.deltas else {}
    first = max((at for at, each in enumerate(readers) if each.index in ends), default=0)
    durable, look_bytes = 0, limits.LOG_LOOK_BYTES
    for reader in readers[first:]:
        end = ends.get(reader.index, reader.start)
        held_bytes = reader.held_bytes
        durable = max(durable, await reader.durable_behind(end, record.incarnation, look_bytes))
        if reader.held_bytes > held_bytes:
            look_bytes = 0  # of the others, what was read before will do (I3)
    return durable


class _LogReader:
    """Delta frames of one extent, in order, until one is not whole."""

    def __init__(self, extents: Extents, extent: Extent, offset: int, limit: int | None) -> None:
        self._extents = extents
        self._extent = extent
        self._limit = extents.extent_bytes if limit is None else limit
        self._data = b""
        self._step = _READ_STEP_BYTES
        self.index = extent.index
        self.start = offset
        self.offset = offset

    @property
    def held_bytes(self) -> int:
        """Bytes that have been read, from `start` on."""
        return len(self._data)

    async def next(self) -> tuple[Frame, DeltaPart] | None:
        """The next whole delta part, or None; `offset` is behind it then."""
        while True:
            try:
                frame, payload = self._frame_at(self.offset)
                if frame.kind is not Kind.DELTA or frame.epoch != self._extent.epoch:
                    return None
                part = decode_delta(payload)
                self.offset += frame.total_bytes
                return frame, part
            except CorruptionError:
                if await self._read_more():
                    continue
                if self.offset % limits.BLOCK_BYTES == 0:
                    return None
                # Behind the frames of one commit, the rest of the block is zeros.
                self.offset += -self.offset % limits.BLOCK_BYTES

    async def durable_behind(self, offset: int, incarnation: int, look_bytes: int) -> int:
        """The highest number that a delta at or behind `offset` calls durable; 0: there is none.

        Only deltas of this incarnation count (or of a later one, which the superblock has lost).
        The search ends `look_bytes` behind the last that looks like one, or where reading has.
        A commit starts at a block, so that the blocks' starts are enough to look at.
        """
        durable = 0
        offset += -offset % limits.BLOCK_BYTES
        until = offset + look_bytes
        while True:
            await self._read_up_to(until)
            if offset >= self.start + len(self._data):
                return durable
            length = self._later_frame_bytes(offset, incarnation)
            if length:
                until = max(until, offset + length + limits.LOG_LOOK_BYTES)
                await self._read_up_to(until)
                durable = max(durable, self._durable_at(offset))
            offset += max(limits.BLOCK_BYTES, length + -length % limits.BLOCK_BYTES)

    def _later_frame_bytes(self, offset: int, incarnation: int) -> int:
        """Length of the frame there, if its head is that of a delta which may be behind the end."""
        if not self._data.startswith(FRAME_MAGIC, offset - self.start):
            return 0
        try:
            frame = decode_head(
                self._data, offset - self.start, store_id=self._extents.identity.store_id
            )
        except CorruptionError:
            return 0
        is_later = (
            frame.kind is Kind.DELTA
            and frame.epoch == self._extent.epoch
            and frame.sequence >> INCARNATION_SHIFT >= incarnation
        )
        return frame.total_bytes if is_later else 0

    def _durable_at(self, offset: int) -> int:
        try:
            return decode_delta(self._frame_at(offset)[1]).durable
        except CorruptionError:
            return 0

    def _frame_at(self, offset: int) -> tuple[Frame, memoryview]:
        store_id = self._extents.identity.store_id
        return decode_frame(self._data, offset - self.start, store_id=store_id)

    async def _read_more(self) -> bool:
        """Whether more of the extent has come in, which may complete the frame at `offset`."""
        have = self.start + len(self._data)
        if have >= self._limit or not is_cut_short(self._data, self.offset - self.start):
            return False
        await self._read_up_to(have + self._step)
        self._step *= 2
        return True

    async def _read_up_to(self, end: int) -> None:
        """Hold the extent up to `end`, as far as it may be written."""
        have = self.start + len(self._data)
        length = min(end, self._limit) - have
        if length > 0:
            self._data += bytes(await self._extents.read(self._extent.index, have, length))
