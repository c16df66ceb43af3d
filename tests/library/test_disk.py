"""shardfs.open: files on an unmounted image from Python, kept as a mount keeps them."""

from __future__ import annotations

import errno
import gc
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import shardfs
from shardfs.engine import open_device
from shardfs.errors import DeviceBusyError, NotShardfsError, ReadOnlyError, UsageError
from shardfs.library import Disk, Volume, open_volume
from shardfs.library.files import RawDiskFile
from tests.cli.commands import image_hash, output_of, run


def fsck(image: Path) -> None:
    assert "clean" in output_of("fsck", image, "--data")


def test_what_is_written_is_there_afterwards(image: Path) -> None:
    generator = random.Random(1)
    contents = {f"/d/{number}": generator.randbytes(number * 700_000) for number in range(5)}
    with shardfs.open(image, writable=True) as disk:
        disk.mkdir("/d")
        for path, data in contents.items():
            disk.write_bytes(path, data)
        disk.symlink("d/1", "link")
        disk.symlink("/nowhere", "/dead")
    with shardfs.open(image) as disk:
        assert disk.listdir("d") == list("01234") and disk.listdir() == ["d", "dead", "link"]
        for path, data in contents.items():
            assert disk.read_bytes(path) == data
            assert disk.stat(path).size == len(data)
        assert disk.read_bytes("/link", 5, 10) == contents["/d/1"][5:15]
        assert disk.stat("/link").kind == "file"
        assert disk.stat("/link", follow=False).target == "d/1"
        assert not disk.exists("/dead") and not disk.exists("/link/below") and disk.exists("/")
        assert list(disk.walk()) == [("/", ["d"], ["dead", "link"]), ("/d", [], list("01234"))]
    fsck(image)


def test_files_are_those_of_python(disk: Disk) -> None:
    with disk.open("text", "w", newline="") as file:
        file.write("grün\nzwei\n")
    with disk.open("text", "a") as file:
        file.write("drei\n")
    with disk.open("text") as file:
        assert list(file) == ["grün\n", "zwei\n", "drei\n"]
    with disk.open("text", "rb") as file:
        assert file.seek(-5, os.SEEK_END) == 11 and file.read() == b"drei\n"
        assert file.readable() and file.seekable() and not file.writable()
        with pytest.raises(OSError, match="write"):
            file.write(b"x")
        with pytest.raises(OSError):
            file.fileno()
    with disk.open("text", "r+b") as file:
        file.seek(10_000_000)
        file.write(b"end")
        file.seek(3)
        assert file.read(2) == b"\xbcn"
        file.truncate(10_000_001)
    assert disk.stat("text").size == 10_000_001
    assert disk.read_bytes("text", 9_999_999) == b"\0e"
    with disk.open("text", "wb", 0) as raw:
        assert raw.write(b"unbuffered") == 10
        assert isinstance(raw, RawDiskFile)
        raw.fsync()
    assert disk.read_bytes("text") == b"unbuffered"
    with pytest.raises(FileExistsError):
        disk.open("text", "x")
    with disk.open("new", "x+b") as file:
        file.write(b"abc")
        file.seek(0)
        assert file.read() == b"abc"
    for mode in ("", "rw", "b", "rz", "rbt", "rr"):
        with pytest.raises(ValueError, match=r"mode|binary"):
            disk.open("text", mode)


def test_errors_are_those_of_the_os_module(disk: Disk) -> None:
    disk.write_bytes("file", b"x")
    disk.mkdir("dir")
    disk.write_bytes("dir/inner", b"x")
    disk.symlink("loop", "loop")
    for expected, call in (
        (FileNotFoundError, lambda: disk.read_bytes("none")),
        (FileNotFoundError, lambda: disk.remove("none")),
        (NotADirectoryError, lambda: disk.stat("file/below")),
        (NotADirectoryError, lambda: disk.listdir("file")),
        (IsADirectoryError, lambda: disk.open("dir", "rb")),
        (IsADirectoryError, lambda: disk.remove("dir")),
        (NotADirectoryError, lambda: disk.rmdir("file")),
        (FileExistsError, lambda: disk.mkdir("dir")),
    ):
        with pytest.raises(expected) as raised:
            call()
        assert raised.value.filename
    for number, call in (
        (errno.ENOTEMPTY, lambda: disk.rmdir("dir")),
        (errno.ELOOP, lambda: disk.stat("loop")),
        (errno.ENAMETOOLONG, lambda: disk.mkdir("x" * 256)),
        (errno.EBUSY, lambda: disk.mkdir("/")),
    ):
        with pytest.raises(OSError) as error:
            call()
        assert error.value.errno == number


def test_links_are_followed_as_in_a_mount(disk: Disk) -> None:
    disk.mkdir("a")
    disk.mkdir("a/b")
    disk.write_bytes("a/b/file", b"found")
    disk.symlink("../a/./b", "a/relative")
    disk.symlink("/a/relative", "a/b/absolute")
    assert disk.read_bytes("/a/b/absolute/file") == b"found"
    assert disk.read_bytes("a/relative/../b/file") == b"found"
    assert disk.read_bytes("../../a/b/file") == b"found"
    disk.write_bytes("a/relative/more", b"through a link")
    assert disk.read_bytes("a/b/more") == b"through a link"


def test_an_open_file_stays_what_it_was(disk: Disk) -> None:
    disk.write_bytes("a", b"old" * 100_000)
    with disk.open("a", "rb") as file:
        assert file.read(3) == b"old"
        disk.write_bytes("b", b"new")
        disk.rename("b", "a")
        disk.remove("a")
        assert file.read() == (b"old" * 100_000)[3:]
    assert disk.listdir() == []


