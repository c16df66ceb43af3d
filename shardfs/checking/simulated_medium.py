"""What a disk in memory holds: as reads return it, and as a power cut may leave it.

Role: the content of a simulated device, and its volatile write cache: pages and write pointers as
they are now, as they are on the medium, and what lies between.

Invariants:
    I1  What is unflushed stays so until a flush that covers it has completed (`flushed`).
    I2  The pages that are on the medium are replaced as a whole, never changed: a PowerCutPoint
        may keep them.
    I3  Randomness is the caller's.

Not here: the protocol, failing, and waiting (simulated_device.py); which states a cut may leave
(power_cuts.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence, Set
from dataclasses import replace

import xxhash

from shardfs.checking.faults import Effect, Fault
from shardfs.checking.power_cuts import (
    PAGE_BYTES,
    ZEROS,
    Choice,
    Operation,
    PowerCutPoint,
    drop_bytes,
    store_bytes,
)

Pages = dict[int, bytes]
Pointers = dict[int, int]


class SimulatedMedium:
    """The content of one device.

    Args:
        size_bytes: as far as it goes.
        sector_bytes: what a power cut leaves whole.
        zoned_bytes: size of each sequential-write zone; None: a conventional device.
    """

    def __init__(self, size_bytes: int, sector_bytes: int, zoned_bytes: int | None) -> None:
        self.size_bytes = size_bytes
        self.sector_bytes = sector_bytes
        self.zoned_bytes = zoned_bytes
        self.pages: Pages = {}
        """As reads return them."""
        self.pointers: Pointers = {}
        """Bytes written in each zone, likewise."""
        self.unflushed: list[Operation] = []
        """What has been submitted and is not on the medium for sure, in that order."""
        self._durable_pages: Pages = {}
        self._durable_pointers: Pointers = {}

    # --- looking

    def read(self, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length)."""
        return _content(self.pages, offset, length)

    def digest(self) -> int:
        """Of everything; the same in every process."""
        whole = xxhash.xxh3_64()
        for number in sorted(self.pages):
            whole.update(number.to_bytes(8, "little"))
            whole.update(self.pages[number])
        return whole.intdigest()

    def point(self, step: int, unflushed: Sequence[Operation] | None = None) -> PowerCutPoint:
        """This moment; `unflushed` in place of what is."""
        return PowerCutPoint(
            step,
            self._durable_pages,
            self._durable_pointers,
            tuple(self.unflushed if unflushed is None else unflushed),
            PAGE_BYTES if self.zoned_bytes else self.sector_bytes,
            self.zoned_bytes,
            self.size_bytes,
        )

    # --- changing

    def apply(self, operation: Operation) -> None:
        """A write, reset or discard has completed: reads see it."""
        if operation.kind == "reset":
            drop_bytes(self.pages, operation.offset, operation.length)
        else:
            store_bytes(self.pages, operation.offset, operation.data)
        if self.zoned_bytes and operation.kind != "discard":
            zone, within = divmod(operation.offset, self.zoned_bytes)
            self.pointers[zone] = 0 if operation.kind == "reset" else within + operation.length

    def leave_ruins(self, operation: Operation, rng: random.Random) -> None:
        """What a failed write leaves: any of its sectors; in a zone, nothing."""
        index = self.unflushed.index(operation)
        if operation.kind != "write" or self.zoned_bytes:
            del self.unflushed[index]
            return
        torn = bytearray(self.read(operation.offset, operation.length))
        for start in range(0, operation.length, self.sector_bytes):
            if rng.random() < 0.5:
                end = start + self.sector_bytes
                torn[start:end] = operation.data[start:end]
        self.unflushed[index] = replace(operation, data=bytes(torn))
        self.apply(self.unflushed[index])

    def go_astray(self, operation: Operation, fault: Fault) -> None:
        """A write that succeeds, and does not leave its bytes at its place."""
        index = self.unflushed.index(operation)
        if fault.effect is Effect.MISDIRECTED:
            elsewhere = (operation.offset + fault.distance) % self.size_bytes
            elsewhere = min(elsewhere, self.size_bytes - operation.length)
            self.unflushed[index] = replace(operation, offset=elsewhere)
        elif self.zoned_bytes:
            # The drive has counted it: the pointer moves, and nothing is there.
            self.unflushed[index] = replace(operation, data=bytes(operation.length))
        else:
            del self.unflushed[index]
            return
        self.apply(self.unflushed[index])

    def flushed(self, covered: Set[int]) -> None:
        """The operations with these numbers are on the medium.

        What another flush has covered meanwhile is not among the unflushed any more.
        """
        done = [each for each in self.unflushed if each.step in covered]
        if done:
            point = self.point(0, done)
            self._durable_pages, self._durable_pointers = point.after(point.everything())
            self.unflushed = [each for each in self.unflushed if each.step not in covered]

    def become(self, point: PowerCutPoint, choice: Choice) -> None:
        """What a power cut at that moment leaves, all of it on the medium."""
        self.pages, self.pointers = point.after(choice)
        self.settle()

    def settle(self) -> None:
        """Everything is on the medium."""
        self._durable_pages, self._durable_pointers = dict(self.pages), dict(self.pointers)
        self.unflushed = []

    def unsettle(self, point: PowerCutPoint) -> None:
        """Everything submitted at that moment is read back, and is as unflushed as it was."""
        self.become(point, point.everything())
        self._durable_pages, self._durable_pointers = dict(point.pages), dict(point.pointers)
        self.unflushed = list(point.unflushed)

    def set_length(self, size_bytes: int) -> None:
        """Make it longer or shorter; durable at once."""
        self.size_bytes = size_bytes
        end = size_bytes // PAGE_BYTES
        self.pages = {at: page for at, page in self.pages.items() if at < end}
        self._durable_pages = {at: page for at, page in self._durable_pages.items() if at < end}
        self.unflushed = [each for each in self.unflushed if each.offset < size_bytes]

    def rot(self, offset: int, length: int) -> None:
        """Flips a bit in every byte of a range, on the medium and in what reads return."""
        for pages in (self.pages, durable := dict(self._durable_pages)):
            old = _content(pages, offset, length)
            store_bytes(pages, offset, bytes(byte ^ 0x10 for byte in old))
        self._durable_pages = durable

    def load(self, image: bytes) -> None:
        """Holds `image`, durably. Requires: it holds nothing."""
        for number in range(len(image) // PAGE_BYTES):
            page = image[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
            if page != ZEROS:
                self.pages[number] = page
        self.settle()


def _content(pages: Pages, offset: int, length: int) -> bytes:
    first, skip = divmod(offset, PAGE_BYTES)
    last = -(-(offset + length) // PAGE_BYTES)
    joined = b"".join(pages.get(number, ZEROS) for number in range(first, last))
    return joined[skip : skip + length]
