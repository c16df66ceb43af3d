"""Random sequences of system calls on few names, so that they meet.

Role: a seed makes a list of calls for call_runner.py: [name, user, arguments...]. Paths are of
three names in three levels, and now and then of what paths may be otherwise: dots, slashes at the
end, nothing, too long.

Not here: what FUSE or pyfuse3 cannot do at all (docs/operations.md, "What cannot be"), and what
differs from ext4 on purpose (docs/posix.md).
"""

from __future__ import annotations

import fcntl
import os
import random
import stat
import struct
from collections.abc import Callable
from typing import TypeVar

from tests.mounted.call_runner import NAMES, USERS

Call = list[object]
T = TypeVar("T")
NAME_255, NAME_256 = "n" * 255, "n" * 256
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
SLOTS = 6
LENGTHS = (0, 1, 10, 511, 4_095, 4_096, 5_000, 70_000, 300_000)
OFFSETS = (0, 0, 1, 100, 4_095, 4_096, 8_000, 65_536, 100_000, 1 << 20, 1 << 31, 1 << 40)
SIZES = (0, 0, 1, 10, 4_095, 4_096, 4_097, 70_000, 200_000, 1 << 33, 1 << 40, -1, 1 << 62)
MODES = (0o777, 0o755, 0o700, 0o644, 0o600, 0o666, 0o444, 0o000, 0o4755, 0o2755, 0o6777, 0o2644)
MODES_OF_FOLDERS = (0o777, 0o777, 0o755, 0o1777, 0o2777, 0o2755, 0o700, 0o555, 0o3777)
XATTRS = ("user.a", "user.b", "trusted.a", "security.a", "user." + "n" * 250)
STRANGE_XATTRS = ("user.", "user", "bogus.a", "system.a", "user." + "n" * 251, "")
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def access_list(*entries: tuple[int, int, int]) -> str:
    """An access list as the kernel takes it, in hexadecimal: (tag, rights, number)."""
    return (struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)).hex()


NOBODY = 0xFFFFFFFF
OWNER, GROUP, MASK, OTHERS = (1, 7, NOBODY), (4, 5, NOBODY), (16, 7, NOBODY), (32, 5, NOBODY)
LISTS = (
    access_list(OWNER, GROUP, OTHERS),
    access_list(OWNER, (2, 6, 1001), GROUP, MASK, OTHERS),
    access_list(OWNER, (2, 0, 1002), GROUP, (8, 7, 1001), (16, 4, NOBODY), OTHERS),
    access_list(OWNER, (2, 7, 1003), GROUP, OTHERS),  # no mask: not valid
    access_list(),
    "00",
)


