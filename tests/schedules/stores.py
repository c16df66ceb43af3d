"""Programs that use a store from several tasks at once, on a simulated device.

Role: each program opens a store of its own, works on it from several tasks, and checks: histories
are linearizable; what a returned sync covered survives a power cut that loses all else; nothing
hangs; the account of live bytes fits.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
import trio.testing

from shardfs.checking.schedule import Control
from shardfs.checking.schedule.linearizability import Call, History, find_violation
from shardfs.checking.schedule.store_histories import (
    AnyOperation,
    Delete,
    Get,
    ListAll,
    OneKeyModel,
    OneKeyOperation,
    Put,
    PutMany,
    StoreModel,
    key_of,
)
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.pieces import Shard
from shardfs.engine.store import Store

KIB = 1024
KEYS = (b"a", b"b")
MANUAL = StoreOptions(background=False)


@functools.cache
def _formatted() -> SimulatedDevice:
    identity = plan(2048 * KIB, 512, extent_bytes=64 * KIB, store_uuid=uuid.UUID(int=7))
    device = SimulatedDevice(identity.device_bytes, 512)
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(format_device, device, replace(identity, created_ns=0), clock=clock)
    return device


_formatted()


def empty_device() -> SimulatedDevice:
    """A device with an empty store."""
    return _formatted().power_cut()


def value_of(number: int, *, large: bool) -> bytes:
    """A value that no other number has; a large one is kept as a shard."""
    return (b"%d " % number * 12 * KIB)[: 20 * KIB] if large else b"%d" % number


async def content(store: Store) -> dict[bytes, bytes]:
    """Every key and its value."""
    found = {}
    async for key, value in store.scan(b"\0", b"\xff"):
        if isinstance(value, Shard):
            value = await store.read_shard(value, 0, value.length)
        found[key] = bytes(value)
    return found


@asynccontextmanager
async def opened(device: SimulatedDevice, options: StoreOptions = MANUAL) -> AsyncIterator[Store]:
    """The store on a device."""
    async with Store.open(device, options=options) as store:
        yield store


class Clients:
    """Callers of one store, whose calls make one history."""

    def __init__(self, control: Control, store: Store, device: SimulatedDevice) -> None:
        self.control = control
        self.store = store
        self.device = device
        self.history: History[OneKeyOperation] = History()
        self.synced: tuple[list[Call[OneKeyOperation]], SimulatedDevice] | None = None

    async def act(self, number: int) -> None:
        """One drawn operation on a drawn key."""
        key = KEYS[self.control.draw(len(KEYS))]
        match self.control.draw(4):
            case 0:
                await self.put(key, number, large=False)
            case 1:
                await self.history.record(Get(key), lambda: self.store.get(key))
            case 2:
                await self.put(key, number, large=True)
            case _:
                await self.history.record(Delete(key), lambda: _nothing(self.store.delete(key)))

    async def put(self, key: bytes, number: int, *, large: bool) -> None:
        """Put a value of its own."""
        value = value_of(number, large=large)
        await self.history.record(Put(key, value), lambda: _nothing(self.store.put(key, value)))

    async def sync(self) -> None:
        """Sync, and keep what is left of the device by a cut right then."""
        before = [replace_call(call) for call in self.history.calls]
        await self.store.sync()
        during = [replace_call(call, ended=False) for call in self.history.calls[len(before) :]]
        self.synced = (before + during, self.device.power_cut())

    async def finish(self) -> None:
        """The history, closed by a look at every key, is linearizable."""
        for key in KEYS:
            await self.history.record(Get(key), functools.partial(self.store.get, key))
        violation = find_violation(self.history.calls, OneKeyModel(), key_of)
        assert violation is None, f"{violation}"

    async def check_cut(self) -> None:
        """What the last sync covered is in what a cut right behind it left."""
        if self.synced is None:
            return
        calls, left = self.synced
        async with opened(left) as store:
            for key in KEYS:
                value = await store.get(key)
                end = 1 + max((call.ended or call.began for call in calls), default=0)
                calls.append(Call(len(calls), Get(key), end, end + 1, value))
        violation = find_violation(calls, OneKeyModel(), key_of)
        assert violation is None, f"lost by a cut behind a sync: {violation}"


def replace_call(call: Call[OneKeyOperation], *, ended: bool = True) -> Call[OneKeyOperation]:
    """The call as of now; with ended=False, one that may or may not have happened."""
    if not ended:
        return Call(call.number, call.operation, call.began)
    return Call(call.number, call.operation, call.began, call.ended, call.result)


async def _nothing(work: Awaitable[object]) -> None:
    await work


# --- programs ---------------------------------------------------------------------------------


async def clients_and_upkeep(
    control: Control, *, clients: int = 3, calls: int = 3, options: StoreOptions = MANUAL
) -> int:
    """Clients with drawn operations beside sync, checkpoint, merging and reclamation."""
    device = empty_device()
    async with opened(device, options) as store:
        work = Clients(control, store, device)
        # Something to merge and something to reclaim.
        for number in range(1000, 1008):
            await work.put(KEYS[number % 2], number, large=True)
            if number % 2:
                await store.checkpoint()

        async def client(number: int) -> None:
            for call in range(calls):
                await work.act(calls * number + call)

        async def upkeep() -> None:
            for _ in range(2):
                match control.draw(4):
                    case 0:
                        await store.checkpoint()
                    case 1:
                        await store.reclaim()
                    case 2:
                        await store.compact()
                    case _:
                        await work.sync()

        async with trio.open_nursery() as nursery:
            for number in range(clients):
                nursery.start_soon(client, number)
            nursery.start_soon(upkeep)
            nursery.start_soon(work.sync)
            nursery.start_soon(upkeep)
        await work.finish()
        found = await content(store)
    async with opened(device) as store:
        assert await content(store) == found, "a clean close and an open changed the content"
    await work.check_cut()
    return len(work.history.calls)


async def clients_and_background(control: Control) -> int:
    """The same with the store's own background tasks."""
    return await clients_and_upkeep(control, options=StoreOptions(commit_interval_s=0.5))


