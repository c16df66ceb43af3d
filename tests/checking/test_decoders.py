"""Every decoder of stored bytes (checking.decoders): a value or a refusal, whatever the bytes.

Inputs are arbitrary bytes, and valid ones with bytes changed, cut, doubled or spliced, or with a
number in them made huge. What a decoder may do is counted, never timed.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardfs.checking.decoders import (
    ENTRIES,
    IDENTITY,
    LOCATOR,
    MANIFEST,
    RECORD,
    Decoder,
    DecoderFinding,
    check,
    decoders,
)
from shardfs.engine.extent import Usage
from shardfs.engine.layout import FORMAT_VERSION, Stream
from shardfs.engine.lsm.delta import Rider, Tail, decode_delta, encode_delta
from shardfs.engine.lsm.entry import decode_block, encode_block
from shardfs.engine.lsm.filter import Filter, hash_of
from shardfs.engine.lsm.manifest import decode_manifest, encode_manifest
from shardfs.engine.pieces import Piece, encode_pieces
from shardfs.engine.superblock_record import Root, decode_record, encode_record
from shardfs.errors import IncompatibleError

MEMORY_FIXED_BYTES = 64 * 1024
MEMORY_FACTOR = 64
"""What a decoder may allocate at once: so much, and this many bytes for each byte of input."""
LINES_FIXED = 500
LINES_FACTOR = 8
"""How many lines of Python it may run: likewise."""

PLACES = 200
"""So many bytes at the start of a valid input are overwritten one after the other."""
LARGE = {
    "entry.decode_block": encode_block([(b"%d" % n, b"\1") for n in range(1000, 9999)]),
    "superblock_record.decode_record": encode_record(
        IDENTITY, RECORD._replace(entries=RECORD.entries * 200)
    ),
    "delta.decode_delta": encode_delta(
        1, 0, [Tail(5, 2, 8192, Stream.DATA, 9)] * 3000, [Rider(5, 2, 0, 1)] * 3000, {}, 1 << 20
    )[0],
    "manifest.decode_manifest": encode_manifest(
        MANIFEST._replace(segments=MANIFEST.segments * 999, usage=MANIFEST.usage * 999)
    ),
    "pieces.decode_pieces": encode_pieces(
        [Piece(2 * n, 1, 0, LOCATOR._replace(length=1, checksums=bytes(8))) for n in range(999)]
    ),
}

each_decoder = pytest.mark.parametrize("name", decoders())


@st.composite
def damaged(draw: st.DrawFn, samples: tuple[bytes, ...]) -> bytes:
    """A valid input after one to four changes."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "set", "number", "cut", "insert", "drop", "splice"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if at < len(data):
                data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]))
            case "number":
                width = draw(st.sampled_from([2, 4, 8]))
                number = draw(st.integers(0, 2 ** (8 * width) - 1))
                data[at : at + width] = number.to_bytes(width, "little")
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=9))
            case "splice":
                other = draw(st.sampled_from(samples))
                data[at:] = other[draw(st.integers(0, len(other))) :]
            case _:
                del data[at : at + draw(st.integers(1, 9))]
    return bytes(data)


# --- every decoder --------------------------------------------------------------------------------


@each_decoder
def test_valid_inputs_decode_and_encode_to_themselves(name: str) -> None:
    decoder = decoders()[name]
    for sample in decoder.samples:
        assert check(name, sample)
        if decoder.encode is not None:
            encoded = decoder.encode(decoder.decode(sample))
            assert encoded == sample[: len(encoded)]


@each_decoder
@settings(max_examples=60)
@given(data=st.binary(max_size=300))
@example(data=b"")
def test_arbitrary_bytes(name: str, data: bytes) -> None:
    check(name, data)


@each_decoder
@settings(max_examples=100)
@given(data=st.data())
def test_damaged_inputs(name: str, data: st.DataObject) -> None:
    check(name, data.draw(damaged(decoders()[name].samples)))


@each_decoder
def test_every_prefix(name: str) -> None:
    for sample in decoders()[name].samples:
        for length in range(min(len(sample), PLACES)):
            check(name, sample[:length])


