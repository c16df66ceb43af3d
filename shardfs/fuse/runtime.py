"""Where running mounts keep what others find them by: sockets, endings, logs.

Role: one directory per user, for files named after the mount's device number, which is unique
among the living mounts of a machine, in whatever namespace they are. The kernel gives the number
of a mount that has ended to the next one at once, while the server of the first may still be
storing what it has: so what outlives a mount has the server's process in its name as well.

Invariants:
    I1. The directory belongs to its user and nobody else may enter (mode 0700); one that looks
        otherwise is not used.

$SHARDFS_RUNTIME_DIR takes the place of them all. Otherwise root's is /run/shardfs, a user's is
$XDG_RUNTIME_DIR/shardfs or /run/user/UID/shardfs; where that cannot be had, /tmp/shardfs-UID.

Not here: what is said over a socket (control.py).
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from shardfs.clock import now_ns
from shardfs.errors import UsageError


def candidates(uid: int) -> list[Path]:
    """The directories that a user's mounts may have used, best first."""
    chosen = os.environ.get("SHARDFS_RUNTIME_DIR")
    if chosen:
        return [Path(chosen)]
    last = Path(f"/tmp/shardfs-{uid}")
    if uid == 0:
        return [Path("/run/shardfs"), last]
    directories = [Path(f"/run/user/{uid}/shardfs"), last]
    own = os.environ.get("XDG_RUNTIME_DIR")
    if own and uid == os.geteuid():
        directories.insert(0, Path(own) / "shardfs")
    return directories


def runtime_directory() -> Path:
    """This user's directory, made if need be.

    Raises:
        UsageError: none can be had.
    """
    trouble = ""
    for directory in candidates(os.geteuid()):
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            _require_private(directory)
        except OSError as error:
            trouble = f"{directory}: {error.strerror or error}"
            continue
        return directory
    raise UsageError(f"no directory for the control socket ({trouble}); set SHARDFS_RUNTIME_DIR")


def find_file(uid: int, name: str) -> Path | None:
    """The file of that name in one of a user's directories."""
    for directory in candidates(uid):
        try:
            _require_private(directory, uid)
            path = directory / name
            path.lstat()
        except OSError:
            continue
        return path
    return None


def socket_name(device_number: str) -> str:
    """Name of a mount's control socket. Args: device_number: "major:minor"."""
    return f"mount-{device_number.replace(':', '-')}.socket"


def ending_name(device_number: str, pid: int) -> str:
    """Name of the file in which the server of a mount says how it ended."""
    return f"mount-{device_number.replace(':', '-')}-{pid}.ended"


def forget_endings(directory: Path, *, older_than_s: float) -> None:
    """Remove what mounts have left that nobody waited for."""
    oldest_ns = now_ns() - round(older_than_s * 1e9)
    for path in directory.glob("mount-*.ended"):
        with suppress(FileNotFoundError):  # another mount does the same
            if path.stat().st_mtime_ns < oldest_ns:
                path.unlink()


def log_name(mountpoint: str) -> str:
    """Name of the log of a mount in the background: the mount point, with dashes."""
    return f"{mountpoint.strip('/').replace('/', '-')[-200:] or 'root'}.log"


def _require_private(directory: Path, uid: int | None = None) -> None:
    status = directory.lstat()
    allowed = {os.geteuid(), uid if uid is not None else os.geteuid()}
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in allowed or status.st_mode & 0o077:
        raise PermissionError(f"{directory} is not a private directory of this user")
