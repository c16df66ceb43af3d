"""File systems for tests: on the reference store or on the engine over a simulated device.

Role: `mounted(kind)` opens a file system with its background tasks; when the test is done it is
ended in order and everything in the store must fit together (fuse/fsck.py). No kernel is
involved; the tests call what the request handlers call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing

from shardfs import limits
from shardfs.checking.models.store_model import ModelStore
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.errors import FileError
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.fsck import check_files
from shardfs.fuse.keys import ROOT_INO

FILE_MODE = 0o100644
DIRECTORY_MODE = 0o40755
MIB = limits.MIB
SHARD_BYTES = limits.SHARD_BYTES


@asynccontextmanager
async def opened_store(kind: str, *, size_bytes: int = 64 * MIB) -> AsyncIterator[StoreDoor]:
    """An empty store: "model" or "engine"."""
    if kind == "model":
        yield ModelStore(size_bytes)
        return
    device = SimulatedDevice(size_bytes)
    await format_device(device, plan(size_bytes, 512))
    async with Store.open(device, options=StoreOptions()) as store:
        yield store


async def verify(store: StoreDoor) -> list[str]:
    """What fsck finds wrong with the files in a store."""
    return [str(finding) for finding in (await check_files(store)).findings]


@asynccontextmanager
async def serving(
    store: StoreDoor, *, tasks: bool = True, dirty_bytes_max: int = limits.DIRTY_BYTES_MAX
) -> AsyncIterator[FileSystem]:
    """The file system of a store while it is mounted; afterwards all must fit together."""
    file_system = await FileSystem.open(store, dirty_bytes_max=dirty_bytes_max)
    async with trio.open_nursery() as nursery:
        if tasks:
            file_system.start(nursery)
            await trio.testing.wait_all_tasks_blocked()
        yield file_system
        nursery.cancel_scope.cancel()
    await file_system.end()
    assert await verify(store) == []


@asynccontextmanager
async def mounted(kind: str = "model", *, tasks: bool = True) -> AsyncIterator[FileSystem]:
    """A file system on a fresh store."""
    async with opened_store(kind) as store, serving(store, tasks=tasks) as file_system:
        yield file_system


class Caller:
    """What a program would do, with paths below the root."""

    def __init__(self, file_system: FileSystem) -> None:
        self.file_system = file_system

    async def find(self, path: str) -> int:
        """The inode number of a path. Raises: FileNotFoundError."""
        ino = ROOT_INO
        for name in path.split("/") if path else []:
            found = await self.file_system.namespace.lookup(ino, name.encode())
            if found is None:
                raise FileNotFoundError(path)
            ino = found.ino
        return ino

    async def place(self, path: str) -> tuple[int, bytes]:
        """(directory, name) of a path."""
        parent, _, name = path.rpartition("/")
        return await self.find(parent), name.encode()

    async def create(self, path: str, mode: int = FILE_MODE, data: bytes = b"") -> int:
        """A new inode of any type, with data for a file."""
        found = await self.file_system.namespace.create(*await self.place(path), mode, 0, 0)
        if data:
            await self.file_system.writeback.write(found.ino, 0, data)
        return found.ino

    async def mkdir(self, path: str) -> int:
        """A new directory."""
        return await self.create(path, DIRECTORY_MODE)

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        """rename(2)."""
        namespace = self.file_system.namespace
        await namespace.rename(*await self.place(old), *await self.place(new), flags)

    async def link(self, old: str, new: str) -> None:
        """link(2)."""
        await self.file_system.namespace.link(await self.find(old), *await self.place(new))

    async def unlink(self, path: str) -> None:
        """unlink(2)."""
        await self.file_system.namespace.unlink(*await self.place(path))

    async def rmdir(self, path: str) -> None:
        """rmdir(2)."""
        await self.file_system.namespace.rmdir(*await self.place(path))

    async def read(self, path: str, offset: int = 0, length: int = 1 << 40) -> bytes:
        """Bytes of a file."""
        ino = await self.find(path)
        return bytes(await self.file_system.writeback.read(ino, offset, length))

    async def list(self, path: str = "") -> list[str]:
        """The names of a directory, as listed, without the dots."""
        listing = self.file_system.list_directory(await self.find(path))
        names, position = [], 0
        while items := await listing.read(position):
            names += [item.name.decode() for item in items if not item.is_dot]
            position = items[-1].next
        return names

    async def errno(self, path_operation: str, *arguments: object) -> int:
        """The errno with which a method of this class fails; 0 if it does not."""
        try:
            await getattr(self, path_operation)(*arguments)
        except FileError as error:
            return error.errno
        return 0
