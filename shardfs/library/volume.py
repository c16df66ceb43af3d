"""The files of an unmounted device for trio programs: what a mount does, without a kernel.

    async with open_volume("disk.img") as volume:
        facts = await volume.stat("/photos/001.jpg")
        data = await volume.read(facts.ino, 0, facts.size)

Role: paths and bytes in, the file system of fuse/filesystem.py below. Opened for writing it runs
the same tasks as a mount, and keeps the same promises.

Invariants:
    I1. Opened for reading, nothing is written to the device, not even by recovery.
    I2. What goes wrong is an OSError with the errno that a program in a mount would see: bytes that
        do not match their checksum are EIO, never wrong bytes. What does not open is a
        ShardfsError.
    I3. Whoever can open the device may do everything: permissions are kept and not checked.

Ordering: leaving the context makes everything durable, as unmounting does.

Not here: threads and files as Python knows them (disk.py, files.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from shardfs import limits
from shardfs.engine.block_device import open_device
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.errors import DeviceBusyError, FileError, ReadOnlyError, ShardfsError
from shardfs.fuse.errnos import errno_of
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.mounts import mounts_of
from shardfs.fuse.namespace import Found, Update
from shardfs.fuse.records import Inode

FOLLOWED_MAX: Final = 40
"""Symbolic links on one way, as in the kernel."""
PART_BYTES: Final = 1 * limits.MIB
"""What is read or written in one step."""
_KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
_FILE_MODE: Final = stat.S_IFREG | 0o644
_DIRECTORY_MODE: Final = stat.S_IFDIR | 0o755


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is known of a file, a directory or anything else that has a name.

    path: absolute, as it was asked for.
    kind: "file", "directory", "link" or "other".
    size: bytes; of a directory, its entries.
    target: where a symbolic link points; else empty.
    atime_ns, mtime_ns, ctime_ns: nanoseconds since 1970.
    """

    path: str
    kind: str
    size: int
    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    target: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


@asynccontextmanager
async def open_volume(
    device: str | os.PathLike[str], *, writable: bool = False, shared: bool = False
) -> AsyncIterator[Volume]:
    """The files on a device, for the body. Requires: it is formatted and not mounted.

    Args:
        device: a block device or an image file.
        writable: changes are taken, and durable when the context is left.
        shared: others may have it open for reading at the same time. Nobody may write to it
            meanwhile, which is not enforced beyond looking for mounts.

    Raises:
        DeviceBusyError, NotShardfsError, IncompatibleError, CorruptionError, UsageError,
        ReadOnlyError, DeviceError: it cannot be opened so.
    """
    path = os.fspath(await trio.Path(device).resolve())
    assert not (writable and shared), "who writes is alone"
    if shared and (mounted := mounts_of(path)):
        raise DeviceBusyError(f"{path} is mounted at {mounted[0].mountpoint}; use the files there")
    opened = open_device(path, read_only=not writable, exclusive=not shared)
    failure: Exception | None = None
    try:
        if writable and opened.read_only:
            raise ReadOnlyError(f"{path} is write-protected")
        options = StoreOptions(read_only=not writable)
        async with Store.open(opened, options=options) as store:
            if writable:
                store.health.require_writable()
            file_system = await FileSystem.open(store, uid=os.getuid(), gid=os.getgid())
            async with trio.open_nursery() as nursery:
                if writable:
                    file_system.start(nursery)
                try:
                    yield Volume(file_system)
                except Exception as error:
                    failure = error
                nursery.cancel_scope.cancel()
            if writable:
                with trio.CancelScope(shield=True):
                    await file_system.end()
    finally:
        opened.close()
    if failure is not None:
        raise failure  # out here, where no nursery wraps it into a group


