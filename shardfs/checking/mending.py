"""Puts right checksums into damaged bytes, so that what is wrong with the rest is looked at.

Role: a checksum refuses nearly every input that chance makes. A decoder behind one is checked
with inputs whose checksums have been made to fit whatever the other bytes are.

Invariants:
    I1  Only checksums change. Bytes that are valid stay as they are.
    I2  FrameMender: what refers to a frame holds its new digests, and is mended in turn, up to the
        superblock. So a wrong field reaches the code that is behind every checksum.

Not here: which decoders there are (decoders).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

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


class FrameMender:
    """Carries the digests of a changed frame to where they are kept.

    Args:
        image: whole and undamaged.
        frames: (first byte, first byte behind it) of every frame that counts.
    """

    def __init__(self, image: bytes, frames: Sequence[tuple[int, int]]) -> None:
        self._image = image
        self._frames = sorted(frames)
        self._starts = [start for start, _ in self._frames]
        self._places: dict[bytes, list[int]] = {}

    def mend(self, damaged: bytearray, start: int, end: int) -> None:
        """Mend the frame in bytes [start, end) of a damaged copy, and whatever refers to it."""
        mended = mend_frame(bytes(damaged[start:end]))
        damaged[start:end] = mended
        parents: set[tuple[int, int]] = set()
        for before, after in zip(_digests(self._image[start:end]), _digests(mended), strict=False):
            if before == after:
                continue
            for place in self._kept_at(before):
                index = bisect_right(self._starts, place) - 1
                frame = self._frames[index]
                # In its payload: an equal payload has equal digests in its head.
                if index >= 0 and self._payload_at(frame[0]) <= place < frame[1]:
                    damaged[place : place + DIGEST_BYTES] = after
                    parents.add(frame)
        for frame in sorted(parents):
            self.mend(damaged, *frame)

    def _payload_at(self, start: int) -> int:
        header: tuple[int, ...] = FRAME_HEADER.unpack(self._image, start)
        return start + FRAME_HEADER.size + header[3] + granule_count(header[4]) * DIGEST_BYTES

    def _kept_at(self, digest: bytes) -> list[int]:
        """Where the image holds a digest."""
        found = self._places.get(digest)
        if found is None:
            found = self._places[digest] = []
            place = self._image.find(digest)
            while place >= 0:
                found.append(place)
                place = self._image.find(digest, place + 1)
        return found


def _digests(frame: bytes) -> list[bytes]:
    """The digests of a frame's granules, as far as its own lengths and bytes go."""
    key_bytes, payload_bytes = FRAME_HEADER.unpack(frame)[3:5]
    start = FRAME_HEADER.size + key_bytes
    table = frame[start : start + granule_count(payload_bytes) * DIGEST_BYTES]
    whole = len(table) // DIGEST_BYTES * DIGEST_BYTES
    return [table[at : at + DIGEST_BYTES] for at in range(0, whole, DIGEST_BYTES)]


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
