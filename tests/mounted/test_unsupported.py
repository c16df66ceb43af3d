"""What a FUSE server without these requests cannot do: refused at once, with the right error.

Role: one test for each row of "What cannot be" in docs/operations.md, and what common tools make
of it: they fall back by themselves, or say why not. All of them use one mount.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.mounts import MountedShardfs, errno_of

CONTENT = bytes(range(256)) * 400
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT = 1, 2, 8, 16, 32
FICLONE = 0x40049409
FIDEDUPERANGE = 0xC0189436
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FIEMAP = 0xC020660B
FITRIM = 0xC0185879
FIFREEZE = 0xC0045877
RENAME_WHITEOUT = 4
NOWAIT, ATOMIC, DONTCACHE = 0x8, 0x40, 0x80
LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def descriptor(folder: Path) -> Iterator[int]:
    """An open file with CONTENT, called "file"."""
    path = folder / "file"
    path.write_bytes(CONTENT)
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)


def call_libc(name: str, *arguments: object) -> None:
    """A function of libc that says -1 and sets errno."""
    if getattr(LIBC, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


@pytest.mark.parametrize(
    "mode", [0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, COLLAPSE, ZERO, INSERT], ids=str
)
def test_fallocate(descriptor: int, mode: int) -> None:
    length = ctypes.c_long(8192)
    refusal = errno_of(lambda: call_libc("fallocate", descriptor, mode, ctypes.c_long(0), length))
    assert refusal == errno.EOPNOTSUPP
    assert os.pread(descriptor, 200_000, 0) == CONTENT


def test_punching_a_mapping(descriptor: int) -> None:
    with mmap.mmap(descriptor, 8192) as mapped:
        assert errno_of(lambda: mapped.madvise(mmap.MADV_REMOVE)) == errno.EOPNOTSUPP
        assert mapped[:] == CONTENT[:8192]


@pytest.mark.parametrize("flag", [NOWAIT, ATOMIC, DONTCACHE], ids=str)
def test_flags_of_one_write(descriptor: int, flag: int) -> None:
    """pwritev2(2) with a flag that FUSE does not have writes nothing."""
    refusal = errno_of(lambda: os.pwritev(descriptor, [b"other"], 0, flag))
    assert refusal == errno.EOPNOTSUPP
    assert os.pread(descriptor, 5, 0) == CONTENT[:5]


def test_regular_files_are_always_ready(descriptor: int) -> None:
    with select.epoll() as waiting:
        waiting.register(descriptor, select.EPOLLIN | select.EPOLLOUT)
        assert waiting.poll(0) == [(descriptor, select.EPOLLIN | select.EPOLLOUT)]


def test_posix_fallocate_is_made_of_writes(descriptor: int) -> None:
    """The C library writes a byte to each block instead: the size is right, the content too."""
    os.posix_fallocate(descriptor, 0, 300_000)
    assert os.pread(descriptor, 400_000, 0) == CONTENT + bytes(300_000 - len(CONTENT))


def test_file_size_limits(folder: Path) -> None:
    """RLIMIT_FSIZE holds for each way to make a file longer, emulated fallocate included."""
    script = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
file = os.open("file", os.O_RDWR | os.O_CREAT)
assert os.pwrite(file, bytes(20_000), 0) == 10_000
for call in (
    lambda: os.pwrite(file, b"x", 10_000),
    lambda: os.ftruncate(file, 10_001),
    lambda: os.posix_fallocate(file, 9_990, 100),
):
    try:
        call()
    except OSError as error:
        print(error.errno)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, check=True, timeout=60
    )
    assert done.stdout.split() == 3 * [str(errno.EFBIG).encode()]


def test_holes_are_not_told(folder: Path) -> None:
    """SEEK_HOLE and SEEK_DATA take a file for data from end to end, as POSIX allows."""
    path = folder / "sparse"
    with path.open("wb") as file:
        file.truncate(10 << 20)
        file.seek(5 << 20)
        file.write(b"x")
    with path.open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 10 << 20
        assert errno_of(lambda: os.lseek(file.fileno(), 11 << 20, os.SEEK_DATA)) == errno.ENXIO
    assert path.stat().st_blocks < 100, "the hole itself is kept"


def test_copy_file_range_copies_through_the_kernel(descriptor: int, folder: Path) -> None:
    with (folder / "copy").open("w+b") as copy:
        assert os.copy_file_range(descriptor, copy.fileno(), len(CONTENT)) == len(CONTENT)
        assert os.pread(copy.fileno(), 200_000, 0) == CONTENT


def test_no_shared_blocks(descriptor: int, folder: Path) -> None:
    with (folder / "copy").open("w+b") as copy:
        refusal = errno_of(lambda: fcntl.ioctl(copy.fileno(), FICLONE, descriptor))
        assert refusal == errno.EOPNOTSUPP
    refusal = errno_of(lambda: fcntl.ioctl(descriptor, FIDEDUPERANGE, bytearray(56)))
    assert refusal == errno.EOPNOTSUPP


@pytest.mark.parametrize(
    ("request_number", "length", "expected"),
    [
        (FS_IOC_GETFLAGS, 8, errno.ENOTTY),
        (FS_IOC_SETFLAGS, 8, errno.ENOTTY),
        (FS_IOC_FSGETXATTR, 28, errno.ENOTTY),
        (FITRIM, 24, errno.ENOTTY),
        (FS_IOC_FIEMAP, 32, errno.EOPNOTSUPP),
        (FIFREEZE, 4, errno.EOPNOTSUPP),
    ],
    ids=["getflags", "setflags", "fsgetxattr", "fitrim", "fiemap", "freeze"],
)
def test_requests_by_ioctl(
    descriptor: int, request_number: int, length: int, expected: int
) -> None:
    if request_number == FIFREEZE and os.geteuid() != 0:
        expected = errno.EPERM
    refusal = errno_of(lambda: fcntl.ioctl(descriptor, request_number, bytearray(length)))
    # Newer kernels say EOPNOTSUPP where older ones say ENOTTY for the flags of chattr.
    assert refusal in {expected, errno.EOPNOTSUPP}


def test_unnamed_files(folder: Path) -> None:
    """O_TMPFILE; programs make a file with a name and remove that."""
    assert errno_of(lambda: os.open(folder, os.O_TMPFILE | os.O_RDWR)) == errno.EOPNOTSUPP
    assert os.listdir(folder) == []


def test_whiteouts(descriptor: int, folder: Path) -> None:
    old, new = (os.fsencode(folder / name) for name in ("file", "other"))
    refusal = errno_of(lambda: call_libc("renameat2", -100, old, -100, new, RENAME_WHITEOUT))
    assert refusal == errno.EINVAL
    assert os.listdir(folder) == ["file"]


def test_direct_io(folder: Path, descriptor: int) -> None:
    """O_DIRECT goes round the kernel's page cache, with any offset, length and address."""
    with mmap.mmap(-1, 16384) as memory:
        direct = os.open(folder / "file", os.O_RDWR | os.O_DIRECT)
        try:
            for offset, length, place in ((0, 4096, 0), (3, 1000, 7), (512, 512, 512)):
                with memoryview(memory)[place : place + length] as part:
                    assert os.preadv(direct, [part], offset) == length
                    assert bytes(part) == CONTENT[offset : offset + length]
                    assert os.pwritev(direct, [part], offset + 256) == length
        finally:
            os.close(direct)
    # What lies 256 bytes further is the same again, up to where the pattern was cut.
    assert os.pread(descriptor, 3, 256 + 3) == CONTENT[3:6]


