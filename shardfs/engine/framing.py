"""One frame as bytes: header, owner key, checksum table, payload.

Role: a frame explains itself. Its header names the store, the extent's epoch, a sequence
number that is never reused, the owner and the payload's place in it. The payload is covered by
one xxh3-64 digest for each granule (pieces.granule_bytes), so that a part of a large chunk can be
read and verified; the table of digests is covered by the header's own checksum.

Invariants:
    I1. A frame is taken for valid only if magic, lengths, store, epoch and both levels of
        checksums agree: a frame from before a reset (epoch), from another store (store id) or
        with any torn sector is never valid. This closes the class of ShardStore's issue 10.
    I2. Frames start at multiples of 8 bytes; the bytes between frames are zero.
    I3. Decoding any bytes returns or raises CorruptionError.

Not here: where frames go (extents.py), and what payloads mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import xxhash

from shardfs import limits
from shardfs.engine.layout import FRAME_HEADER, FRAME_MAGIC, Bytes, Kind
from shardfs.engine.pieces import DIGEST_BYTES, granule_count
from shardfs.errors import CorruptionError

_CHECKSUM_BYTES = 8
_COVERED_HEADER_BYTES = FRAME_HEADER.size - _CHECKSUM_BYTES
_KINDS = {int(kind): kind for kind in Kind}


class Frame(NamedTuple):
    """The head of a frame, decoded; the payload lies at [payload_offset, +payload_bytes)."""

    kind: Kind
    epoch: int
    sequence: int
    owner: bytes
    owner_offset: int
    payload_offset: int
    payload_bytes: int
    checksums: bytes
    store_id: int

    @property
    def total_bytes(self) -> int:
        """Bytes from the frame's start to where the next frame may start."""
        return align(self.payload_offset + self.payload_bytes)


