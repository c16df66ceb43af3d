"""What a power cut may leave of the writes that no flush has covered.

Role: a PowerCutPoint is a moment of a simulated device's life: what is durable, and what is
unflushed. It enumerates the states that a cut at that moment may leave, and builds them.

Invariants:
    I1  On a conventional device any subset of the unflushed operations may survive, in any
        order on the way to the medium; each may be torn: any subset of its sectors survives,
        and every sector is wholly old or wholly new.
    I2  In a zone, operations survive in the order they were given: a prefix of them, the last
        torn to a prefix of its blocks. A zone takes whole blocks of 4096 bytes, whatever the
        sector size. Zones are independent of each other.
    I3  Everything a flush covered survives. (Devices that lie about flushes are out of scope.)
    I4  The same point, limit and random generator give the same choices.

Ordering: a moment's unflushed operations are in the order they were submitted; operations in
flight are among them, flushes in flight have not happened.

Not here: the device (simulated_device), and what the engine must make of each state.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

PAGE_BYTES: Final = 4096
ZEROS: Final = bytes(PAGE_BYTES)
KEEP_PROBABILITIES: Final = (0.1, 0.5, 0.9)
TEAR_PROBABILITY: Final = 0.2
LOSE_ONE_UNIT_PROBABILITY: Final = 0.3


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that changes the device.

    Args:
        step: 1 for the first operation of the device's life, flushes included.
        kind: "write", "reset", "discard" or "flush".
        data: what a write or discard leaves in its range, empty for the others.
    """

    step: int
    kind: str
    offset: int
    length: int
    data: bytes


class Survivor(NamedTuple):
    """An unflushed operation that reaches the medium, by its step.

    `units` are the ranges [first, last) of its sectors (blocks in a zone) that do; None: all.
    """

    step: int
    units: tuple[tuple[int, int], ...] | None = None


Choice = tuple[Survivor, ...]
"""What survives one power cut, in the order of steps. Prints as what replays it."""


def store_bytes(pages: dict[int, bytes], offset: int, data: bytes) -> None:
    """Puts `data` at byte `offset` of a page dictionary."""
    position = 0
    while position < len(data):
        number, skip = divmod(offset + position, PAGE_BYTES)
        piece = data[position : position + PAGE_BYTES - skip]
        if len(piece) < PAGE_BYTES:
            old = pages.get(number, ZEROS)
            piece_end = skip + len(piece)
            position += len(piece)
            pages[number] = old[:skip] + piece + old[piece_end:]
        else:
            position += PAGE_BYTES
            pages[number] = piece


