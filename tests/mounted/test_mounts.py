"""The mounted tests' machinery: it sees failure, and cleans up after it.

Role: real mounts of a stand-in server, so that what is tested here is the harness alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted import standin
from tests.mounted.conftest import LoopDeviceFactory
from tests.mounted.mounts import MountedShardfs, find_mount, run_command

Maker = Callable[..., MountedShardfs]


@pytest.fixture
def stand_in(fuse_is_usable: None, tmp_path: Path) -> Maker:
    """Makes mounts whose server is the stand-in."""

    def make(*options: str, seconds_max: float = 60.0) -> MountedShardfs:
        path = tmp_path / "mount point"
        path.mkdir()
        return MountedShardfs(
            Path("/dev/null"),
            path,
            tmp_path / "server.log",
            options,
            seconds_max=seconds_max,
            command=(sys.executable, str(standin.__file__)),
        )

    return make


def assert_nothing_left(mounted: MountedShardfs, pid: int) -> None:
    assert find_mount(mounted.path) is None
    assert not mounted.is_running
    assert not Path(f"/proc/{pid}").exists()


def test_mount_answers_and_ends(stand_in: Maker) -> None:
    mounted = stand_in()
    mounted.start()
    pid = mounted.pid
    assert mounted.path.is_dir()
    assert find_mount(mounted.path) is not None
    mounted.remount()
    assert mounted.pid != pid
    pid = mounted.pid
    mounted.close()
    assert_nothing_left(mounted, pid)


def test_kill_leaves_nothing(stand_in: Maker) -> None:
    mounted = stand_in()
    mounted.start()
    pid = mounted.pid
    mounted.kill()
    assert_nothing_left(mounted, pid)
    mounted.start()
    mounted.close()


def test_a_server_killed_by_others_is_noticed(stand_in: Maker) -> None:
    mounted = stand_in()
    mounted.start()
    pid = mounted.pid
    os.kill(pid, 9)
    with pytest.raises(AssertionError):
        mounted.close()
    assert_nothing_left(mounted, pid)


def test_a_hang_is_cut_off(stand_in: Maker) -> None:
    mounted = stand_in(seconds_max=2.0)
    mounted.start()
    pid = mounted.pid
    started = time.monotonic()
    with pytest.raises(OSError, match="hang"):
        os.stat(mounted.path / "hang")
    assert time.monotonic() - started < 60
    with pytest.raises(AssertionError):
        mounted.close()
    assert mounted.was_cut_off
    assert_nothing_left(mounted, pid)


def test_trouble_in_the_log_fails(stand_in: Maker) -> None:
    mounted = stand_in("trouble")
    mounted.start()
    with pytest.raises(AssertionError, match="unannounced trouble"):
        mounted.close()
    mounted.expected_log_patterns.append("has trouble")
    mounted.close()


def test_a_bad_exit_status_fails(stand_in: Maker) -> None:
    mounted = stand_in("status")
    mounted.start()
    pid = mounted.pid
    with pytest.raises(AssertionError, match="status 9"):
        mounted.close()
    assert_nothing_left(mounted, pid)


def test_a_server_that_ends_early_is_noticed(stand_in: Maker) -> None:
    mounted = stand_in("silent")
    with pytest.raises(AssertionError, match="ended with status 7"):
        mounted.start()
    mounted.close()


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_loop_device(loop_device: LoopDeviceFactory, sector_bytes: int) -> None:
    device = loop_device(32 * 1024 * 1024, sector_bytes=sector_bytes)
    assert device.is_block_device()
    assert run_command("blockdev", "--getss", "--getsize64", device).split() == [
        str(sector_bytes),
        str(32 * 1024 * 1024),
    ]
