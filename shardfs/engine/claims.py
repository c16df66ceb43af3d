"""Who has a device: our own claim on it, and everybody else's.

Role: opens a device so that nobody else can, and names those who use one already.

Invariants:
    I1  Two exclusive claims on one device never exist at once, also not on an image file and
        on the loop device that stands on it. A claim ends when its descriptors are closed,
        so the kernel ends it with the process, however that dies.

Ordering: none.

Not here: what is on the device (probe), and reading or writing it (device).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shardfs.errors import DeviceBusyError, UsageError

_WRITE_PROTECTED: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def claim(name: str, *, read_only: bool, exclusive: bool) -> tuple[list[int], bool]:
    """Opens a block device or image file, and holds it.

    Returns: descriptors that the holder closes, the device's own first; and whether it is
        open for reading only, because that was asked for or because it is write-protected.
    Raises: DeviceBusyError, UsageError.
    """
    mode = _stat_mode(name)
    descriptor, read_only = _open(name, mode, read_only, exclusive)
    try:
        locks = _lock_files(descriptor, name, mode) if exclusive else []
    except BaseException:  # whatever ended it, nobody else knows the descriptor
        os.close(descriptor)
        raise
    return [descriptor, *locks], read_only


def users_of(path: str | os.PathLike[str]) -> list[str]:
    """Who uses a block device or image file now, one phrase each; empty when nobody does.

    Mounts, swap, the devices that hold it (LVM, RAID, dm-crypt), and the same for each of its
    partitions; for an image file, the loop devices on it. Programs that merely have it open
    are not found here, but by claim().
    """
    name = os.fspath(path)
    mode = _stat_mode(name)
    if stat.S_ISREG(mode):
        users = [f"attached as {loop_device}" for loop_device in loop_devices_on(name)]
        real_name = os.path.realpath(name)
        users += [f"mounted on {at}" for source, _, at in _mounts() if source == real_name]
        return users
    users = []
    for number, device in _with_partitions(os.stat(name).st_rdev, name):
        users += [f"{device} is {use}" for use in _uses_of_number(number, device)]
    return users


def backing_file_of(device_number: int) -> str | None:
    """The file that a loop device stands on; None for any other device."""
    try:
        text = (_sysfs(device_number) / "loop/backing_file").read_text()
    except OSError:
        return None
    return text.rstrip("\n")


def loop_devices_on(path: str) -> list[str]:
    """The loop devices that stand on a file, as /dev/loopN."""
    found = []
    for entry in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        try:
            if os.path.samefile(entry.read_text().rstrip("\n"), path):
                found.append(f"/dev/{entry.parts[-3]}")
        except OSError:
            continue  # detached meanwhile, or its file is deleted: not our file in any case
    return found


# --- our claim --------------------------------------------------------------------------------


def _stat_mode(name: str) -> int:
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        raise UsageError(f"cannot open {name}: {error.strerror}") from error
    if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
        raise UsageError(f"{name} is neither a block device nor an image file")
    return mode


def _open(name: str, mode: int, read_only: bool, exclusive: bool) -> tuple[int, bool]:
    """A descriptor, and whether it is for reading only (asked for, or all that is allowed)."""
    flags = os.O_CLOEXEC | (os.O_EXCL if exclusive and stat.S_ISBLK(mode) else 0)
    try:
        if not read_only:
            try:
                return os.open(name, flags | os.O_RDWR), False
            except OSError as error:
                if error.errno not in _WRITE_PROTECTED:
                    raise
        return os.open(name, flags | os.O_RDONLY), True
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _busy(name) from error
        raise UsageError(f"cannot open {name}: {error.strerror}") from error


def _busy(name: str) -> DeviceBusyError:
    return DeviceBusyError(f"{name} is in use: mounted, or open in another program")


def _lock_files(descriptor: int, name: str, mode: int) -> list[int]:
    """Locks the image file: this one, or the one a loop device stands on (I1).

    A block device itself needs no lock: O_EXCL has claimed it. Returns descriptors to hold.
    """
    if stat.S_ISREG(mode):
        _lock(descriptor, name)
        for loop_device in loop_devices_on(name):
            _require_unclaimed(loop_device, name)
        return []
    backing_file = backing_file_of(os.fstat(descriptor).st_rdev)
    if backing_file is None:
        return []
    try:
        backing = os.open(backing_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []  # deleted, or out of this process's reach: nobody can open it by name
    try:
        _lock(backing, name)
    except BaseException:  # likewise
        os.close(backing)
        raise
    return [backing]


def _lock(descriptor: int, name: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _busy(name) from error


def _require_unclaimed(loop_device: str, name: str) -> None:
    try:
        os.close(os.open(loop_device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise DeviceBusyError(f"{name} is in use through {loop_device}") from error


# --- everybody else's -------------------------------------------------------------------------


def _sysfs(device_number: int) -> Path:
    return Path(f"/sys/dev/block/{os.major(device_number)}:{os.minor(device_number)}")


def _with_partitions(device_number: int, name: str) -> Iterator[tuple[int, str]]:
    """The device itself and its partitions: numbers and names."""
    yield device_number, name
    for entry in sorted(_sysfs(device_number).glob("*/partition")):
        try:
            major, minor = (entry.parent / "dev").read_text().split(":")
        except OSError:
            continue  # the partition has just gone
        yield os.makedev(int(major), int(minor)), f"/dev/{entry.parent.name}"


def _uses_of_number(device_number: int, name: str) -> list[str]:
    uses = []
    for source, number, mount_point in _mounts():
        if device_number in (number, _block_number_of(source)):
            uses.append(f"mounted on {mount_point}")
    for holder in sorted((_sysfs(device_number) / "holders").glob("*")):
        uses.append(f"held by /dev/{holder.name}")
    if any(_block_number_of(area) == device_number for area in _swap_areas()):
        uses.append("used as swap")
    return uses


def _mounts() -> Iterator[tuple[str, int, str]]:
    """Source, device number and mount point of everything mounted that this process can see."""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        major, minor = fields[2].split(":")
        source = fields[fields.index("-") + 2]
        yield _unescape(source), os.makedev(int(major), int(minor)), _unescape(fields[4])


def _swap_areas() -> list[str]:
    try:
        lines = Path("/proc/swaps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []  # a kernel without swap
    return [_unescape(line.split()[0]) for line in lines[1:]]


def _block_number_of(source: str) -> int | None:
    """The number of the block device a mount names as its source (btrfs mounts need this)."""
    if not source.startswith("/dev/"):
        return None
    try:
        status = os.stat(source)
    except OSError:
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


def _unescape(field: str) -> str:
    """Spaces and the like are octal in the kernel's tables."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
