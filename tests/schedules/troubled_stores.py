"""Programs as in stores.py, on devices that fail, are full, or are zoned."""

from __future__ import annotations

import contextlib
import functools
import uuid
from dataclasses import replace

import trio
import trio.testing

from shardfs.checking.schedule import Control
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.health import HealthState
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.errors import NoSpaceError, ShardfsError
from tests.schedules.stores import (
    KEYS,
    KIB,
    MANUAL,
    Clients,
    content,
    empty_device,
    opened,
    value_of,
)

BACKGROUND = StoreOptions(commit_interval_s=0.5)


@functools.cache
def _formatted(extents: int, zoned: bool) -> SimulatedDevice:
    identity = plan(extents * 64 * KIB, 4096, extent_bytes=64 * KIB, store_uuid=uuid.UUID(int=7))
    device = SimulatedDevice(identity.device_bytes, 4096, 64 * KIB if zoned else None)
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(format_device, device, replace(identity, created_ns=0), clock=clock)
    return device


SMALL = _formatted(24, False)
ZONED = _formatted(32, True)


async def the_device_fails(
    control: Control, kind: str, options: StoreOptions = MANUAL
) -> HealthState:
    """One request fails; every caller gets the store's own errors or what it asked for, nobody
    hangs, and a sync that returned has told the truth."""
    device = empty_device()
    work = None
    device.fail(kind, skip=4 + control.draw(24))
    with contextlib.suppress(ShardfsError):
        async with opened(device, options) as store:
            work = Clients(control, store, device)
            await _use(control, work)
            state = store.health.state
    if work is None:
        return HealthState.FAILED
    await work.check_cut()
    return state


async def _use(control: Control, work: Clients) -> None:
    store = work.store

    async def client(number: int) -> None:
        for call in range(4):
            with contextlib.suppress(ShardfsError):
                await work.act(4 * number + call)

    async def upkeep() -> None:
        for _ in range(3):
            with contextlib.suppress(ShardfsError):
                match control.draw(4):
                    case 0:
                        await store.checkpoint()
                    case 1:
                        await store.reclaim()
                    case 2:
                        await store.compact()
                    case _:
                        await work.sync()

    async def sync() -> None:
        with contextlib.suppress(ShardfsError):
            await work.sync()

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(client, number)
        nursery.start_soon(upkeep)
        nursery.start_soon(upkeep)
        nursery.start_soon(sync)


async def clients_on_zones(control: Control) -> None:
    """The device refuses whatever is not at a zone's write pointer."""
    device = ZONED.power_cut()
    async with opened(device) as store:
        work = Clients(control, store, device)
        for number in range(1000, 1008):
            await work.put(KEYS[number % 2], number, large=True)
            if number % 2:
                await store.checkpoint()
        await _use(control, work)
        await work.finish()
        found = await content(store)
    async with opened(device) as store:
        assert await content(store) == found
    await work.check_cut()


async def the_device_is_full(control: Control, options: StoreOptions = MANUAL) -> int:
    """Several callers fill the device; each gets NoSpaceError at a put and nowhere else; when all
    is deleted, there is room again."""
    device = SMALL.power_cut()
    refused = 0
    async with opened(device, options) as store:

        async def fill(name: int) -> None:
            nonlocal refused
            for number in range(20):
                key = b"%d-%d" % (name, control.draw(12))
                try:
                    await store.put(key, value_of(number + 1, large=True))
                except NoSpaceError:
                    refused += 1
                    await store.delete(key)
                if number % 4 == 0:
                    await store.sync()

        async with trio.open_nursery() as nursery:
            for name in range(3):
                nursery.start_soon(fill, name)
            nursery.start_soon(_upkeep, store, 6)
        found = await content(store)
        assert store.health.state is HealthState.HEALTHY, store.health.reason
        for key in found:
            await store.delete(key)
        await store.sync()
        await _upkeep(store, 3)
        for number in range(12):
            await store.put(b"again %d" % number, value_of(number, large=True))
        await store.sync()
    async with opened(device) as store:
        assert len(await content(store)) == 12
    return refused


async def _upkeep(store: Store, rounds: int) -> None:
    for _ in range(rounds):
        await store.checkpoint()
        await store.compact()
        await store.reclaim()
        await trio.sleep(1)
