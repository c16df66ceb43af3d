"""A mount's life as systemd and the mount table see it: ready, read-only, stopping, gone.

Role: a mount in the foreground, told where to send its news and its log.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted.conftest import MountFactory
from tests.mounted.mounts import SHARDFS, MountedShardfs, errno_of, find_mount, run_command, shardfs
from tests.mounted.test_mount_options import kernel_options
from tests.mounted.test_posix_attributes import as_root

SECONDS_MAX = 60.0


def wait_until(happens: Callable[[], bool], what: str) -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + SECONDS_MAX
    while not happens():
        assert time.monotonic() < deadline, f"not within {SECONDS_MAX} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What servers started from here tell systemd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(str(tmp_path / "notify"))
        opened.settimeout(SECONDS_MAX)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield opened


def test_news_for_systemd(
    image_file: Path, tmp_path: Path, news: socket.socket, fuse_is_usable: None
) -> None:
    shardfs("mkfs", image_file)
    place = tmp_path / "mnt"
    place.mkdir()
    command: list[str | Path] = [
        SHARDFS,
        "--log-level",
        "info",
        "mount",
        "--foreground",
        "--",
        image_file,
        place,
    ]
    with (tmp_path / "log").open("wb") as log:
        status = os.fstat(log.fileno())
        environment = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        ready = news.recv(1000).decode().splitlines()
        assert ready[0] == "READY=1" and f"MAINPID={server.pid}" in ready
        assert find_mount(place) is not None
        (place / "file").write_text("hello")
        server.send_signal(signal.SIGTERM)
        assert news.recv(1000).startswith(b"STOPPING=1")
        assert server.wait(SECONDS_MAX) == 0
    finally:
        server.kill()
        server.wait(SECONDS_MAX)
    assert find_mount(place) is None
    lines = (tmp_path / "log").read_text().splitlines()
    assert any(line.startswith("<6>shardfs.") and "opened" in line for line in lines), lines
    assert shardfs("shards", "cat", image_file, "file") == "hello"


FAILING = """
import errno, os, sys
from shardfs.engine.block_device import BlockDevice
from shardfs.errors import DeviceError

flush = BlockDevice.flush

async def flush_unless_told(self):
    if os.path.exists(os.environ["FAIL_WHEN_THERE_IS"]):
        raise DeviceError("flush", 0, 0, errno.EIO)
    await flush(self)

BlockDevice.flush = flush_unless_told
from shardfs.cli.main import main
main()
"""


@as_root
def test_an_error_makes_the_mount_read_only(
    image_file: Path,
    tmp_path: Path,
    mount_shardfs: MountFactory,
    monkeypatch: pytest.MonkeyPatch,
    news: socket.socket,
) -> None:
    trouble = tmp_path / "trouble"
    monkeypatch.setenv("FAIL_WHEN_THERE_IS", str(trouble))
    shardfs("mkfs", image_file)
    place = tmp_path / "mnt"
    place.mkdir()
    mounted = MountedShardfs(
        image_file, place, tmp_path / "log", command=(sys.executable, "-c", FAILING)
    )
    try:
        mounted.start()
        assert news.recv(1000).startswith(b"READY=1")
        kept = place / "kept"
        kept.write_text("durable")
        shardfs("sync", place)
        with kept.open("r+") as writing:
            writing.write("changed")
            writing.flush()
            trouble.touch()
            assert errno_of(os.fsync, writing.fileno()) == errno.EIO
            assert errno_of((place / "new").touch) == errno.EROFS
            assert news.recv(1000).startswith(b"STATUS=read-only: ")
            assert "rw" in kernel_options(place), "a file is open for writing"
        wait_until(lambda: "ro" in kernel_options(place), "the kernel shows ro")
        assert kept.read_text() == "changed", "what was written stays readable"
        facts = json.loads(shardfs("info", place, "--json"))
        assert facts["health"] == "read-only" and "flush" in facts["reason"]
        assert f"read-only: {facts['reason']}" in mounted.log_text()
        run_command(SHARDFS, "mount", image_file, place, "-o", "remount,rw", expected_status=2)
        assert "ro" in kernel_options(place)
        trouble.unlink()
        run_command(SHARDFS, "umount", place, expected_status=1)
    finally:
        mounted.kill()
    monkeypatch.delenv("NOTIFY_SOCKET")
    mounted = mount_shardfs(image_file, format_arguments=None)
    assert (mounted.path / "kept").read_text() in ("durable", "changed"), "fsync had failed"
    (mounted.path / "kept").write_text("writable again")


def test_a_lazy_unmount_serves_what_is_open(image_file: Path, mount_shardfs: MountFactory) -> None:
    mounted = mount_shardfs(image_file)
    file = (mounted.path / "file").open("w+")
    file.write("before")
    file.flush()
    shardfs("umount", "--lazy", mounted.path)
    assert find_mount(mounted.path) is None and mounted.is_running
    file.write(" and after")
    file.flush()
    os.fsync(file.fileno())
    file.close()
    wait_until(lambda: not mounted.is_running, "the server ends with the last file")
    mounted.kill()
    mounted.start()
    assert (mounted.path / "file").read_text() == "before and after"


@as_root
def test_a_killed_server_leaves_nothing_stuck(
    image_file: Path, mount_shardfs: MountFactory
) -> None:
    """stat(2) of the mount point is answered from the kernel's cache, access(2) is not, if it asks
    for an access list: `shardfs umount` and `shardfs mount` took that for a directory that may not
    be read, and there was no way out but umount(8)."""
    mounted = mount_shardfs(image_file, ["uid=1001", "gid=1001"], for_everybody=True)

    def die() -> None:
        (mounted.path / "directory").mkdir()
        os.stat(mounted.path)
        mounted.strike()
        assert errno_of(os.listdir, mounted.path) == errno.ENOTCONN
        os.stat(mounted.path)
        assert not os.access(mounted.path, os.R_OK)

    die()
    shardfs("umount", mounted.path, expected_status=1)  # what was not synced may be lost
    assert find_mount(mounted.path) is None
    mounted.kill()
    mounted.start()
    if (mounted.path / "directory").exists():
        (mounted.path / "directory").rmdir()
    die()
    shardfs("mount", image_file, mounted.path)
    os.listdir(mounted.path)
    shardfs("umount", mounted.path)
    mounted.kill()
