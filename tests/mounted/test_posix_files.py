"""Contents through the kernel: reading, writing, truncating, mapping, and what is left of them."""

from __future__ import annotations

import errno
import mmap
import os
import random
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.mounted.conftest import ImageFactory, MountFactory
from tests.mounted.mounts import MountedShardfs

MIB = 1024 * 1024


def drop_page_cache() -> None:
    """Make the kernel ask again, where that is allowed."""
    if os.geteuid() == 0:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1")


@pytest.mark.parametrize("seed", range(3))
def test_random_reads_and_writes(mounted_shardfs: MountedShardfs, seed: int) -> None:
    source = random.Random(seed)
    path = mounted_shardfs.path / "file"
    expected = bytearray()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    for _ in range(600):
        choice = source.random()
        offset = source.randrange(9 * MIB)
        if choice < 0.6:
            data = source.randbytes(source.choice([1, 100, 4096, 5000, 70_000, MIB]))
            offset = offset // 4096 * 4096 if source.random() < 0.3 else offset
            os.pwrite(descriptor, data, offset)
            expected.extend(bytes(max(0, offset + len(data) - len(expected))))
            expected[offset : offset + len(data)] = data
        elif choice < 0.8:
            length = source.randrange(1, 200_000)
            assert os.pread(descriptor, length, offset) == expected[offset : offset + length]
        elif choice < 0.88:
            os.ftruncate(descriptor, offset)
            del expected[offset:]
            expected.extend(bytes(offset - len(expected)))
        elif choice < 0.94:
            os.fsync(descriptor)
        elif choice < 0.97:
            drop_page_cache()
        assert os.fstat(descriptor).st_size == len(expected)
    os.close(descriptor)
    drop_page_cache()
    assert path.read_bytes() == expected
    mounted_shardfs.remount()
    assert path.read_bytes() == expected


def test_open_flags(mounted_shardfs: MountedShardfs) -> None:
    path = mounted_shardfs.path / "file"
    path.write_bytes(b"0123456789")
    with path.open("ab") as file:
        file.write(b"end")
    assert path.read_bytes() == b"0123456789end"
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert path.stat().st_size == 0
    with pytest.raises(FileExistsError):
        os.open(path, os.O_CREAT | os.O_EXCL)
    with pytest.raises(IsADirectoryError):
        os.open(mounted_shardfs.path, os.O_RDWR)


def test_sparse_files(mounted_shardfs: MountedShardfs) -> None:
    path = mounted_shardfs.path / "sparse"
    with path.open("wb") as file:
        file.seek(10**15)
        file.write(b"end")
        file.seek(10**9)
        file.write(b"middle")
    status = path.stat()
    assert status.st_size == 10**15 + 3 and status.st_blocks * 512 < MIB
    with path.open("rb") as file:
        file.seek(10**9 - 5)
        assert file.read(16) == b"\0" * 5 + b"middle" + b"\0" * 5
        file.seek(10**15)
        assert file.read() == b"end"
    os.truncate(path, 10**9 + 3)
    os.truncate(path, 10**12)
    with path.open("rb") as file:
        file.seek(10**9)
        assert file.read(9) == b"mid" + bytes(6)
    path.unlink()
    too_long = mounted_shardfs.path / "long"
    too_long.touch()
    with pytest.raises(OSError) as raised:
        os.truncate(too_long, 2**60 + 1)
    assert raised.value.errno == errno.EFBIG


def test_unlinked_files_stay_until_closed(mounted_shardfs: MountedShardfs) -> None:
    path = mounted_shardfs.path / "file"
    free = os.statvfs(mounted_shardfs.path).f_bfree
    with path.open("w+b") as file:
        for _ in range(64):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
        path.unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.seek(0)
        assert len(file.read(MIB)) == MIB
        file.write(b"more")
        again = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)
        os.close(again)
    assert os.listdir(mounted_shardfs.path) == []
    mounted_shardfs.remount()
    deadline = time.monotonic() + 20
    while os.statvfs(mounted_shardfs.path).f_bfree * 4096 < free * 4096 - 16 * MIB:
        assert time.monotonic() < deadline, "the space does not come back"
        time.sleep(0.1)


