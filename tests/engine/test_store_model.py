"""The store against its specification: random lives with reopenings and power cuts.

A life is replayed by its number. Stores here are larger than those of the conformance checks,
and live longer.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from shardfs import limits
from shardfs.checking.models.key_value_model import KeyValueModel, State
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.layout import ExtentState
from shardfs.engine.liveness import live_bytes
from shardfs.engine.options import StoreOptions
from shardfs.engine.space import DATA_STREAMS
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, DeviceError, NoSpaceError, ReadOnlyError
from tests.engine.stores import MANUAL, content, formatted, opened, tidy_up

KIB = limits.KIB
CORNERS = (0, 1, 256, 512, 4 * KIB, 16 * KIB, 32 * KIB, 64 * KIB)
"""Inline limit, sector, block, largest chunk and granule and extent of the small stores here."""


async def check_accounts(store: Store) -> None:
    """Live bytes are what the entries refer to, and nothing else."""
    live: dict[int, int] = {}
    async for _, value in store.scan(b"\0", b"\xff" * 1025):
        if not isinstance(value, bytes):
            for (number, _), length in live_bytes(value.pieces).items():
                live[number] = live.get(number, 0) + length
    for extent in store._extents.all:
        if extent.stream in DATA_STREAMS:
            assert extent.live_bytes == live.pop(extent.index, 0), f"extent {extent.index}"
        elif extent.state is ExtentState.FREE:
            assert extent.live_bytes == 0
    assert not live


class Life:
    """One store on one device, its model, and the random choices."""

    def __init__(self, seed: int, device: SimulatedDevice) -> None:
        self.rng = random.Random(seed)
        self.device = device
        self.model = KeyValueModel()
        self.keys = [b"%c%d" % (97 + n % 3, n) for n in range(12)] + [b"long" * 200]

    @property
    def state(self) -> State:
        return self.model.content

    def value(self) -> bytes:
        size = max(0, self.rng.choice(CORNERS) + self.rng.choice((-1, 0, 0, 1, 77)))
        return self.rng.randbytes(8) * (size // 8) + bytes(size % 8)

    async def put(self, store: Store) -> None:
        key, value = self.rng.choice(self.keys), self.value()
        try:
            await store.put(key, value)
        except NoSpaceError:
            await self.make_room(store)
        else:
            self.model.put(key, value)

    async def make_room(self, store: Store) -> None:
        for key in self.rng.sample(sorted(self.state), len(self.state) // 2):
            await store.delete(key)
            self.model.delete(key)
        await store.sync()
        self.model.persist()
        await tidy_up(store)

    async def delete(self, store: Store) -> None:
        key = self.rng.choice(self.keys)
        await store.delete(key)
        self.model.delete(key)

    async def get(self, store: Store) -> None:
        key = self.rng.choice(self.keys)
        expected = self.state.get(key)
        assert await store.get(key) == expected
        if expected:
            start = self.rng.randrange(len(expected))
            length = self.rng.randrange(1, len(expected) + 2)
            assert await store.get(key, start, length) == expected[start : start + length]

    async def batch(self, store: Store) -> None:
        """Several records at once; under a power cut all or none."""
        batch = store.batch(essential=True)
        changes: dict[bytes, bytes | None] = {}
        for key in self.rng.sample(self.keys, self.rng.randint(1, 5)):
            key = b"r" + key
            if self.rng.random() < 0.3:
                batch.delete(key)
                changes[key] = None
            else:
                record = self.rng.randbytes(self.rng.choice((1, 200, 3000)))
                changes[key] = record
                batch.put(key, record)
        self.model.apply(changes, store.apply(batch))

    async def scan(self, store: Store) -> None:
        assert await content(store) == self.state

    async def scan_part(self, store: Store) -> None:
        start, end = sorted(self.rng.sample(self.keys, 2))
        found = [key async for key, _ in store.scan(start, end)]
        assert found == [key for key in sorted(self.state) if start <= key < end]

    async def sync(self, store: Store) -> None:
        await store.sync()
        self.model.persist()

    async def checkpoint(self, store: Store) -> None:
        await store.checkpoint()
        self.model.persist()

    async def compact(self, store: Store) -> None:
        await store.compact()

    async def reclaim(self, store: Store) -> None:
        await store.reclaim()

    async def some_steps(self, store: Store, count: int) -> None:
        steps: list[tuple[int, Callable[[Store], Awaitable[None]]]] = [
            (10, self.put),
            (3, self.delete),
            (4, self.get),
            (4, self.batch),
            (1, self.scan),
            (1, self.scan_part),
            (3, self.sync),
            (2, self.checkpoint),
            (2, self.compact),
            (3, self.reclaim),
        ]
        weights = [weight for weight, _ in steps]
        for _ in range(count):
            (_, step), *_ = self.rng.choices(steps, weights)
            await step(store)

    async def live(self, lives: int, steps: int) -> None:
        for _ in range(lives):
            options = MANUAL if self.rng.random() < 0.7 else StoreOptions()
            cut = self.rng.random() < 0.6
            async with opened(self.device, options) as store:
                found = await content(store)
                self.model.crash(found)
                await check_accounts(store)
                await self.some_steps(store, self.rng.randrange(steps))
                await check_accounts(store)
                if cut:
                    point = self.device.power_cut_point()
                    self.model = self.model.snapshot()
            if cut:
                choices = list(point.choices(4, self.rng))
                self.device = self.device.after_power_cut(point, self.rng.choice(choices))
            else:
                self.model.persist()
                self.device.reopen()


@pytest.mark.parametrize("zoned", [False, True], ids=["conventional", "zoned"])
@pytest.mark.parametrize("seed", range(20))
async def test_a_life(seed: int, zoned: bool) -> None:
    device = await formatted(
        8,
        extent_bytes=64 * KIB,
        zoned=zoned,
        sector_bytes=512 if seed % 2 else 4096,
        seed=seed,
        checkpoints_max=1 + seed % 3,
    )
    with trio.fail_after(10_000):
        await Life(seed, device).live(lives=8, steps=50)


@pytest.mark.expected_warnings(
    *("now read-only", "closing without", "put off", "not be scanned", "not be moved"),
    *("stays where it is", "cannot be merged"),
)
@pytest.mark.parametrize("zoned", [False, True], ids=["conventional", "zoned"])
@pytest.mark.parametrize("seed", range(20))
async def test_a_life_with_a_device_error(seed: int, zoned: bool) -> None:
    """One request fails: nobody hangs, reads go on, and what was durable stays."""
    rng = random.Random(seed)
    device = await formatted(8, extent_bytes=64 * KIB, zoned=zoned, checkpoints_max=3, seed=seed)
    life = Life(seed, device)
    with trio.fail_after(10_000):
        async with opened(device, MANUAL if seed % 3 else StoreOptions()) as store:
            await life.some_steps(store, 20)
            device.fail(rng.choice(("write", "flush", "read", "reset")), skip=rng.randrange(20))
            with contextlib.suppress(DeviceError, ReadOnlyError):
                await life.some_steps(store, 150)
            if store.health.reason:
                for key, value in life.state.items():
                    with contextlib.suppress(DeviceError, CorruptionError):
                        assert await store.get(key) == value
                with pytest.raises(ReadOnlyError):
                    await store.put(b"k", b"v")
            point = device.power_cut_point()
            life.model = life.model.snapshot()
        for choice in point.choices(4, rng):
            async with opened(device.after_power_cut(point, choice)) as store:
                assert await content(store) in life.model.states_after_crash()


@pytest.mark.parametrize("zoned", [False, True], ids=["conventional", "zoned"])
@pytest.mark.parametrize("size", [100, 1000, 16 * KIB, 100 * KIB])
async def test_a_full_device_can_be_read_emptied_and_refilled(size: int, zoned: bool) -> None:
    device = await formatted(4, extent_bytes=64 * KIB, zoned=zoned)
    counts = []
    for _ in range(3):
        async with Store.open(device) as store:
            expected: State = {}
            with pytest.raises(NoSpaceError):
                for number in range(1_000_000):
                    key = b"%06d" % number
                    await store.put(key, key * (size // 6 + 1))
                    expected[key] = key * (size // 6 + 1)
            counts.append(len(expected))
            await store.sync()
            assert store.health.reason == ""
            assert await content(store) == expected
        async with Store.open(device) as store:
            assert await content(store) == expected
            for key in expected:
                await store.delete(key)
            await store.sync()
            for _ in range(3):
                await tidy_up(store)
            assert await content(store) == {}
            assert store.health.reason == ""
            await check_accounts(store)
    assert counts[0] > 0 and min(counts) >= 0.6 * max(counts), f"space was lost: {counts}"