def drop_bytes(pages: dict[int, bytes], offset: int, length: int) -> None:
    """Makes whole pages read as zeros."""
    for number in range(offset // PAGE_BYTES, (offset + length) // PAGE_BYTES):
        pages.pop(number, None)


@dataclass(frozen=True, slots=True)
class PowerCutPoint:
    """A moment at which the power may fail.

    Args:
        step: operations submitted so far.
        pages: the durable content by page number; absent pages are zeros.
        pointers: the durable write pointers by zone number; absent ones are 0.
        unflushed: operations that no completed flush covers, in order.
        tear_bytes: the piece that is old or new as a whole.
        zone_bytes: size of a zone, or None.
        size_bytes: of the device, which may change.
    """

    step: int
    pages: Mapping[int, bytes]
    pointers: Mapping[int, int]
    unflushed: tuple[Operation, ...]
    tear_bytes: int
    zone_bytes: int | None
    size_bytes: int

    def everything(self) -> Choice:
        """The choice under which nothing is lost."""
        return tuple(Survivor(each.step) for each in self.unflushed)

    def after(self, choice: Choice) -> tuple[dict[int, bytes], dict[int, int]]:
        """Pages and write pointers after a cut that `choice` survives."""
        pages, pointers = dict(self.pages), dict(self.pointers)
        survivors = {survivor.step: survivor for survivor in choice}
        for operation in self.unflushed:
            survivor = survivors.pop(operation.step, None)
            if survivor is not None:
                self._apply(pages, pointers, operation, survivor.units)
        assert not survivors, f"not unflushed at step {self.step}: {sorted(survivors)}"
        return pages, pointers

    def _apply(
        self,
        pages: dict[int, bytes],
        pointers: dict[int, int],
        operation: Operation,
        units: tuple[tuple[int, int], ...] | None,
    ) -> None:
        if operation.kind == "reset":
            drop_bytes(pages, operation.offset, operation.length)
            pointers[operation.offset // (self.zone_bytes or 1)] = 0
            return
        for first, last in units or ((0, operation.length // self.tear_bytes),):
            start, end = first * self.tear_bytes, last * self.tear_bytes
            store_bytes(pages, operation.offset + start, operation.data[start:end])
            if self.zone_bytes and operation.kind == "write":
                zone, within = divmod(operation.offset, self.zone_bytes)
                assert pointers.get(zone, 0) == within + start, "not a prefix of the zone"
                pointers[zone] = within + end

    def choices(self, limit: int, rng: random.Random) -> Iterator[Choice]:
        """States to try, each once.

        Nothing and everything, each operation torn (of more than limit / 2 operations, that
        many), then all subsets if there are at most `limit`; else random ones up to `limit`.
        """
        seen: set[Choice] = set()
        lanes = self._lanes()
        subset_count = math.prod(len(lane) + 1 for lane in lanes)
        torn = self._torn_choices(lanes, limit, rng)
        whole = _all_subsets(lanes) if subset_count <= limit else iter(())
        for choice in itertools.chain([(), self.everything()], torn, whole):
            if choice not in seen:
                seen.add(choice)
                yield choice
        for _ in range(2 * limit if subset_count > limit else 0):
            if len(seen) >= limit:
                return
            choice = self._random_choice(lanes, rng)
            if choice not in seen:
                seen.add(choice)
                yield choice

    def random_choice(self, rng: random.Random, *, torn: bool = False) -> Choice:
        """One state to try, by chance; with `torn`, part of one operation is in it."""
        lanes = self._lanes()
        if not torn or not lanes:
            return self._random_choice(lanes, rng)
        lane = rng.choice(lanes)
        index = rng.randrange(len(lane))
        lengths = [rng.randint(0, len(each)) if each is not lane else index for each in lanes]
        return _in_order(_prefixes(lanes, lengths), [self._torn(lane[index], rng)])

    def _lanes(self) -> list[list[Operation]]:
        """Operations that survive in order share a lane: a zone's; elsewhere each has its own."""
        lanes: dict[int, list[Operation]] = {}
        for operation in self.unflushed:
            zone_bytes = self.zone_bytes
            lane = operation.offset // zone_bytes if zone_bytes else operation.step
            lanes.setdefault(lane, []).append(operation)
        return list(lanes.values())

    def _torn_choices(
        self, lanes: Sequence[Sequence[Operation]], limit: int, rng: random.Random
    ) -> Iterator[Choice]:
        """One operation torn; the others as on a medium that writes in order, or at random."""
        where = [(lane, index) for lane in lanes for index in range(len(lane))]
        picked = where if len(where) <= limit // 2 else rng.sample(where, limit // 2)
        for lane, index in picked:
            torn = self._torn(lane[index], rng, prefix=True)
            earlier = (Survivor(each.step) for each in self.unflushed if each.step < torn.step)
            yield (*earlier, torn)
            others = [rng.randint(0, len(each)) if each is not lane else index for each in lanes]
            yield _in_order(_prefixes(lanes, others), [self._torn(lane[index], rng)])

    def _random_choice(self, lanes: Sequence[Sequence[Operation]], rng: random.Random) -> Choice:
        keep = rng.choice(KEEP_PROBABILITIES)
        lengths = []
        torn = []
        for lane in lanes:
            if rng.random() < keep:
                length = len(lane) if rng.random() < keep else rng.randint(1, len(lane))
                if rng.random() < TEAR_PROBABILITY:
                    length -= 1
                    torn.append(self._torn(lane[length], rng))
                lengths.append(length)
            else:
                lengths.append(0)
        return _in_order(_prefixes(lanes, lengths), torn)

    def _torn(self, operation: Operation, rng: random.Random, prefix: bool = False) -> Survivor:
        """A part of an operation: a prefix, all but one unit, or up to three ranges of units."""
        units = operation.length // self.tear_bytes
        if operation.kind == "reset" or units < 2:
            return Survivor(operation.step)
        if prefix or self.zone_bytes:
            return Survivor(operation.step, ((0, rng.randrange(1, units)),))
        if rng.random() < LOSE_ONE_UNIT_PROBABILITY:
            lost = rng.randrange(units)
            ranges = ((0, lost), (lost + 1, units))
            return Survivor(operation.step, tuple(each for each in ranges if each[0] < each[1]))
        edges = sorted(rng.sample(range(units + 1), min(2 * rng.randint(1, 3), units // 2 * 2)))
        return Survivor(operation.step, tuple(zip(edges[::2], edges[1::2], strict=True)))


def _all_subsets(lanes: Sequence[Sequence[Operation]]) -> Iterator[Choice]:
    for lengths in itertools.product(*(range(len(lane) + 1) for lane in lanes)):
        yield _in_order(_prefixes(lanes, lengths), [])


def _prefixes(lanes: Sequence[Sequence[Operation]], lengths: Sequence[int]) -> list[Survivor]:
    kept = (lane[:length] for lane, length in zip(lanes, lengths, strict=True))
    return [Survivor(operation.step) for lane in kept for operation in lane]


def _in_order(whole: Sequence[Survivor], torn: Sequence[Survivor]) -> Choice:
    return tuple(sorted((*whole, *torn), key=lambda survivor: survivor.step))
