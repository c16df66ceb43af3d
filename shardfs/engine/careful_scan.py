"""A scan of the tree that goes round what cannot be read of it.

Role: finds the ranges of keys that unreadable blocks hide, and scans what is left. A key in such a
range is not given at all: an older value of it could be a wrong one. A friend of the store.

Invariants:
    I1. Every key outside of the lost ranges is given, with its newest value; none inside is.
    I2. Memory: the ranges that are lost. Blocks are read once, where the cache holds them.

Not here: verifying (fsck.py), opening a store that is incomplete (StoreOptions.tolerant).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass

import trio

from shardfs.engine.pieces import Entry
from shardfs.engine.store import Store
from shardfs.errors import UNREADABLE


@dataclass(frozen=True, order=True)
class LostRange:
    """Keys [start, end) whose entries cannot be read, and why."""

    start: bytes
    end: bytes
    trouble: str

    @classmethod
    def at(cls, key: bytes, error: Exception) -> LostRange:
        """A single key."""
        return cls(key, key + b"\0", str(error))


async def lost_ranges(store: Store, start: bytes, end: bytes) -> list[LostRange]:
    """What cannot be read of the keys [start, end). Checkpoints: every block."""
    lost = []
    for run in store._tree.runs:
        for segment in run.segments[run.segment_number(start) :]:
            if segment.meta.first_key >= end:
                break
            keys = [*segment.index.first_keys[1:], segment.meta.last_key + b"\0"]
            for number in range(segment.block_number(start), segment.block_count):
                first = max(segment.index.first_keys[number], segment.meta.first_key)
                if first >= end:
                    break
                await trio.lowlevel.checkpoint()
                try:
                    await segment.block(number)
                except UNREADABLE as error:
                    lost.append(LostRange(max(first, start), min(keys[number], end), str(error)))
    return sorted(lost)


async def careful_scan(
    store: Store, start: bytes, end: bytes, lost: list[LostRange]
) -> AsyncGenerator[Entry, None]:
    """The entries of [start, end) outside of lost ranges, in key order.

    Args:
        lost: the ranges are added, before the first entry comes.
    """
    found = await lost_ranges(store, start, end)
    lost += found
    for first, stop in _rest(found, start, end):
        async with aclosing(store.scan(first, stop)) as entries:
            async for entry in entries:
                yield entry


async def scan_around(
    store: Store, start: bytes, end: bytes, lost: list[LostRange]
) -> AsyncGenerator[Entry, None]:
    """The same, for those who expect no damage: blocks are looked at only once one is met.

    Args:
        lost: the ranges are added before the first entry behind the first of them comes.
    """
    at = start
    try:
        async with aclosing(store.scan(start, end)) as entries:
            async for entry in entries:
                at = entry[0] + b"\0"
                yield entry
    except UNREADABLE:
        async with aclosing(careful_scan(store, at, end, lost)) as entries:
            async for entry in entries:
                yield entry


def _rest(lost: list[LostRange], start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What is left of [start, end)."""
    at = start
    for each in lost:
        if each.start > at:
            yield at, each.start
        at = max(at, each.end)
    if at < end:
        yield at, end