def test_swap_files(descriptor: int, folder: Path) -> None:
    path = os.fsencode(folder / "file")
    expected = errno.EINVAL if os.geteuid() == 0 else errno.EPERM
    assert errno_of(lambda: call_libc("swapon", path, 0)) == expected


@pytest.mark.parametrize(
    ("command", "status", "saying"),
    [
        ("cp --reflink=auto file copy && cmp file copy", 0, ""),
        ("cp --reflink=always file copy", 1, "not supported"),
        ("cp --sparse=always sparse copy && cmp sparse copy", 0, ""),
        ("tar cSf t.tar sparse && mv sparse s && tar xSf t.tar && cmp s sparse", 0, ""),
        ("dd if=file of=copy bs=512 iflag=direct oflag=direct status=none && cmp file copy", 0, ""),
        ("fallocate -l 1M copy", 1, "not supported"),
        ("fallocate -x -l 1M copy && test $(stat -c %s copy) = 1048576", 0, ""),
        ("truncate -s 1M copy && test $(stat -c %s copy) = 1048576", 0, ""),
    ],
)
def test_what_tools_make_of_it(folder: Path, command: str, status: int, saying: str) -> None:
    (folder / "file").write_bytes(CONTENT)
    with (folder / "sparse").open("wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(CONTENT)
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert done.returncode == status, done
    assert saying in done.stderr.lower(), done
    for name in ("copy", "sparse"):
        if saying == "" and (folder / name).exists() and "sparse" in command:
            assert (folder / name).stat().st_blocks < 500, f"{name} has lost its holes"


@pytest.mark.skipif(os.geteuid() != 0, reason="quotas are root's: the kernel looks at that first")
def test_quotas(shared_mount: MountedShardfs) -> None:
    get_quota = 0x800007 << 8  # Q_GETQUOTA, of users
    special = os.fsencode(shared_mount.device)
    buffer = ctypes.create_string_buffer(256)
    refusal = errno_of(lambda: call_libc("quotactl", get_quota, special, 0, buffer))
    assert refusal in {errno.ENOTBLK, errno.ENOSYS, errno.ESRCH, errno.EINVAL}
