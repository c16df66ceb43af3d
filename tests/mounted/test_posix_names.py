"""Names through the kernel: what creating, linking, renaming and listing do."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from tests.mounted.mounts import SHARDFS, MountedShardfs, run_command

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)
FEW_LINKS = """
from shardfs import limits
limits.LINKS_MAX = 3
from shardfs.cli.main import main
main()
"""
"""The command, with a limit that a test can reach."""


def rename_with_flags(old: Path, new: Path, flags: int) -> int:
    """renameat2(2); returns the errno, 0 for success."""
    status = _libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)
    return 0 if status == 0 else ctypes.get_errno()


def errno_of(operation: object, *arguments: object) -> int:
    assert callable(operation)
    with pytest.raises(OSError) as raised:
        operation(*arguments)
    return raised.value.errno or 0


def test_kinds_of_files(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    (root / "file").write_bytes(b"content")
    (root / "directory").mkdir()
    (root / "link").symlink_to("file")
    os.mkfifo(root / "fifo", 0o600)
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
    if os.geteuid() == 0:
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    mounted_shardfs.remount()
    modes = {path.name: stat.S_IFMT(path.lstat().st_mode) for path in root.iterdir()}
    modes.pop("null", None)
    assert modes == {
        "file": stat.S_IFREG,
        "directory": stat.S_IFDIR,
        "link": stat.S_IFLNK,
        "fifo": stat.S_IFIFO,
        "socket": stat.S_IFSOCK,
    }
    assert os.readlink(root / "link") == "file" and (root / "link").read_bytes() == b"content"


def test_names_of_every_length_and_byte(mounted_shardfs: MountedShardfs) -> None:
    root = os.fsencode(mounted_shardfs.path)
    odd = bytes(byte for byte in range(1, 256) if byte != ord("/"))
    names = {b"x" * length for length in (1, 8, 254, 255)} | {odd[:128], odd[128:], b"...", b" "}
    for name in names:
        os.close(os.open(root + b"/" + name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    assert errno_of(os.mkdir, root + b"/" + b"x" * 256) == errno.ENAMETOOLONG
    assert errno_of(os.stat, root + b"/" + b"x" * 256) == errno.ENAMETOOLONG
    assert set(os.listdir(root)) == names
    assert os.statvfs(root).f_namemax == 255
    mounted_shardfs.remount()
    assert set(os.listdir(root)) == names
    assert errno_of(os.symlink, b"t" * 4096, root + b"/s") == errno.ENAMETOOLONG
    os.symlink(b"t" * 4095, root + b"/s")
    assert os.readlink(root + b"/s") == b"t" * 4095


def test_rename_with_and_without_flags(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    (root / "a").write_text("a")
    (root / "b").write_text("b")
    (root / "d").mkdir()
    (root / "d/e").mkdir()
    assert rename_with_flags(root / "a", root / "b", NOREPLACE) == errno.EEXIST
    assert rename_with_flags(root / "a", root / "b", WHITEOUT) == errno.EINVAL
    assert rename_with_flags(root / "a", root / "c", EXCHANGE) == errno.ENOENT
    assert rename_with_flags(root / "a", root / "d/e", EXCHANGE) == 0
    assert (root / "d/e").read_text() == "a" and (root / "a").is_dir()
    assert (root / "d").stat().st_nlink == 2 and root.stat().st_nlink == 4
    assert errno_of(os.rename, root / "d", root / "d/x") == errno.EINVAL
    assert errno_of(os.rename, root / "b", root / "d") == errno.EISDIR
    assert errno_of(os.rename, root / "a", root / "b") == errno.ENOTDIR
    assert errno_of(os.rename, root / "a", root / "d") == errno.ENOTEMPTY
    os.rename(root / "b", root / "d/e")
    assert (root / "d/e").read_text() == "b" and not (root / "b").exists()


def test_links_and_their_counts(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    (root / "a").write_text("shared")
    (root / "d").mkdir()
    os.link(root / "a", root / "d/b")
    assert errno_of(os.link, root / "d", root / "e") == errno.EPERM
    assert errno_of(os.link, root / "a", root / "d/b") == errno.EEXIST
    mounted_shardfs.remount()
    first, second = (root / "a").stat(), (root / "d/b").stat()
    assert first.st_ino == second.st_ino and first.st_nlink == 2
    (root / "d/b").write_text("changed")
    assert (root / "a").read_text() == "changed"
    (root / "a").unlink()
    assert (root / "d/b").stat().st_nlink == 1


def test_one_name_too_many(image_file: Path, tmp_path: Path, fuse_is_usable: None) -> None:
    run_command(SHARDFS, "mkfs", image_file)
    root = tmp_path / "mnt"
    root.mkdir()
    command = (sys.executable, "-c", FEW_LINKS)
    mounted = MountedShardfs(image_file, root, tmp_path / "log", command=command)
    try:
        mounted.start()
        (root / "a").touch()
        os.link(root / "a", root / "b")
        os.link(root / "a", root / "c")
        assert errno_of(os.link, root / "a", root / "d") == errno.EMLINK
        assert not (root / "d").exists() and (root / "a").stat().st_nlink == 3
        os.rename(root / "b", root / "d")
        (root / "c").unlink()
        os.link(root / "d", root / "c")
    finally:
        mounted.close()


def test_listing_while_removing(mounted_shardfs: MountedShardfs) -> None:
    directory = mounted_shardfs.path / "many"
    directory.mkdir()
    names = {f"file number {number}" for number in range(3000)}
    for name in names:
        os.close(os.open(directory / name, os.O_CREAT | os.O_WRONLY))
    assert set(os.listdir(directory)) == names
    seen = []
    with os.scandir(directory) as entries:
        for entry in entries:
            seen.append(entry.name)
            assert entry.inode() == os.stat(entry.path).st_ino
            os.unlink(entry.path)
    assert sorted(seen) == sorted(names)
    assert os.listdir(directory) == []
    directory.rmdir()


def test_dots_are_listed_first_with_their_numbers(mounted_shardfs: MountedShardfs) -> None:
    directory = mounted_shardfs.path / "d"
    directory.mkdir()
    listed = run_command("ls", "-1aif", directory).split()
    assert listed == [
        *(str(directory.stat().st_ino), "."),
        *(str(mounted_shardfs.path.stat().st_ino), ".."),
    ]


def test_many_threads_in_one_directory(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(60):
                mine = root / f"{number}-{step}"
                mine.write_text(str(step))
                os.rename(mine, root / f"{number}-last")
                (root / f"dir-{step}").mkdir(exist_ok=True)
                assert (root / f"{number}-last").read_text() == str(step)
        except BaseException as error:  # of a thread: told by the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(os.listdir(root)) == 8 + 60
    assert root.stat().st_nlink == 62