async def two_puts_a_sync_and_a_checkpoint(control: Control) -> None:
    """Small enough for every schedule with few deviations."""
    device = empty_device()
    async with opened(device) as store:
        work = Clients(control, store, device)
        await work.put(b"a", 0, large=True)
        async with trio.open_nursery() as nursery:

            async def put_and_sync() -> None:
                await work.put(b"a", 1, large=False)
                await work.sync()

            nursery.start_soon(put_and_sync)
            # Both smaller than what they replace: to let go of it twice would be more than lives.
            nursery.start_soon(functools.partial(work.put, b"a", 2, large=False))
            nursery.start_soon(store.checkpoint)
        await work.finish()
    await work.check_cut()


async def checkpoints_and_reclaims_together(control: Control) -> None:
    """Maintenance asked for from several sides at once, while a shard is overwritten and read."""
    device = empty_device()
    async with opened(device) as store:
        work = Clients(control, store, device)
        await work.put(b"a", 0, large=True)
        await store.checkpoint()

        async def overwrite() -> None:
            for number in range(1, 9):
                await work.put(b"a", number, large=True)
                await store.sync()

        async def read() -> None:
            for _ in range(6):
                await work.history.record(Get(b"a"), lambda: store.get(b"a"))

        async def maintain(rounds: int) -> None:
            for _ in range(rounds):
                await store.checkpoint()
                await store.compact()
                await store.reclaim()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(overwrite)
            nursery.start_soon(read)
            nursery.start_soon(read)
            nursery.start_soon(maintain, 3)
            nursery.start_soon(maintain, 2)
        await work.sync()
        await work.finish()
    await work.check_cut()


async def batches_and_lists(control: Control) -> None:
    """Batches are seen whole or not at all, by lists as by gets."""
    device = empty_device()
    async with opened(device) as store:
        history: History[AnyOperation] = History()

        async def apply(number: int) -> None:
            value = value_of(number, large=False)
            removed = KEYS[control.draw(2)] if control.draw(2) else b""
            changes = tuple((key, None if key == removed else value) for key in KEYS)

            async def work() -> None:
                batch = store.batch()
                for key, new in changes:
                    if new is None:
                        batch.delete(key)
                    else:
                        batch.put(key, new)
                await trio.lowlevel.checkpoint()
                store.apply(batch)

            await history.record(PutMany(changes), work)

        async def look() -> None:
            for _ in range(2):

                async def work() -> tuple[tuple[bytes, bytes], ...]:
                    return tuple(sorted((await content(store)).items()))

                await history.record(ListAll(), work)
                await history.record(Get(b"a"), lambda: store.get(b"a"))

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(apply, number)
            nursery.start_soon(look)
            nursery.start_soon(store.checkpoint)
            nursery.start_soon(store.sync)
        violation = find_violation(history.calls, StoreModel())
        assert violation is None, f"{violation}"


CANCELLED: dict[str, Callable[[Store], Awaitable[object]]] = {
    "put": lambda store: store.put(b"a", value_of(5, large=True)),
    "sync": lambda store: store.sync(),
    "checkpoint": lambda store: store.checkpoint(),
    "compact": lambda store: store.compact(),
    "reclaim": lambda store: store.reclaim(),
}


async def one_call_is_cancelled(control: Control, call: str) -> None:
    """A call is cancelled at some step, another caller uses the same at the same time; the store
    goes on, and closes."""
    device = empty_device()
    async with opened(device) as store:
        for number in range(5):
            await store.put(b"k%d" % number, value_of(number, large=True))
            await store.checkpoint()
        await store.put(b"a", value_of(1, large=True))
        for number in range(4):
            await store.delete(b"k%d" % number)
        await store.sync()

        async def cancelled() -> None:
            with control.cancellable(call):
                await CANCELLED[call](store)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled)
            nursery.start_soon(CANCELLED[call], store)
        await store.put(b"b", value_of(2, large=False))
        await store.sync()
        left = device.power_cut()
        await store.checkpoint()
        found = await content(store)
    for each in (left, device):
        async with opened(each) as store:
            assert not store.notes or each is left
            assert await content(store) == found


async def the_whole_store_is_cancelled(control: Control) -> None:
    """The scope around the open store is cancelled at some step: it still closes in order, and
    what was applied is there."""
    device = empty_device()
    applied: list[bytes] = []
    with control.cancellable("store"):
        async with opened(device) as store:
            for number in range(3):
                await store.put(b"k%d" % number, value_of(number, large=number == 1))
                applied.append(b"k%d" % number)
                await trio.lowlevel.checkpoint()
                await store.sync()
    async with opened(device) as store:
        keys = sorted(await content(store))
        assert keys == applied or keys == [*applied, b"k%d" % len(applied)], keys
        assert store.health.reason == ""
