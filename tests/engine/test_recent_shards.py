"""Shards that were decoded a moment ago."""

from __future__ import annotations

import random

import pytest

from shardfs import limits
from shardfs.engine import recent_shards
from shardfs.engine.lsm.entry import TOMBSTONE, decode_value, encode_record, encode_shard
from shardfs.engine.pieces import Locator, Piece
from shardfs.engine.recent_shards import RecentShards
from shardfs.errors import CorruptionError


def shard_value(choose: random.Random, count: int) -> bytes:
    pieces = []
    for number in range(count):
        locator = Locator(3, 1, 4096 * number, 4096, choose.getrandbits(40), 17, bytes(8))
        pieces.append(Piece(4096 * number, 4096, 0, locator))
    return encode_shard(tuple(pieces))


def test_what_is_given_is_what_decoding_gives() -> None:
    """With values that change, generations that rise, and room for few."""
    choose = random.Random(1)
    recent = RecentShards(200_000)
    values = {b"key-%d" % number: shard_value(choose, 20) for number in range(20)}
    for generation in range(2000):
        key = choose.choice(list(values))
        if choose.random() < 0.2:
            values[key] = choose.choice(
                [shard_value(choose, choose.randrange(1, 60)), encode_record(b"x" * 9), TOMBSTONE]
            )
        value = bytes(bytearray(values[key])) if choose.random() < 0.5 else values[key]
        assert recent.shard_or_record(key, value, generation // 3) == decode_value(
            value, generation // 3
        )
        assert 0 <= recent.held_bytes <= 200_000
    with pytest.raises(CorruptionError):
        recent.shard_or_record(b"another", shard_value(choose, 3)[:-1], 0)


def test_a_shard_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = 0

    def counting(value: bytes, generation: int = 0) -> object:
        nonlocal decoded
        decoded += 1
        return decode_value(value, generation)

    monkeypatch.setattr(recent_shards, "decode_value", counting)
    recent = RecentShards(limits.DECODED_BYTES_MAX)
    value = shard_value(random.Random(2), 100)
    for generation in range(50):
        recent.shard_or_record(b"key", value, generation)
    assert decoded == 1
