"""The superblock log that opening starts from: identity, tree root and soft write pointers.

Role: two extents at fixed places, the first two of the device, hold the same log of records.
The first record of a log is a snapshot of every extent's state; each further one names what has
changed. A log that has grown long is started afresh: reset, snapshot, go on. The two copies are
never reset at the same time, so one whole log exists at every moment.

Invariants:
    I1. Records are only appended; sequence numbers rise within a log, so that what an earlier
        log left behind the newest record is never read as part of it.
    I2. Before a copy is reset, the other copy holds everything persistently.
    I3. A record says only what is already allowed to be true after a crash: callers put a
        change in only when what it depends on is persistent. A log that is started afresh while
        the store is in use begins with what the last record left, so that nothing looks at every
        extent for it.
    I4. A copy that is not whole for another reason than damage says so. On a device without zones
        the first sector of a log is persistently LOG_GIVEN_UP before anything is written over
        it; a zone is reset.

Ordering: a record counts once it is whole in either copy; `next_record` is persistent once it
is flushed in both. A log that is given up: its first sector -> flush -> its new first record ->
flush -> the other copy, likewise.

Not here: what a record says (superblock_record.py), choosing what to record (commit.py), opening a
damaged device (recovery.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from shardfs import limits
from shardfs.engine.dependency import PERSISTENT, Dependency, all_of
from shardfs.engine.device import Device, Readable
from shardfs.engine.framing import (
    decode_frame,
    encode_head,
    granule_digests,
    is_cut_short,
)
from shardfs.engine.layout import EXTENT_ENTRY, FRAME_HEADER, FRAME_MAGIC, Bytes, Kind
from shardfs.engine.scheduler import Scheduler
from shardfs.engine.superblock_record import (
    ExtentEntry,
    Identity,
    Record,
    Root,
    decode_record,
    encode_record,
    log_bytes_max,
    pack_entries,
    record_bytes_max,
    whole_blocks,
)
from shardfs.errors import CorruptionError, DeviceError

_RECORD_MAGIC: Final = FRAME_MAGIC + bytes([Kind.SUPERBLOCK])

_NUMBER_BYTES: Final = 8
_NUMBER_AT: Final = FRAME_HEADER.size - 2 * _NUMBER_BYTES
"""Of `owner_offset` in a frame's header: before the checksum."""

LOG_GIVEN_UP: Final = _RECORD_MAGIC.ljust(min(limits.SECTOR_BYTES_ALLOWED), b"\0")
"""The first bytes, as many as are written whole or not at all, of a log that is given up."""


@dataclass(slots=True)
class CopyState:
    """What one copy of the superblock log holds."""

    start: int
    identity: Identity | None = None
    last: Record | None = None
    entries: dict[int, ExtentEntry] = field(default_factory=dict)
    end: int = 0
    trouble: str = ""
    has_magic: bool = False
    """No record in it counts, but something looks like one: a store was here."""
    error: DeviceError | None = None
    given_up: bool = False
    """It says that its log was about to be started afresh (I4)."""


async def read_copy(device: Readable, start: int) -> CopyState:
    """Read one copy of the log, from its snapshot to its last whole record.

    Reads at most limits.SUPERBLOCK_LOG_BYTES_MAX and one record more.

    Raises:
        IncompatibleError: a format version or feature this build must not touch.
        DeviceError: the device could not be read.
    """
    copy = CopyState(start)
    sequence = -1
    data = b""
    step = 16 * limits.BLOCK_BYTES
    at = 0
    while True:
        found = False
        try:
            # Behind a fresh log there may be records of an earlier store, with higher numbers.
            store_id = copy.identity.store_id if copy.identity is not None else None
            frame, payload = decode_frame(data, at, store_id=store_id)
            found = frame.kind is Kind.SUPERBLOCK and frame.sequence > sequence
            if found:
                identity, record = decode_record(payload)
        except CorruptionError as error:
            more = min(step, device.size_bytes - start - len(data))
            if more > 0 and is_cut_short(data, at):
                data += bytes(await device.read(start + len(data), more))
                step *= 2
                continue
            if copy.last is None:
                copy.trouble, copy.has_magic = str(error), _has_record(data)
                copy.given_up = data.startswith(LOG_GIVEN_UP)
            return copy
        if not found or (copy.last is None and not record.snapshot):
            if copy.last is None:
                copy.trouble = "it does not begin with a snapshot"
                copy.has_magic = _has_record(data)
            return copy
        if record.snapshot:
            copy.entries.clear()
        copy.identity, copy.last = identity, record
        copy.entries.update((entry.extent, entry) for entry in record.entries)
        sequence = frame.sequence
        at = copy.end = whole_blocks(at + frame.total_bytes)


def is_headed(data: Bytes, number: int) -> bool:
    """Whether the fixed part of a record's head stands at the start, with this number; what follows
    need not fit to it."""
    wanted = number.to_bytes(_NUMBER_BYTES, "little")
    return (
        bytes(data[: len(_RECORD_MAGIC)]) == _RECORD_MAGIC
        and bytes(data[_NUMBER_AT : _NUMBER_AT + _NUMBER_BYTES]) == wanted
    )


def _has_record(data: bytes) -> bool:
    starts = range(0, len(data), limits.BLOCK_BYTES)
    return any(data.startswith(_RECORD_MAGIC, offset) for offset in starts)