def _huge_numbers(sample: bytes) -> Iterator[bytes]:
    """The sample with each place near its start made a number that no length is."""
    for width in (2, 4, 8):
        for at in range(min(len(sample), PLACES) - width + 1):
            for last in (b"\xff", b"\x7f"):
                yield sample[:at] + b"\xff" * (width - 1) + last + sample[at + width :]


@each_decoder
def test_a_huge_number_costs_no_memory(name: str) -> None:
    for sample in decoders()[name].samples:
        peak_bytes = _peak_bytes(name, _huge_numbers(sample))
        assert peak_bytes <= MEMORY_FIXED_BYTES + MEMORY_FACTOR * len(sample)


@pytest.mark.parametrize("name", LARGE)
def test_memory_grows_with_the_input_alone(name: str) -> None:
    assert check(name, LARGE[name])
    assert _peak_bytes(name, [LARGE[name]]) <= MEMORY_FACTOR * len(LARGE[name])


def _peak_bytes(name: str, inputs: Iterable[bytes]) -> int:
    """The most that decoding any one of the inputs has held at a time.

    One by one: what an error keeps alive until Python looks for cycles is no matter of its input.
    """
    most = 0
    tracemalloc.start()
    try:
        for data in inputs:
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            check(name, data)
            most = max(most, tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    return most


@each_decoder
def test_a_huge_number_costs_no_work(name: str) -> None:
    for sample in decoders()[name].samples:
        for data in _huge_numbers(sample[:PLACES]):
            assert _lines_run(name, data) <= LINES_FIXED + LINES_FACTOR * len(data)


@each_decoder
@settings(max_examples=30)
@given(data=st.data())
def test_work_grows_with_the_input_alone(name: str, data: st.DataObject) -> None:
    damage = data.draw(damaged(decoders()[name].samples))
    assert _lines_run(name, damage) <= LINES_FIXED + LINES_FACTOR * len(damage)


def _lines_run(name: str, data: bytes) -> int:
    """Lines of Python that decoding runs, as the interpreter tells a tracer."""
    lines = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        check(name, data)
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize(
    ("decoder", "data"),
    [
        (Decoder(int, ()), b"no number"),
        (Decoder(int, (), lambda value: b"1" * value), b"2"),
        (Decoder(lambda data: data[: 1 + len(data)], (), lambda value: value + b"x"), b""),
    ],
)
def test_a_broken_promise_is_a_finding(
    decoder: Decoder, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardfs.checking.decoders.decoders", lambda: {"broken": decoder})
    with pytest.raises(DecoderFinding, match=f"broken on {data.hex() or 'nothing'}"):
        check("broken", data)


# --- one by one -----------------------------------------------------------------------------------


def test_a_superblock_of_another_version_is_incompatible() -> None:
    good = bytearray(encode_record(IDENTITY, RECORD))
    assert good[2:4] == FORMAT_VERSION.to_bytes(2, "little")
    good[2] += 1
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
    identity, record = decode_record(encode_record(IDENTITY, RECORD))
    assert (identity, record) == (IDENTITY, RECORD)
    empty = RECORD._replace(root=Root(), entries=(), snapshot=False, clean=True)
    assert decode_record(encode_record(IDENTITY, empty)) == (IDENTITY, empty)


def test_a_manifest_survives_encoding() -> None:
    manifest = decode_manifest(encode_manifest(MANIFEST))
    assert manifest == MANIFEST
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
    payloads = encode_delta(12, 9, tails, riders, dict(entries), 2048)
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


def test_the_sample_of_a_delta_has_all_it_can_have() -> None:
    part = decode_delta(decoders()["delta.decode_delta"].samples[0])
    assert part.tails and part.riders and len(part.block.keys) == len(ENTRIES)


@given(st.sets(st.binary(min_size=1, max_size=30), max_size=200))
def test_a_filter_never_denies_a_key_that_was_added(keys: set[bytes]) -> None:
    decoded = Filter.decode(Filter.of(keys, len(keys)).encode())
    assert all(decoded.may_contain(hash_of(key)) for key in keys)


def test_a_filter_denies_most_other_keys() -> None:
    one = Filter.of((b"in%d" % n for n in range(5000)), 5000)
    mistaken = sum(one.may_contain(hash_of(b"out%d" % n)) for n in range(5000))
    assert mistaken < 150
