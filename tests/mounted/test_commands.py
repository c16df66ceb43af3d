"""The commands on real mounts: a session from mkfs to umount, shards, control socket, bad calls.

Role: runs the real command as users do, in the background, and asks real mounts.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardfs.engine.pieces import granule_count
from shardfs.fuse.control import CONNECTIONS_MAX, REQUEST_BYTES_MAX, server_pid
from shardfs.fuse.mounts import find_mount as find_entry
from shardfs.fuse.runtime import socket_name
from tests.cli.commands import kill_server_of, output_of, refused, run, stop_everything_at
from tests.mounted.conftest import LoopDeviceFactory, MountFactory
from tests.mounted.mounts import MountedShardfs, find_mount, run_command

pytestmark = pytest.mark.usefixtures("runtime")

MIB = 1024 * 1024


@pytest.fixture
def mountpoint(fuse_is_usable: None, tmp_path: Path) -> Iterator[Path]:
    """An empty directory, unmounted at the end."""
    path = tmp_path / "here, and \\there"
    path.mkdir()
    yield path
    stop_everything_at(path)


@pytest.fixture
def mounted(image_file: Path, mountpoint: Path) -> Path:
    """A mount in the background, of a fresh image."""
    output_of("mkfs", image_file, "--label", "test disk")
    output_of("mount", image_file, mountpoint)
    return mountpoint


def open_files_of(pid: int) -> list[str]:
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    return links


def has_ended(pid: int) -> bool:
    """The process is gone, or waits only for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# --- a session ------------------------------------------------------------------------------


def test_a_session(image_file: Path, mountpoint: Path, runtime: Path) -> None:
    made = json.loads(output_of("mkfs", image_file, "--label", "test disk", "--json"))
    assert made["label"] == "test disk"
    assert json.loads(output_of("info", image_file, "--json"))["clean"] is True
    output_of("mount", image_file, mountpoint)

    entry = find_entry(str(mountpoint))
    assert entry is not None and entry.is_shardfs
    assert entry.source == str(image_file)
    pid = server_pid(entry)
    assert pid is not None
    status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(status[3]) == pid, "it leads a session of its own"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    assert not any(link.startswith("pipe:") for link in open_files_of(pid)[:3])

    (mountpoint / "file").write_text("hello")
    facts = json.loads(output_of("info", mountpoint, "--json"))
    assert facts["uuid"] == made["uuid"]
    assert facts["mountpoint"] == str(mountpoint)
    assert facts["health"] == "healthy"
    assert json.loads(output_of("info", image_file, "--json"))["mountpoint"] == str(mountpoint)
    output_of("sync", mountpoint)
    assert json.loads(output_of("stat", mountpoint, "--json"))["dirty_bytes"] == 0
    assert "durable_delta" in output_of("stat", mountpoint)

    output_of("umount", mountpoint)
    assert find_mount(mountpoint) is None
    assert has_ended(pid)
    assert [path.suffix for path in runtime.iterdir()] == [".log"]
    assert "Traceback" not in next(runtime.iterdir()).read_text()
    assert json.loads(output_of("info", image_file, "--json"))["clean"] is True
    assert "clean" in output_of("fsck", image_file, "--data")
    output_of("mount", image_file, mountpoint)
    assert (mountpoint / "file").read_text() == "hello"


def test_mount_returns_when_the_mount_answers(image_file: Path, mountpoint: Path) -> None:
    output_of("mkfs", image_file)
    for number in range(5):
        output_of("mount", image_file, mountpoint)
        with (mountpoint / f"file-{number}").open("x") as file:
            file.write("x")
        assert len(list(mountpoint.iterdir())) == number + 1
        output_of("umount", mountpoint)
        assert list(mountpoint.iterdir()) == []


def test_umount_returns_when_all_is_safe(mounted: Path, image_file: Path, tmp_path: Path) -> None:
    data = os.urandom(40 * MIB)
    (mounted / "data").write_bytes(data)
    output_of("umount", mounted)
    copy = tmp_path / "copy.img"
    run_command("cp", "--sparse=always", image_file, copy)
    assert run("shards", "cat", copy, "data").stdout == data
    assert "clean" in output_of("fsck", copy, "--data")


