"""Small stores on simulated devices, for the engine's tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from shardfs import limits
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store

MANUAL = StoreOptions(background=False)
"""Every commit, checkpoint, merge and reclamation is the test's own."""


async def formatted(
    mib: float = 32,
    *,
    extent_bytes: int | None = None,
    zoned: bool = False,
    sector_bytes: int = 512,
    seed: int = 0,
    checkpoints_max: int = 1,
) -> SimulatedDevice:
    """A simulated device that holds an empty store."""
    identity = plan(int(mib * limits.MIB), sector_bytes, extent_bytes=extent_bytes)
    device = SimulatedDevice(
        identity.device_bytes,
        sector_bytes,
        identity.extent_bytes if zoned else None,
        seed,
        checkpoints_max=checkpoints_max,
    )
    await format_device(device, identity)
    return device


@asynccontextmanager
async def opened(device: SimulatedDevice, options: StoreOptions = MANUAL) -> AsyncIterator[Store]:
    """The store on the device."""
    async with Store.open(device, options=options) as store:
        yield store


async def content(store: Store) -> dict[bytes, bytes]:
    """Every key and its value, through the ordered scan."""
    found: dict[bytes, bytes] = {}
    last = b""
    scan = store.scan(b"\0", b"\xff" * 1025)
    assert isinstance(scan, AsyncGenerator)
    async with aclosing(scan):
        async for key, value in scan:
            assert key > last, "keys rise"
            last = key
            if isinstance(value, bytes):
                found[key] = value
            else:
                found[key] = await store.read_shard(value, 0, value.length)
    return found


async def fill_a_level(store: Store) -> None:
    """As many runs as are merged into one, each with the same 500 keys, the newest value last."""
    for version in range(limits.RUNS_PER_LEVEL_MAX):
        for number in range(500):
            await store.put(b"%05d" % number, b"%d" % version * 50)
        await store.checkpoint()


async def tidy_up(store: Store) -> None:
    """What the background tasks do."""
    await store.checkpoint()
    while await store.compact():
        pass
    while await store.reclaim():
        pass
