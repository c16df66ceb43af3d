"""Deltas: small commits, as the memtable's changes since the last one.

Role: a delta carries the final value of every key that has changed since the delta before it,
how far each extent has been written, how live bytes have changed, and the *riders*: data frames
that were issued together with the delta and not yet flushed. One flush then makes both durable;
after a crash, recovery takes a delta only if its riders are whole. Source of that order-free
commit: Chidambaram et al., "Optimistic Crash Consistency", SOSP 2013, 4.3 (checksums in place
of an ordering flush).

Invariants:
    I1. All parts of a delta count or none does; batches are never split over two deltas.
    I2. Numbers rise by one: a delta counts only if all before it do.

Not here: when to cut a delta (commit.py), taking them back in (recovery.py).
"""

from __future__ import annotations

from typing import NamedTuple

from shardfs.engine.layout import DELTA_HEADER, RIDER, TAIL, Bytes, Stream
from shardfs.engine.lsm.entry import ENTRY_FIXED_BYTES, Block, decode_block, encode_block
from shardfs.errors import CorruptionError

_STREAMS = frozenset(map(int, Stream))


class Tail(NamedTuple):
    """How far an extent has been written, and the change of its live bytes."""

    extent: int
    epoch: int
    write_pointer: int
    stream: int
    live_change: int


class Rider(NamedTuple):
    """A data frame that was not yet flushed when the delta was issued."""

    extent: int
    epoch: int
    offset: int
    sequence: int


class DeltaPart(NamedTuple):
    """One part of a delta, decoded."""

    number: int
    part: int
    parts: int
    durable: int
    tails: tuple[Tail, ...]
    riders: tuple[Rider, ...]
    block: Block


def encode_delta(
    number: int,
    durable: int,
    tails: list[Tail],
    riders: list[Rider],
    entries: list[tuple[bytes, bytes]],
    payload_bytes_max: int,
) -> list[bytes]:
    """The payloads of a delta's parts, each at most `payload_bytes_max` long."""
    groups: list[tuple[list[Tail], list[Rider], list[tuple[bytes, bytes]]]] = [([], [], [])]
    room = fixed = payload_bytes_max - DELTA_HEADER.size - 64

    def take(size: int) -> tuple[list[Tail], list[Rider], list[tuple[bytes, bytes]]]:
        nonlocal room
        if size > room:
            groups.append(([], [], []))
            room = fixed
        assert size <= room, "an entry is larger than a chunk"
        room -= size
        return groups[-1]

    for tail in tails:
        take(TAIL.size)[0].append(tail)
    for rider in riders:
        take(RIDER.size)[1].append(rider)
    for key, value in entries:
        take(len(key) + len(value) + ENTRY_FIXED_BYTES)[2].append((key, value))
    return [
        b"".join(
            (
                DELTA_HEADER.pack(
                    number, part, len(groups), durable, len(part_tails), len(part_riders)
                ),
                *(TAIL.pack(*tail) for tail in part_tails),
                *(RIDER.pack(*rider) for rider in part_riders),
                encode_block(part_entries),
            )
        )
        for part, (part_tails, part_riders, part_entries) in enumerate(groups)
    ]


def decode_delta(data: Bytes) -> DeltaPart:
    """The delta part in `data`.

    Raises:
        CorruptionError: cut short, too long, or with values no delta has.
    """
    number, part, parts, durable, tail_count, rider_count = DELTA_HEADER.unpack(data)
    offset = DELTA_HEADER.size
    if part >= parts:
        raise CorruptionError("a delta's header is impossible", "delta log")
    tails = tuple(map(Tail._make, TAIL.unpack_many(data, offset, tail_count)))
    offset += tail_count * TAIL.size
    riders = tuple(map(Rider._make, RIDER.unpack_many(data, offset, rider_count)))
    offset += rider_count * RIDER.size
    if any(tail.stream not in _STREAMS for tail in tails):
        raise CorruptionError("a delta names an unknown stream", "delta log")
    return DeltaPart(number, part, parts, durable, tails, riders, decode_block(data, offset))
