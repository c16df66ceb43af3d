"""Pieces against a plain bytearray: cutting and joining shards loses and invents nothing."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardfs import limits
from shardfs.engine.pieces import (
    Locator,
    Piece,
    Shard,
    decode_locator,
    decode_pieces,
    encode_locator,
    encode_pieces,
    granule_count,
    locators,
    punch,
    splice,
    truncate,
)
from shardfs.errors import CorruptionError

SHARD_BYTES = 64


def locator(sequence: int, length: int) -> Locator:
    checksums = bytes([sequence % 251]) * (8 * granule_count(length))
    return Locator(2, 1, 0, length, sequence, 3, checksums)


def content_of(pieces: Iterable[Piece], chunks: dict[int, bytes]) -> bytes:
    """The shard as a reader sees it."""
    content = bytearray()
    for piece in pieces:
        content += bytes(piece.start - len(content))
        content += chunks[piece.locator.sequence][piece.skip : piece.skip + piece.length]
    return bytes(content)


def check_invariants(pieces: tuple[Piece, ...]) -> None:
    covered = 0
    for piece in pieces:
        assert piece.length > 0
        assert piece.start >= covered
        assert piece.skip >= 0 and piece.skip + piece.length <= piece.locator.length
        covered = piece.end


steps = st.lists(
    st.tuples(
        st.sampled_from(["splice", "punch", "truncate"]),
        st.integers(0, SHARD_BYTES),
        st.integers(1, SHARD_BYTES),
    ),
    max_size=30,
)


@given(steps)
def test_pieces_behave_as_a_bytearray(changes: list[tuple[str, int, int]]) -> None:
    pieces: tuple[Piece, ...] = ()
    chunks: dict[int, bytes] = {}
    model = bytearray(3 * SHARD_BYTES)
    for number, (change, start, length) in enumerate(changes, 1):
        if change == "splice":
            chunks[number] = bytes((number * 7 + at) % 255 + 1 for at in range(length))
            pieces = splice(pieces, start, locator(number, length), length)
            model[start : start + length] = chunks[number]
        elif change == "punch":
            pieces = punch(pieces, start, length)
            model[start : start + length] = bytes(length)
        else:
            pieces = truncate(pieces, start)
            model[start:] = bytes(len(model) - start)
        check_invariants(pieces)
        content = content_of(pieces, chunks)
        assert content == bytes(model[: len(content)])
        assert not any(model[len(content) :])
        assert Shard(pieces).length == len(content)
        assert set(locators(pieces)) <= set(chunks)
    assert decode_pieces(encode_pieces(pieces)) == pieces


@pytest.mark.parametrize(
    "length",
    [
        0,
        1,
        limits.WHOLE_PAYLOAD_BYTES_MAX,
        limits.WHOLE_PAYLOAD_BYTES_MAX + 1,
        limits.CHUNK_BYTES_MAX,
    ],
)
def test_a_locator_survives_encoding(length: int) -> None:
    one = locator(7, length)
    data = encode_locator(one)
    assert decode_locator(b"xx" + data + b"yy", 2) == (one, 2 + len(data))
    assert len(one.checksums) == 8 * granule_count(length)


def test_a_locator_longer_than_any_chunk_is_refused() -> None:
    data = encode_locator(Locator(0, 0, 0, limits.CHUNK_BYTES_MAX + 1, 0, 0, bytes(8 * 33)))
    with pytest.raises(CorruptionError):
        decode_locator(data)


@pytest.mark.parametrize(
    "pieces",
    [
        (Piece(0, 0, 0, locator(1, 8)),),
        (Piece(0, 8, 1, locator(1, 8)),),
        (Piece(4, 4, 0, locator(1, 8)), Piece(0, 4, 0, locator(2, 8))),
        (Piece(0, 4, 0, locator(1, 8)), Piece(3, 4, 0, locator(2, 8))),
    ],
    ids=["empty", "beyond its chunk", "unsorted", "overlapping"],
)
def test_pieces_that_break_an_invariant_are_refused(pieces: tuple[Piece, ...]) -> None:
    with pytest.raises(CorruptionError):
        decode_pieces(encode_pieces(pieces))
