"""Recordings made in memory: a file system over a RecordingDevice over a simulated device."""

from __future__ import annotations

import stat
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.device import Device
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.recorder import Recorder, RecordingDevice
from shardfs.engine.store import Store
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.promises import PromiseRecorder

MANUAL = StoreOptions(background=False)


async def formatted(seed: int = 0) -> SimulatedDevice:
    """An empty store on a small device whose calls complete in any order."""
    device = SimulatedDevice(6 << 20, 512, None, seed, checkpoints_max=3)
    identity = plan(device.size_bytes, 512, extent_bytes=128 << 10, store_uuid=uuid.UUID(int=7))
    await format_device(device, replace(identity, created_ns=0))
    return device


@asynccontextmanager
async def recorded(device: Device, path: Path) -> AsyncIterator[FileSystem]:
    """The file system on a device; all that happens to it goes into the recording."""
    recorder = Recorder.create(str(path))
    recording = await RecordingDevice.start(device, recorder)
    async with Store.open(recording, options=MANUAL) as store:
        observer = PromiseRecorder(recorder.mark)
        file_system = await FileSystem.open(store, observer=observer)
        yield file_system
        await file_system.end()
    recorder.close()


async def create(file_system: FileSystem, name: bytes, data: bytes) -> int:
    """A new file in the root directory, written and not synced; its inode number."""
    found = await file_system.namespace.create(ROOT_INO, name, stat.S_IFREG | 0o644, 0, 0)
    await file_system.writeback.write(found.ino, 0, data)
    return found.ino


async def mail_spool(file_system: FileSystem, count: int) -> None:
    """Messages: written under a passing name, synced, renamed, the directory synced."""
    for number in range(count):
        ino = await create(file_system, b"tmp", bytes([number]) * (700 * number + 5))
        await file_system.writeback.fsync(ino)
        await file_system.namespace.rename(ROOT_INO, b"tmp", ROOT_INO, b"mail%d" % (number % 3))
        await file_system.writeback.fsync(ROOT_INO)
        if number % 3 == 2:
            await file_system.store.behind.checkpoint()  # type: ignore[attr-defined]  # a Store
