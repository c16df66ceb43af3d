"""Rebuilds files from frames alone, into a directory of another file system.

Role: what `shardfs salvage` does when superblock and tree are gone. Names come from the name pages,
or else from what is left of runs and deltas; data from the frames of data.

Invariants:
    I1. Every byte in a salvaged file matched its checksum, or is a zero that is reported: as a
        damaged range, or among the missing bytes.
    I2. Nothing is written outside the directory, whatever stands on the device: names are checked,
        links are never followed.
    I3. Memory grows with the number of directories only.

A file is *exact* when its name page was written after its data and counts as many bytes as were
found. If not, its size may be that of an earlier moment, or a range that was cut off and became a
hole may show what was there before.

Not here: finding frames (engine/salvage.py), what counts (frame_index.py), repair in place
(reconstruction.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from shardfs import limits
from shardfs.engine.device import Device
from shardfs.engine.pieces import granule_bytes
from shardfs.errors import DeviceError
from shardfs.fuse.frame_index import DataFrame, FrameIndex
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.records import Inode, NamedInode

SHARD_BYTES: Final = limits.SHARD_BYTES
LOST_AND_FOUND: Final = b"lost+found"
_REPORTED_MAX: Final = 1000
_DEPTH_MAX: Final = 4096
_EXECUTE_ONLY_OWNER: Final = 0o700

Ranges = list[tuple[int, int]]
"""Disjoint, ascending (start, end)."""


@dataclass(frozen=True)
class DamagedFile:
    """A file that is not whole.

    path: below the directory that it was salvaged to.
    ranges: (start, end) of bytes that were found damaged, and are zeros now.
    missing_bytes: bytes that the file had, and that were not found; zeros too.
    """

    path: str
    ino: int
    ranges: Ranges
    missing_bytes: int = 0
    error: str = ""


@dataclass
class SalvageReport:
    """What was brought back."""

    frames: int = 0
    files: int = 0
    directories: int = 0
    others: int = 0
    bytes: int = 0
    unnamed: int = 0
    """Put into lost+found."""
    inexact: int = 0
    deleted: int = 0
    """Left out: they had been deleted."""
    damaged_count: int = 0
    damaged: list[DamagedFile] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Everything that was found is whole and has its name."""
        return not self.damaged_count and not self.unnamed

    def add_damaged(self, file: DamagedFile) -> None:
        """Take in a file that is not whole; the first 1000 are kept."""
        self.damaged_count += 1
        if len(self.damaged) < _REPORTED_MAX:
            self.damaged.append(file)


class Salvager:
    """Writes what an index knows into a directory.

    Args:
        device: where the frames are.
        index: finished.
        directory: exists, and is empty.
        with_deleted: bring back what had been deleted too, into lost+found.
    """

    def __init__(
        self, device: Device, index: FrameIndex, directory: str, *, with_deleted: bool = False
    ) -> None:
        self._device = device
        self._index = index
        self._root = os.fsencode(directory)
        self._with_deleted = with_deleted
        self._directories: dict[int, bytes] = {ROOT_INO: self._root}
        self.report = SalvageReport(frames=index.frame_count)

    async def run(self, show: Callable[[int, int], None] | None = None) -> SalvageReport:
        """Write everything.

        Args:
            show: is told how many inodes are done, and how many there are.

        Raises:
            OSError: the directory takes no more.
        """
        total = self._index.inode_count if show is not None else 0
        for number, ino in enumerate(self._index.inos()):
            if show is not None:
                show(number, total)
            await trio.lowlevel.checkpoint()
            if self._index.is_deleted(ino) and ino not in self._directories:
                self.report.deleted += 1
                if not self._with_deleted:
                    continue
            await self._salvage(ino, self._known(ino))
        for ino, path in reversed(self._directories.items()):
            known = self._known(ino)
            if known is not None:
                _set_attributes(path, known.inode)
        return self.report

    def _known(self, ino: int) -> NamedInode | None:
        found = self._index.named(ino)
        if found is not None or self._index.is_deleted(ino):
            return found
        return self._index.logged(ino)

    async def _salvage(self, ino: int, known: NamedInode | None) -> None:
        if known is None:
            await self._file(ino, None, self._nameless(ino, "inode"))
            return
        inode, names = known
        if inode.is_directory:
            self._directory(ino)
            return
        paths = [os.path.join(self._directory(parent), name) for parent, name in names]
        path = self._free(paths[0], ino) if paths else self._nameless(ino, "inode")
        if inode.is_regular:
            await self._file(ino, inode, path)
        else:
            self._special(inode, path)
        for other in paths[1:]:
            os.link(path, self._free(other, ino), follow_symlinks=False)

    def _directory(self, ino: int) -> bytes:
        """The path of a directory, which is made if need be."""
        chain: list[tuple[int, bytes]] = []
        at = ino
        while at not in self._directories:
            known = self._known(at)
            names = known.names if known is not None and known.inode.is_directory else ()
            is_loop = any(each == at for each, _ in chain) or len(chain) > _DEPTH_MAX
            if not names or is_loop:
                self._make_directory(at, self._nameless(at, "directory"))
                break
            parent, name = names[0]
            chain.append((at, name))
            at = parent
        for each, name in reversed(chain):
            above = self._directories[self._parent(each, chain, at)]
            if each not in self._directories:
                self._make_directory(each, self._free(os.path.join(above, name), each))
        return self._directories[ino]

    @staticmethod
    def _parent(ino: int, chain: list[tuple[int, bytes]], top: int) -> int:
        numbers = [each for each, _ in chain] + [top]
        return numbers[numbers.index(ino) + 1]

    def _make_directory(self, ino: int, path: bytes) -> None:
        try:
            os.mkdir(path, _EXECUTE_ONLY_OWNER)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            path = self._nameless(ino, "directory")  # deeper than a path can say
            os.mkdir(path, _EXECUTE_ONLY_OWNER)
        self._directories[ino] = path
        self.report.directories += 1

    def _nameless(self, ino: int, what: str) -> bytes:
        folder = os.path.join(self._root, LOST_AND_FOUND)
        os.makedirs(folder, _EXECUTE_ONLY_OWNER, exist_ok=True)
        self.report.unnamed += 1
        return self._free(os.path.join(folder, f"{what}-{ino}".encode()), ino)

    @staticmethod
    def _free(path: bytes, ino: int) -> bytes:
        """The path, or one beside it if something has taken it already."""
        return path + b".inode-%d" % ino if os.path.lexists(path) else path

    def _special(self, inode: Inode, path: bytes) -> None:
        try:
            if inode.is_symlink:
                os.symlink(inode.target, path)
            else:
                os.mknod(path, inode.mode & 0o170600, inode.rdev)
        except OSError as error:
            self.report.add_damaged(self._failed(path, 0, error))
            return
        self.report.others += 1
        _set_attributes(path, inode)

    async def _file(self, ino: int, inode: Inode | None, path: bytes) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            path = self._nameless(ino, "inode")
            descriptor = os.open(path, flags, 0o600)
        try:
            content = await write_content(self._device, self._index, ino, inode, descriptor)
        except OSError as error:
            self.report.add_damaged(self._failed(path, ino, error))
            return
        finally:
            os.close(descriptor)
        if inode is not None:
            _set_attributes(path, inode)
        self.report.files += 1
        self.report.bytes += content.size
        self.report.inexact += not content.is_exact
        if content.damaged or content.missing_bytes:
            file = DamagedFile(self._shown(path), ino, content.damaged, content.missing_bytes)
            self.report.add_damaged(file)

    def _shown(self, path: bytes) -> str:
        return os.fsdecode(os.path.relpath(path, self._root))

    def _failed(self, path: bytes, ino: int, error: OSError) -> DamagedFile:
        return DamagedFile(self._shown(path), ino, [], 0, error.strerror or str(error))


