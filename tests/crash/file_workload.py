"""A script of steps on a file system over a simulated device, and on its model.

Role: each step is done on the model first, so that the model at any moment knows what a power cut
then may leave. Every content is unlike any other, so that a found one tells where it came from.

Not here: the cuts (test_files.py), the kernel (tests/mounted).
"""

from __future__ import annotations

import random
import stat

from shardfs.checking.conformance.file_trees import find_trees
from shardfs.checking.models.file_model import FileModel, Found
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.store import Store
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.namespace import Update
from tests.crash.harness import open_quietly
from tests.fuse.harness import verify


class FileWorkload:
    """Steps on one file system in the root directory."""

    def __init__(self, store: Store, file_system: FileSystem) -> None:
        self.store = store
        self.file_system = file_system
        self.model = FileModel()
        self._rng = random.Random(7)

    def data(self, length: int) -> bytes:
        """Content that is nowhere else."""
        return self._rng.randbytes(length)

    async def ino(self, name: str) -> int:
        """The inode number of a name."""
        found = await self.file_system.namespace.lookup(ROOT_INO, name.encode())
        assert found is not None
        return found.ino

    async def create(self, name: str, data: bytes) -> None:
        """A new file, written and not synced."""
        self.model.create(name)
        mode = stat.S_IFREG | 0o644
        await self.file_system.namespace.create(ROOT_INO, name.encode(), mode, 0, 0)
        if data:
            await self.overwrite(name, 0, data)

    async def overwrite(self, name: str, offset: int, data: bytes) -> None:
        """Bytes in the middle or at the end of a file."""
        self.model.write(self.model.file(name), offset, data)
        await self.file_system.writeback.write(await self.ino(name), offset, data)

    async def truncate(self, name: str, length: int) -> None:
        """A new length; what is buffered goes to the store before it."""
        self.model.truncate(self.model.file(name), length)
        await self.file_system.namespace.set_attributes(
            await self.ino(name), Update(size=length), privileged=True
        )

    async def fsync(self, name: str) -> None:
        """Durable when returned."""
        promise = self.model.begin_sync(self.model.file(name))
        await self.file_system.writeback.fsync(await self.ino(name))
        self.model.keep(promise)

    async def rename(self, old: str, new: str) -> None:
        """Atomic."""
        self.model.rename(old, new)
        namespace = self.file_system.namespace
        await namespace.rename(ROOT_INO, old.encode(), ROOT_INO, new.encode())

    async def unlink(self, name: str) -> None:
        """The name goes; the space comes back."""
        self.model.unlink(name)
        await self.file_system.namespace.unlink(ROOT_INO, name.encode())

    async def flush(self) -> None:
        """The background's work: buffered data to the store, and a commit."""
        promise = self.model.begin_sync_of_all()
        await self.file_system.writeback.flush_all()
        await self.store.sync()
        self.model.keep(promise)

    async def run(self) -> None:
        """The script."""
        await self.create("a", self.data(3000))
        await self.fsync("a")
        await self.create("b", self.data(9000))
        await self.overwrite("a", 1000, self.data(700))
        await self.fsync("b")
        await self.create("b.new", self.data(5000))
        await self.rename("b.new", "b")
        await self.overwrite("a", 2900, self.data(40_000))
        await self.fsync("a")
        await self.create("c.new", self.data(100))
        await self.fsync("c.new")
        await self.rename("c.new", "c")
        await self.store.checkpoint()
        await self.truncate("a", 1500)
        await self.fsync("c")
        await self.truncate("a", 6000)
        await self.overwrite("c", 50, self.data(10))
        await self.unlink("b")
        await self.flush()
        await self.file_system.orphans.reap_queued()
        await self.store.reclaim()
        await self.create("b", self.data(20_000))
        await self.fsync("b")
        await self.store.checkpoint()
        await self.store.reclaim()
        await self.overwrite("b", 0, self.data(20_000))
        await self.fsync("b")
        for number in range(4):
            await self.create("new", self.data(600 * number))
            await self.fsync("new")
            await self.rename("new", "c")
            await self.overwrite("a", 512 * number, self.data(300))
        await self.store.checkpoint()
        await self.store.compact()
        await self.fsync("a")
        await self.store.reclaim()


async def find_files(device: SimulatedDevice) -> tuple[dict[str, Found], list[str]]:
    """Everything in the tree, and what verification finds."""
    async with open_quietly(device) as store:
        assert not store.health.reason, store.health.reason
        trouble = await verify(store)
        [tree] = await find_trees(await FileSystem.open(store), 1)
        return tree, trouble
