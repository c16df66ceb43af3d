"""Devices on which concurrent clients begin: empty, aged, zoned, crowded, small.

Role: builds each shape once, on a plain schedule, so that what merging, reclamation and reads of
blocks need is there from the first step. The content is told in tokens as clients tell it.

Invariants:
    I1. A shape is the same in every process.

Not here: what clients do (concurrent_clients.py).
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from shardfs import limits
from shardfs.checking.conformance.concurrent_clients import (
    FILLER,
    KEYS,
    RECORD_KEYS,
    Pairs,
    part_bytes,
)
from shardfs.checking.schedule import Control, Replay, run_once
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store

EXTENT_BYTES: Final = 64 * limits.KIB
FIRST_TOKEN: Final = 1000
"""Tokens of values that are there from the start; those of operations are lower."""
AGES: Final = 6
_FILLERS = 300
_LARGE_BYTES = 60_000
_FILLER_BYTES = 250
_THIN_EXTENTS = 7
_THIN_BYTES = 5000


@dataclass(frozen=True, slots=True)
class Shape:
    """What a device is like before clients come.

    Args:
        name: for coverage.
        extent_count: of 64 KiB each.
        sector_bytes: 512 or 4096.
        zoned: a zone is an extent.
        aged: how many times entries were written, replaced and checkpointed; 0: an empty store.
        crowded: there are so many keys that a scan takes several pages, and one run more than an
            extent.
        large: values are nearly as large as extents, so each has one of its own.
        thin: extents of data are live in part, clients' values among what is live.
    """

    name: str
    extent_count: int = 32
    sector_bytes: int = 512
    zoned: bool = False
    aged: int = 0
    crowded: bool = False
    large: bool = False
    thin: bool = False


SHAPES: Final = (
    Shape("empty"),
    *(Shape("aged", aged=3 + age) for age in range(AGES)),
    *(Shape("zoned", sector_bytes=4096, zoned=True, aged=3 + age) for age in range(2)),
    Shape("small", extent_count=limits.EXTENT_COUNT_MIN, aged=3),
    Shape("crowded", aged=3, crowded=True),
    Shape("crowded", aged=4, crowded=True),
    Shape("large", extent_count=48, aged=3, large=True),
    Shape("thin", extent_count=44, aged=2, thin=True),
    Shape("thin", extent_count=limits.EXTENT_COUNT_MIN, aged=2, zoned=True, thin=True),
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A device with a closed store.

    Args:
        shape: see Shape.
        device: to be copied (power_cut), never used.
        content: every key and its value in tokens.
        lengths: of each part, by token.
    """

    shape: Shape
    device: SimulatedDevice
    content: Pairs
    lengths: Mapping[int, int]


@functools.cache
def prepared(shape: Shape) -> Prepared:
    """The device of a shape. Requires: no trio run is going on."""
    identity = plan(
        shape.extent_count * EXTENT_BYTES,
        shape.sector_bytes,
        extent_bytes=EXTENT_BYTES,
        store_uuid=uuid.UUID(int=0x5EED),
    )
    zone_bytes = EXTENT_BYTES if shape.zoned else None
    device = SimulatedDevice(identity.device_bytes, shape.sector_bytes, zone_bytes)
    _run(lambda: format_device(device, replace(identity, created_ns=0)))
    ageing = _Ageing(device, shape)
    _run(ageing.run)
    pairs = tuple(sorted(ageing.content.items()))
    return Prepared(shape, device, pairs, MappingProxyType(ageing.lengths))


def _run(work: Callable[[], Awaitable[None]]) -> None:
    async def program(control: Control) -> None:
        await work()

    plain = Replay(())
    plain.begin()
    run = run_once(program, plain)
    assert run.finding is None, f"{run.finding}"


class _Ageing:
    """Writes what a shape starts with, and keeps account of it."""

    def __init__(self, device: SimulatedDevice, shape: Shape) -> None:
        self._device = device
        self._shape = shape
        self.content: dict[bytes, bytes] = {}
        self.lengths: dict[int, int] = {}

    async def run(self) -> None:
        """Live through the store's youth; it is closed when this returns."""
        options = StoreOptions(background=False)
        large = self._shape.large
        async with Store.open(self._device, options=options) as store:
            if self._shape.crowded:
                await self._put(store, *(b"%s %03d" % (FILLER, n) for n in range(_FILLERS)))
                await store.checkpoint()
            for age in range(self._shape.aged):
                await self._put(store, b"k0", length=_LARGE_BYTES if large else 30_000)
                await self._put(store, b"r0", b"r1", length=100)
                await self._put(store, b"k1", length=_LARGE_BYTES if large else 100)
                if not large:
                    await self._put(store, b"s0", length=9000)
                if age % 2:
                    await store.delete(b"r1")
                    del self.content[b"r1"]
                await store.checkpoint()
                if age == self._shape.aged - 4:
                    await store.compact()
            if self._shape.thin:
                await self._thin_out(store)

    async def _thin_out(self, store: Store) -> None:
        """Each extent has a few values that stay, of clients and fillers, and much garbage."""
        for number in range(_THIN_EXTENTS):
            await self._put(store, b"%s %03d" % (FILLER, number), length=_THIN_BYTES)
            key = KEYS[number % len(KEYS)]
            await self._put(store, key, length=100 if key in RECORD_KEYS else 9000)
            for _ in range(3):
                await self._put(store, b"s0", length=15_000)
        await store.checkpoint()
        while await store.reclaim_dead():
            pass

    async def _put(self, store: Store, *keys: bytes, length: int = _FILLER_BYTES) -> None:
        for key in keys:
            token = FIRST_TOKEN + len(self.lengths)
            self.lengths[token] = length
            self.content[key] = b"%d." % token
            await store.put(key, part_bytes(token, length))