def test_reading_writes_nothing(image: Path) -> None:
    with shardfs.open(image, writable=True) as disk:
        disk.write_bytes("file", b"x" * 10_000)
    before = image_hash(image)
    with shardfs.open(image) as disk:
        disk.read_bytes("file")
        changes: list[Callable[[], None]] = [
            lambda: disk.write_bytes("file", b"y"),
            lambda: disk.mkdir("dir"),
            lambda: disk.remove("file"),
            lambda: disk.rename("file", "other"),
        ]
        for call in changes:
            with pytest.raises(OSError) as error:
                call()
            assert error.value.errno == errno.EROFS
    assert image_hash(image) == before


def test_who_may_open(image: Path, tmp_path: Path) -> None:
    with pytest.raises(ReadOnlyError, match="never mounted"):
        shardfs.open(image)
    with shardfs.open(image, writable=True), pytest.raises(DeviceBusyError):
        shardfs.open(image)
    with shardfs.open(image, shared=True) as one, shardfs.open(image, shared=True) as two:
        assert one.uuid == two.uuid
    (tmp_path / "no.img").write_bytes(bytes(1 << 20))
    with pytest.raises(NotShardfsError):
        shardfs.open(tmp_path / "no.img")
    with pytest.raises(UsageError):
        shardfs.open(tmp_path / "absent.img")
    with pytest.raises(ValueError, match="exclude"):
        shardfs.open(image, writable=True, shared=True)


def test_a_closed_disk(image: Path) -> None:
    disk = shardfs.open(image, writable=True)
    file = disk.open("file", "wb", 0)
    file.write(b"x")
    assert "writable" in repr(disk)
    disk.close()
    disk.close()
    assert disk.is_closed and "closed" in repr(disk)
    with pytest.raises(ValueError, match="closed"):
        disk.listdir()
    file.close()
    with shardfs.open(image) as again:
        assert again.read_bytes("file") == b"x"


def test_forgotten_disks_are_closed(image: Path) -> None:
    disk = shardfs.open(image, writable=True)
    disk.write_bytes("file", b"kept")
    del disk
    gc.collect()
    deadline = time.monotonic() + 30
    while True:
        try:
            open_device(image).close()
            break
        except DeviceBusyError:  # it ends, and nobody waits for it
            assert time.monotonic() < deadline
    program = f"import shardfs; shardfs.open({str(image)!r}, writable=True).write_bytes('b', b'2')"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    with shardfs.open(image) as again:
        assert (again.read_bytes("file"), again.read_bytes("b")) == (b"kept", b"2")
    fsck(image)


def test_many_threads(disk: Disk) -> None:
    failures: list[BaseException] = []

    def work(name: int) -> None:
        try:
            data = random.Random(name).randbytes(200_000)
            for turn in range(5):
                disk.write_bytes(f"{name}.{turn}", data)
                assert disk.read_bytes(f"{name}.{turn}") == data
                disk.rename(f"{name}.{turn}", f"{name}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=[name]) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and disk.listdir() == list("012345")


def test_a_forked_child_is_refused(disk: Disk) -> None:
    disk.write_bytes("a", b"x")
    child = os.fork()
    if child == 0:
        try:
            disk.read_bytes("a")
        except UsageError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert disk.read_bytes("a") == b"x"


@pytest.mark.expected_warnings("failed: ")
def test_rot_is_an_error_and_never_wrong_bytes(image: Path) -> None:
    data = random.Random(3).randbytes(300_000)
    with shardfs.open(image, writable=True) as disk:
        disk.write_bytes("file", data)
    raw = bytearray(image.read_bytes())
    raw[raw.index(data[100_000:100_100])] ^= 1
    image.write_bytes(raw)
    with shardfs.open(image) as disk:
        with pytest.raises(OSError) as error:
            disk.read_bytes("file")
        assert error.value.errno == errno.EIO
        assert disk.read_bytes("file", 200_000) == data[200_000:]


def test_a_full_disk(disk: Disk) -> None:
    with pytest.raises(OSError) as error, disk.open("large", "wb", 0) as file:
        for _ in range(100):
            file.write(bytes(1 << 20))
    assert error.value.errno == errno.ENOSPC
    disk.remove("large")
    disk.write_bytes("small", b"fits")


@pytest.mark.real_clock
async def test_for_trio_programs(image: Path) -> None:
    async with open_volume(image, writable=True) as volume:
        number = await volume.open("/a", create=True, exclusive=True, truncate=False)
        await volume.write(volume.ino_of(number), 3, b"data")
        await volume.fsync(volume.ino_of(number))
        await volume.release(number)

        async def rename(volume: Volume) -> None:
            await volume.rename("/a", "/b")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(rename, volume)
        facts = await volume.stat("/b")
        assert stat.S_ISREG(facts.mode) and facts.nlink == 1
        assert await volume.read(facts.ino, 0, 100) == b"\0\0\0data"
        with pytest.raises(FileNotFoundError):
            await volume.stat("/a")
    with pytest.raises(ZeroDivisionError):
        async with open_volume(image):
            raise ZeroDivisionError
    assert run("fsck", image).returncode == 0


def test_the_package_loads_nothing() -> None:
    program = (
        "import shardfs, sys; print(sorted(m for m in sys.modules if 'trio' in m or 'pyfuse' in m))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