def test_relative_paths(image_file: Path, mountpoint: Path) -> None:
    folder = image_file.parent
    assert run("mkfs", image_file.name, cwd=folder).returncode == 0
    assert run("mount", image_file.name, mountpoint.name, cwd=folder).returncode == 0
    (mountpoint / "file").write_text("x")
    assert b"healthy" in run("info", mountpoint.name, cwd=folder).stdout
    assert run("umount", f"./{mountpoint.name}/", cwd=folder).returncode == 0
    assert find_mount(mountpoint) is None


def test_mountpoint_through_a_link(image_file: Path, mountpoint: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(mountpoint)
    output_of("mkfs", image_file)
    output_of("mount", image_file, link)
    assert find_mount(mountpoint) is not None
    assert "healthy" in output_of("info", link)
    output_of("umount", link)


def test_options(loop_device: LoopDeviceFactory, mountpoint: Path) -> None:
    device = loop_device(64 * MIB)
    output_of("mkfs", device)
    output_of("mount", device, mountpoint, "-o", "noexec,noatime", "-o", "sync,dirty=16M,private")
    options = run_command("findmnt", "-no", "OPTIONS", mountpoint).strip().split(",")
    assert {"noexec", "noatime", "sync"} <= set(options)
    assert "allow_other" not in options
    script = mountpoint / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    with pytest.raises(PermissionError):
        subprocess.run([str(script)], check=True)
    output_of("umount", mountpoint)


def test_log_option(image_file: Path, mountpoint: Path, tmp_path: Path) -> None:
    output_of("mkfs", image_file)
    log = tmp_path / "own.log"
    output_of("-vv", "mount", image_file, mountpoint, "--log", log)
    output_of("umount", mountpoint)
    assert "DEBUG" in log.read_text()
    refused("mount", image_file, mountpoint, "--log", tmp_path / "no" / "log", saying="the log")
    assert find_mount(mountpoint) is None


# --- umount ---------------------------------------------------------------------------------


def test_umount_of_a_busy_mount(mounted: Path) -> None:
    with (mounted / "file").open("w") as file:
        file.write("x")
        refused("umount", mounted, saying="busy")
        file.write("y")
    assert (mounted / "file").read_text() == "xy"
    output_of("umount", mounted)


def test_umount_after_a_crash(mounted: Path) -> None:
    kill_server_of(mounted)
    refused("umount", mounted, status=1, saying="had gone")
    assert find_mount(mounted) is None


def test_umount_by_signal(mounted: Path, image_file: Path) -> None:
    """SIGTERM ends a mount in order, as umount does."""
    (mounted / "file").write_text("hello")
    entry = find_entry(str(mounted))
    assert entry is not None
    pid = server_pid(entry)
    assert pid is not None
    descriptor = os.pidfd_open(pid)
    os.kill(pid, 15)
    from tests.cli.commands import wait_for_end

    wait_for_end(descriptor)
    os.close(descriptor)
    assert find_mount(mounted) is None
    assert run("shards", "cat", image_file, "file").stdout == b"hello"


# --- shards ---------------------------------------------------------------------------------


@pytest.fixture
def with_files(mounted: Path) -> dict[str, bytes]:
    """Files of all sorts in the mount, by path."""
    files = {
        "small": b"hello",
        "large": os.urandom(9 * MIB),
        "folder/deeper/file": b"x" * 5000,
        "folder/a name\nwith a line": b"y",
        "empty": b"",
    }
    (mounted / "folder" / "deeper").mkdir(parents=True)
    for path, data in files.items():
        (mounted / path).write_bytes(data)
    with (mounted / "holes").open("wb") as file:
        file.truncate(6 * MIB)
        file.seek(5 * MIB)
        file.write(b"end")
    files["holes"] = bytes(5 * MIB) + b"end" + bytes(MIB - 3)
    os.link(mounted / "small", mounted / "twin")
    return files


def listed(*arguments: str | Path) -> dict[str, list[str]]:
    """Shard ids by path."""
    shards: dict[str, list[str]] = {}
    for line in output_of("shards", "ls", *arguments, "--json").splitlines():
        shard = json.loads(line)
        shards.setdefault(shard["path"], []).append(shard["id"])
    return shards


@pytest.mark.parametrize("is_mounted", [True, False])
def test_shards(
    is_mounted: bool, mounted: Path, image_file: Path, with_files: dict[str, bytes]
) -> None:
    output_of("sync", mounted)
    inos = {path: (mounted / path).stat().st_ino for path in with_files}
    if not is_mounted:
        output_of("umount", mounted)
    target = mounted if is_mounted else image_file
    found = listed(target)
    small = [path for path in ("small", "twin") if path in found]
    assert len(small) == 1, "a file with two names is listed once"
    assert found.keys() - set(small) == with_files.keys() - {"small", "empty"}
    assert found["large"] == [f"{inos['large']}.{index}" for index in range(3)]
    assert found["holes"] == [f"{inos['holes']}.1"]
    assert set(listed(target, "folder")) == {
        "folder/deeper/file",
        "folder/a name\nwith a line",
    }
    assert listed(target, "--path", "/large") == {"large": found["large"]}
    table = output_of("shards", "ls", target)
    assert "/folder/deeper/file" in table and "persistent" in table
    assert "a name\\nwith a line" in table

    for path, data in with_files.items():
        assert run("shards", "cat", target, path).stdout == data
    middle = found["large"][1]
    assert run("shards", "cat", target, middle).stdout == with_files["large"][4 * MIB : 8 * MIB]

    (shown,) = json.loads(output_of("shards", "show", target, middle, "--json"))
    assert shown["id"] == middle and shown["persistent"] is True
    assert sum(piece["length"] for piece in shown["pieces"]) == 4 * MIB
    for piece in shown["pieces"]:
        chunk = piece["chunk"]
        assert chunk["extent"] >= 2 and chunk["sequence"] > 0 and chunk["epoch"] >= 1
        assert len(chunk["checksums"]) == granule_count(chunk["length"])
    assert output_of("shards", "show", target, "large").count("\nshard ") == 2
    assert "SEQUENCE" in output_of("shards", "show", target, middle)

    by_inode = f"inode:{middle.partition('.')[0]}"
    assert output_of("shards", "show", target, by_inode).count("\nshard ") == 2
    assert run("shards", "cat", target, by_inode).stdout == with_files["large"]
    assert output_of("shards", "verify", target, by_inode).endswith(": all right\n")
    refused("shards", "cat", target, "inode:999999", saying="no inode 999999")
    refused("shards", "cat", target, "inode:1", saying="inode 1 is a directory")

    refused("shards", "cat", target, "absent", saying="/absent")
    refused("shards", "cat", target, "folder", saying="is a directory")
    refused("shards", "cat", target, "999999.0", saying="no shard 999999.0")
    refused("shards", "show", target, saying="which shard")


def test_shards_by_a_path_in_the_mount(mounted: Path, with_files: dict[str, bytes]) -> None:
    assert run("shards", "cat", mounted / "large").stdout == with_files["large"]
    assert set(listed(mounted / "folder" / "deeper")) == {"folder/deeper/file"}
    assert listed(mounted / "folder", "deeper").keys() == {"folder/deeper/file"}


def test_shards_tell_what_is_pending(mounted: Path) -> None:
    with (mounted / "file").open("wb") as file:
        file.write(b"x" * 100_000)
        file.flush()
        shown = json.loads(output_of("shards", "show", mounted / "file", "--json"))
        assert shown == [] or isinstance(shown[0]["persistent"], bool)
        os.fsync(file.fileno())
    (shown,) = json.loads(output_of("shards", "show", mounted / "file", "--json"))
    assert shown["persistent"] is True


def test_shards_of_a_removed_file_that_is_open(mounted: Path, image_file: Path) -> None:
    with (mounted / "file").open("wb") as file:
        file.write(b"x" * 100_000)
        os.unlink(mounted / "file")
        file.flush()
        os.fsync(file.fileno())
        assert "(no name)" in output_of("shards", "ls", mounted)
        kill_server_of(mounted)
        run_command("umount", "-l", mounted)
    assert "(no name)" in output_of("shards", "ls", image_file)


def test_a_long_list_comes_in_pages(mounted: Path, image_file: Path) -> None:
    count = 3000
    for number in range(count):
        (mounted / f"file-{number}").write_bytes(b"x")
    output_of("sync", mounted)
    assert len(listed(mounted)) == count
    command = f"{Path(sys.executable).with_name('shardfs')} shards ls '{mounted}' | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")


