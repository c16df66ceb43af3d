"""One read error while a file was flushed threw away what had been written to it.

Found by conformance of files (seed 3000658301), shrunk to: create 0 0; write 0 0 0 0; fault 0 0 0;
truncate 0 0 1; write 0 0 0 2; checkpoint; fsync 0 0; write 0 0 0 0. The checkpoint moves the file's
shard to a run, so that flushing has to read, and the read fails once.
"""

from __future__ import annotations

import errno

import pytest

from shardfs import limits
from shardfs.checking.models.store_model import ModelStore
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, DeviceError
from shardfs.fuse.filesystem import FileSystem
from tests.fuse.harness import Caller


@pytest.mark.expected_warnings("lost")
@pytest.mark.parametrize("errors", [1, limits.FLUSH_ATTEMPTS_MAX])
async def test_what_was_written_is_kept_for_the_next_attempt(errors: int) -> None:
    size_bytes = 64 * limits.MIB
    device = SimulatedDevice(size_bytes)
    await format_device(device, plan(size_bytes, 512))
    async with Store.open(device, options=StoreOptions(background=False, cache_bytes=0)) as store:
        file_system = await FileSystem.open(store)
        caller = Caller(file_system)
        ino = await caller.create("a", data=b"old")
        await file_system.writeback.fsync(ino)
        await store.checkpoint()
        await file_system.writeback.write(ino, 0, b"newer")
        device.fail("read", times=errors)
        for _ in range(errors):
            with pytest.raises(DeviceError):
                await file_system.writeback.fsync(ino)
        await file_system.writeback.fsync(ino)
        kept = errors < limits.FLUSH_ATTEMPTS_MAX
        assert await caller.read("a") == (b"newer" if kept else b"old")
        assert file_system.writeback.error_count(ino) == (0 if kept else 1)
        await file_system.end()


@pytest.mark.expected_warnings("lost")
async def test_rot_is_given_up_at_once_also_after_a_read_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file_system = await FileSystem.open(ModelStore())
    ino = await Caller(file_system).create("a", data=b"new")
    errors = [DeviceError("read", 0, 4096, errno.EIO), CorruptionError("rot")]

    async def get_shard(key: bytes) -> None:
        raise errors.pop(0)

    with monkeypatch.context() as patch:
        patch.setattr(file_system.store, "get_shard", get_shard)
        with pytest.raises(DeviceError):
            await file_system.writeback.flush(ino)
        assert file_system.writeback.error_count(ino) == 0
        with pytest.raises(CorruptionError):
            await file_system.writeback.flush(ino)
    assert file_system.writeback.error_count(ino) == 1
    await file_system.writeback.flush(ino)
