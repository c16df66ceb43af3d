"""Requests that reach the server for what programs do, held to a budget (budgets.py).

A request is a round trip: the caller sleeps until the server has answered. So their number, which
does not depend on the machine, is the larger part of what a call costs.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from shardfs.fuse.control import connect
from shardfs.fuse.mounts import find_mount
from tests.mounted.budgets import BUDGETS, UNWAITED
from tests.mounted.mounts import MountedShardfs

KIB = 1024
MIB = 1024 * KIB
DATA = random.Random(1).randbytes(4 * KIB)
LARGE = random.Random(2).randbytes(MIB)
"""Not zeros: memory that was never touched reaches the kernel a few pages at a time."""
SETTLED_S_MAX = 10.0
ATTEMPTS = 5


async def _ask(path: Path) -> dict[str, int]:
    entry = find_mount(str(path))
    assert entry is not None
    async with connect(entry) as client:
        answer = await client.answer({"request": "stat"})
    requests: dict[str, int] = answer["requests"]
    return requests


def requests(path: Path) -> Counter[str]:
    """What has reached the server so far, once nothing more comes of itself."""
    deadline = time.monotonic() + SETTLED_S_MAX
    before = trio.run(partial(_ask, path))
    while time.monotonic() < deadline:
        time.sleep(0.02)
        now = trio.run(partial(_ask, path))
        if now == before:
            break
        before = now
    return Counter({name: count for name, count in before.items() if name not in UNWAITED})


def hold_budget(
    mounted: MountedShardfs,
    sequence: str,
    work: Callable[[int], object],
    prepare: Callable[[int], object] = lambda attempt: None,
) -> None:
    """One of a few attempts at the work, each prepared, makes no more requests than allowed.

    Several, because anyone on the machine may drop the kernel's caches meanwhile.
    """
    allowed = BUDGETS[sequence]
    made: Counter[str] = Counter()
    for attempt in range(ATTEMPTS):
        prepare(attempt)
        before = requests(mounted.path)
        work(attempt)
        made = requests(mounted.path) - before
        if all(count <= allowed.get(name, 0) for name, count in made.items()):
            return
    raise AssertionError(f"{sequence}: {dict(made)}, allowed {dict(allowed)}")


def write_file(path: Path, data: bytes = DATA, calls: int = 1) -> None:
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    for _ in range(calls):
        assert os.write(handle, data) == len(data)
    os.close(handle)


def read_file(path: Path, length: int = len(DATA)) -> int:
    handle = os.open(path, os.O_RDONLY)
    count = 0
    while data := os.read(handle, length):
        count += len(data)
        if len(data) < length or length == len(DATA):
            break
    os.close(handle)
    return count


@pytest.fixture
def primed(mounted_shardfs: MountedShardfs) -> MountedShardfs:
    """A mount that has told the kernel what it need not ask again."""
    write_file(mounted_shardfs.path / "first")
    return mounted_shardfs


def remount(mounted: MountedShardfs) -> None:
    """The mount again, with cold caches, and primed."""
    mounted.remount()
    write_file(mounted.path / f"first-{time.monotonic_ns()}")


def test_small_files(primed: MountedShardfs) -> None:
    root = primed.path
    hold = partial(hold_budget, primed)

    def write(attempt: int) -> None:
        write_file(root / f"{attempt}-{time.monotonic_ns()}")
        with suppress(FileNotFoundError):
            os.unlink(root / "file")
        write_file(root / "file")

    def write_and_stat(attempt: int) -> None:
        write(attempt)
        os.stat(root / "file")

    def write_and_read(attempt: int) -> None:
        write(attempt)
        read_file(root / "file")  # the first read after a change moves the access time

    hold("create, write 4 KiB, close", lambda attempt: write_file(root / f"new-{attempt}"), write)
    hold("stat of a file just written", lambda _: os.stat(root / "file"), write)
    hold("stat again", lambda _: os.stat(root / "file"), write_and_stat)
    hold("open, read 4 KiB, close, hot", lambda _: read_file(root / "file"), write_and_read)
    hold("rename", lambda attempt: os.rename(root / "file", root / f"other-{attempt}"), write)
    hold("unlink", lambda _: os.unlink(root / "file"), write)
    assert not (root / "file").exists()
    sequence = "stat of a name that does not exist, again"
    hold(sequence, lambda _: (root / "file").exists(), lambda _: (root / "file").exists())


def test_cold_files(primed: MountedShardfs) -> None:
    root = primed.path
    (root / "many").mkdir()
    for number in range(100):
        write_file(root / "many" / f"file-{number}")
    write_file(root / "file")
    read_file(root / "file")

    def list_many(_: int) -> None:
        with os.scandir(root / "many") as found:
            assert sum(entry.stat().st_size == len(DATA) for entry in found) == 100

    def go_cold(_: int) -> None:
        remount(primed)

    hold_budget(primed, "stat, cold", lambda _: os.stat(root / "file"), go_cold)
    sequence = "open, read 4 KiB, close, cold"
    hold_budget(primed, sequence, lambda _: read_file(root / "file"), go_cold)
    hold_budget(primed, "scandir with stat of 100 files, cold", list_many)
    hold_budget(primed, "stat again", lambda _: os.stat(root / "many" / "file-7"), list_many)


def test_large_files(primed: MountedShardfs) -> None:
    path = primed.path / "large"
    hold_budget(
        primed,
        "create, write 8 MiB in calls of 1 MiB, close",
        lambda attempt: write_file(path.with_name(f"large-{attempt}"), LARGE, calls=8),
    )
    path.with_name("large-0").rename(path)
    handle = os.open(path, os.O_RDWR)

    def scatter(attempt: int) -> None:
        for place in random.Random(attempt).sample(range(2048), 64):
            os.pwrite(handle, DATA, place * len(DATA))

    hold_budget(primed, "64 writes of 4 KiB at random places of an open file", scatter)
    hold_budget(primed, "fsync after it", lambda _: os.fsync(handle), scatter)
    os.close(handle)
    hold_budget(
        primed,
        "open, read 8 MiB in calls of 1 MiB, close, cold",
        lambda _: read_file(path, MIB),
        lambda _: remount(primed),
    )
    assert read_file(path, MIB) == 8 * MIB


def test_commands(primed: MountedShardfs, tmp_path: Path) -> None:
    root = primed.path
    write_file(tmp_path / "source")
    subprocess.run(["tar", "cf", tmp_path / "one.tar", "-C", tmp_path, "source"], check=True)

    def make(attempt: int) -> None:
        (root / f"d{attempt}").mkdir(exist_ok=True)

    def extract(attempt: int) -> None:
        archive = tmp_path / "one.tar"
        subprocess.run(["tar", "xf", archive, "-C", root / f"d{attempt}"], check=True)

    def copy(attempt: int) -> None:
        subprocess.run(["cp", root / "d0/source", root / f"copy-{attempt}"], check=True)

    hold_budget(primed, "tar x of a file of 4 KiB", extract, make)
    hold_budget(
        primed, "cp of a file of 4 KiB in a directory, cold", copy, lambda _: remount(primed)
    )
    assert (root / "copy-0").read_bytes() == DATA


def test_what_is_cached_is_what_was_written(primed: MountedShardfs) -> None:
    """The kernel keeps what it has cached of a file whatever its attributes say (handshake.py)."""
    path = primed.path / "file"
    write_file(path, bytes(64 * KIB))
    expected = bytearray(64 * KIB)
    choose = random.Random(3)
    changes: list[Callable[[int], None]] = [
        lambda at: _overwrite(path, expected, at, os.O_WRONLY),
        lambda at: _overwrite(path, expected, at, os.O_WRONLY | os.O_DIRECT),
        lambda at: _truncate(path, expected, at),
    ]
    for _ in range(60):
        choose.choice(changes)(choose.randrange(64 * KIB))
        assert path.stat().st_size == len(expected)
        assert path.read_bytes() == expected
    primed.remount()
    assert path.read_bytes() == expected


def _overwrite(path: Path, expected: bytearray, at: int, flags: int) -> None:
    handle = os.open(path, flags)
    os.pwrite(handle, DATA, at)
    os.close(handle)
    expected.extend(bytes(max(0, at + len(DATA) - len(expected))))
    expected[at : at + len(DATA)] = DATA


def _truncate(path: Path, expected: bytearray, length: int) -> None:
    os.truncate(path, length)
    del expected[length:]
    expected.extend(bytes(length - len(expected)))
