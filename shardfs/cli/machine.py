"""Checks of a machine, and of a device: is everything there that shardfs needs.

Role: each check looks at one thing and says what it has found, and what to do if that will not do.

Invariants:
    I1. Nothing is changed; the trial mount is of an empty directory of its own, and is taken away.
    I2. A check that cannot look says so, and does not end the others.

Not here: printing (cli/doctor.py).
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shardfs.cli.output import printable, size_text
from shardfs.engine.block_device import open_device
from shardfs.engine.mkfs import plan
from shardfs.engine.probe import probe, users_of
from shardfs.errors import ShardfsError
from shardfs.fuse.mounts import may_let_others_in, mounts_of
from shardfs.fuse.runtime import runtime_directory

OK: Final = "ok"
NOTE: Final = "note"
FINDING: Final = "finding"

KERNEL_MIN: Final = (4, 20)
"""Older kernels pass on fewer bytes a request than shardfs is tested with."""
LIBFUSE_MIN: Final = (3, 10)
MEMORY_BYTES_WANTED: Final = 1 << 30
_TRIAL_S_MAX: Final = 20.0
_TRIAL: Final = """
import sys, pyfuse3
pyfuse3.init(pyfuse3.Operations(), sys.argv[1], {"fsname=trial"})
pyfuse3.close(unmount=True)
"""


@dataclass(frozen=True)
class Result:
    """What a check has found.

    state: OK, NOTE (worth knowing) or FINDING (it will not work).
    advice: what to do; empty if nothing.
    """

    check: str
    state: str
    found: str
    advice: str = ""


Check = Callable[[], Iterator[Result]]


def run(checks: list[tuple[str, Check]]) -> Iterator[Result]:
    """What the checks find, one after the other (I2)."""
    for name, check in checks:
        try:
            yield from check()
        except (OSError, subprocess.SubprocessError, ShardfsError) as error:
            yield Result(name, NOTE, f"could not be looked at: {printable(str(error))}")


def machine_checks() -> list[tuple[str, Check]]:
    """Everything but the device."""
    return [
        ("kernel", _kernel),
        ("/dev/fuse", _device_node),
        ("fusermount3", _fusermount),
        ("libfuse", _libfuse),
        ("trial mount", _trial_mount),
        ("other users", _other_users),
        ("read-ahead", _read_ahead),
        ("runtime", _runtime),
        ("mount(8)", _helpers),
        ("memory", _memory),
    ]


# --- the machine --------------------------------------------------------------------------------


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _kernel() -> Iterator[Result]:
    release = platform.release()
    found = f"{platform.system()} {release}"
    if platform.system() != "Linux":
        yield Result("kernel", FINDING, found, "shardfs needs Linux")
    elif _version(release) < KERNEL_MIN:
        wanted = ".".join(map(str, KERNEL_MIN))
        yield Result("kernel", NOTE, found, f"it is tested on Linux {wanted} and newer only")
    elif "\tfuse\n" not in Path("/proc/filesystems").read_text(encoding="ascii"):
        yield Result("kernel", FINDING, f"{found} without FUSE", "load it: modprobe fuse")
    else:
        yield Result("kernel", OK, f"{found} with FUSE")


def _device_node() -> Iterator[Result]:
    node = Path("/dev/fuse")
    if not node.exists():
        advice = "load it: modprobe fuse; in a container, give it the device: --device /dev/fuse"
        yield Result("/dev/fuse", FINDING, "is not there", advice)
        return
    try:
        os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        advice = "let this user open it: chmod 666 /dev/fuse, or in a container run as root"
        yield Result("/dev/fuse", FINDING, f"cannot be opened: {error.strerror}", advice)
    else:
        yield Result("/dev/fuse", OK, "can be opened")


def _fusermount() -> Iterator[Result]:
    tool = shutil.which("fusermount3")
    if tool is None:
        yield Result("fusermount3", FINDING, "is not there", "install it: apt install fuse3")
    elif os.geteuid() != 0 and not os.stat(tool).st_mode & stat.S_ISUID:
        advice = f"let users mount: chown root {tool}; chmod u+s {tool}; or mount as root"
        yield Result("fusermount3", FINDING, f"{tool} may not mount for users", advice)
    else:
        yield Result("fusermount3", OK, tool)


def _libfuse() -> Iterator[Result]:
    try:
        library = ctypes.CDLL("libfuse3.so.3")
        library.fuse_pkgversion.restype = ctypes.c_char_p
        version = library.fuse_pkgversion().decode()
    except (OSError, AttributeError) as error:
        advice = "install it: apt install libfuse3-3"
        yield Result("libfuse", FINDING, f"cannot be loaded: {error}", advice)
        return
    if _version(version) < LIBFUSE_MIN:
        wanted = ".".join(map(str, LIBFUSE_MIN))
        yield Result("libfuse", NOTE, version, f"it is tested with {wanted} and newer only")
    else:
        yield Result("libfuse", OK, version)


def _trial_mount() -> Iterator[Result]:
    with tempfile.TemporaryDirectory(prefix="shardfs-doctor-") as directory:
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL, directory],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TRIAL_S_MAX,
            check=False,
        )
    if trial.returncode == 0:
        yield Result("trial mount", OK, "an empty file system was mounted and taken away")
        return
    lines = trial.stderr.strip().splitlines() or ["no message"]
    advice = "see the findings above; in a container: --cap-add SYS_ADMIN --device /dev/fuse"
    yield Result("trial mount", FINDING, f"failed: {printable(lines[-1])}", advice)


def _other_users() -> Iterator[Result]:
    if os.geteuid() == 0:
        yield Result("other users", OK, "root may let them in (allow_other is the default)")
        return
    if may_let_others_in():
        yield Result("other users", OK, "user_allow_other is in /etc/fuse.conf")
    else:
        advice = "to let them in with -o allow_other: echo user_allow_other >>/etc/fuse.conf"
        yield Result("other users", NOTE, "see nothing of what this user mounts", advice)


def _read_ahead() -> Iterator[Result]:
    if os.geteuid() == 0:
        yield Result("read-ahead", OK, "can be raised to 8 MiB")
    else:
        advice = "long reads are a third faster on what root mounts"
        yield Result("read-ahead", NOTE, "stays at 128 KiB: only root may raise it", advice)


def _runtime() -> Iterator[Result]:
    try:
        directory = runtime_directory()
    except ShardfsError as error:
        advice = "name another one in SHARDFS_RUNTIME_DIR"
        yield Result("runtime", FINDING, printable(str(error)), advice)
    else:
        yield Result("runtime", OK, f"sockets and logs go to {printable(str(directory))}")


def _helpers() -> Iterator[Result]:
    if shutil.which("mount.shardfs", path="/sbin:/usr/sbin") is not None:
        yield Result("mount(8)", OK, "knows shardfs, and so do fstab and systemd")
    else:
        advice = "for mount -t shardfs and /etc/fstab: shardfs install, as root"
        yield Result("mount(8)", NOTE, "does not know shardfs", advice)


def _memory() -> Iterator[Result]:
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    available = int(match[1]) * 1024 if match else 0
    if available < MEMORY_BYTES_WANTED:
        advice = "a busy mount may take 512 MiB; with less, mount with -o dirty=16M"
        yield Result("memory", NOTE, f"{size_text(available)} available", advice)
    else:
        yield Result("memory", OK, f"{size_text(available)} available")


# --- a device -----------------------------------------------------------------------------------


def device_checks(path: str) -> list[tuple[str, Check]]:
    """Whether a device, or an image file, can be formatted and mounted.

    Args:
        path: what the user has named.
    """
    return [("device", lambda: _device(path))]


def _device(path: str) -> Iterator[Result]:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        advice = "see what there is with: lsblk; or make an image: shardfs mkfs FILE --size 4G"
        yield Result("device", FINDING, f"{printable(path)}: {error.strerror}", advice)
        return
    mounts = mounts_of(path)
    if mounts:
        at = printable(mounts[0].mountpoint)
        yield Result("in use", NOTE, f"mounted as shardfs at {at}", f"see: shardfs info {at}")
        return
    users = users_of(path)
    if users:
        advice = "free it, or take another; nothing overrides this"
        yield Result("in use", FINDING, printable("; ".join(users)), advice)
        return
    yield Result("in use", OK, "by nobody")
    try:
        device = open_device(path)
    except ShardfsError as error:
        yield Result("opening", FINDING, printable(str(error)), "free it, or run this as root")
        return
    try:
        if device.read_only:
            advice = "it can be mounted read-only; to write: blockdev --setrw, or run as root"
            yield Result("opening", NOTE, "for reading only", advice)
        else:
            yield Result("opening", OK, "for reading and writing")
        try:
            identity = plan(device.size_bytes, device.sector_bytes)
            found = (
                f"{size_text(device.size_bytes)}, sectors of {device.sector_bytes} bytes: "
                f"{identity.extent_count} extents of {size_text(identity.extent_bytes)}"
            )
            yield Result("size", OK, found)
        except ShardfsError as error:
            yield Result("size", FINDING, printable(str(error)), "take a larger device")
        # Superblocks of shardfs are told by opening them: shardfs info.
        carried = probe(device.read_blocking, device.size_bytes, [])
        if carried:
            names = ", ".join(dict.fromkeys(each.name for each in carried))
            advice = "mkfs refuses it without --force, which destroys that"
            yield Result("content", NOTE, f"carries {names}", advice)
        else:
            yield Result("content", OK, "no foreign file system, volume or partition table")
    finally:
        device.close()
    yield from _queue(path) if stat.S_ISBLK(mode) else _image(path)


def _queue(path: str) -> Iterator[Result]:
    """What the kernel says of a block device's queue."""
    number = os.stat(path).st_rdev
    own = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    queue = own / "queue" if (own / "queue").is_dir() else own.parent / "queue"

    def value(name: str) -> str:
        place = queue / name
        return place.read_text(encoding="ascii").strip() if place.exists() else ""

    zoned = value("zoned")
    if zoned not in ("", "none"):
        advice = "only conventional disks can be used in this version"
        yield Result("zones", FINDING, f"the disk is {zoned}", advice)
    if int(value("discard_max_bytes") or 0):
        yield Result("discard", OK, "what becomes free is told to the device")
    else:
        yield Result("discard", NOTE, "not known to the device: it does not learn what is free")
    cache = value("write_cache") or "unknown"
    meaning = {
        "write back": "write back: every fsync flushes it",
        "write through": "write through, or the device has power for it: flushes are quick",
    }
    yield Result("write cache", OK if cache in meaning else NOTE, meaning.get(cache, cache))
    kind = {"0": "solid state, or virtual", "1": "rotating"}.get(value("rotational"), "unknown")
    yield Result("medium", OK, kind)


def _image(path: str) -> Iterator[Result]:
    """What the file system below an image file says."""
    facts, below = os.stat(path), os.statvfs(path)
    missing = max(0, facts.st_size - facts.st_blocks * 512)
    free = below.f_bavail * below.f_frsize
    if missing > free:
        advice = "make room there, or a smaller image: a write that fails turns a mount read-only"
        found = f"{size_text(missing)} of the image are not on its disk yet, {size_text(free)} free"
        yield Result("room", FINDING, found, advice)
    else:
        yield Result("room", OK, f"for the {size_text(missing)} that are not on its disk yet")
