"""Waiting for requests on real mounts: idle is idle, and two busy mounts leave each other room."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import trio

from shardfs.fuse.control import connect
from shardfs.fuse.mounts import find_mount
from tests.mounted.conftest import ImageFactory, MountFactory
from tests.mounted.mounts import MountedShardfs

BUSY_S = 4.0
UNFAIRNESS_MAX = 8


def cpu_s(pid: int) -> float:
    """Processor time a process has used, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def figures(path: Path) -> dict[str, int]:
    entry = find_mount(str(path))
    assert entry is not None
    async with connect(entry) as client:
        answer = await client.answer({"request": "stat"})
    return {name: answer[name] for name in ("requests_read", "requests_that_woke")}


def work(path: Path, count: int) -> None:
    """Create, write, close, read."""
    for number in range(count):
        (path / f"{number}").write_bytes(b"x" * 4096)
        (path / f"{number}").read_bytes()


@pytest.mark.alone
@pytest.mark.parametrize(
    ("idle_s", "share_max"),
    [(6.0, 0.03), pytest.param(60.0, 0.01, marks=pytest.mark.slow)],
)
def test_an_idle_mount_uses_no_processor(
    mounted_shardfs: MountedShardfs, idle_s: float, share_max: float
) -> None:
    work(mounted_shardfs.path, 50)
    time.sleep(5)  # what was written goes to the device meanwhile
    before_s = cpu_s(mounted_shardfs.pid)
    time.sleep(idle_s)
    used_s = cpu_s(mounted_shardfs.pid) - before_s
    assert used_s <= idle_s * share_max, f"{used_s:.2f} s in {idle_s} s"


@pytest.mark.alone
def test_two_mounts_leave_each_other_room(
    make_image: ImageFactory, mount_shardfs: MountFactory
) -> None:
    mounts = [mount_shardfs(make_image()) for _ in range(2)]
    counts = [0, 0]
    end = time.monotonic() + BUSY_S

    def load(index: int) -> None:
        while time.monotonic() < end:
            work(mounts[index].path, 5)
            counts[index] += 5

    threads = [threading.Thread(target=load, args=[index]) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(counts) * UNFAIRNESS_MAX >= max(counts), counts


def test_the_option_poll(image_file: Path, mount_shardfs: MountFactory) -> None:
    mounted = mount_shardfs(image_file, ["poll=off"])
    work(mounted.path, 20)
    counted = trio.run(figures, mounted.path)
    assert counted["requests_that_woke"] == counted["requests_read"] > 100
    mounted.remount(["poll=10000"])
    work(mounted.path, 20)
    counted = trio.run(figures, mounted.path)
    assert counted["requests_that_woke"] < counted["requests_read"] / 2