@dataclass
class Content:
    """What was written of a file."""

    size: int
    damaged: Ranges
    missing_bytes: int
    is_exact: bool


async def write_content(
    device: Device, index: FrameIndex, ino: int, inode: Inode | None, descriptor: int
) -> Content:
    """Write a file's content as its frames tell it.

    Args:
        inode: if it is known: its size counts, unless data came after its name page.
        descriptor: of an empty file.

    Raises:
        OSError: it cannot be written.
    """
    damaged: Ranges = []
    covered: Ranges = []
    for frame in index.data(ino):
        start = frame.shard * SHARD_BYTES + frame.start
        covered = _with(covered, start, start + frame.length)
        damaged = _without(damaged, start, start + frame.length)
        for first, data in await _granules(device, frame):
            if data is None:
                length = min(granule_bytes(frame.length), frame.length - first)
                damaged = _with(damaged, start + first, start + first + length)
                data = bytes(length)
            os.pwrite(descriptor, data, start + first)
    end = covered[-1][1] if covered else 0
    page = index.page_sequence(ino) or 0
    is_settled = inode is not None and page > index.newest_data(ino)
    size = end
    if inode is not None:
        size = inode.size if is_settled else max(inode.size, end)
    os.ftruncate(descriptor, size)
    damaged = _without(damaged, size, max(size, end))
    found = _length(_without(covered, size, max(size, end)))
    missing = max(0, inode.used - found) if inode is not None and is_settled else 0
    is_exact = is_settled and inode is not None and inode.used == found
    return Content(size, damaged, missing, is_exact)


async def _granules(device: Device, frame: DataFrame) -> list[tuple[int, bytes | None]]:
    """(first byte, bytes or None if damaged) of runs of granules of a frame's payload."""
    try:
        data = bytes(await device.read(frame.payload_at, frame.length))
    except DeviceError:
        data = b""
    if data and not frame.damaged:
        return [(0, data)]
    step = granule_bytes(frame.length)
    return [
        (at, None if not data or at in frame.damaged else data[at : at + step])
        for at in range(0, frame.length, step)
    ]


def _set_attributes(path: bytes, inode: Inode) -> None:
    """Owner, mode and times as they were, as far as this user may."""
    if os.geteuid() == 0:
        with suppress(OSError, OverflowError):
            os.chown(path, inode.uid, inode.gid, follow_symlinks=False)
    with suppress(OSError, OverflowError, NotImplementedError):
        if not inode.is_symlink:
            os.chmod(path, stat.S_IMODE(inode.mode))
        os.utime(path, ns=(inode.atime_ns, inode.mtime_ns), follow_symlinks=False)


def _with(ranges: Ranges, start: int, end: int) -> Ranges:
    if start >= end:
        return ranges
    if not ranges or start > ranges[-1][1]:
        ranges.append((start, end))
        return ranges
    if start >= ranges[-1][0]:
        ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        return ranges
    before = [each for each in ranges if each[1] < start]
    behind = [each for each in ranges if each[0] > end]
    touched = ranges[len(before) : len(ranges) - len(behind)]
    joined = (
        (min(start, *(a for a, _ in touched)), max(end, *(b for _, b in touched)))
        if (touched)
        else (start, end)
    )
    return [*before, joined, *behind]


def _without(ranges: Ranges, start: int, end: int) -> Ranges:
    if start >= end or not ranges or ranges[-1][1] <= start:
        return ranges
    kept: Ranges = []
    for a, b in ranges:
        if a < start:
            kept.append((a, min(b, start)))
        if b > end:
            kept.append((max(a, end), b))
    return kept


def _length(ranges: Ranges) -> int:
    return sum(end - start for start, end in ranges)
