"""Puts right checksums into damaged bytes, so that what is wrong with the rest is looked at.

Role: a checksum refuses nearly every input that chance makes. A decoder behind one is checked
with inputs whose checksums have been made to fit whatever the other bytes are.

Invariants:
    I1  Only checksums change. Bytes that are valid stay as they are.

Not here: which decoders there are (decoders).
"""

from __future__ import annotations

import xxhash

from shardfs.engine.framing import granule_digests
from shardfs.engine.layout import FRAME_HEADER
from shardfs.engine.pieces import DIGEST_BYTES, granule_count
from shardfs.engine.recording import RECORD_HEAD, RECORDING_HEADER


def mend_frame(data: bytes) -> bytes:
    """The bytes with the checksums that their own lengths ask for."""
    if len(data) < FRAME_HEADER.size:
        return data
    key_bytes, payload_bytes = FRAME_HEADER.unpack(data)[3:5]
    table_at = FRAME_HEADER.size + key_bytes
    payload_at = table_at + granule_count(payload_bytes) * DIGEST_BYTES
    payload = data[payload_at : payload_at + payload_bytes]
    if len(payload) == payload_bytes:
        data = data[:table_at] + granule_digests(payload) + data[payload_at:]
    covered = FRAME_HEADER.size - DIGEST_BYTES
    checksum = xxhash.xxh3_64_intdigest(data[:covered] + data[FRAME_HEADER.size : payload_at])
    return data[:covered] + checksum.to_bytes(DIGEST_BYTES, "little") + data[FRAME_HEADER.size :]


def mend_recording(data: bytes) -> bytes:
    """The bytes with the checksums of the header, and of each record whose length fits."""
    mended = bytearray(data)
    end = RECORDING_HEADER.size
    if len(mended) >= end:
        _mend_at(mended, 0, end, end)
    while end + RECORD_HEAD.size <= len(mended):
        start, body_at = end, end + RECORD_HEAD.size
        end = body_at + RECORD_HEAD.unpack(mended, start)[1]
        if end <= len(mended):
            _mend_at(mended, start, body_at, end)
    return bytes(mended)


def _mend_at(data: bytearray, start: int, head_end: int, end: int) -> None:
    covered = head_end - DIGEST_BYTES
    digest = xxhash.xxh3_64_intdigest(data[start:covered] + data[head_end:end])
    data[covered:head_end] = digest.to_bytes(DIGEST_BYTES, "little")