class Volume:
    """The files of one open store; made by `open_volume`.

    Paths are absolute, with or without a slash before them; symbolic links are followed, and stay
    inside. Every method raises OSError (I2).
    """

    def __init__(self, file_system: FileSystem) -> None:
        self._file_system = file_system
        self._namespace = file_system.namespace
        self._writeback = file_system.writeback
        self._handles = file_system.handles

    @property
    def uuid(self) -> str:
        """Which store it is."""
        return str(self._file_system.store.identity.uuid)

    # --- looking

    async def stat(self, path: str, *, follow: bool = True) -> FileFacts:
        """What is known of a path.

        Args:
            follow: of a symbolic link, what it leads to.
        """
        with _told(path):
            found = await self._find(path, follow=follow)
            return _facts(_absolute(path), found.ino, found.inode)

    async def listdir(self, path: str) -> list[FileFacts]:
        """What is in a directory, in order of names, symbolic links as they are."""
        with _told(path):
            found = await self._find(path)
            if not found.inode.is_directory:
                raise FileError(errno.ENOTDIR)
            listing = self._file_system.list_directory(found.ino)
            above = _absolute(path).rstrip("/")
            facts, position = [], 0
            while items := await listing.read(position):
                position = items[-1].next
                for item in items:
                    if item.is_dot:
                        continue
                    inode = item.inode
                    if inode is None:
                        raise FileError(
                            errno.EIO, f"{os.fsdecode(item.name)}: its inode is damaged"
                        )
                    inode = self._writeback.overlay(item.ino, inode)
                    facts.append(_facts(f"{above}/{os.fsdecode(item.name)}", item.ino, inode))
        return sorted(facts, key=lambda each: each.path)

    async def read(self, ino: int, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length) of a file, as far as it goes; holes are zeros."""
        with _told(f"inode {ino}"):
            parts = []
            while length > 0:
                wanted = min(length, PART_BYTES)
                part = await self._writeback.read(ino, offset, wanted)
                parts.append(part)
                if len(part) < wanted:
                    break
                offset, length = offset + wanted, length - wanted
            return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    # --- files that are held open

    async def open(self, path: str, *, create: bool, exclusive: bool, truncate: bool) -> int:
        """A number for a file, which stays readable until `release`, whatever happens to its name.

        Args:
            create: make it if there is none.
            exclusive: there must be none.
            truncate: empty it.
        """
        with _told(path):
            found = await self._opened(path, create, exclusive)
            if found.inode.is_directory:
                raise FileError(errno.EISDIR)
            if not found.inode.is_regular:
                raise FileError(errno.EINVAL)
            number = self._handles.open_file(found.ino, privileged=True, touches=False)
            try:
                if truncate and found.inode.size:
                    await self.truncate(found.ino, 0)
            except BaseException:  # cancelled too: nobody knows the number
                self._handles.release_file(number)
                raise
            return number

    async def _opened(self, path: str, create: bool, exclusive: bool) -> Found:
        while True:
            try:
                if not exclusive:
                    return await self._find(path)
            except FileError as error:
                if error.errno != errno.ENOENT or not create:
                    raise
            try:
                parent, name = await self._place(path)
                return await self._namespace.create(
                    parent, name, _FILE_MODE, os.getuid(), os.getgid()
                )
            except FileError as error:
                # Somebody else was faster; a symbolic link that leads nowhere stays an error.
                if error.errno != errno.EEXIST or exclusive:
                    raise
                await self._find(path)

    def ino_of(self, number: int) -> int:
        """The inode of an open file."""
        return self._handles.file(number).ino

    async def size_of(self, ino: int) -> int:
        """The size of a file, bytes."""
        with _told(f"inode {ino}"):
            return (await self._namespace.inode(ino)).size

    async def release(self, number: int) -> None:
        """An open file is not used any more."""
        await trio.lowlevel.checkpoint()
        self._handles.release_file(number)

    # --- changing

    async def write(self, ino: int, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at a place in a file.

        Durable when: `sync` or `fsync` returned, or five seconds have passed.
        """
        view = memoryview(data).cast("B")
        with _told(f"inode {ino}"):
            for start in range(0, len(view), PART_BYTES):
                part = bytes(view[start : start + PART_BYTES])
                await self._writeback.write(ino, offset + start, part, privileged=True)

    async def truncate(self, ino: int, size: int) -> None:
        """Set a file's size, bytes; what is added reads as zeros."""
        with _told(f"inode {ino}"):
            await self._namespace.set_attributes(ino, Update(size=size), privileged=True)

    async def mkdir(self, path: str) -> None:
        """Make a directory."""
        with _told(path):
            await self._namespace.create(
                *await self._place(path), _DIRECTORY_MODE, os.getuid(), os.getgid()
            )

    async def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link at `path`."""
        with _told(path):
            await self._namespace.create(
                *await self._place(path),
                stat.S_IFLNK | 0o777,
                os.getuid(),
                os.getgid(),
                target=os.fsencode(target),
            )

    async def remove(self, path: str) -> None:
        """Take away the name of anything but a directory."""
        with _told(path):
            await self._namespace.unlink(*await self._place(path))

    async def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        with _told(path):
            await self._namespace.rmdir(*await self._place(path))

    async def rename(self, old: str, new: str) -> None:
        """Move a name, in place of what the new one stands for; whole or not at all."""
        with _told(old):
            await self._namespace.rename(*await self._place(old), *await self._place(new))

    async def fsync(self, ino: int) -> None:
        """Make a file durable: its data, size and name."""
        with _told(f"inode {ino}"):
            await self._writeback.fsync(ino)

    async def sync(self) -> None:
        """Make everything durable."""
        with _told("the store"):
            await self._file_system.sync()

    # --- paths

    async def _find(self, path: str, *, follow: bool = True) -> Found:
        """What a path stands for.

        Raises:
            FileError: nothing.
        """
        root = Found(ROOT_INO, await self._namespace.inode(ROOT_INO))
        found, followed = root, 0
        waiting = _names(os.fsencode(path))
        while waiting:
            if not found.inode.is_directory:
                raise FileError(errno.ENOTDIR)
            name = waiting.pop()
            below = await self._namespace.lookup(found.ino, name)
            if below is None:
                raise FileError(errno.ENOENT)
            if not below.inode.is_symlink or not (waiting or follow):
                found = below
                continue
            followed += 1
            if followed > FOLLOWED_MAX:
                raise FileError(errno.ELOOP)
            target = below.inode.target
            waiting += _names(target)
            found = root if target.startswith(b"/") else found
        return found

    async def _place(self, path: str) -> tuple[int, bytes]:
        """The directory and the name that a path's last part stands for."""
        above, _, name = _absolute(path).rstrip("/").rpartition("/")
        if not name:
            raise FileError(errno.EBUSY)
        return (await self._find(above)).ino, os.fsencode(name)


def _names(path: bytes) -> list[bytes]:
    """The parts of a path, the last first."""
    return [name for name in reversed(path.split(b"/")) if name not in (b"", b".")]


def _absolute(path: str) -> str:
    return "/" + path.strip("/")


def _facts(path: str, ino: int, inode: Inode) -> FileFacts:
    return FileFacts(
        path,
        _KINDS.get(stat.S_IFMT(inode.mode), "other"),
        inode.size,
        ino,
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
        os.fsdecode(inode.target),
    )


@contextmanager
def _told(path: str) -> Iterator[None]:
    """What goes wrong in the body is an OSError about that path (I2)."""
    try:
        yield
    except FileError as error:
        raise OSError(error.errno, os.strerror(error.errno), path) from error
    except ShardfsError as error:
        raise OSError(errno_of(error, path), str(error), path) from error