class Source:
    """Makes the arguments of calls."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def pick(self, values: tuple[T, ...]) -> T:
        """One of them."""
        return self._random.choice(values)

    def chance(self, share: float) -> bool:
        """Whether it happens."""
        return self._random.random() < share

    def seed(self) -> int:
        """What bytes are made from."""
        return self._random.randrange(1000)

    def slot(self) -> int:
        """One of few open files."""
        return self._random.randrange(SLOTS)

    def user(self) -> int:
        """Mostly root, or little would succeed."""
        return self._random.randrange(1, len(USERS)) if self.chance(0.4) else 0

    def path(self) -> str:
        """Where something may be."""
        depth = self._random.choices((1, 2, 3), (6, 4, 1))[0]
        path = "/".join(self.pick(NAMES) for _ in range(depth))
        if self.chance(0.1):
            path = self.pick(
                (
                    *(".", "..", "/", "", path + "/", path + "/.", path + "/..", "./" + path),
                    *(NAME_255, NAME_256, f"{path}/{NAME_255}", f"{path}/{NAME_256}"),
                    *("a/" * 2047 + "a", "a/" * 2048, "./" * 2047 + "a", "//" + path),
                    *("\x01\xff\\ \n", path + "/../" + path),
                )
            )
        return path if self.chance(0.3) or not path else "/" + path

    def flags(self) -> int:
        """How to open."""
        flags = self.pick((os.O_RDONLY, os.O_RDWR, os.O_RDWR, os.O_WRONLY))
        for flag, share in (
            *((os.O_CREAT, 0.5), (os.O_EXCL, 0.15), (os.O_TRUNC, 0.2), (os.O_APPEND, 0.2)),
            *((os.O_DIRECTORY, 0.1), (os.O_NOFOLLOW, 0.15), (os.O_PATH, 0.05)),
            *((os.O_NOATIME, 0.05), (os.O_DSYNC, 0.05), (os.O_SYNC, 0.03)),
        ):
            if self.chance(share):
                flags |= flag
        return flags

    def moment(self) -> tuple[int, int]:
        """Seconds and nanoseconds."""
        nanoseconds = self.pick((0, 1, 999_999_999, UTIME_NOW, UTIME_OMIT, 1_000_000_000))
        return self.pick((0, 1, -1, -(1 << 31), 1 << 31, 1 << 33)), nanoseconds

    def xattr(self) -> str:
        """Name of an extended attribute."""
        return self.pick(STRANGE_XATTRS if self.chance(0.1) else XATTRS)

    def owner(self) -> int:
        """User or group to give a file to."""
        return self.pick((-1, 0, 1001, 1002, 1003))


def on_open_files(s: Source) -> dict[str, tuple[float, Callable[[], list[object]]]]:
    """Calls on descriptors: how often, and their arguments."""
    return {
        "open": (14, lambda: [s.slot(), s.path(), s.flags(), s.pick(MODES)]),
        "close": (3, lambda: [s.slot()]),
        "read": (3, lambda: [s.slot(), s.pick(LENGTHS)]),
        "pread": (3, lambda: [s.slot(), s.pick(LENGTHS), s.pick(OFFSETS)]),
        "write": (4, lambda: [s.slot(), s.pick(LENGTHS), s.seed()]),
        "pwrite": (4, lambda: write_at(s)),
        "lseek": (1, lambda: [s.slot(), s.pick((*OFFSETS[:9], -1)), s.pick((0, 1, 2, 9))]),
        "ftruncate": (3, lambda: [s.slot(), s.pick(SIZES)]),
        "fsync": (1, lambda: [s.slot()]),
        "fdatasync": (1, lambda: [s.slot()]),
        "fstat": (2, lambda: [s.slot()]),
        "fchmod": (1, lambda: [s.slot(), s.pick(MODES)]),
        "fchown": (1, lambda: [s.slot(), s.owner(), s.owner()]),
        "fchdir": (0.5, lambda: [s.slot()]),
        "getflags": (0.5, lambda: [s.slot()]),
        "setflags": (0.5, lambda: [s.slot(), s.pick((0, os.O_APPEND))]),
        "flock": (0.5, lambda: [s.slot(), s.pick((fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN))]),
        "copy_range": (1, lambda: [s.slot(), s.slot(), s.pick(LENGTHS), *places(s)]),
        "sendfile": (1, lambda: [s.slot(), s.slot(), s.pick(OFFSETS[:9]), s.pick(LENGTHS)]),
        "flist": (0.5, lambda: [s.slot()]),
        "link_open": (1, lambda: [s.slot(), s.path()]),
        "map": (2, lambda: [s.slot(), s.chance(0.7), stores(s), s.chance(0.5)]),
    }


def on_paths(s: Source) -> dict[str, tuple[float, Callable[[], list[object]]]]:
    """Calls on paths: how often, and their arguments."""
    kinds = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, 0, stat.S_IFDIR)
    devices = (os.makedev(1, 3), os.makedev(1, 7), os.makedev(4000, 70_000))
    return {
        "stat": (4, lambda: [s.path(), s.chance(0.5)]),
        "access": (1, lambda: [s.path(), s.pick((0, 1, 2, 4, 6, 7))]),
        "mkdir": (8, lambda: [s.path(), s.pick(MODES_OF_FOLDERS)]),
        "mknod": (3, lambda: [s.path(), s.pick(kinds) | s.pick(MODES), s.pick(devices)]),
        "symlink": (3, lambda: [target(s), s.path()]),
        "readlink": (1, lambda: [s.path()]),
        "link": (4, lambda: [s.path(), s.path(), s.chance(0.3)]),
        "unlink": (5, lambda: [s.path()]),
        "rmdir": (3, lambda: [s.path()]),
        "rename": (8, lambda: [s.path(), s.path(), s.pick((0, 0, 0, 1, 2, 2, 3, 8))]),
        "truncate": (2, lambda: [s.path(), s.pick(SIZES)]),
        "chmod": (3, lambda: [s.path(), s.pick(MODES + MODES_OF_FOLDERS)]),
        "lchmod": (0.5, lambda: [s.path(), s.pick(MODES)]),
        "chown": (4, lambda: [s.path(), s.owner(), s.owner(), s.chance(0.6)]),
        "utimens": (3, lambda: [s.path(), moments(s), s.chance(0.6)]),
        "setxattr": (3, lambda: set_xattr(s)),
        "setlist": (2, lambda: [s.path(), s.pick((ACCESS, DEFAULT)), s.pick(LISTS)]),
        "getxattr": (1, lambda: [s.path(), any_xattr(s), s.chance(0.6)]),
        "removexattr": (1.5, lambda: [s.path(), any_xattr(s), s.chance(0.6)]),
        "listxattr": (1, lambda: [s.path(), s.chance(0.6)]),
        "list": (2, lambda: [s.path()]),
        "chdir": (2, lambda: [s.path()]),
        "getcwd": (0.5, list),
        "umask": (0.5, lambda: [s.pick((0, 0o022, 0o077, 0o027))]),
        "statvfs": (0.3, lambda: [s.path()]),
    }


def write_at(s: Source) -> list[object]:
    """Arguments of pwrite; sometimes RWF_DSYNC or RWF_APPEND."""
    offset = s.pick((*OFFSETS, -1, (1 << 63) - 100))
    return [s.slot(), s.pick(LENGTHS), s.seed(), offset, s.pick((0, 0, 0, 0, 2, 16))]


def places(s: Source) -> list[object]:
    """Two small offsets."""
    return [s.pick(OFFSETS[:9]), s.pick(OFFSETS[:9])]


def stores(s: Source) -> list[object]:
    """Where to store which byte in a mapping, also behind the end of the file."""
    return [[s.pick((0, 1, 100, 4_000, 4_095, 4_096, 69_999)), s.seed() % 256] for _ in range(2)]


def target(s: Source) -> str:
    """What a symbolic link says."""
    return s.pick(("x" * 4095, "x" * 4096, "", "a", "/a", "../b")) if s.chance(0.1) else s.path()


def moments(s: Source) -> list[object] | None:
    """Two times, or now."""
    return None if s.chance(0.3) else [s.moment(), s.moment()]


def set_xattr(s: Source) -> list[object]:
    """Arguments of setxattr."""
    length = s.pick((0, 1, 10, 100, 1_000, 65_536, 65_537))
    return [s.path(), s.xattr(), length, s.seed(), s.pick((0, 0, 1, 2)), s.chance(0.6)]


def any_xattr(s: Source) -> str:
    """An extended attribute, or an access list."""
    return s.pick((ACCESS, DEFAULT)) if s.chance(0.3) else s.xattr()


def make_calls(seed: int, count: int) -> list[Call]:
    """So many calls."""
    source = Source(seed)
    kinds = {**on_open_files(source), **on_paths(source)}
    weights = [weight for weight, _ in kinds.values()]
    names = random.Random(seed + 1).choices(list(kinds), weights, k=count)
    return [[name, source.user(), *kinds[name][1]()] for name in names]
