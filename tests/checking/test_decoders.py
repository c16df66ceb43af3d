"""Every decoder of engine bytes: any input gives a value or CorruptionError, and quickly.

Inputs are arbitrary bytes, well-formed ones with bytes changed, cut or doubled, and well-formed
ones with a count or length field set to a huge number.
"""

from __future__ import annotations

import contextlib
import tracemalloc
import uuid
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardfs.engine.extents import Usage
from shardfs.engine.framing import decode_frame, encode_head, granule_digests, scan_frames
from shardfs.engine.layout import Bytes, ExtentState, Kind, Stream
from shardfs.engine.lsm.delta import Rider, Tail, decode_delta, encode_delta
from shardfs.engine.lsm.entry import (
    decode_block,
    decode_value,
    encode_block,
    encode_record,
    encode_shard,
)
from shardfs.engine.lsm.filter import Filter
from shardfs.engine.lsm.manifest import Manifest, decode_manifest, encode_manifest
from shardfs.engine.lsm.segment import SegmentMeta, decode_index, encode_index
from shardfs.engine.mkfs import plan
from shardfs.engine.pieces import (
    Locator,
    Piece,
    decode_locator,
    decode_pieces,
    encode_locator,
    encode_pieces,
)
from shardfs.engine.superblock import ExtentEntry, Record, Root, decode_record
from shardfs.engine.superblock import encode_record as encode_superblock_record
from shardfs.errors import CorruptionError, IncompatibleError

LOCATOR = Locator(5, 2, 4096, 40_000, 1 << 41, 9, bytes(range(16)))
PIECES = (Piece(0, 100, 4, LOCATOR), Piece(200, 39_000, 1000, LOCATOR))
ENTRIES = [
    (b"a", encode_record(b"")),
    (b"ab", encode_record(b"value")),
    (b"b", b"\0"),
    (b"c" * 40, encode_shard(PIECES)),
]
IDENTITY = plan(64 << 20, 512, label="bücher", store_uuid=uuid.UUID(int=3))
RECORD = Record(
    True,
    False,
    7,
    2,
    Root(LOCATOR, 4, 8192, 3, 5),
    tuple(ExtentEntry(n, ExtentState.OPEN, Stream.DATA, 1, 4096, n) for n in range(24)),
)


class Decoder(NamedTuple):
    """A decoder, one good input, and what it may raise besides CorruptionError."""

    decode: Callable[[bytes], object]
    good: bytes
    may_raise: type[Exception] = CorruptionError


def _frame() -> bytes:
    payload = bytes(range(100))
    digests = granule_digests(payload)
    return encode_head(Kind.DELTA, 1, 2, 3, b"owner", 0, len(payload), digests) + payload


def _scan(data: Bytes) -> object:
    return list(scan_frames(data))


DECODERS = {
    "frame": Decoder(decode_frame, _frame()),
    "scan": Decoder(_scan, _frame() * 2),
    "locator": Decoder(decode_locator, encode_locator(LOCATOR)),
    "pieces": Decoder(decode_pieces, encode_pieces(PIECES)),
    "value": Decoder(decode_value, encode_shard(PIECES)),
    "block": Decoder(decode_block, encode_block(ENTRIES)),
    "filter": Decoder(Filter.decode, Filter.of([b"a", b"b"], 2).encode()),
    "index": Decoder(
        decode_index,
        encode_index(
            4, 30, [(b"a", LOCATOR), (b"k", LOCATOR)], Filter.of([b"a", b"k"], 2).encode()
        ),
    ),
    "manifest": Decoder(
        decode_manifest,
        encode_manifest(
            Manifest(
                9,
                (SegmentMeta(1, 0, 30, 9999, b"a", b"z", LOCATOR),),
                (Usage(5, 2, 50_000), Usage(6, 1, 3)),
            )
        ),
    ),
    "delta": Decoder(
        decode_delta,
        encode_delta(
            8, 7, [Tail(5, 2, 8192, Stream.DATA, -40)], [Rider(5, 2, 0, 77)], ENTRIES, 65536
        )[0],
    ),
    "superblock": Decoder(
        decode_record, encode_superblock_record(IDENTITY, RECORD), IncompatibleError
    ),
}

each_decoder = pytest.mark.parametrize("name", DECODERS)


def attempt(name: str, data: bytes) -> None:
    """Decode; anything but the allowed exceptions fails the test."""
    decoder = DECODERS[name]
    with contextlib.suppress(CorruptionError, decoder.may_raise):
        decoder.decode(data)


@each_decoder
def test_the_good_input_decodes(name: str) -> None:
    DECODERS[name].decode(DECODERS[name].good)
    DECODERS[name].decode(bytes(bytearray(DECODERS[name].good)))


