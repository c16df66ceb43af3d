"""A device whose superblock changes at the very end: for writing a new tree beside a broken one.

Role: a store is opened on a SwitchDevice that says it has no tree, and every extent that may hold
something is sealed. The engine then writes as ever, into free extents only. `switch` puts the
superblock that came of it in the place of the old one.

Invariants:
    I1. Until `switch` the two superblock extents of the device are not touched, nor any extent that
        held something: whatever ends the work before, the device is as it was.
    I2. Of the two copies one is whole at every moment of the switch: the new one is durable before
        the old one's other copy is given up.

Ordering: everything that was written -> flush -> first copy -> flush -> second copy -> flush.

Not here: what goes into the new tree (fuse/reconstruction.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from shardfs import limits
from shardfs.engine.device import Buffer, Device, ForwardingDevice
from shardfs.engine.framing import encode_head, granule_digests
from shardfs.engine.layout import INCARNATION_SHIFT, ExtentState, Kind, Stream
from shardfs.engine.superblock_record import (
    ExtentEntry,
    Identity,
    Record,
    Root,
    encode_record,
    whole_blocks,
)

_STREAMS = {Kind.DATA: Stream.DATA}
_BLOCK = limits.BLOCK_BYTES


class SwitchDevice(ForwardingDevice):
    """A device with a superblock of its own, in memory.

    Args:
        device: writable.
        identity: of the store.
        record: the first record of the new superblock, a snapshot.
    """

    def __init__(self, device: Device, identity: Identity, record: Record) -> None:
        super().__init__(device)
        self._extent_bytes = identity.extent_bytes
        self._end = limits.SUPERBLOCK_EXTENTS * identity.extent_bytes
        self._blocks: dict[int, bytes] = {}
        payload = encode_record(identity, record)
        sequence = record.incarnation << INCARNATION_SHIFT
        digests = granule_digests(payload)
        head = encode_head(
            Kind.SUPERBLOCK,
            identity.store_id,
            0,
            sequence,
            b"",
            record.number,
            len(payload),
            digests,
        )
        frame = head + payload
        for copy in range(limits.SUPERBLOCK_EXTENTS):
            self._keep(identity.extent_offset(copy), frame.ljust(whole_blocks(len(frame)), b"\0"))

    # --- the protocol of a device

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """See Device."""
        if offset >= self._end:
            return await self._device.read(offset, length)
        kept = min(length, self._end - offset)
        first = offset // _BLOCK * _BLOCK
        blocks = [self._blocks.get(at, bytes(_BLOCK)) for at in range(first, offset + kept, _BLOCK)]
        data = b"".join(blocks)[offset - first : offset - first + kept]
        if kept < length:
            data += bytes(await self._device.read(self._end, length - kept))
        return data

    async def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See Device."""
        if offset >= self._end:
            await self._device.write(offset, buffers)
        else:
            self._keep(offset, b"".join(buffers))

    def write_at_once(self, offset: int, buffers: Sequence[Buffer]) -> bool:
        """See Device."""
        return offset >= self._end and self._device.write_at_once(offset, buffers)

    async def flush(self) -> None:
        """See Device."""
        await self._device.flush()

    async def reset(self, offset: int, length: int) -> None:
        """See Device."""
        if offset >= self._end:
            await self._device.reset(offset, length)
            return
        for at in [each for each in self._blocks if offset <= each < offset + length]:
            del self._blocks[at]

    async def discard(self, offset: int, length: int) -> None:
        """See Device."""
        if offset >= self._end:
            await self._device.discard(offset, length)

    def write_pointer(self, offset: int) -> int | None:
        """See Device."""
        pointer = self._device.write_pointer(offset)
        if pointer is None or offset >= self._end:
            return pointer
        return len(self._copy(offset // self._extent_bytes))

    async def measure(self) -> int:
        """See Device."""
        return await self._device.measure()

    async def set_length(self, size_bytes: int) -> bool:
        """See Device."""
        return await self._device.set_length(size_bytes)

    def close(self) -> None:
        """See Device."""
        self._device.close()

    # --- the switch

    async def switch(self, first: int) -> None:
        """Make the superblock in memory that of the device.

        Requires: the store on it has been closed.

        Args:
            first: the copy of the old one that is worse; it goes first.

        Durable when: returned.

        Raises:
            DeviceError: one of the two superblocks, old or new, is whole.
        """
        await self._device.flush()
        for copy in (first, 1 - first):
            offset = copy * self._extent_bytes
            await self._device.reset(offset, self._extent_bytes)
            await self._device.write(offset, (self._copy(copy),))
            await self._device.flush()

    def _keep(self, offset: int, data: bytes) -> None:
        for at in range(0, len(data), _BLOCK):
            self._blocks[offset + at] = data[at : at + _BLOCK]

    def _copy(self, number: int) -> bytes:
        """A log, from its start to its last block."""
        at, blocks = number * self._extent_bytes, []
        while at in self._blocks and at < (number + 1) * self._extent_bytes:
            blocks.append(self._blocks[at])
            at += _BLOCK
        return b"".join(blocks)


def sealed_record(
    identity: Identity,
    last: Record,
    known: Mapping[int, ExtentEntry],
    frames: Iterable[tuple[int, int, int, int]],
    sequence: int,
    delta: int,
) -> Record:
    """A snapshot of a store without a tree, in which every extent that holds something is sealed.

    Args:
        last: the newest record of the old superblock.
        known: what is known of extents.
        frames: (first byte on the device, first byte behind it, epoch, kind) of every frame found.
        sequence, delta: the highest sequence number, and number of a delta, that were found.
    """
    ends: dict[int, tuple[int, int, int]] = {}
    for at, end, epoch, kind in frames:
        index = at // identity.extent_bytes
        entry = known.get(index)
        if kind == Kind.SUPERBLOCK or (entry is not None and entry.epoch > epoch):
            continue
        pointer = whole_blocks(end - identity.extent_offset(index))
        before = ends.get(index)
        if before is None or epoch > before[0]:
            ends[index] = (epoch, pointer, kind)
        elif epoch == before[0]:
            ends[index] = (epoch, max(pointer, before[1]), min(kind, before[2]))
    highest = max([entry.epoch for entry in known.values()] + [each[0] for each in ends.values()])
    entries = tuple(
        _sealed(index, known.get(index), ends.get(index), highest, identity.extent_bytes)
        for index in range(identity.extent_count)
    )
    incarnation = max(last.incarnation, sequence >> INCARNATION_SHIFT) + 1
    durable = max(delta, last.root.durable_delta, last.root.checkpoint) + 1
    root = Root(None, 0, 0, durable, durable)
    return Record(True, True, last.number + 1, incarnation, root, entries)


def _sealed(
    index: int,
    known: ExtentEntry | None,
    found: tuple[int, int, int] | None,
    highest: int,
    extent_bytes: int,
) -> ExtentEntry:
    if index < limits.SUPERBLOCK_EXTENTS:
        epoch = known.epoch if known is not None else highest
        return ExtentEntry(index, ExtentState.SUPERBLOCK, Stream.NONE, epoch, 0, 0)
    if found is None and (known is None or known.state == ExtentState.FREE):
        epoch = known.epoch if known is not None else highest + 1
        return ExtentEntry(index, ExtentState.FREE, Stream.NONE, epoch, 0, 0)
    epoch, pointer, kind = found or (known.epoch if known is not None else highest, 0, 0)
    stream = Stream.DATA if kind == Kind.DATA else Stream.RUNS
    order = 0
    if known is not None:
        order = known.order
        if known.epoch == epoch:
            pointer = max(pointer, known.write_pointer)
        if known.stream in (Stream.DATA, Stream.SURVIVORS, Stream.HOT):
            stream = Stream(known.stream)
        elif known.stream == Stream.NONE and kind == 0:
            stream = Stream.DATA
    # The old delta log is no log any more: an extent of runs that nothing refers to.
    return ExtentEntry(index, ExtentState.SEALED, stream, epoch, min(pointer, extent_bytes), order)
