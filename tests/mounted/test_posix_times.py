"""Which call changes which time: one table for files, one for the directories they are in.

Role: what POSIX says under each call, and Linux where POSIX leaves it open. A time that a call
does not change stays as it is to the nanosecond. Access times: mounted with strictatime, which is
what POSIX describes; relatime and noatime are in test_mount_options.py.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mounted.conftest import ImageFactory, MountFactory
from tests.mounted.mounts import MountedShardfs, run_command
from tests.mounted.test_posix_names import EXCHANGE, rename_with_flags

Call = Callable[[Path], object]
FAR_AHEAD_NS = 10**18


def write(path: Path, flags: int, *, data: bytes = b"x") -> None:
    descriptor = os.open(path, flags)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def read(path: Path, length: int) -> None:
    with path.open("rb", 0) as file:
        file.read(length)


def map_and_store(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = 1
        mapped.flush()


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def allocate(path: Path) -> None:
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 50_000)


def fail(call: Callable[[], object]) -> None:
    with suppress(OSError):
        call()
        raise AssertionError("it did not fail")


# "a", "m", "c": the times that move. (file, call, times of the file, times of its directory)
OF_FILES: dict[str, tuple[Call, str, str]] = {
    "read": (lambda path: read(path, 10), "a", ""),
    "read nothing": (lambda path: read(path, 0), "", ""),
    "write": (lambda path: write(path, os.O_WRONLY), "mc", ""),
    "write nothing": (lambda path: write(path, os.O_WRONLY, data=b""), "", ""),
    "append": (lambda path: write(path, os.O_WRONLY | os.O_APPEND), "mc", ""),
    "store to a mapping": (map_and_store, "amc", ""),  # it is read into memory first
    "truncate": (lambda path: os.truncate(path, 3), "mc", ""),
    "truncate to the same size": (lambda path: os.truncate(path, path.stat().st_size), "mc", ""),
    "O_TRUNC": (lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)), "mc", ""),
    "open for writing": (lambda path: os.close(os.open(path, os.O_RDWR)), "", ""),
    "stat": (lambda path: path.stat(), "", ""),
    "chmod": (lambda path: path.chmod(0o600), "c", ""),
    "chmod to the same": (lambda path: path.chmod(path.stat().st_mode & 0o7777), "c", ""),
    "chown": (lambda path: os.chown(path, os.geteuid(), os.getegid()), "c", ""),
    "chown of nobody": (lambda path: os.chown(path, -1, -1), "c", ""),
    "setxattr": (lambda path: os.setxattr(path, "user.a", b"1"), "c", ""),
    "setxattr to the same": (lambda path: os.setxattr(path, "user.there", b"x"), "", ""),
    "removexattr": (lambda path: os.removexattr(path, "user.there"), "c", ""),
    "getxattr": (lambda path: os.getxattr(path, "user.there"), "", ""),
    "link": (lambda path: os.link(path, path.parent / "twin"), "c", "mc"),
    "rename": (lambda path: path.rename(path.parent / "file"), "", ""),
    "a failed create": (lambda path: fail(lambda: os.open(path, os.O_CREAT | os.O_EXCL)), "", ""),
    "a failed write": (lambda path: fail(lambda: write(path, os.O_RDONLY)), "", ""),
    "fsync": (sync, "", ""),
    "posix_fallocate": (allocate, "amc", ""),  # glibc reads a byte of each block
    "create beside it": (lambda path: (path.parent / "new").touch(), "", "mc"),
    "mkdir beside it": (lambda path: (path.parent / "new").mkdir(), "", "mc"),
    "symlink to it": (lambda path: (path.parent / "new").symlink_to("file"), "", "mc"),
    "list its directory": (lambda path: os.listdir(path.parent), "", "a"),
    "unlink its twin": (lambda path: (path.parent / "other").unlink(), "c", "mc"),
    "rename its twin": (lambda path: (path.parent / "other").rename(path.parent / "o"), "c", "mc"),
    "replace its twin": (
        lambda path: (path.parent / "third").rename(path.parent / "other"),
        "c",
        "mc",
    ),
    "rename to its twin": (lambda path: path.rename(path.parent / "other"), "", ""),
    "exchange with the third": (
        lambda path: rename_with_flags(path, path.parent / "third", EXCHANGE),
        "c",
        "mc",
    ),
    "write to its twin": (lambda path: write(path.parent / "other", os.O_WRONLY), "mc", ""),
}


@pytest.fixture(scope="module")
def strict_mount(shared_mount: MountedShardfs) -> MountedShardfs:
    """The module's mount, with POSIX' own rule for access times."""
    shared_mount.remount(["strictatime"])
    return shared_mount


@pytest.fixture
def folder(strict_mount: MountedShardfs) -> Iterator[Path]:
    """A directory with "file", of which "other" is a second name, and "third"."""
    path = strict_mount.path / "folder"
    path.mkdir()
    (path / "file").write_bytes(b"content" * 1000)
    os.setxattr(path / "file", "user.there", b"x")
    os.link(path / "file", path / "other")
    (path / "third").write_bytes(b"third")
    yield path
    run_command("rm", "-rf", path)


def moved(before: os.stat_result, after: os.stat_result) -> str:
    """Which times are different, as letters."""
    return "".join(
        letter
        for letter in "amc"
        if getattr(before, f"st_{letter}time_ns") != getattr(after, f"st_{letter}time_ns")
    )


@pytest.mark.parametrize("name", OF_FILES, ids=lambda name: name.replace(" ", "-"))
def test_which_times_a_call_moves(folder: Path, name: str) -> None:
    call, of_file, of_folder = OF_FILES[name]
    file = os.open(folder / "file", os.O_RDONLY)
    os.sync()
    before, before_folder = os.fstat(file), folder.stat()
    earliest = time.time_ns() - 20_000_000  # the kernel's own clock for files may be a tick behind
    call(folder / "file")
    after, after_folder = os.fstat(file), folder.stat()
    os.close(file)
    assert (moved(before, after), moved(before_folder, after_folder)) == (of_file, of_folder)
    for status, letters in ((after, of_file), (after_folder, of_folder)):
        now = [getattr(status, f"st_{letter}time_ns") for letter in letters]
        assert all(earliest <= moment <= time.time_ns() for moment in now)
        if letters == "mc":
            assert now[0] == now[1], "one moment for both"


def test_moving_between_directories(folder: Path) -> None:
    (folder / "a/inner").mkdir(parents=True)
    (folder / "b").mkdir()
    before = [path.stat() for path in (folder / "a", folder / "b", folder / "a/inner", folder)]
    (folder / "a/inner").rename(folder / "b/inner")
    after = [path.stat() for path in (folder / "a", folder / "b", folder / "b/inner", folder)]
    assert list(map(moved, before, after)) == ["mc", "mc", "c", ""]


def test_new_files_have_one_moment(folder: Path) -> None:
    for make in (Path.touch, Path.mkdir, lambda path: path.symlink_to("x"), os.mkfifo):
        path = folder / f"new-{len(os.listdir(folder))}"
        make(path)
        status = path.lstat()
        assert status.st_atime_ns == status.st_mtime_ns == status.st_ctime_ns
        assert status.st_mtime_ns == folder.stat().st_mtime_ns


def test_symbolic_links(folder: Path) -> None:
    link = folder / "link"
    link.symlink_to("file")
    before, of_file = link.lstat(), (folder / "file").stat()
    os.readlink(link)
    assert moved(before, link.lstat()) == "a"
    before = link.lstat()
    os.chown(link, os.geteuid(), os.getegid(), follow_symlinks=False)
    assert moved(before, link.lstat()) == "c"
    os.utime(link, ns=(1, 2), follow_symlinks=False)
    assert (link.lstat().st_atime_ns, link.lstat().st_mtime_ns) == (1, 2)
    assert moved(of_file, (folder / "file").stat()) == ""


def test_setting_times(folder: Path) -> None:
    path = folder / "file"
    for times in ((0, 1), (FAR_AHEAD_NS + 1, FAR_AHEAD_NS + 999_999_999), (-1, -(10**9) - 1)):
        before = path.stat()
        os.utime(path, ns=times)
        after = path.stat()
        assert (after.st_atime_ns, after.st_mtime_ns) == times
        assert after.st_ctime_ns > before.st_ctime_ns
    path.chmod(0o444)
    os.utime(path)
    assert abs(path.stat().st_mtime_ns - time.time_ns()) < 60 * 10**9


def test_times_survive(make_image: ImageFactory, mount_shardfs: MountFactory) -> None:
    """Every time of every kind of file, to the nanosecond, and that of buffered writes too."""
    mounted = mount_shardfs(make_image(), ["noatime"])
    root = mounted.path
    (root / "d").mkdir()
    (root / "written").write_bytes(b"x" * 100_000)
    os.utime(root / "written", ns=(5, 7))
    write(root / "written", os.O_WRONLY)
    (root / "link").symlink_to("x")
    os.mkfifo(root / "fifo")
    with (root / "mapped").open("w+b") as file:
        file.truncate(8192)
        with mmap.mmap(file.fileno(), 8192) as mapped:
            mapped[5] = 5
    paths = [root, *sorted(root.iterdir())]
    os.sync()
    before = {path: path.lstat() for path in paths}
    mounted.remount()
    after = {path: path.lstat() for path in paths}
    assert {path: moved(before[path], after[path]) for path in paths} == dict.fromkeys(paths, "")
