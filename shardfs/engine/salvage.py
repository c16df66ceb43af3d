"""Finds frames on a device by looking at every byte, without superblock, tree or extents.

Role: what is left when nothing says any more where things are. A frame explains itself: store,
kind, owner, place within the owner, sequence number, checksums.

Invariants:
    I1. What is found is verified: the head of each frame by its checksum; each granule of a payload
        is called damaged if it does not match.
    I2. Memory is bounded by two reads and one frame; a byte that cannot be read is passed over.
    I3. Nothing is written.

Not here: which of the frames count (fuse/frame_index.py), a damaged superblock (rebuilding.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final, NamedTuple

import trio
import xxhash

from shardfs import limits
from shardfs.engine.device import Device
from shardfs.engine.framing import Frame, decode_head, head_bytes
from shardfs.engine.layout import FRAME_HEADER, FRAME_MAGIC, Bytes
from shardfs.engine.pieces import DIGEST_BYTES, granule_bytes
from shardfs.errors import CorruptionError, DeviceError

_READ_BYTES: Final = 4 * limits.MIB
_FRAME_BYTES_MAX: Final = head_bytes(limits.KEY_BYTES_MAX, limits.CHUNK_BYTES_MAX) + (
    limits.CHUNK_BYTES_MAX
)
_STORE_ID_AT: Final = next(
    offset for offset, _, name, _ in FRAME_HEADER.describe() if name == "store_id"
)


class FoundFrame(NamedTuple):
    """A frame somewhere on the device.

    at: byte of the device where it begins.
    store_id: of the store that it belongs to.
    payload: as it stands on the device.
    damaged: first bytes of the granules of the payload that do not match their checksums.
    """

    at: int
    store_id: int
    frame: Frame
    payload: memoryview
    damaged: tuple[int, ...]


async def scan_device(
    device: Device, show: Callable[[int, int], None] | None = None
) -> AsyncIterator[FoundFrame]:
    """Every frame on the device whose head is whole, in the order of their places.

    Args:
        show: is told how many bytes have been looked at, and of how many.
    """
    at = 0
    window, start = b"", 0
    end = device.size_bytes
    while at < end:
        if at + _FRAME_BYTES_MAX > start + len(window) < end:
            window, start = await _read(device, at, min(_READ_BYTES, end - at)), at
            if show is not None:
                show(at, end)
        await trio.lowlevel.checkpoint()
        found = window.find(FRAME_MAGIC, at - start)
        if found < 0:
            at = max(at, start + len(window) - len(FRAME_MAGIC) + 1)
            at += -at % limits.FRAME_ALIGNMENT_BYTES
            if start + len(window) >= end:
                return
            # Nothing but a beginning may be left of the window: read on from there.
            window, start = await _read(device, at, min(_READ_BYTES, end - at)), at
            continue
        at = start + found
        if at % limits.FRAME_ALIGNMENT_BYTES:
            at += limits.FRAME_ALIGNMENT_BYTES - at % limits.FRAME_ALIGNMENT_BYTES
            continue
        if at + _FRAME_BYTES_MAX > start + len(window) < end:
            continue  # have all of it in sight
        frame = _frame_at(window, at - start)
        if frame is not None:
            yield frame._replace(at=at)
            if not frame.damaged:
                at += frame.frame.total_bytes
                continue
        at += limits.FRAME_ALIGNMENT_BYTES


def _frame_at(window: bytes, offset: int) -> FoundFrame | None:
    try:
        frame = decode_head(window, offset)
    except CorruptionError:
        return None
    store_id = int.from_bytes(window[offset + _STORE_ID_AT : offset + _STORE_ID_AT + 8], "little")
    begin = offset + frame.payload_offset
    payload = memoryview(window)[begin : begin + frame.payload_bytes]
    if len(payload) != frame.payload_bytes:
        return None
    return FoundFrame(0, store_id, frame, payload, damaged_granules(payload, frame.checksums))


def damaged_granules(payload: Bytes, checksums: bytes) -> tuple[int, ...]:
    """First bytes of the granules that do not match their checksums."""
    step = granule_bytes(len(payload))
    view = memoryview(payload)
    return tuple(
        at
        for number, at in enumerate(range(0, len(view), step))
        if xxhash.xxh3_64_digest(view[at : at + step])
        != checksums[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
    )


async def _read(device: Device, at: int, length: int) -> bytes:
    """Bytes of the device; zeros where it cannot be read."""
    try:
        return bytes(await device.read(at, length))
    except DeviceError:
        if length <= limits.BLOCK_BYTES:
            return bytes(length)
    half = max(limits.BLOCK_BYTES, length // 2 // limits.BLOCK_BYTES * limits.BLOCK_BYTES)
    return await _read(device, at, half) + await _read(device, at + half, length - half)
