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

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from shardfs import limits
from shardfs.engine.extent import TailFields
from shardfs.engine.layout import DELTA_HEADER, RIDER, TAIL, Bytes, Stream
from shardfs.engine.lsm.entry import ENTRY_FIXED_BYTES, Block, decode_block, encode_block
from shardfs.engine.pieces import Locator
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


class PartContent(NamedTuple):
    """What one part of a delta will hold; entries in any order."""

    tails: list[TailFields]
    riders: list[Rider | Locator]
    entries: list[tuple[bytes, bytes]]

    @property
    def cost(self) -> int:
        """Of encoding it, as slices count: two tails take about as long as an entry."""
        return len(self.entries) + (len(self.tails) + len(self.riders)) // 2


def cut_parts(
    tails: Sequence[TailFields],
    riders: Sequence[Rider | Locator],
    entries: dict[bytes, bytes],
    payload_bytes_max: int,
) -> Iterator[PartContent]:
    """Cut what a delta holds into parts, one after the other; there is at least one.

    Args:
        riders: or where they lie, which is not named anew for thousands in one slice.
        entries: keys and values, in any order.
        payload_bytes_max: no part becomes longer; most stop at limits.DELTA_PART_BYTES.
    """
    fixed = DELTA_HEADER.size + 64
    wanted = min(payload_bytes_max, limits.DELTA_PART_BYTES) - fixed
    size = len(tails) * TAIL.size + len(riders) * RIDER.size + len(entries) * ENTRY_FIXED_BYTES
    if size <= wanted:  # else there may be tens of thousands, too many to add up in one slice
        size += sum(map(len, entries)) + sum(map(len, entries.values()))
    if size <= wanted:
        yield PartContent(list(tails), list(riders), list(entries.items()))
        return
    content = PartContent([], [], [])
    taken = 0

    def is_full(size: int) -> bool:
        nonlocal taken
        assert size + fixed <= payload_bytes_max, "an entry is larger than a chunk"
        full = taken > 0 and taken + size > wanted
        taken = size if full else taken + size
        return full

    for tail in tails:
        if is_full(TAIL.size):
            yield content
            content = PartContent([], [], [])
        content.tails.append(tail)
    for rider in riders:
        if is_full(RIDER.size):
            yield content
            content = PartContent([], [], [])
        content.riders.append(rider)
    for key, value in entries.items():
        if is_full(len(key) + len(value) + ENTRY_FIXED_BYTES):
            yield content
            content = PartContent([], [], [])
        content.entries.append((key, value))
    yield content


def encode_part(number: int, durable: int, part: int, parts: int, content: PartContent) -> bytes:
    """The payload of one part of a delta.

    Args:
        number: of the delta.
        durable: deltas up to this number were durable when it was made.
        part, parts: which part of how many.
    """
    return b"".join(
        (
            DELTA_HEADER.pack(
                number, part, parts, durable, len(content.tails), len(content.riders)
            ),
            *[TAIL.pack(*tail) for tail in content.tails],
            *[RIDER.pack(at.extent, at.epoch, at.offset, at.sequence) for at in content.riders],
            encode_block(sorted(content.entries)),
        )
    )


def encode_delta(
    number: int,
    durable: int,
    tails: Sequence[TailFields],
    riders: Sequence[Rider | Locator],
    entries: dict[bytes, bytes],
    payload_bytes_max: int,
) -> list[bytes]:
    """The payloads of all parts of a delta, each at most `payload_bytes_max` long."""
    contents = list(cut_parts(tails, riders, entries, payload_bytes_max))
    return [
        encode_part(number, durable, part, len(contents), content)
        for part, content in enumerate(contents)
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
