"""Locators, pieces and shards: where the bytes of a key are, as values.

Role: a *locator* says where one chunk lies and what its granules hash to. A *shard* is the
content of one key as sorted, disjoint *pieces*, each taken from one chunk; gaps are holes that
read as zeros. Pure functions cut and join them.

Invariants:
    I1. The pieces of a shard are sorted by start, disjoint, and none is empty.
    I2. A piece lies inside its chunk: skip + length <= locator.length.
    I3. A chunk's locator is stored once in a shard, however many pieces are taken from it.
    I4. Encoding then decoding gives back an equal value; decoding any bytes returns or raises
        CorruptionError.

Not here: reading chunks (chunks.py), and which keys are shards of which file (fuse/files.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from shardfs import limits
from shardfs.engine.layout import DAMAGED_EXTENT, LOCATOR, PIECE, SHARD_HEADER, Bytes
from shardfs.errors import CorruptionError

DIGEST_BYTES = 8
"""Size of one granule's xxh3-64 digest in a locator."""


class Locator(NamedTuple):
    """Where a chunk is: frame position, identity and granule checksums."""

    extent: int
    epoch: int
    offset: int
    length: int
    sequence: int
    key_bytes: int
    checksums: bytes


class Piece(NamedTuple):
    """Shard bytes [start, start+length) are chunk bytes [skip, skip+length)."""

    start: int
    length: int
    skip: int
    locator: Locator

    @property
    def end(self) -> int:
        """First byte behind the piece, within the shard."""
        return self.start + self.length

    @property
    def is_damaged(self) -> bool:
        """The bytes are lost, and that is recorded."""
        return self.locator.extent == DAMAGED_EXTENT

    def part(self, start: int, end: int) -> Piece:
        """The part [start, end) of the piece, within the shard."""
        return Piece(start, end - start, self.skip + start - self.start, self.locator)

    def as_damaged(self) -> Piece:
        """The piece as one whose bytes are lost."""
        return self._replace(locator=self.locator._replace(extent=DAMAGED_EXTENT))


class Shard(NamedTuple):
    """The content of one key: its pieces, and the tree generation it was read at."""

    pieces: tuple[Piece, ...]
    generation: int = 0

    @property
    def length(self) -> int:
        """First byte behind the last piece."""
        return self.pieces[-1].end if self.pieces else 0


Entry = tuple[bytes, bytes | Shard]
"""A key with its record or its shard, as a scan gives them."""


def granule_bytes(length: int) -> int:
    """Length of the granules of a payload of `length` bytes; its last one may be shorter."""
    if length <= limits.WHOLE_PAYLOAD_BYTES_MAX:
        return limits.WHOLE_PAYLOAD_BYTES_MAX
    return limits.GRANULE_BYTES


