"""Performs a list of system calls below one directory and says what each of them did.

Role: one side of a comparison of file systems. Started as a program, `call_runner.py DIRECTORY
MODE`, as root: the directory becomes its root directory, so no path leads out of it. It reads a
list of calls from standard input, as call_sequences.py makes them, and prints one line of JSON
for each: what the call returned or the name of its error, and in the mode "times" which times
moved. At the end comes the whole tree: attributes, contents, extended attributes.

Not here: what to call (call_sequences.py), and comparing (test_beside_ext4.py).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import product

Value = object
Call = Callable[..., Value]

USERS: tuple[tuple[int, int, list[int]], ...] = (
    (0, 0, []),
    (1001, 1001, []),
    (1002, 1002, [1001]),
    (1003, 1001, []),
)
"""User, group and further groups of who calls, by the number that a call names."""
NAMES = ("a", "b", "c")
WATCHED = ("/", *("/" + "/".join(parts) for n in (1, 2, 3) for parts in product(NAMES, repeat=n)))
PLACES = (0, 4_096, 65_536, 1 << 20, 1 << 31, 1 << 40)
"""Where contents are looked at, PLACE_BYTES each: all that is ever written is there."""
PLACE_BYTES = 800_000
READ_BYTES_MAX = 1 << 20
WITH_TIMES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
"""Not pipes and devices: what goes through them FUSE does not see."""
TICK_S = 0.012
"""ext4 takes access times from a clock that moves this often at worst."""
AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW = -100, 0x1000, 0x100
FCHMODAT2 = 452
LIBC = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> int:
    """Raises: OSError if a function of libc has failed."""
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result


def digest(data: bytes) -> str:
    """Contents in short."""
    return f"{len(data)}:{hashlib.blake2b(data, digest_size=6).hexdigest()}"


def show(status: os.stat_result) -> list[int]:
    """What has to be the same of a file. The size of a directory is its file system's own."""
    size = -1 if stat.S_ISDIR(status.st_mode) else status.st_size
    mode = status.st_mode
    if stat.S_ISREG(mode) and not mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID  # it means nothing there, and FUSE may keep it where ext4 does not
    return [mode, status.st_nlink, status.st_uid, status.st_gid, size, status.st_rdev]


def access_ns(status: os.stat_result) -> int:
    """The access time; not of regular files, as FUSE does not see what is read from memory."""
    return 0 if stat.S_ISREG(status.st_mode) else status.st_atime_ns


def become(user: int) -> None:
    """Who calls from now on; only from root's number 0 to another, or back."""
    number, group, groups = USERS[user]
    os.seteuid(0)
    os.setegid(group)
    os.setgroups(groups)
    os.seteuid(number)