def test_a_replaced_file_stays_readable(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    (root / "a").write_bytes(b"old" * 10_000)
    with (root / "a").open("rb") as file:
        (root / "b").write_bytes(b"new")
        os.rename(root / "b", root / "a")
        drop_page_cache()
        assert file.read() == b"old" * 10_000
    assert (root / "a").read_bytes() == b"new"


def test_readers_during_atomic_replacement(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    (root / "a").write_text("0")
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                assert (root / "a").read_text().isdigit()
        except BaseException as error:  # of a thread: told by the test
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(300):
        (root / "b").write_text(str(number))
        os.rename(root / "b", root / "a")
    done.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_mapped_files(mounted_shardfs: MountedShardfs) -> None:
    path = mounted_shardfs.path / "mapped"
    with path.open("w+b") as file:
        file.truncate(2 * MIB)
        with mmap.mmap(file.fileno(), 2 * MIB) as mapped:
            mapped[5000:5010] = b"0123456789"
            mapped.flush()
            mapped[MIB : MIB + 3] = b"abc"
    drop_page_cache()
    mounted_shardfs.remount()
    data = path.read_bytes()
    assert data[5000:5010] == b"0123456789" and data[MIB : MIB + 3] == b"abc"
    assert data.count(0) == 2 * MIB - 13


def test_sqlite_in_both_journal_modes(mounted_shardfs: MountedShardfs) -> None:
    for mode in ("wal", "delete"):
        path = mounted_shardfs.path / f"{mode}.db"
        with sqlite3.connect(path) as database:
            database.execute(f"pragma journal_mode={mode}")
            database.execute("create table t (a integer primary key, b text)")
            database.executemany(
                "insert into t(b) values (?)", [(str(n) * 20,) for n in range(999)]
            )
            database.execute("delete from t where a % 3 = 0")
        database.close()
    mounted_shardfs.remount()
    for mode in ("wal", "delete"):
        database = sqlite3.connect(mounted_shardfs.path / f"{mode}.db")
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        assert database.execute("select count(*) from t").fetchone() == (666,)
        database.close()


def test_fsynced_files_survive_a_kill(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    for number in range(20):
        with (root / f"{number}.new").open("wb") as file:
            file.write(bytes([number]) * (number * 50_000 + 1))
            file.flush()
            os.fsync(file.fileno())
        os.rename(root / f"{number}.new", root / f"{number}")
    descriptor = os.open(root, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    synchronous = os.open(root / "o_sync", os.O_WRONLY | os.O_CREAT | os.O_SYNC)
    os.write(synchronous, b"durable at once")
    mounted_shardfs.kill()
    os.close(synchronous)
    mounted_shardfs.start()
    assert (root / "o_sync").read_bytes() == b"durable at once"
    for number in range(20):
        assert (root / f"{number}").read_bytes() == bytes([number]) * (number * 50_000 + 1)


def test_a_full_disk_can_be_emptied_and_filled_again(
    make_image: ImageFactory, mount_shardfs: MountFactory
) -> None:
    mounted = mount_shardfs(make_image(64 * MIB))
    for _ in range(3):
        written = 0
        with pytest.raises(OSError) as raised, (mounted.path / "fill").open("wb", 0) as file:
            while True:
                written += file.write(os.urandom(MIB))
        assert raised.value.errno == errno.ENOSPC
        assert written > 32 * MIB
        with (mounted.path / "fill").open("rb") as file:
            os.fsync(file.fileno())
        space = os.statvfs(mounted.path)
        assert space.f_bfree * space.f_frsize < 2 * MIB
        assert len((mounted.path / "fill").read_bytes()) >= written
        (mounted.path / "fill").rename(mounted.path / "full")
        (mounted.path / "full").unlink()
    mounted.remount()
    assert os.listdir(mounted.path) == []


def test_a_read_only_mount(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    (root / "a").write_text("content")
    mounted_shardfs.remount(["ro"])
    assert (root / "a").read_text() == "content"
    for operation in (
        lambda: (root / "b").touch(),
        lambda: (root / "a").unlink(),
        lambda: (root / "a").chmod(0o600),
        lambda: (root / "a").write_text("x"),
        lambda: (root / "d").mkdir(),
    ):
        with pytest.raises(OSError) as raised:
            operation()
        assert raised.value.errno == errno.EROFS
    with (root / "a").open("rb") as file:
        os.fsync(file.fileno())


def test_a_command_with_its_directory_there_holds_the_mount(
    mounted_shardfs: MountedShardfs,
) -> None:
    """SIGTERM with open files: they can be finished, then the mount ends in order."""
    path = mounted_shardfs.path / "held"
    with path.open("wb") as file:
        file.write(b"before ")
        file.flush()
        os.kill(mounted_shardfs.pid, 15)
        while (
            subprocess.run(["mountpoint", "-q", mounted_shardfs.path], check=False).returncode == 0
        ):
            pass
        file.write(b"after")
    assert mounted_shardfs._process is not None
    assert mounted_shardfs._process.wait(30) == 0
    mounted_shardfs._forget_process()
    mounted_shardfs.start()
    assert path.read_bytes() == b"before after"
