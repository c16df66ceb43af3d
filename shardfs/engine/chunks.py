"""The chunk store: bytes in, locator out; locator in, verified bytes out.

Role: puts payloads into frames in the extents of a stream, and reads any part of a payload
back, verified granule by granule against the digests in its locator.

Invariants:
    I1. Sequence numbers are never reused: a locator names one chunk for ever.
    I2. Bytes are returned only if they match the digests that were made when they were put; a
        lost, torn or misdirected write is found, because the digests are kept with the
        reference and not beside the data.
    I3. A reset makes what lay in the extent unreadable at once, also where the device still has
        the bytes: the epoch in a locator must be that of its extent.

Not here: which chunks are referenced (lsm, applying.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shardfs import limits
from shardfs.engine.dependency import PERSISTENT, Dependency
from shardfs.engine.device import Buffer
from shardfs.engine.extents import Extents
from shardfs.engine.framing import (
    concatenate,
    decode_head,
    digests_of,
    encode_head,
    frame_bytes,
    granule_digests,
    head_bytes,
    verify_granules,
)
from shardfs.engine.layout import DAMAGED_EXTENT, FRAME_HEADER, Kind, Stream
from shardfs.engine.pieces import Locator, granule_bytes
from shardfs.errors import CorruptionError


def locator_bytes(locator: Locator) -> int:
    """Bytes that the chunk takes in its extent."""
    return frame_bytes(locator.key_bytes, locator.length)


def payload_offset(locator: Locator) -> int:
    """Where the chunk's payload starts within its extent, bytes."""
    return locator.offset + FRAME_HEADER.size + locator.key_bytes + len(locator.checksums)


class ChunkStore:
    """Chunks of one store.

    Args:
        extents: where frames go.
        sequence: the source of frame sequence numbers.
    """

    def __init__(self, extents: Extents, sequence: Iterator[int]) -> None:
        self._extents = extents
        self._sequence = sequence
        self._store_id = extents.identity.store_id
        self.payload_bytes_max = extents.identity.chunk_bytes_max
        self._head_bytes_max = head_bytes(0, self.payload_bytes_max)

    def put(
        self,
        kind: Kind,
        stream: Stream,
        owner: bytes,
        owner_offset: int,
        payload: Sequence[Buffer],
        before: Dependency = PERSISTENT,
        *,
        floor: int = 0,
    ) -> tuple[Locator, Dependency]:
        """Append one chunk.

        Args:
            kind: what it holds.
            stream: which open extent it goes to.
            owner: key of whatever it belongs to, for salvage and reclamation.
            owner_offset: the payload's place within the owner, bytes.
            payload: gathered; must not change until written.
            before: what must be persistent before the device sees it.
            floor: free extents that must be left.

        Durable when: the returned Dependency is persistent.

        Raises:
            NoSpaceError: no room; nothing was appended.
        """
        length = sum(map(len, payload))
        assert length <= self.payload_bytes_max, "the payload is larger than a chunk"
        total = frame_bytes(len(owner), length)
        extent = self._extents.place(stream, total, before, floor=floor)
        checksums = granule_digests(payload[0]) if len(payload) == 1 else digests_of(payload)
        sequence = next(self._sequence)
        head = encode_head(
            kind, self._store_id, extent.epoch, sequence, owner, owner_offset, length, checksums
        )
        offset, persistent = self._extents.append(extent, head, payload, total, before)
        locator = Locator(
            extent.index, extent.epoch, offset, length, sequence, len(owner), checksums
        )
        return locator, persistent

    def payload_room(self, stream: Stream, key_bytes: int) -> int:
        """Largest payload that still fits into the stream's open extent; may be 0."""
        room = self._extents.room(stream)
        fixed = self._head_bytes_max + key_bytes + limits.FRAME_ALIGNMENT_BYTES
        return min(self.payload_bytes_max, max(0, room - fixed))

    async def get(self, locator: Locator, start: int, length: int) -> bytes | memoryview:
        """Bytes [start, start+length) of the chunk's payload, verified.

        Requires: the range lies inside the payload.
        Checkpoints: only when the device must be asked; one device read.

        Raises:
            DeviceError: the device could not read them.
            CorruptionError: a granule of the range does not match its digest, or the chunk's
                extent has been reset since (I3).
        """
        assert start >= 0 and start + length <= locator.length, "outside the chunk"
        if locator.extent == DAMAGED_EXTENT:
            raise CorruptionError("the data is lost: it was damaged, and fsck has recorded that")
        extent = self._extents.at(locator.extent)
        if extent.epoch != locator.epoch:
            raise CorruptionError("the chunk's extent has been reset since", _where(locator))
        unwritten = self._extents.unwritten(locator.extent, locator.offset)
        if unwritten is not None:
            return memoryview(concatenate(unwritten))[start : start + length]
        if length == 0:
            return b""
        granule = granule_bytes(locator.length)
        first = start // granule
        begin = first * granule
        end = min(locator.length, -(-(start + length) // granule) * granule)
        payload_at = payload_offset(locator)
        data = await self._extents.read(locator.extent, payload_at + begin, end - begin)
        where = _where(locator)
        if len(data) != end - begin:
            raise CorruptionError("the device ends inside the chunk", where)
        verify_granules(data, locator.checksums, first, where)
        if begin == start and end - begin == length:
            return data
        return memoryview(data)[start - begin : start - begin + length]

    async def get_side_by_side(self, locators: Sequence[Locator]) -> list[memoryview]:
        """The payloads of chunks that lie one behind the other in one extent, verified; one device
        read.

        Raises:
            DeviceError: the device could not read them.
            CorruptionError: one of them is not there as it was put (I2, I3), or not yet.
        """
        begin, end = payload_offset(locators[0]), payload_offset(locators[-1]) + locators[-1].length
        extent = self._extents.at(locators[0].extent)
        data = memoryview(await self._extents.read(extent.index, begin, end - begin))
        payloads = []
        for locator in locators:
            where = _where(locator)
            if locator.epoch != extent.epoch:
                raise CorruptionError("the chunk's extent has been reset since", where)
            at = payload_offset(locator) - begin
            payload = data[at : at + locator.length]
            if len(payload) != locator.length:
                raise CorruptionError("the device ends inside the chunk", where)
            verify_granules(payload, locator.checksums, 0, where)
            payloads.append(payload)
        return payloads

    async def is_whole(self, extent: int, epoch: int, offset: int, sequence: int) -> bool:
        """Whether the frame at this place is the one expected, head and payload intact.

        Raises:
            DeviceError: the device could not read it.
        """
        size = head_bytes(limits.KEY_BYTES_MAX, self.payload_bytes_max)
        size = min(size, self._extents.extent_bytes - offset)
        try:
            data = await self._extents.read(extent, offset, size)
            frame = decode_head(data, store_id=self._store_id)
            if frame.epoch != epoch or frame.sequence != sequence:
                return False
            if offset + frame.total_bytes > self._extents.extent_bytes:
                return False
            payload = await self._extents.read(
                extent, offset + frame.payload_offset, frame.payload_bytes
            )
            verify_granules(payload, frame.checksums, 0, "rider")
        except CorruptionError:
            return False
        return True


def _where(locator: Locator) -> str:
    """A chunk's place, for messages."""
    return f"extent {locator.extent} byte {locator.offset} (chunk {locator.sequence})"