# --- the control socket ---------------------------------------------------------------------


class Line:
    """A raw connection to the control socket of a mount."""

    def __init__(self, runtime: Path, mountpoint: Path) -> None:
        entry = find_entry(str(mountpoint))
        assert entry is not None
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(runtime / socket_name(entry.device_number)))
        self.file = self.socket.makefile("rb")

    def say(self, data: bytes) -> dict[str, object]:
        """One line there, one line back."""
        self.socket.sendall(data + b"\n")
        answer: dict[str, object] = json.loads(self.file.readline())
        return answer

    def close(self) -> None:
        """Hang up."""
        self.file.close()
        self.socket.close()


def test_bad_requests_are_answered(mounted: Path, runtime: Path) -> None:
    line = Line(runtime, mounted)
    for bad in (
        b"",
        b"nonsense",
        b"[]",
        b"7",
        b"{}",
        b'{"request": 7}',
        b'{"request": "explode"}',
        b'{"request": "shard"}',
        b'{"request": "shard", "ino": -1, "index": 0}',
        b'{"request": "shard", "ino": true, "index": 0}',
        b'{"request": "shard", "ino": 99999999999999999999999, "index": 0}',
        b'{"request": "read", "ino": 1, "index": 0, "start": 0, "length": 99999999999}',
        b'{"request": "file", "path": ["x"]}',
        b'{"request": "file", "path": "' + b"x" * 4000 + b'"}',
        b'{"request": "file", "path": "../../etc/passwd"}',
        b'{"request": "shards-more"}',
        b"[" * 5000,
        b"\xff\xfe",
    ):
        if bad:
            answer = line.say(bad)
            assert answer["ok"] is False, bad
            assert isinstance(answer["error"], str) and "\n" not in answer["error"]
    assert line.say(b'{"request": "info"}')["ok"] is True
    line.close()
    assert (mounted / ".").exists()


