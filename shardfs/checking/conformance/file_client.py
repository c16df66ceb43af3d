"""One client of a file system under test, with the model of its part of the names.

Role: does an operation on the file system and on the model, and compares what they answer: the
result, or the errno. Clients that work at the same time have names of their own, so that each
one's model is sequential; they share the root directory, and what is below.

Invariants:
    I1. The model does an operation before the file system is asked: a power cut within it may
        leave it done or not.
    I2. An error that a failing or full device excuses has changed nothing; the model goes back.
    I3. What a failing device may have taken from a file is a write that was not synced, never
        anything else.

Not here: each operation (file_steps.py), openings and crashes (file_run.py), walking whole trees
(file_trees.py).
"""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from shardfs.checking.conformance.file_alphabet import LENGTHS_END, OFFSETS_END
from shardfs.checking.conformance.file_trees import names_of, place_of, require_used
from shardfs.checking.models.file_model import FileModel, Found, Promise
from shardfs.checking.models.namespace_model import Node
from shardfs.errors import DeviceError, FileError, NoSpaceError, ReadOnlyError
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.listing import Listing
from shardfs.fuse.namespace import Update

T = TypeVar("T")
U = TypeVar("U")

_SCARCE_BYTES: Final = 1 << 19
"""With less free than this, ENOSPC is an answer."""
_HANDLES_MAX: Final = 4
_POOL: Final = random.Random(7).randbytes(1 << 18)


