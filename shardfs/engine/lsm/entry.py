"""Entries of the tree, alone and in blocks.

Role: an entry's value is one tag byte and what it announces: nothing (a tombstone), a record's
bytes, or the pieces of a shard. A block is many entries, laid out so that decoding it is a few
calls for the whole block and not a few for each entry.

Invariants:
    I1. Keys in a block rise strictly.
    I2. Decoding any bytes returns or raises CorruptionError.

Not here: chunks and checksums around a block (segment.py).
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from shardfs.engine.layout import BLOCK_HEADER, Bytes, Tag, pack_lengths, unpack_lengths
from shardfs.engine.pieces import Piece, Shard, decode_pieces, encode_pieces
from shardfs.errors import CorruptionError

TOMBSTONE: Final = bytes([Tag.TOMBSTONE])
RECORD: Final = bytes([Tag.RECORD])
"""What the value of a record entry begins with."""
_SHARD: Final = bytes([Tag.SHARD])
ENTRY_FIXED_BYTES: Final = 6
"""What a block holds for each entry besides key and value: their lengths."""


class Block(NamedTuple):
    """Decoded entries in key order; `values` are encoded, tag included."""

    keys: list[bytes]
    values: list[bytes]


def encode_record(record: bytes) -> bytes:
    """The value of a record entry."""
    return RECORD + record


def encode_shard(pieces: tuple[Piece, ...]) -> bytes:
    """The value of a shard entry."""
    return _SHARD + encode_pieces(pieces)


def decode_value(value: bytes, generation: int = 0) -> bytes | Shard | None:
    """A record's bytes, a shard, or None for a tombstone.

    Raises:
        CorruptionError: an unknown tag, or pieces that do not decode.
    """
    tag = value[0] if value else -1
    if tag == Tag.RECORD:
        return value[1:]
    if tag == Tag.SHARD:
        return Shard(decode_pieces(value, 1), generation)
    if value == TOMBSTONE:
        return None
    raise CorruptionError(f"unknown tag {tag} of an entry", "tree")


def block_bytes(count: int, entry_bytes: int) -> int:
    """Bytes of an encoded block of `count` entries whose keys and values add up to the second."""
    return BLOCK_HEADER.size + count * ENTRY_FIXED_BYTES + entry_bytes


def encode_block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """One block of (key, value) pairs in key order."""
    keys = [key for key, _ in entries]
    values = [value for _, value in entries]
    return b"".join(
        (
            BLOCK_HEADER.pack(len(entries)),
            pack_lengths([len(key) for key in keys], "H"),
            pack_lengths([len(value) for value in values], "I"),
            *keys,
            *values,
        )
    )


def decode_block(data: Bytes, offset: int = 0) -> Block:
    """The block that fills `data` from `offset` to its end.

    Raises:
        CorruptionError: cut short, too long, or keys out of order.
    """
    (count,) = BLOCK_HEADER.unpack(data, offset)
    offset += BLOCK_HEADER.size
    key_lengths, offset = unpack_lengths(data, offset, count, "H")
    value_lengths, offset = unpack_lengths(data, offset, count, "I")
    if offset + sum(key_lengths) + sum(value_lengths) != len(data):
        raise CorruptionError("the lengths of a block do not add up", "tree")
    raw = bytes(data)
    ends = list(accumulate(key_lengths, initial=offset))
    keys = [raw[start:end] for start, end in pairwise(ends)]
    ends = list(accumulate(value_lengths, initial=ends[-1]))
    values = [raw[start:end] for start, end in pairwise(ends)]
    if any(left >= right for left, right in pairwise(keys)):
        raise CorruptionError("the keys of a block are out of order", "tree")
    if 0 in value_lengths:
        raise CorruptionError("an entry without a tag", "tree")
    return Block(keys, values)