class Runner:
    """The process's view: open files by slot, and one method for each call."""

    def __init__(self) -> None:
        self._open: dict[int, int] = {}
        self._openers: dict[int, int] = {}

    def _chown(self, file: str | int, user: int, group: int, follow: bool) -> None:
        status = os.stat(file, follow_symlinks=follow)
        if user == group == -1 and status.st_mode & (stat.S_ISUID | stat.S_ISGID):
            return  # what test_set_id_bits_stay_when_strangers_ask is about
        os.chown(file, user, group, follow_symlinks=follow)

    def _fd_to_write(self, slot: int) -> int:
        """As _fd. Not for root if others opened it: who writes, FUSE does not say, so set-user-ID
        bits go then, and with ext4 they stay."""
        descriptor = self._fd(slot)
        if os.geteuid() == 0 != self._openers[slot]:
            raise OSError(errno.ECANCELED, "")
        return descriptor

    def _require_root_opened(self, status: os.stat_result) -> None:
        """Before something is stored in a mapping of a file with set-ID bits, which ext4 leaves
        there. Through which of the open files it will be written back, nobody knows."""
        if not status.st_mode & (stat.S_ISUID | stat.S_ISGID):
            return
        for slot, descriptor in self._open.items():
            if self._openers[slot] and os.fstat(descriptor).st_ino == status.st_ino:
                raise OSError(errno.ECANCELED, "")

    def _fd(self, slot: int) -> int:
        if slot not in self._open:
            raise OSError(errno.EBADF, "")
        return self._open[slot]

    # --- open files -----------------------------------------------------------------------------
    def open(self, slot: int, path: str, flags: int, mode: int) -> Value:
        opened = os.open(path, flags | os.O_NONBLOCK, mode)
        self.close(slot)
        self._open[slot], self._openers[slot] = opened, os.geteuid()
        return "open"

    def close(self, slot: int) -> None:
        if slot in self._open:
            os.close(self._open.pop(slot))

    def read(self, slot: int, length: int) -> Value:
        return digest(os.read(self._fd(slot), length))

    def pread(self, slot: int, length: int, offset: int) -> Value:
        return digest(os.pread(self._fd(slot), length, offset))

    def write(self, slot: int, length: int, seed: int) -> Value:
        return os.write(self._fd_to_write(slot), content(length, seed))

    def pwrite(self, slot: int, length: int, seed: int, offset: int, flags: int) -> Value:
        return os.pwritev(self._fd_to_write(slot), [content(length, seed)], offset, flags)

    def lseek(self, slot: int, offset: int, whence: int) -> Value:
        descriptor = self._fd(slot)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return "positions in directories are each file system's own"
        return os.lseek(descriptor, offset, whence)

    def ftruncate(self, slot: int, length: int) -> None:
        os.ftruncate(self._fd(slot), length)

    def fsync(self, slot: int) -> None:
        os.fsync(self._fd(slot))

    def fdatasync(self, slot: int) -> None:
        os.fdatasync(self._fd(slot))

    def fstat(self, slot: int) -> Value:
        return show(os.fstat(self._fd(slot)))

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self._fd(slot), mode)

    def fchown(self, slot: int, user: int, group: int) -> None:
        self._chown(self._fd(slot), user, group, True)

    def fchdir(self, slot: int) -> None:
        os.fchdir(self._fd(slot))

    def getflags(self, slot: int) -> Value:
        return fcntl.fcntl(self._fd(slot), fcntl.F_GETFL)

    def setflags(self, slot: int, flags: int) -> Value:
        return fcntl.fcntl(self._fd(slot), fcntl.F_SETFL, flags | os.O_NONBLOCK)

    def flock(self, slot: int, how: int) -> None:
        fcntl.flock(self._fd(slot), how | fcntl.LOCK_NB)

    def copy_range(self, source: int, target: int, length: int, start: int, to: int) -> Value:
        descriptor = self._fd_to_write(target)
        return os.copy_file_range(self._fd(source), descriptor, length, start, to)

    def sendfile(self, target: int, source: int, offset: int, length: int) -> Value:
        return os.sendfile(self._fd_to_write(target), self._fd(source), offset, length)

    def flist(self, slot: int) -> Value:
        return sorted(os.listdir(self._fd(slot)))

    def link_open(self, slot: int, path: str) -> Value:
        name = os.fsencode(path)
        return checked(LIBC.linkat(self._fd(slot), b"", AT_FDCWD, name, AT_EMPTY_PATH))

    def map(self, slot: int, shared: bool, stores: list[tuple[int, int]], sync: bool) -> Value:
        """Map all of a small file, and the rest of its last page; store; read it back."""
        descriptor = self._fd(slot)
        status = os.fstat(descriptor)
        size = status.st_size
        if not 0 < size <= READ_BYTES_MAX or not stat.S_ISREG(status.st_mode):
            return "not mapped"
        if shared and stores:
            self._require_root_opened(status)
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        kind = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        rights = mmap.PROT_READ | (mmap.PROT_WRITE if stores else 0)
        # Python refuses to map behind the end, so the C library does.
        LIBC.mmap.restype = ctypes.c_void_p
        LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *3 * [ctypes.c_int], ctypes.c_long]
        address = LIBC.mmap(None, pages, rights, kind, descriptor, 0)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "")
        place = ctypes.c_void_p(address)
        try:
            memory = (ctypes.c_ubyte * pages).from_address(address)
            before = digest(bytes(memory[:size]))
            for at, byte in stores:
                memory[at % pages] = byte
            if sync:
                checked(LIBC.msync(place, ctypes.c_size_t(pages), 4))
            return [before, digest(bytes(memory[:size]))]
        finally:
            checked(LIBC.munmap(place, ctypes.c_size_t(pages)))

    # --- paths ----------------------------------------------------------------------------------
    def stat(self, path: str, follow: bool) -> Value:
        return show(os.stat(path, follow_symlinks=follow))

    def access(self, path: str, mode: int) -> Value:
        return os.access(path, mode, effective_ids=True)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def mknod(self, path: str, mode: int, device: int) -> None:
        os.mknod(path, mode, device)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, path)

    def readlink(self, path: str) -> Value:
        return os.readlink(path)

    def link(self, old: str, new: str, follow: bool) -> None:
        os.link(old, new, follow_symlinks=follow)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def rename(self, old: str, new: str, flags: int) -> Value:
        names = os.fsencode(old), os.fsencode(new)
        return checked(LIBC.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], flags))

    def truncate(self, path: str, length: int) -> None:
        os.truncate(path, length)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def lchmod(self, path: str, mode: int) -> Value:
        name = os.fsencode(path)
        return checked(LIBC.syscall(FCHMODAT2, AT_FDCWD, name, mode, AT_SYMLINK_NOFOLLOW))

    def chown(self, path: str, user: int, group: int, follow: bool) -> None:
        self._chown(path, user, group, follow)

    def utimens(self, path: str, times: list[tuple[int, int]] | None, follow: bool) -> Value:
        flags = 0 if follow else AT_SYMLINK_NOFOLLOW
        numbers = None if times is None else (ctypes.c_long * 4)(*times[0], *times[1])
        return checked(LIBC.utimensat(AT_FDCWD, os.fsencode(path), numbers, flags))

    def setxattr(
        self, path: str, name: str, length: int, seed: int, flags: int, follow: bool
    ) -> None:
        os.setxattr(path, name, content(length, seed), flags, follow_symlinks=follow)

    def setlist(self, path: str, name: str, value: str) -> None:
        os.setxattr(path, name, bytes.fromhex(value))

    def getxattr(self, path: str, name: str, follow: bool) -> Value:
        return digest(os.getxattr(path, name, follow_symlinks=follow))

    def removexattr(self, path: str, name: str, follow: bool) -> None:
        os.removexattr(path, name, follow_symlinks=follow)

    def listxattr(self, path: str, follow: bool) -> Value:
        return sorted(os.listxattr(path, follow_symlinks=follow))

    def list(self, path: str) -> Value:
        """Names with their kinds; the number in a directory's entry is that of its file."""
        found = []
        with os.scandir(path) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                kinds = entry.is_dir(follow_symlinks=False), entry.is_symlink()
                found.append([entry.name, kinds, entry.inode() == status.st_ino])
        return sorted(found, key=str)

    def chdir(self, path: str) -> None:
        os.chdir(path)

    def getcwd(self) -> Value:
        return os.getcwd()

    def umask(self, mask: int) -> Value:
        return os.umask(mask)

    def statvfs(self, path: str) -> Value:
        told = os.statvfs(path)
        return [told.f_namemax, told.f_frsize, told.f_flag & (os.ST_RDONLY | os.ST_NOSUID)]

    def times(self) -> dict[str, tuple[int, ...]]:
        """Number, access, change and status change of all that there may be.

        Not through symbolic links: to follow one is to read it, which moves its access time, and
        ext4 would not show that within one tick of its clock.
        """
        found: dict[str, tuple[int, ...]] = {}
        links = set()
        for path in WATCHED:
            if os.path.dirname(path) in links:
                links.add(path)
                continue
            with suppress(OSError):
                told = os.lstat(path)
                if stat.S_ISLNK(told.st_mode):
                    links.add(path)
                if stat.S_IFMT(told.st_mode) in WITH_TIMES:
                    found[path] = told.st_ino, access_ns(told), told.st_mtime_ns, told.st_ctime_ns
        for slot, descriptor in self._open.items():
            told = os.fstat(descriptor)
            moments = access_ns(told), told.st_mtime_ns, told.st_ctime_ns
            if stat.S_IFMT(told.st_mode) in WITH_TIMES:
                found[f"slot {slot}"] = told.st_ino, *moments
        return found