@dataclass(slots=True)
class Circumstances:
    """What the clients of one file system share.

    Args:
        faults: requests that were planned to fail since it was opened.
        writes: made so far; each has bytes unlike all others.
    """

    faults: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A handle, and what it stands for."""

    number: int
    ino: int
    node: Node


@dataclass(slots=True)
class FileClient:
    """One of the clients.

    Args:
        number: told by the names: those of 0 are plain.
        model: of this client's names.
    """

    number: int
    model: FileModel
    file_system: FileSystem
    circumstances: Circumstances
    handles: list[OpenFile] = field(default_factory=list)
    listings: dict[int, Listing] = field(default_factory=dict)
    quiet: Promise | None = None
    """While an operation is under way: what a sync of everything keeps."""

    def promise(self) -> Promise:
        """What a sync of everything that somebody calls now makes durable here."""
        return self.model.begin_sync_of_all() if self.quiet is None else self.quiet

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While an operation is under way: others' syncs keep what was there before it."""
        self.quiet = self.promise()
        try:
            yield
        finally:
            self.quiet = None

    # --- asking both

    async def both(
        self, expect: Callable[[], T], ask: Callable[[], Awaitable[U]], *, takes_space: bool = True
    ) -> tuple[T, U] | None:
        """The two answers if there is no error; None for an error that is right.

        Args:
            takes_space: a full device may refuse it. What was taken by write(2) has its space, and
                what frees some needs none that is not set aside for it.
        """
        mark = self.model.mark()
        wanted: T | None = None
        wanted_errno = got_errno = 0
        try:
            wanted = expect()
        except FileError as error:
            wanted_errno = error.errno
        try:
            got = await ask()
        except (FileError, NoSpaceError, ReadOnlyError, DeviceError) as error:
            got_errno = errno_of(error)
        else:
            if not wanted_errno:
                return wanted, got  # type: ignore[return-value]  # expect() has returned it
        if got_errno == wanted_errno:
            return None
        assert self._is_excused(got_errno, takes_space), (
            f"answered {_errno_name(got_errno)}, should be {_errno_name(wanted_errno)}"
        )
        self.model.back_to(mark)
        return None

    def _is_excused(self, number: int, takes_space: bool) -> bool:
        if number == errno.ENOSPC:
            return takes_space and self.file_system.store.space().free_bytes < _SCARCE_BYTES
        return number in (errno.EIO, errno.EROFS) and self.circumstances.faults > 0

    # --- paths, as the kernel walks them

    async def resolve(self, path: str) -> int:
        """The inode number of a path."""
        ino = ROOT_INO
        for name in names_of(path, self.number):
            if not (await self.file_system.namespace.inode(ino)).is_directory:
                raise FileError(errno.ENOTDIR)
            found = await self.file_system.namespace.lookup(ino, name)
            if found is None:
                raise FileError(errno.ENOENT)
            ino = found.ino
        return ino

    async def resolve_directory(self, path: str) -> int:
        """The inode number of a directory."""
        ino = await self.resolve(path)
        if not (await self.file_system.namespace.inode(ino)).is_directory:
            raise FileError(errno.ENOTDIR)
        return ino

    async def resolve_file(self, path: str) -> int:
        """The inode number of a regular file."""
        ino = await self.resolve(path)
        inode = await self.file_system.namespace.inode(ino)
        if not inode.is_regular:
            raise FileError(errno.EISDIR if inode.is_directory else errno.ELOOP)
        return ino

    async def place(self, path: str) -> tuple[int, bytes]:
        """(directory, name) of a path."""
        parent, name = place_of(path, self.number)
        return await self.resolve_directory(parent), name

    # --- contents

    def data(self, length: int) -> bytes:
        """Bytes that are nowhere else."""
        self.circumstances.writes += 1
        length = max(1, length % LENGTHS_END)
        start = self.circumstances.writes * 4099 % (len(_POOL) - LENGTHS_END)
        return _POOL[start : start + length]

    async def write(self, node: Node, ino: int, offset: int, data: bytes) -> None:
        """Write the same to both."""
        await self.both(
            lambda: self.model.write(node, offset, data),
            lambda: self.file_system.writeback.write(ino, offset, data, privileged=True),
        )
        await self.check_du(node, ino)

    async def truncate(self, node: Node, ino: int, length: int) -> None:
        """Truncate both."""
        update = Update(size=length % OFFSETS_END)
        grows = length % OFFSETS_END > len(self.model.read(node))
        await self.both(
            lambda: self.model.truncate(node, length % OFFSETS_END),
            lambda: self.file_system.namespace.set_attributes(ino, update, privileged=True),
            takes_space=grows,
        )
        await self.check_du(node, ino)

    async def check_du(self, node: Node, ino: int) -> None:
        """What stat(2) tells that a file takes is what it holds."""
        if not self.circumstances.faults:
            inode = await self.file_system.namespace.inode(ino)
            require_used(ino, self.model.read(node), inode.used)

    async def compare(self, node: Node, ino: int, offset: int, length: int) -> None:
        """Read the same from both."""
        offset, length = offset % OFFSETS_END, length % LENGTHS_END
        answers = await self.both(
            lambda: self.model.read(node)[offset : offset + length],
            lambda: self.file_system.writeback.read(ino, offset, length),
        )
        if answers is not None and answers[0] != answers[1]:
            await self.settle(node, ino)

    async def settle(self, node: Node, ino: int) -> None:
        """The file differs from the model: right only where a device error has cost writes."""
        content = bytes(await self.file_system.writeback.read(ino, 0, 2 * OFFSETS_END))
        if content == self.model.read(node):
            raise AssertionError(f"a part of inode {ino} reads unlike the whole")
        lost = self.circumstances.faults and self.file_system.writeback.error_count(ino)
        assert lost and self.model.settle(node, content), (
            f"inode {ino} has {len(content)} bytes that differ from the "
            f"{len(self.model.read(node))} that were written"
        )

    async def settle_losses(self, tree: Mapping[str, Found]) -> None:
        """Before a comparison of everything: what a device error has cost is gone (I3)."""
        for path, found in tree.items() if self.circumstances.faults else ():
            node = self.model.tree.names.get(path)
            if node in self.model.contents and found.content != self.model.read(node):
                await self.settle(node, found.ino)

    async def sync(
        self,
        expect: Callable[[], Node],
        ino: Callable[[], Awaitable[int]],
    ) -> None:
        """fsync of a file or directory; what it promises is kept when it has returned."""

        async def ask() -> bool:
            number = await ino()
            await self.file_system.writeback.fsync(number)
            return bool(self.file_system.writeback.error_count(number))

        answers = await self.both(lambda: self.model.begin_sync(expect()), ask, takes_space=False)
        if answers is not None:
            promise, lost = answers
            if lost:  # an earlier write was; an open handle would be told now
                assert self.circumstances.faults
                promise.versions.pop(expect(), None)
            self.model.keep(promise)

    def open(self, node: Node, ino: int) -> None:
        """Keep a file open, unless many are."""
        if len(self.handles) < _HANDLES_MAX:
            number = self.file_system.handles.open_file(ino, privileged=True)
            self.handles.append(OpenFile(number, ino, node))


def errno_of(error: Exception) -> int:
    """What a program would be told (as fuse/errnos.py has it)."""
    if isinstance(error, FileError):
        return error.errno
    if isinstance(error, NoSpaceError):
        return errno.ENOSPC
    return errno.EROFS if isinstance(error, ReadOnlyError) else errno.EIO


def _errno_name(number: int) -> str:
    return errno.errorcode.get(number, "success")
