"""Frames: a whole one is found, a damaged one never counts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardfs import limits
from shardfs.engine.framing import (
    align,
    concatenate,
    decode_frame,
    decode_head,
    digests_of,
    encode_head,
    frame_bytes,
    granule_digests,
    is_cut_short,
    scan_frames,
    verify_granules,
)
from shardfs.engine.layout import FRAME_MAGIC, Kind
from shardfs.errors import CorruptionError

STORE_ID = 0x1122334455667788
GRANULE = limits.GRANULE_BYTES
WHOLE = limits.WHOLE_PAYLOAD_BYTES_MAX


def frame(
    payload: bytes,
    owner: bytes = b"owner",
    *,
    store_id: int = STORE_ID,
    epoch: int = 3,
    sequence: int = 9,
) -> bytes:
    """One frame as it lies on the device, alignment included."""
    digests = granule_digests(payload)
    head = encode_head(Kind.DATA, store_id, epoch, sequence, owner, 77, len(payload), digests)
    whole = head + payload
    return whole + bytes(align(len(whole)) - len(whole))


@given(
    st.binary(max_size=64),
    st.sampled_from(
        [0, 1, 7, 8, 100, GRANULE, GRANULE + 1, WHOLE - 1, WHOLE, WHOLE + 1, 2 * WHOLE]
    ),
    st.integers(0, 3),
)
def test_a_frame_survives_encoding(owner: bytes, length: int, blocks_before: int) -> None:
    payload = random.Random(length).randbytes(length)
    data = bytes(8 * blocks_before) + frame(payload, owner)
    decoded, found = decode_frame(data, 8 * blocks_before, store_id=STORE_ID)
    assert bytes(found) == payload
    assert (decoded.kind, decoded.epoch, decoded.sequence) == (Kind.DATA, 3, 9)
    assert (decoded.owner, decoded.owner_offset) == (owner, 77)
    assert decoded.total_bytes == frame_bytes(len(owner), length) == len(data) - 8 * blocks_before


@pytest.mark.parametrize("length", [0, 1, 50])
def test_every_flipped_bit_is_found(length: int) -> None:
    whole = bytearray(frame(bytes(range(length)), b"k"))
    covered = decode_head(whole).payload_offset + length
    for at in range(covered):
        for bit in range(8):
            whole[at] ^= 1 << bit
            with pytest.raises(CorruptionError):
                decode_frame(whole, store_id=STORE_ID)
            whole[at] ^= 1 << bit
    decode_frame(whole)


@settings(max_examples=30)
@given(st.data())
def test_a_flip_in_a_large_payload_names_its_granule(data: st.DataObject) -> None:
    payload = bytearray(WHOLE + 3 * GRANULE + 5)
    digests = granule_digests(payload)
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))
    first = data.draw(st.integers(0, at // GRANULE))
    with pytest.raises(CorruptionError, match=f"payload bytes {at // GRANULE * GRANULE} to"):
        verify_granules(payload[first * GRANULE :], digests, first, "here")


def test_a_payload_has_one_digest_or_one_for_each_granule() -> None:
    assert [len(granule_digests(bytes(length))) // 8 for length in (0, 1, WHOLE)] == [0, 1, 1]
    assert len(granule_digests(bytes(WHOLE + 1))) == 8 * (WHOLE // GRANULE + 1)
    payload = bytearray(WHOLE)
    digests = granule_digests(payload)
    payload[-1] = 1
    with pytest.raises(CorruptionError, match="payload bytes 0 to"):
        verify_granules(payload, digests, 0, "here")


def test_every_cut_is_found_and_called_short() -> None:
    whole = frame(b"x" * 100, b"key")
    used = decode_head(whole).payload_offset + 100
    for length in range(used):
        with pytest.raises(CorruptionError):
            decode_frame(whole[:length])
        assert is_cut_short(whole[:length], 0)
    assert not is_cut_short(whole, 0)
    assert not is_cut_short(bytes(limits.BLOCK_BYTES), 0)


def test_frames_of_another_store_do_not_count() -> None:
    with pytest.raises(CorruptionError, match="another store"):
        decode_frame(frame(b"abc"), store_id=STORE_ID + 1)


def test_a_scan_finds_what_is_whole_and_steps_over_the_rest() -> None:
    good = [frame(bytes([number]) * (50 * number), sequence=number) for number in range(1, 6)]
    torn = bytearray(good[2])
    torn[-20] ^= 1
    data = b"".join(
        [
            good[0],
            bytes(24),
            bytes(torn),
            FRAME_MAGIC + bytes(12),
            good[1],
            frame(b"foreign", store_id=5),
            b"1234" + FRAME_MAGIC,  # the magic where no frame may start
            good[3],
            frame(b"earlier epoch", epoch=2, sequence=99),
            good[4],
            good[4][:-30],
        ]
    )
    found = list(scan_frames(data, store_id=STORE_ID, epoch=3))
    assert [each.sequence for _, each, _ in found] == [1, 2, 4, 5]
    for offset, each, payload in found:
        assert bytes(payload) == bytes([each.sequence]) * (50 * each.sequence)
        assert decode_head(data, offset) == each
    assert [each.sequence for _, each, _ in scan_frames(memoryview(data))] == [1, 2, 9, 4, 99, 5]


def test_a_scan_sees_a_frame_inside_a_torn_one() -> None:
    inner = frame(b"inner", sequence=50)
    outer = bytearray(frame(bytes(16) + inner, b"12345678", sequence=51))
    outer[-1] ^= 1
    outer[decode_head(outer).payload_offset] ^= 1
    assert [each.sequence for _, each, _ in scan_frames(outer)] == [50]


@settings(max_examples=50)
@given(st.lists(st.sampled_from([0, 1, 8, GRANULE, GRANULE - 1, WHOLE, WHOLE + 1]), max_size=4))
def test_digests_do_not_depend_on_how_the_payload_is_cut(lengths: list[int]) -> None:
    buffers = [bytes([index + 1]) * length for index, length in enumerate(lengths)]
    whole = b"".join(buffers)
    assert digests_of(buffers) == granule_digests(whole)
    assert bytes(concatenate(buffers)) == whole