def content(length: int, seed: int) -> bytes:
    """Bytes that differ from page to page and from seed to seed."""
    block = hashlib.shake_128(seed.to_bytes(4)).digest(1021)
    return (block * (length // len(block) + 1))[:length]


def perform(runner: Runner, name: str, user: int, arguments: list[Value]) -> Value:
    """Make one call as one user; its value, or the name of its error."""
    try:
        become(user)
        value = getattr(runner, name)(*arguments)
    except OSError as error:
        value = errno.errorcode[error.errno or 0]
    finally:
        become(0)
    return value


def moved(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]]) -> Value:
    """Which times of which file moved: letters a, m, c. A new file: which of them are equal."""
    found = {}
    for path, (number, *now) in after.items():
        then = before.get(path)
        if then is not None and then[0] == number:
            letters = "".join(
                letter for letter, old, new in zip("amc", then[1:], now, strict=True) if old != new
            )
        else:
            letters = "new" if path.startswith("/") else ""
        if letters:
            found[path] = letters
    return found


def walk(top: str) -> dict[str, Value]:
    """All files with what has to be the same of them, and which names are of one file."""
    found: dict[str, Value] = {}
    first: dict[int, str] = {}
    waiting = [top]
    while waiting:
        path = waiting.pop()
        status = os.lstat(path)
        more: list[Value] = [*show(status), first.setdefault(status.st_ino, path)]
        with suppress(OSError):
            names = sorted(os.listxattr(path, follow_symlinks=False))
            more += [[n, digest(os.getxattr(path, n, follow_symlinks=False))] for n in names]
        if stat.S_ISDIR(status.st_mode):
            waiting += sorted((os.path.join(path, name) for name in os.listdir(path)), reverse=True)
        elif stat.S_ISLNK(status.st_mode):
            more.append(os.readlink(path))
        elif stat.S_ISREG(status.st_mode):
            opened = os.open(path, os.O_RDONLY)
            more += [digest(os.pread(opened, PLACE_BYTES, place)) for place in PLACES]
            os.close(opened)
        found[path] = more
    return found


def main(directory: str, mode: str) -> None:
    """Perform what is on standard input; the last line is the tree."""
    calls = json.load(sys.stdin)
    os.chroot(directory)
    os.chdir("/")
    os.umask(0o022)
    runner = Runner()
    before = runner.times() if mode == "times" else {}
    for name, user, *arguments in calls:
        if mode == "times":
            time.sleep(TICK_S)
        line = [perform(runner, name, user, arguments)]
        if mode == "times":
            after = runner.times()
            line.append(moved(before, after))
            before = after
        print(json.dumps(line))
    os.chdir("/")
    print(json.dumps(walk("/")))


if __name__ == "__main__":
    main(*sys.argv[1:])