def test_a_request_without_end_is_cut_off(mounted: Path, runtime: Path) -> None:
    line = Line(runtime, mounted)
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        for _ in range(100):
            line.socket.sendall(b"x" * REQUEST_BYTES_MAX)
    line.close()
    assert "healthy" in output_of("info", mounted)


def test_many_connections_wait_their_turn(mounted: Path, runtime: Path) -> None:
    lines = [Line(runtime, mounted) for _ in range(CONNECTIONS_MAX)]
    for line in lines:
        assert line.say(b'{"request": "stat"}')["ok"] is True
    waiting = Line(runtime, mounted)
    answers = []
    asker = threading.Thread(
        target=lambda: answers.append(waiting.say(b'{"request": "stat"}')["ok"])
    )
    asker.start()
    lines.pop().close()
    asker.join(20)
    assert answers == [True]
    for line in [*lines, waiting]:
        line.close()


def test_open_connections_do_not_hold_up_the_end(mounted: Path, runtime: Path) -> None:
    line = Line(runtime, mounted)
    assert line.say(b'{"request": "shards-begin", "path": ""}')["ok"] is True
    output_of("umount", mounted)
    assert line.file.readline() == b""
    line.close()


def test_the_socket_is_private(mounted: Path, runtime: Path) -> None:
    assert runtime.stat().st_mode & 0o077 == 0
    (path,) = runtime.glob("*.socket")
    assert path.stat().st_mode & 0o077 == 0
    runtime.chmod(0o755)
    refused("info", mounted, saying="control socket")
    runtime.chmod(0o700)
    assert "healthy" in output_of("info", mounted)


# --- bad input in a mount -------------------------------------------------------------------


