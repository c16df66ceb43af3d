"""A file system over a simulated device, and what it has promised of each path.

Role: steps on files that keep account of the contents a path may have after a power cut: what
was last made durable, and everything since. Every content is unlike any other, so that a found
one tells where it came from.

Not here: the cuts (test_files.py), the kernel (tests/mounted).
"""

from __future__ import annotations

import random
import stat
from dataclasses import dataclass, field
from typing import NamedTuple

from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.store import Store
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.namespace import Update
from shardfs.fuse.records import ROOT_INO
from tests.crash.harness import open_quietly
from tests.fuse.harness import verify

ABSENT: bytes | None = None
State = bytes | None


class Move(NamedTuple):
    """One rename: where the content was, where it went, and whether it was durable before."""

    old: bytes
    new: bytes
    content: State
    is_durable: bool


@dataclass(slots=True)
class Promises:
    """The states each path may have, oldest first, and the renames that must be atomic."""

    states: dict[bytes, list[State]] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)

    def copy(self) -> Promises:
        """As of now."""
        return Promises({name: list(each) for name, each in self.states.items()}, list(self.moves))

    def current(self, name: bytes) -> State:
        """What a reader sees now."""
        return self.states.get(name, [ABSENT])[-1]

    def may_become(self, name: bytes, *states: State) -> None:
        """From here on these may be found too, the last one being what a reader sees."""
        self.states.setdefault(name, [ABSENT]).extend(states)

    def made_durable(self, *names: bytes) -> None:
        """Only the current state of these paths may be found."""
        for name in names:
            self.states[name] = [self.current(name)]

    def broken_by(self, found: dict[bytes, bytes]) -> list[str]:
        """What a tree does not keep."""
        broken = [
            f"{name!r} is {brief(found.get(name))}; allowed: {[brief(each) for each in allowed]}"
            for name, allowed in self.states.items()
            if found.get(name) not in allowed
        ]
        broken += [f"{name!r} is there, and was never made" for name in found.keys() - self.states]
        for move in self.moves:
            places = [name for name in (move.old, move.new) if found.get(name) == move.content]
            if len(places) == 2:
                broken.append(f"{move.old!r} is also at {move.new!r}: half a rename")
            moved_on = self.current(move.new) != move.content
            if not places and move.is_durable and not moved_on:
                broken.append(f"{move.old!r} is neither there nor at {move.new!r}")
        return broken


def brief(state: State) -> str:
    """A content, for people."""
    return "absent" if state is None else f"{state[:6].hex()}+{len(state)}"


class FileWorkload:
    """Steps on one file system in the root directory."""

    def __init__(self, store: Store, file_system: FileSystem, promises: Promises) -> None:
        self.store = store
        self.file_system = file_system
        self.promises = promises
        self._rng = random.Random(7)

    def data(self, length: int) -> bytes:
        """Content that is nowhere else."""
        return self._rng.randbytes(length)

    async def ino(self, name: bytes) -> int:
        """The inode number of a name."""
        found = await self.file_system.namespace.lookup(ROOT_INO, name)
        assert found is not None
        return found.ino

    async def create(self, name: bytes, data: bytes) -> None:
        """A new file, written and not synced."""
        self.promises.may_become(name, b"", data)
        found = await self.file_system.namespace.create(ROOT_INO, name, stat.S_IFREG | 0o644, 0, 0)
        await self.file_system.writeback.write(found.ino, 0, data)

    async def overwrite(self, name: bytes, offset: int, data: bytes) -> None:
        """Bytes in the middle or at the end of a file."""
        old = self.promises.current(name) or b""
        content = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]
        self.promises.may_become(name, content)
        await self.file_system.writeback.write(await self.ino(name), offset, data)

    async def truncate(self, name: bytes, length: int) -> None:
        """A new length; what is buffered goes to the store before it."""
        old = self.promises.current(name) or b""
        self.promises.may_become(name, old[:length].ljust(length, b"\0"))
        await self.file_system.namespace.set_attributes(
            await self.ino(name), Update(size=length), privileged=True
        )

    async def fsync(self, name: bytes) -> None:
        """Durable when returned."""
        await self.file_system.writeback.fsync(await self.ino(name))
        self.promises.made_durable(name)

    async def rename(self, old: bytes, new: bytes) -> None:
        """Atomic."""
        content = self.promises.current(old)
        is_durable = len(self.promises.states[old]) == 1
        self.promises.may_become(new, content)
        self.promises.may_become(old, ABSENT)
        self.promises.moves.append(Move(old, new, content, is_durable))
        await self.file_system.namespace.rename(ROOT_INO, old, ROOT_INO, new)

    async def unlink(self, name: bytes) -> None:
        """The name goes; the space comes back."""
        self.promises.may_become(name, ABSENT)
        await self.file_system.namespace.unlink(ROOT_INO, name)

    async def flush(self) -> None:
        """The background's work: buffered data to the store, a commit, and reclamation."""
        await self.file_system.writeback.flush_all()
        await self.store.sync()
        self.promises.made_durable(*self.promises.states)

    async def run(self) -> None:
        """The script."""
        await self.create(b"a", self.data(3000))
        await self.fsync(b"a")
        await self.create(b"b", self.data(9000))
        await self.overwrite(b"a", 1000, self.data(700))
        await self.fsync(b"b")
        await self.create(b"b.new", self.data(5000))
        await self.rename(b"b.new", b"b")
        await self.overwrite(b"a", 2900, self.data(40_000))
        await self.fsync(b"a")
        await self.create(b"c.new", self.data(100))
        await self.fsync(b"c.new")
        await self.rename(b"c.new", b"c")
        await self.store.checkpoint()
        await self.truncate(b"a", 1500)
        await self.fsync(b"c")
        await self.truncate(b"a", 6000)
        await self.overwrite(b"c", 50, self.data(10))
        await self.unlink(b"b")
        await self.flush()
        await self.file_system.orphans.reap_queued()
        await self.store.reclaim()
        await self.create(b"b", self.data(20_000))
        await self.fsync(b"b")
        await self.store.checkpoint()
        await self.store.reclaim()
        await self.overwrite(b"b", 0, self.data(20_000))
        await self.fsync(b"b")
        for number in range(4):
            await self.create(b"new", self.data(600 * number))
            await self.fsync(b"new")
            await self.rename(b"new", b"c")
            await self.overwrite(b"a", 512 * number, self.data(300))
        await self.store.checkpoint()
        await self.store.compact()
        await self.fsync(b"a")
        await self.store.reclaim()


async def find_files(device: SimulatedDevice) -> tuple[dict[bytes, bytes], list[str]]:
    """Every file in the root directory with its content, and what verification finds."""
    async with open_quietly(device) as store:
        assert not store.health.reason, store.health.reason
        trouble = await verify(store)
        file_system = await FileSystem.open(store)
        found = {}
        listing = file_system.list_directory(ROOT_INO)
        position = 0
        while items := await listing.read(position):
            for item in items:
                if not item.is_dot:
                    data = await file_system.writeback.read(item.ino, 0, 1 << 20)
                    found[item.name] = bytes(data)
            position = items[-1].next
        return found, trouble
