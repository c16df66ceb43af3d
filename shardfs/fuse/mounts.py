"""What is mounted: the kernel's table, the state of a mount point, and taking a mount away.

Role: finds shardfs mounts by mount point, by device and by a path inside; makes a directory
ready to be mounted on; unmounts; changes a mount's flags.

Invariants:
    I1. What is mounted is read from /proc, without touching the mounts: a server that hangs
        does not hang who asks.
    I2. A stale mount (its server is gone) is taken away only if it was a shardfs mount.

Not here: serving (session.py), talking to the server (control.py).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from shardfs.errors import UsageError

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_KINDS: Final = frozenset({"fuse.shardfs", "fuseblk.shardfs"})
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_REMOUNT: Final = 32
_BIND: Final = 4096
_ANY_ATIME: Final = frozenset({"noatime", "relatime", "strictatime"})
_FLAGS: Final = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "dirsync": 128,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
}
_OPPOSITES: Final = {
    "rw": "ro",
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "async": "sync",
    "diratime": "nodiratime",
}
FUSE_DEVICE: Final = Path("/dev/fuse")
_FUSE_CONFIGURATION: Final = Path("/etc/fuse.conf")


class MountEntry(NamedTuple):
    """One line of the kernel's mount table."""

    device_number: str
    mountpoint: str
    kind: str
    source: str
    options: tuple[str, ...]
    owner_uid: int

    @property
    def is_shardfs(self) -> bool:
        """A mount of ours."""
        return self.kind in _KINDS


def mounts() -> Iterator[MountEntry]:
    """Everything mounted that this process can see, in the order of mounting."""
    for line in _MOUNTINFO.read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        dash = fields.index("-")
        kind, source, more = fields[dash + 1], fields[dash + 2], fields[dash + 3]
        options = tuple(dict.fromkeys([*fields[5].split(","), *more.split(",")]))
        owner = next((each[8:] for each in options if each.startswith("user_id=")), "0")
        yield MountEntry(
            fields[2], _unescape(fields[4]), kind, _unescape(source), options, int(owner)
        )


def find_mount(path: str) -> MountEntry | None:
    """What is mounted on top at exactly this path, whose last part is not followed."""
    absolute = absolute_path(path)
    found = None
    for entry in mounts():
        if entry.mountpoint == absolute:
            found = entry
    return found


def mounts_of(device: str) -> list[MountEntry]:
    """The shardfs mounts of a device or image file."""
    name = os.path.realpath(device)
    return [entry for entry in mounts() if entry.is_shardfs and entry.source == name]


def shardfs_mounts() -> list[MountEntry]:
    """Every shardfs mount that this process can see."""
    return [entry for entry in mounts() if entry.is_shardfs]


def mount_around(path: str) -> tuple[MountEntry, str] | None:
    """The shardfs mount that a path is in, and the rest of the path in it; None if in none."""
    absolute = absolute_path(path)
    best = None
    for entry in mounts():
        prefix = entry.mountpoint.rstrip("/") + "/"
        inside = absolute == entry.mountpoint or absolute.startswith(prefix)
        if inside and (best is None or len(entry.mountpoint) >= len(best.mountpoint)):
            best = entry
    if best is None or not best.is_shardfs:
        return None
    return best, absolute[len(best.mountpoint) :].strip("/")


def absolute_path(path: str) -> str:
    """The path without links on the way to it; its last part is kept as it is (I1)."""
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(parent), name) if name else os.path.realpath(path)


def prepare_mountpoint(path: str) -> str:
    """Make sure that something can be mounted at a path; its absolute form.

    A stale mount that a killed server has left there is taken away.

    Raises:
        UsageError: it is missing, no directory, not empty, or in use.
    """
    absolute = absolute_path(path)
    if os.path.islink(absolute):
        absolute = os.path.realpath(absolute)
    while (entry := find_mount(absolute)) is not None and entry.kind.startswith("fuse"):
        try:
            stale = is_stale(entry)
        except OSError as error:
            raise UsageError(
                f"cannot use {path}: {error.strerror} (a {entry.kind} mount); "
                f"take it away with: umount -l {path}"
            ) from error
        if stale and not entry.is_shardfs:
            raise UsageError(
                f"cannot use {path}: the server of a {entry.kind} mount there has gone; "
                f"take it away with: umount -l {path}"
            )
        if stale:
            unmount(absolute, lazily=True)
            continue
        if entry.is_shardfs:
            raise UsageError(
                f"{path} has {entry.source} mounted already; unmount it with: shardfs umount {path}"
            )
        break
    _require_empty_directory(absolute, path)
    return absolute


def _require_empty_directory(absolute: str, path: str) -> None:
    try:
        if not stat.S_ISDIR(os.stat(absolute).st_mode):
            raise UsageError(f"{path} is not a directory; mount on an empty one")
        with os.scandir(absolute) as entries:
            occupied = next(entries, None)
    except FileNotFoundError as error:
        raise UsageError(f"there is no directory {path}; make it with: mkdir -p {path}") from error
    except OSError as error:
        raise UsageError(f"cannot use {path} as a mount point: {error.strerror}") from error
    if occupied is not None:
        raise UsageError(
            f"{path} is not empty (it holds {os.fsencode(occupied.name).decode(errors='replace')}"
            " for one); mount on an empty directory"
        )


