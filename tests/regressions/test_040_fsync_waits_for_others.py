"""fsync of a file that was durable already waited for a commit of what others had changed since.

initdb of PostgreSQL ends with an fsync of each of its thousand files, one after the other. Beside
programs that write all the time each of them waited for the others' data and a flush of the
device, most of them for nothing: initdb took 57 s where it takes ext4 10 to 15, and with eight
processes at work it did not end within its 300 s (test_all_at_once.py).
"""

from __future__ import annotations

import trio
import trio.testing

from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.store import Store
from shardfs.fuse.keys import inode_key
from tests.engine.stores import formatted, opened
from tests.fuse.harness import Caller, serving

FILES = 200


async def test_fsync_of_what_is_durable_asks_nothing_of_the_device() -> None:
    device = await formatted(64)
    async with opened(device) as store, serving(store) as file_system:
        caller = Caller(file_system)
        inos = [await caller.create(f"f{number}", data=b"x" * 4096) for number in range(FILES)]
        await file_system.sync()
        before = device.counts.flushes, device.counts.writes
        for number, ino in enumerate(inos):
            other = await caller.create(f"other{number}", data=b"y" * 4096)
            assert not file_system.store.is_durable(inode_key(other))
            with trio.testing.assert_no_checkpoints():
                await file_system.writeback.fsync(ino)
        assert (device.counts.flushes, device.counts.writes) == before


async def test_fsync_waits_for_its_own_commit_only() -> None:
    """While the delta with the file's change is on its way, others change more."""
    device = await formatted(64)
    async with opened(device) as store, serving(store) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("mine", data=b"x" * 4096)
        await file_system.writeback.flush(ino)
        deltas = await deltas_awaited(store, device, caller, ino)
    assert deltas == 1


async def deltas_awaited(store: Store, device: SimulatedDevice, caller: Caller, ino: int) -> int:
    """How many deltas become durable until an fsync returns that begins within a flush."""
    first = store._committer.durable_number
    real_flush = device.flush
    returned = trio.Event()

    async def fsync() -> None:
        assert not store.is_durable(inode_key(ino))
        await caller.file_system.writeback.fsync(ino)
        assert store.is_durable(inode_key(ino))
        returned.set()

    async with trio.open_nursery() as nursery:

        async def flush() -> None:
            device.flush = real_flush  # type: ignore[method-assign]
            await caller.create("other")
            nursery.start_soon(fsync)
            await trio.testing.wait_all_tasks_blocked()
            await real_flush()

        device.flush = flush  # type: ignore[method-assign]
        await store.sync()
        await returned.wait()
    return store._committer.durable_number - first