class Superblock:
    """The writer of the log.

    Args:
        identity: of the store; repeated in every record.
        scheduler: where records are submitted.
        device: for resets of the two superblock extents.
        incarnation: of this open; part of every sequence number.
        record_number: of the last record on the device.
        sequence: gives the next frame sequence number.
    """

    def __init__(
        self,
        identity: Identity,
        scheduler: Scheduler,
        device: Device,
        incarnation: int,
        record_number: int,
        sequence: Iterator[int],
    ) -> None:
        self.identity = identity
        self.incarnation = incarnation
        self._scheduler = scheduler
        self._device = device
        self._number = record_number
        self._root = Root()
        self._table = bytearray()
        """The entries of all extents, as the records so far leave them."""
        self._sequence = sequence
        self._ends = [0, 0]
        self._next = Dependency()
        self._log_bytes_max = log_bytes_max(identity.extent_bytes)
        self.resize(identity)

    def next_record(self) -> Dependency:
        """Persistent once the next record written is, in both copies."""
        return self._next

    def resize(self, identity: Identity) -> None:
        """The records to come say this identity: of the same store, with more or fewer extents.

        Requires: `start_logs` is next, so that no log holds records of two sizes.
        """
        self._record_bytes_max = record_bytes_max(identity.extent_count)
        assert 2 * self._record_bytes_max <= self._log_bytes_max, "a snapshot must leave room"
        self.identity = identity

    async def start_logs(self, root: Root, entries: Sequence[ExtentEntry], first: int) -> None:
        """Start both logs afresh, one after the other, beginning with copy `first`.

        Args:
            entries: of all extents, in their order.

        Requires: the other copy is whole, or both are void (mkfs); nothing changes meanwhile.
        Durable when: returned.
        """
        self._root, self._table = root, bytearray(pack_entries(entries))
        await self._start_logs(first)

    async def write(
        self,
        root: Callable[[], Root],
        changed: Callable[[], Sequence[ExtentEntry]],
        *,
        clean: bool = False,
    ) -> None:
        """Append a record to both copies; not flushed. Requires: one caller at a time.

        Args:
            root: gives the tree's root; asked at the moment the record is made.
            changed: gives the extents that differ from the last record, likewise.
            clean: this is the last record of an orderly close.

        Durable when: `next_record()`, as it stood before the call, is persistent.
        Checkpoints: only when a log is started afresh.
        """
        if max(self._ends) + self._record_bytes_max > self._log_bytes_max:
            # Both copies must be whole before either is given up (I2).
            await self._scheduler.write_out()
            await self._scheduler.flush()
            await self._start_logs(0)
        done, self._next = self._next, Dependency()
        self._number += 1
        self._root = root()
        entries = changed()
        packed = pack_entries(entries)
        size = EXTENT_ENTRY.size
        for at, entry in enumerate(entries):
            place = entry.extent * size
            self._table[place : place + size] = packed[at * size : (at + 1) * size]
        payload = self._payload(packed, snapshot=False, clean=clean)
        both = all_of([self._submit(copy, payload) for copy in (0, 1)])
        both.on_settled(lambda: done.fail(both.failure) if both.failure else done.resolve())

    async def _start_logs(self, first: int) -> None:
        is_first_ever = not self._number
        for copy in (first, 1 - first):
            if not is_first_ever:
                await self._give_up(copy)
            offset = self.identity.extent_offset(copy)
            await self._device.reset(offset, self.identity.extent_bytes)
            self._ends[copy] = 0
            self._number += 1
            payload = self._payload(self._table, snapshot=True, clean=False)
            await self._scheduler.settle(self._submit(copy, payload))

    async def _give_up(self, copy: int) -> None:
        """Have the log say that it is not whole because it is written over (I4)."""
        offset = self.identity.extent_offset(copy)
        if self._device.write_pointer(offset) is not None:
            return
        try:
            block = bytes(await self._device.read(offset, limits.BLOCK_BYTES))
        except DeviceError:
            block = bytes(limits.BLOCK_BYTES)  # it is not whole as it is
        # What follows stays as it was, should the device write only a part of the block.
        buffers = (LOG_GIVEN_UP, block[len(LOG_GIVEN_UP) :])
        given_up = Dependency()
        self._scheduler.submit(
            copy, offset, buffers, limits.BLOCK_BYTES, PERSISTENT, given_up, _nothing
        )
        await self._scheduler.settle(given_up)

    def _payload(self, packed: Bytes, *, snapshot: bool, clean: bool) -> bytes:
        record = Record(snapshot, clean, self._number, self.incarnation, self._root, ())
        return encode_record(self.identity, record, packed)

    def _submit(self, copy: int, payload: bytes) -> Dependency:
        head = encode_head(
            Kind.SUPERBLOCK,
            self.identity.store_id,
            0,
            next(self._sequence),
            b"",
            self._number,
            len(payload),
            granule_digests(payload),
        )
        length = whole_blocks(len(head) + len(payload))
        padding = bytes(length - len(head) - len(payload))
        offset = self.identity.extent_offset(copy) + self._ends[copy]
        self._ends[copy] += length
        persistent = Dependency()
        self._scheduler.submit(
            copy, offset, (head, payload, padding), length, PERSISTENT, persistent, _nothing
        )
        return persistent


def _nothing() -> None:
    """Superblock records are not read back while the store is open."""