def require_fuse() -> None:
    """Raises:
    UsageError: FUSE cannot be used here; says what to do.
    """
    if not FUSE_DEVICE.exists():
        raise UsageError(
            f"there is no {FUSE_DEVICE}: load the module with 'modprobe fuse', or give the "
            f"container the device (docker run --device {FUSE_DEVICE} --cap-add SYS_ADMIN)"
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise UsageError(f"{FUSE_DEVICE} may not be opened by this user; run as root")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise UsageError("fusermount3 is missing; install it with: apt install fuse3")


def may_let_others_in() -> bool:
    """This user may mount what other users can enter: root, or anybody by /etc/fuse.conf."""
    if os.geteuid() == 0:
        return True
    try:
        text = _FUSE_CONFIGURATION.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.search(r"^\s*user_allow_other\b", text, re.MULTILINE) is not None


def require_rights(path: str, *, allow_other: bool) -> None:
    """What fusermount3 asks for of users other than root, who would only say it in a log.

    Raises:
        UsageError: this user may not mount at the path, or not for others.
    """
    if os.geteuid() == 0:
        return
    if not os.access(path, os.W_OK):
        raise UsageError(
            f"{path} may not be written to by this user; mount on a directory that may"
        )
    if allow_other and not may_let_others_in():
        raise UsageError(
            "allow_other is for root only; or, as root: echo user_allow_other >>/etc/fuse.conf"
        )


def unmount(mountpoint: str, *, lazily: bool = False) -> None:
    """Take the topmost mount at an absolute path away.

    Args:
        lazily: now, although it is in use; for mounts whose server has gone.

    Raises:
        UsageError: it is in use, or this user may not.
    """
    if os.geteuid() == 0:
        code = _umount2(mountpoint, _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazily else 0))
        if code == 0:
            return
        reason = "busy" if code == errno.EBUSY else os.strerror(code)
    else:
        tool = shutil.which("fusermount3") or "fusermount3"
        command = [tool, "-u", *(["-z"] if lazily else []), "--", mountpoint]
        try:
            run = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except OSError as error:
            raise UsageError(f"cannot run {tool}: {error.strerror}; install fuse3") from error
        if run.returncode == 0:
            return
        reason = run.stderr.strip().removeprefix("fusermount3: ")
    if "busy" in reason:
        raise UsageError(
            f"{mountpoint} is busy: files there are open, or a program works in it "
            f"(see who with: fuser -vm {mountpoint}); close them and try again"
        )
    raise UsageError(f"cannot unmount {mountpoint}: {reason}")


def change_flags(mountpoint: str, words: Collection[str], *, whole: bool) -> None:
    """Change what the kernel allows at the topmost mount at an absolute path.

    Args:
        words: of mount(8): "ro", "rw", "noexec", "noatime" and the like; the others stay.
        whole: the file system itself, so "ro" holds wherever it is seen, and open files are
            respected; else this mount of it. A server may not do this to its own mount: the
            kernel writes to it what is left to write.

    Raises:
        UsageError: files are open for writing, or this user may not.
    """
    entry = find_mount(mountpoint)
    if entry is None:
        raise UsageError(f"nothing is mounted at {mountpoint}")
    names = {each for each in entry.options if each in _FLAGS}
    for word in words:
        if word in _ANY_ATIME:
            names -= _ANY_ATIME
        names.discard(_OPPOSITES.get(word, ""))
        names |= {word} & _FLAGS.keys()
    flags = _REMOUNT | (0 if whole else _BIND) | sum(_FLAGS[name] for name in names)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, os.fsencode(mountpoint), None, ctypes.c_ulong(flags), None) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EBUSY:
        raise UsageError(
            f"{mountpoint} is busy: files there are open for writing (see who with: "
            f"fuser -vm {mountpoint}); close them and try again"
        )
    raise UsageError(f"cannot remount {mountpoint}: {os.strerror(code)}")


def is_stale(entry: MountEntry) -> bool:
    """The server of a FUSE mount has gone, and the mount is still there.

    Raises:
        OSError: it answers with another error than that.
    """
    try:
        os.statvfs(entry.mountpoint)  # stat(2) may be answered from the kernel's cache
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return True
        raise
    return False


def take_away_stale_mounts(device: str) -> list[str]:
    """Unmount what killed servers of a device have left behind; the mount points.

    Raises:
        UsageError: this user may not.
    """
    taken = []
    for entry in mounts_of(device):
        try:
            stale = is_stale(entry)
        except OSError:
            continue  # not dead, or not ours to judge
        if stale:
            unmount(entry.mountpoint, lazily=True)
            taken.append(entry.mountpoint)
    return taken


def _umount2(mountpoint: str, flags: int) -> int:
    """umount2(2); 0 or the error number."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return 0
    return ctypes.get_errno()


def _unescape(field: str) -> str:
    """Spaces and the like are octal in the kernel's table."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