def test_names_that_are_too_long(mounted: Path) -> None:
    (mounted / ("n" * 255)).write_text("fits")
    for call in (
        lambda: (mounted / ("n" * 256)).write_text("x"),
        lambda: (mounted / ("n" * 256)).mkdir(),
        lambda: os.rename(mounted / ("n" * 255), mounted / ("m" * 256)),
        lambda: os.symlink("target", mounted / ("ä" * 128)),
        lambda: os.stat(mounted / ("n" * 256)),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.ENAMETOOLONG
    assert os.listdir(mounted) == ["n" * 255]


def test_files_that_are_too_large(mounted: Path) -> None:
    path = mounted / "file"
    path.write_text("x")
    limit = 1 << 60
    with pytest.raises(OSError) as caught:
        os.truncate(path, limit + 1)
    assert caught.value.errno == errno.EFBIG
    os.truncate(path, limit)
    assert path.stat().st_size == limit
    descriptor = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(descriptor, b"xy", limit - 1) == 1, "what fits is written"
        with pytest.raises(OSError) as caught:
            os.pwrite(descriptor, b"y", limit)
        assert caught.value.errno == errno.EFBIG
    finally:
        os.close(descriptor)
    os.truncate(path, 1)
    assert path.read_text() == "x"


BUG = """
import sys
from shardfs.fuse.namespace import Namespace

lookup = Namespace.lookup

async def lookup_with_a_bug(self, parent, name):
    if name == b"bug":
        raise KeyError("planted")
    return await lookup(self, parent, name)

Namespace.lookup = lookup_with_a_bug
from shardfs.cli.main import main
main()
"""


def test_a_bug_in_a_handler_costs_one_request(
    image_file: Path, mountpoint: Path, tmp_path: Path, fuse_is_usable: None
) -> None:
    output_of("mkfs", image_file)
    command = (sys.executable, "-c", BUG)
    mounted = MountedShardfs(image_file, mountpoint, tmp_path / "log", command=command)
    try:
        mounted.start()
        (mountpoint / "file").write_text("hello")
        for _ in range(3):
            with pytest.raises(OSError) as caught:
                os.stat(mountpoint / "bug")
            assert caught.value.errno == errno.EIO
        assert (mountpoint / "file").read_text() == "hello"
        assert "KeyError: 'planted'" in mounted.log_text()
        assert "Traceback" in mounted.log_text()
        mounted.expected_log_patterns += ["Traceback", "ERROR"]
    finally:
        mounted.close()


# --- fsck and mkfs on devices ---------------------------------------------------------------


def test_fsck_names_the_file_and_the_bytes(mounted: Path, image_file: Path) -> None:
    (mounted / "folder").mkdir()
    (mounted / "folder" / "file").write_bytes(os.urandom(5 * MIB))
    output_of("umount", mounted)
    shards = json.loads(output_of("shards", "show", image_file, "folder/file", "--json"))
    chunk = shards[1]["pieces"][0]["chunk"]
    extent_bytes = json.loads(output_of("info", image_file, "--json"))["extent_bytes"]
    at = chunk["extent"] * extent_bytes + chunk["offset"] + 40_000
    with image_file.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    assert "clean" in output_of("fsck", image_file)
    done = run("fsck", image_file, "--data")
    assert done.returncode == 1 and done.stderr == b""
    text = done.stdout.decode()
    assert "E11 /folder/file (inode " in text
    first = 4 * MIB + 36864
    assert f"bytes {first} to {first + 4095}" in text
    report = json.loads(run("fsck", image_file, "--data", "--json").stdout)
    assert report["clean"] is False and report["finding_count"] == 1
    assert report["findings"][0]["start"] == first
    broken = run("shards", "cat", image_file, "folder/file")
    assert broken.returncode == 1
    assert broken.stderr.count(b"\n") == 1


def test_large_sectors(
    loop_device: LoopDeviceFactory,
    mount_shardfs: MountFactory,
    run_shardfs: Callable[..., str],
) -> None:
    device = loop_device(64 * MIB, sector_bytes=4096)
    mounted = mount_shardfs(device)
    (mounted.path / "file").write_text("hello")
    facts = json.loads(run_shardfs("info", mounted.path, "--json"))
    assert facts["sector_bytes"] == 4096
    mounted.umount()
    assert run("shards", "cat", device, "file").stdout == b"hello"