@each_decoder
@settings(max_examples=150)
@given(data=st.binary(max_size=300))
@example(data=b"")
def test_arbitrary_bytes(name: str, data: bytes) -> None:
    attempt(name, data)


@each_decoder
@settings(max_examples=150)
@given(data=st.data())
def test_mutated_bytes(name: str, data: st.DataObject) -> None:
    mutated = bytearray(DECODERS[name].good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated)))
        change = data.draw(st.sampled_from(["set", "cut", "insert", "drop"]))
        if change == "set" and at < len(mutated):
            mutated[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]))
        elif change == "cut":
            del mutated[at:]
        elif change == "insert":
            mutated[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        else:
            del mutated[at : at + data.draw(st.integers(1, 9))]
    attempt(name, bytes(mutated))


@each_decoder
def test_every_prefix_is_refused_or_decodes(name: str) -> None:
    good = DECODERS[name].good
    for length in range(len(good)):
        attempt(name, good[:length])


@each_decoder
def test_a_huge_count_costs_neither_memory_nor_time(name: str) -> None:
    good = DECODERS[name].good
    tracemalloc.start()
    try:
        for width in (2, 4, 8):
            for at in range(len(good) - width):
                for value in (b"\xff", b"\x7f"):
                    fill = b"\xff" * (width - 1) + value
                    attempt(name, good[:at] + fill + good[at + width :])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 << 20


def test_a_superblock_of_another_version_is_incompatible() -> None:
    good = bytearray(DECODERS["superblock"].good)
    assert good[2:4] == b"\x01\x00"
    good[2] = 2
    with pytest.raises(IncompatibleError):
        decode_record(good)


@given(
    st.lists(
        st.tuples(st.binary(min_size=1, max_size=20), st.binary(min_size=1, max_size=30)),
        unique_by=lambda pair: pair[0],
        max_size=40,
    )
)
def test_a_block_survives_encoding(entries: list[tuple[bytes, bytes]]) -> None:
    entries.sort()
    block = decode_block(encode_block(entries))
    assert list(zip(block.keys, block.values, strict=True)) == entries


def test_a_superblock_record_survives_encoding() -> None:
    identity, record = decode_record(encode_superblock_record(IDENTITY, RECORD))
    assert (identity, record) == (IDENTITY, RECORD)
    empty = RECORD._replace(root=Root(), entries=(), snapshot=False, clean=True)
    assert decode_record(encode_superblock_record(IDENTITY, empty)) == (IDENTITY, empty)


def test_a_manifest_survives_encoding() -> None:
    manifest = decode_manifest(DECODERS["manifest"].good)
    assert encode_manifest(manifest) == DECODERS["manifest"].good
    assert manifest.segments[0].index_locator == LOCATOR
    assert manifest.usage[1] == Usage(6, 1, 3)


@settings(max_examples=40)
@given(
    st.integers(0, 60),
    st.integers(0, 200),
    st.lists(st.integers(1, 1500), max_size=60),
)
def test_a_delta_of_many_parts_survives_encoding(
    tail_count: int, rider_count: int, sizes: list[int]
) -> None:
    tails = [Tail(n, 1, n * 4096, Stream.DATA, -n) for n in range(tail_count)]
    riders = [Rider(n, 1, n, n + 5) for n in range(rider_count)]
    entries = [(b"key%05d" % n, bytes([1]) * size) for n, size in enumerate(sizes)]
    payloads = encode_delta(12, 9, tails, riders, entries, 2048)
    assert all(len(payload) <= 2048 for payload in payloads)
    parts = [decode_delta(payload) for payload in payloads]
    assert [part.part for part in parts] == list(range(len(payloads)))
    assert {(part.number, part.durable, part.parts) for part in parts} == {(12, 9, len(payloads))}
    assert [tail for part in parts for tail in part.tails] == tails
    assert [rider for part in parts for rider in part.riders] == riders
    taken = [
        pair for part in parts for pair in zip(part.block.keys, part.block.values, strict=True)
    ]
    assert taken == entries


@given(st.sets(st.binary(min_size=1, max_size=30), max_size=200))
def test_a_filter_never_denies_a_key_that_was_added(keys: set[bytes]) -> None:
    decoded = Filter.decode(Filter.of(keys, len(keys)).encode())
    assert all(decoded.may_contain(key) for key in keys)


def test_a_filter_denies_most_other_keys() -> None:
    one = Filter.of((b"in%d" % n for n in range(5000)), 5000)
    mistaken = sum(one.may_contain(b"out%d" % n) for n in range(5000))
    assert mistaken < 150