def granule_count(length: int) -> int:
    """Granules in a payload of `length` bytes."""
    return -(-length // granule_bytes(length))


def encode_locator(locator: Locator) -> bytes:
    """The locator as stored: table LOCATOR, then the granule digests."""
    return LOCATOR.pack(*locator[:6]) + locator.checksums


def decode_locator(data: Bytes, offset: int = 0) -> tuple[Locator, int]:
    """The locator at `offset`, and the offset behind it.

    Raises:
        CorruptionError: cut short, or a length no chunk can have.
    """
    extent, epoch, start, length, sequence, key_bytes = LOCATOR.unpack(data, offset)
    offset += LOCATOR.size
    end = offset + granule_count(length) * DIGEST_BYTES
    if length > limits.CHUNK_BYTES_MAX or end > len(data):
        raise CorruptionError(f"locator of a chunk of {length} bytes is damaged or cut short")
    checksums = bytes(data[offset:end])
    return Locator(extent, epoch, start, length, sequence, key_bytes, checksums), end


def lost_pieces(start: int, end: int) -> tuple[Piece, ...]:
    """Pieces that record the bytes [start, end) of a shard as lost."""
    step = limits.CHUNK_BYTES_MAX
    found = []
    for at in range(start, end, step):
        length = min(step, end - at)
        digests = bytes(granule_count(length) * DIGEST_BYTES)
        found.append(Piece(at, length, 0, Locator(DAMAGED_EXTENT, 0, 0, length, 0, 0, digests)))
    return tuple(found)


def encode_pieces(pieces: Sequence[Piece]) -> bytes:
    """The pieces of a shard as stored: counts, the locator of each chunk once, the pieces."""
    if len(pieces) == 1:  # as most shards have
        start, length, skip, locator = pieces[0]
        piece = PIECE.pack(start, length, skip, 0)
        return b"".join((SHARD_HEADER.pack(1, 1), encode_locator(locator), piece))
    numbers: dict[Locator, int] = {}
    packed = [
        PIECE.pack(start, length, skip, numbers.setdefault(locator, len(numbers)))
        for start, length, skip, locator in pieces
    ]
    chunks = [encode_locator(locator) for locator in numbers]
    return b"".join((SHARD_HEADER.pack(len(packed), len(chunks)), *chunks, *packed))


def encoded_bytes(pieces: Sequence[Piece]) -> int:
    """Length of what `encode_pieces` gives."""
    chunks = {piece.locator[:5:4]: piece.locator for piece in pieces}.values()
    checksums = sum([len(locator.checksums) for locator in chunks])
    return SHARD_HEADER.size + len(pieces) * PIECE.size + len(chunks) * LOCATOR.size + checksums


def decode_pieces(data: Bytes, offset: int = 0) -> tuple[Piece, ...]:
    """The pieces that fill `data` from `offset` to its end.

    Raises:
        CorruptionError: cut short, too long, pieces that break I1 or I2, or chunks that are not
            in the order of their first use.
    """
    count, chunk_count = SHARD_HEADER.unpack(data, offset)
    offset += SHARD_HEADER.size
    chunks = []
    for _ in range(chunk_count):
        locator, offset = decode_locator(data, offset)
        chunks.append(locator)
    if offset + count * PIECE.size != len(data):
        raise CorruptionError(f"{len(data) - offset} bytes for {count} pieces of a shard")
    pieces = []
    covered = used = 0
    for start, length, skip, number in PIECE.unpack_many(data, offset, count):
        used += number == used
        if number >= used or used > chunk_count:
            raise CorruptionError(f"piece at byte {start} of a shard has no chunk of its own")
        locator = chunks[number]
        if length == 0 or start < covered or skip + length > locator.length:
            raise CorruptionError(f"piece at byte {start} of a shard is out of order or range")
        covered = start + length
        pieces.append(Piece(start, length, skip, locator))
    if used != chunk_count:
        raise CorruptionError(f"{chunk_count - used} chunks of a shard have no pieces")
    return tuple(pieces)


def overlapped(pieces: tuple[Piece, ...], start: int, length: int) -> tuple[Piece, ...]:
    """The pieces with bytes in [start, start+length)."""
    first, last = _touching(pieces, start, start + length)
    return pieces[first:last]


def _touching(pieces: tuple[Piece, ...], start: int, end: int) -> tuple[int, int]:
    """The pieces with bytes in [start, end) are those from the one number to before the other."""
    # A tuple of one number is less than every piece that starts there or behind it: no functions
    # written in Python are called for the comparisons.
    first = bisect_left(pieces, (start,))
    if first and pieces[first - 1].end > start:
        first -= 1
    return first, bisect_left(pieces, (end,), first)


def punch(pieces: tuple[Piece, ...], start: int, length: int) -> tuple[Piece, ...]:
    """The pieces with [start, start+length) made a hole."""
    end = start + length
    if not pieces or start >= pieces[-1].end:
        return pieces
    first, last = _touching(pieces, start, end)
    kept = []
    for piece in pieces[first:last]:
        if piece.start < start:
            kept.append(piece._replace(length=start - piece.start))
        if piece.end > end:
            cut = end - piece.start
            kept.append(Piece(end, piece.length - cut, piece.skip + cut, piece.locator))
    return pieces[:first] + tuple(kept) + pieces[last:]


def splice(
    pieces: tuple[Piece, ...], start: int, locator: Locator, length: int
) -> tuple[Piece, ...]:
    """The pieces with [start, start+length) taken from the first bytes of a new chunk."""
    added = Piece(start, length, 0, locator)
    if not pieces or start >= pieces[-1].end:
        return (*pieces, added)
    holed = punch(pieces, start, length)
    at = bisect_left(holed, (start,))
    return (*holed[:at], added, *holed[at:])


def truncate(pieces: tuple[Piece, ...], length: int) -> tuple[Piece, ...]:
    """The pieces cut off at byte `length` of the shard."""
    if not pieces or pieces[-1].end <= length:
        return pieces
    return punch(pieces, length, pieces[-1].end - length)


def locators(pieces: Iterable[Piece]) -> dict[int, Locator]:
    """The distinct chunks that the pieces refer to, by sequence number; lost ones left out."""
    return {
        piece.locator.sequence: piece.locator
        for piece in pieces
        if piece.locator.extent != DAMAGED_EXTENT
    }