def align(length: int) -> int:
    """`length` rounded up to where the next frame may start."""
    return -(-length // limits.FRAME_ALIGNMENT_BYTES) * limits.FRAME_ALIGNMENT_BYTES


def head_bytes(key_bytes: int, payload_bytes: int) -> int:
    """Bytes of header, key and checksum table."""
    return FRAME_HEADER.size + key_bytes + granule_count(payload_bytes) * DIGEST_BYTES


def frame_bytes(key_bytes: int, payload_bytes: int) -> int:
    """Bytes that a frame takes in its extent, alignment included."""
    if 0 < payload_bytes <= limits.WHOLE_PAYLOAD_BYTES_MAX:  # one granule, and no further calls
        length = FRAME_HEADER.size + key_bytes + DIGEST_BYTES + payload_bytes
        return -(-length // limits.FRAME_ALIGNMENT_BYTES) * limits.FRAME_ALIGNMENT_BYTES
    return align(head_bytes(key_bytes, payload_bytes) + payload_bytes)


def granule_digests(payload: Bytes) -> bytes:
    """The checksum table of a payload: one 8-byte digest for each granule."""
    if len(payload) <= limits.WHOLE_PAYLOAD_BYTES_MAX:
        return xxhash.xxh3_64_digest(payload) if payload else b""
    return digests_by(payload, limits.GRANULE_BYTES)


def digests_by(data: Bytes, step: int) -> bytes:
    """One digest for each `step` bytes; the last ones may be fewer."""
    view = memoryview(data)
    digest = xxhash.xxh3_64_digest
    return b"".join([digest(view[at : at + step]) for at in range(0, len(view), step)])


def encode_head(
    kind: Kind,
    store_id: int,
    epoch: int,
    sequence: int,
    owner: bytes,
    owner_offset: int,
    payload_bytes: int,
    checksums: bytes,
) -> bytes:
    """Everything of a frame that comes before its payload."""
    covered = FRAME_HEADER.pack(
        FRAME_MAGIC,
        kind,
        0,
        len(owner),
        payload_bytes,
        epoch,
        store_id,
        sequence,
        owner_offset,
        0,
    )[:_COVERED_HEADER_BYTES]
    tail = owner + checksums
    checksum = xxhash.xxh3_64_intdigest(covered + tail)
    return covered + checksum.to_bytes(_CHECKSUM_BYTES, "little") + tail


def decode_head(data: Bytes, offset: int = 0, *, store_id: int | None = None) -> Frame:
    """The head of the frame at `offset`; the payload itself is not looked at.

    Args:
        store_id: the store the frame must belong to; None takes any.

    Raises:
        CorruptionError: no whole, valid head is there.
    """
    header = FRAME_HEADER.unpack(data, offset)
    magic, kind, flags, key_bytes, payload_bytes, epoch, owner_store, sequence, at, checksum = (
        header
    )
    if magic != FRAME_MAGIC or kind not in _KINDS or flags != 0:
        raise CorruptionError("no frame starts here", f"byte {offset}")
    if store_id is not None and owner_store != store_id:
        raise CorruptionError("the frame belongs to another store", f"byte {offset}")
    if payload_bytes > limits.CHUNK_BYTES_MAX or key_bytes > limits.KEY_BYTES_MAX:
        raise CorruptionError("the frame's lengths are impossible", f"byte {offset}")
    key_at = offset + FRAME_HEADER.size
    table_at = key_at + key_bytes
    payload_at = table_at + granule_count(payload_bytes) * DIGEST_BYTES
    if payload_at > len(data):
        raise CorruptionError("the frame's head is cut short", f"byte {offset}")
    covered = b"".join((data[offset : offset + _COVERED_HEADER_BYTES], data[key_at:payload_at]))
    if xxhash.xxh3_64_intdigest(covered) != checksum:
        raise CorruptionError("the frame's head does not match its checksum", f"byte {offset}")
    return Frame(
        _KINDS[kind],
        epoch,
        sequence,
        bytes(data[key_at:table_at]),
        at,
        payload_at - offset,
        payload_bytes,
        bytes(data[table_at:payload_at]),
        owner_store,
    )


def verify_granules(payload: Bytes, checksums: bytes, first_granule: int, where: str) -> None:
    """Check whole granules against their digests.

    Args:
        payload: bytes of the granules; only the chunk's last granule may be short.
        checksums: the chunk's whole table.
        first_granule: number of the granule that `payload` starts with.

    Raises:
        CorruptionError: a granule does not match; the message names its bytes.
    """
    # A payload of one granule has a table of one digest, and no other has (granule_bytes).
    is_whole = len(checksums) <= DIGEST_BYTES
    granule = limits.WHOLE_PAYLOAD_BYTES_MAX if is_whole else limits.GRANULE_BYTES
    digests = digests_by(payload, granule)
    start = first_granule * DIGEST_BYTES
    if checksums[start : start + len(digests)] == digests:
        return
    for index in range(0, len(digests), DIGEST_BYTES):
        expected = checksums[start + index : start + index + DIGEST_BYTES]
        if digests[index : index + DIGEST_BYTES] != expected:
            byte = (first_granule + index // DIGEST_BYTES) * granule
            raise CorruptionError(
                f"payload bytes {byte} to {byte + granule - 1} do not match their checksum",
                where,
            )


def decode_frame(
    data: Bytes, offset: int = 0, *, store_id: int | None = None
) -> tuple[Frame, memoryview]:
    """The frame at `offset` with its payload, both verified.

    Raises:
        CorruptionError: head or payload is damaged or cut short.
    """
    frame = decode_head(data, offset, store_id=store_id)
    start = offset + frame.payload_offset
    payload = memoryview(data)[start : start + frame.payload_bytes]
    if len(payload) != frame.payload_bytes:
        raise CorruptionError("the frame's payload is cut short", f"byte {offset}")
    verify_granules(payload, frame.checksums, 0, f"frame at byte {offset}")
    return frame, payload


def is_cut_short(data: Bytes, offset: int) -> bool:
    """Whether what starts at `offset` could become a frame if `data` went on."""
    available = len(data) - offset
    try:
        frame = decode_head(data, offset)
    except CorruptionError:
        return available < limits.BLOCK_BYTES
    return frame.payload_offset + frame.payload_bytes > available


def scan_frames(
    data: Bytes, *, store_id: int | None = None, epoch: int | None = None
) -> Iterator[tuple[int, Frame, memoryview]]:
    """Every whole, valid frame in `data` as (offset, frame, payload), resynchronising.

    After a valid frame the next is looked for right behind it; where none is valid, the search
    goes on at the next place where a frame may start and the magic bytes stand.
    """
    view = memoryview(data)
    raw = bytes(data) if isinstance(data, memoryview) else data
    offset = 0
    while True:
        offset = raw.find(FRAME_MAGIC, offset)
        if offset < 0:
            return
        if offset % limits.FRAME_ALIGNMENT_BYTES == 0:
            try:
                frame, payload = decode_frame(view, offset, store_id=store_id)
            except CorruptionError:
                offset += 1
                continue
            if epoch is None or frame.epoch == epoch:
                yield offset, frame, payload
                offset += frame.total_bytes
                continue
        offset += 1


def concatenate(buffers: Sequence[Bytes]) -> Bytes:
    """One buffer with the bytes of all; the buffer itself when there is only one."""
    return buffers[0] if len(buffers) == 1 else b"".join(buffers)


def digests_of(buffers: Sequence[Bytes]) -> bytes:
    """The checksum table of a payload given as pieces; only granules that lie in more than one of
    them are copied."""
    if len(buffers) == 1:
        return granule_digests(buffers[0])
    if sum(map(len, buffers)) <= limits.WHOLE_PAYLOAD_BYTES_MAX:
        return granule_digests(b"".join(buffers))
    step = limits.GRANULE_BYTES
    tables = []
    begun: list[memoryview] = []
    missing = 0
    for buffer in buffers:
        view = memoryview(buffer)
        if begun:
            begun.append(view[:missing])
            view = view[missing:]
            missing -= len(begun[-1])
            if missing:
                continue
            tables.append(digests_by(b"".join(begun), step))
        whole = len(view) - len(view) % step
        if whole:
            tables.append(digests_by(view[:whole], step))
        begun = [view[whole:]] if whole < len(view) else []
        missing = step - (len(view) - whole)
    if begun:
        tables.append(digests_by(b"".join(begun), step))
    return b"".join(tables)
