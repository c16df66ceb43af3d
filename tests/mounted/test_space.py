"""Where the space is, on real mounts: df tells the truth, gc gives back, why explains.

Role: the real df(1) and the commands df, gc and why, on a mount and on what it leaves.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import output_of, refused, run, run_on_a_terminal
from tests.mounted.conftest import MountFactory
from tests.mounted.mounts import SHARDFS, MountedShardfs, run_command

pytestmark = pytest.mark.usefixtures("runtime")

KIB = 1024
MIB = 1024 * KIB
IDLE_SECONDS_MAX = 60.0


@pytest.fixture
def mounted_shardfs(image_file: Path, mount_shardfs: MountFactory) -> MountedShardfs:
    """A fresh mount that may live for as long as a test with many commands takes."""
    return mount_shardfs(image_file, seconds_max=170.0)


def available_bytes(path: Path) -> int:
    """What df(1) calls available."""
    return int(run_command("df", "--block-size=1", "--output=avail", path).splitlines()[1])


def space(target: Path) -> dict[str, Any]:
    """What `shardfs df` says; its parts add up to the device, whenever it is asked."""
    answer: dict[str, Any] = json.loads(output_of("df", target, "--json"))
    assert sum(answer["parts"].values()) == answer["device_bytes"]
    assert all(size >= 0 for size in answer["parts"].values())
    garbage_and_free = answer["parts"]["garbage_bytes"] + answer["parts"]["free_bytes"]
    assert answer["available_bytes"] == garbage_and_free
    return answer


def why(target: Path, *what: str | Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(output_of("why", target, *what, "--json"))
    return answer


def half_garbage(root: Path) -> dict[str, bytes]:
    """Many extents in which two bytes of three are garbage; the files that are left."""
    files = {f"file-{number:03}": os.urandom(400 * KIB) for number in range(120)}
    for name, data in files.items():
        (root / name).write_bytes(data)
    output_of("sync", root)
    for number in range(120):
        if number % 3:
            (root / f"file-{number:03}").unlink()
            del files[f"file-{number:03}"]
    output_of("sync", root)
    return files


def test_df_is_back_where_it_was_when_everything_is_deleted(
    mounted_shardfs: MountedShardfs,
) -> None:
    root = mounted_shardfs.path
    fresh = available_bytes(root)
    for number in range(1500):
        (root / f"small-{number}").write_bytes(b"x" * (number % 5000))
    (root / "folder").mkdir()
    for number in range(4):
        (root / "folder" / f"large-{number}").write_bytes(os.urandom(24 * MIB))
    output_of("sync", root)
    assert available_bytes(root) < fresh - 96 * MIB
    assert space(root)["parts"]["live_bytes"] > 96 * MIB
    run_command("rm", "-r", *root.iterdir())
    assert list(root.iterdir()) == []
    deadline = time.monotonic() + IDLE_SECONDS_MAX
    while available_bytes(root) < 0.99 * fresh:
        assert time.monotonic() < deadline, (fresh, available_bytes(root), space(root))
        time.sleep(0.2)
    assert space(root)["parts"]["live_bytes"] == 0
    mounted_shardfs.umount()
    assert space(mounted_shardfs.device)["available_bytes"] >= 0.99 * fresh


def test_statfs_and_shardfs_df_agree(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    answer = space(root)
    figures = os.statvfs(root)
    assert figures.f_blocks * figures.f_frsize == answer["device_bytes"]
    assert figures.f_bavail == figures.f_bfree == answer["available_bytes"] // figures.f_frsize
    assert figures.f_namemax == 255
    assert 0 < figures.f_ffree <= figures.f_files
    table = output_of("df", root)
    for word in ("live data", "garbage", "free", "metadata", "reserved", "256 MiB", "[", str(root)):
        assert word in table
    here = run("df", cwd=root).stdout.decode()
    # Figures may change meanwhile: the mount commits what mounting it has changed.
    assert here.splitlines()[0] == table.splitlines()[0], "the mount that one is in"
    mounted_shardfs.umount()
    assert "not mounted" in output_of("df", mounted_shardfs.device)
    refused("df", root, saying="no shardfs is mounted there")


def test_gc_on_a_mount(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    files = half_garbage(root)
    plan = json.loads(output_of("gc", root, "--json"))
    assert plan["emptied_extents"] > 10 and plan["gained_bytes"] > plan["moved_bytes"] > 0
    before = space(root)
    assert before["parts"]["garbage_bytes"] > 8 * MIB

    status = run_on_a_terminal(
        "gc", "--now", root, until=b" moved, ", then=lambda gc: gc.send_signal(signal.SIGINT)
    )
    assert status in (0, 130)
    for name, data in files.items():
        assert (root / name).read_bytes() == data

    done = json.loads(output_of("gc", root, "--now", "--json"))
    assert done["stage"] == "done" and done["stopped"] == ""
    assert done["freed_bytes"] == done["freed_extents"] * before["extent_bytes"]
    after = done["after"]
    assert after["garbage_bytes"] < before["parts"]["garbage_bytes"] // 4
    available = after["garbage_bytes"] + after["free_bytes"]
    assert abs(available - before["available_bytes"]) < 2 * MIB
    assert "0 extents, of which 0 B would be moved" in output_of("gc", root)
    mounted_shardfs.remount(["ro"])
    for name, data in files.items():
        assert (root / name).read_bytes() == data
    refused("gc", root, "--now", saying="read-only")


def test_gc_on_an_unmounted_device(mounted_shardfs: MountedShardfs) -> None:
    files = half_garbage(mounted_shardfs.path)
    mounted_shardfs.umount()
    device = mounted_shardfs.device
    plan = json.loads(output_of("gc", device, "--json"))
    assert plan["emptied_extents"] > 10
    for _ in range(2):
        killed = subprocess.Popen(
            [str(SHARDFS), "gc", "--now", str(device)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(0.6)
        killed.kill()
        killed.wait()
    done = json.loads(output_of("gc", device, "--now", "--json"))
    assert done["stage"] == "done"
    assert done["after"]["garbage_bytes"] < 2 * MIB
    assert json.loads(output_of("info", device, "--json"))["clean"] is True
    mounted_shardfs.start()
    for name, data in files.items():
        assert (mounted_shardfs.path / name).read_bytes() == data


def test_why_a_file_takes_space(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_bytes(os.urandom(6 * MIB))
    os.link(root / "a" / "b" / "file", root / "second name")
    output_of("sync", root)
    with (root / "second name").open("r+b") as file:
        file.seek(MIB)
        file.write(b"new" * 1000)
        os.fsync(file.fileno())
    answer = why(root / "a" / "b" / "file")
    assert (answer["kind"], answer["size"], answer["names"]) == ("file", 6 * MIB, 2)
    assert sorted(answer["paths"]) == ["/a/b/file", "/second name"]
    assert answer["stored_bytes"] == 6 * MIB and answer["shards"] == 2
    assert answer["overwritten_bytes"] == 3000
    assert answer["device_bytes"] > 6 * MIB + 3000
    assert sum(extent["bytes"] for extent in answer["extents"]) == answer["device_bytes"]
    everything = why(root, "/")
    assert (everything["files"], everything["kind"]) == (1, "directory")
    assert everything["device_bytes"] == answer["device_bytes"], "a file with two names counts once"
    text = output_of("why", root / "second name")
    assert "2 names" in text and "/a/b/file" in text and "live" in text

    mounted_shardfs.umount()
    offline = why(mounted_shardfs.device, "second name")
    assert offline["paths"] == answer["paths"]
    lies_in = {each["extent"]: each["bytes"] for each in answer["extents"]}
    assert lies_in == {each["extent"]: each["bytes"] for each in offline["extents"]}
    refused("why", mounted_shardfs.device, "third name", saying="third name")
    refused("why", mounted_shardfs.device, saying="say what")
    refused("why", mounted_shardfs.device, "inode:77", saying="no inode 77")


def test_why_an_extent_is_not_free(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    (root / "with, a name\nof two lines").write_bytes(os.urandom(3 * MIB))
    (root / "17").write_bytes(b"x" * 9000)
    os.link(root / "17", root / "again")
    open_file = (root / "removed").open("w+b")
    with open_file:
        open_file.write(b"y" * 200_000)
        os.fsync(open_file.fileno())
        ino = os.fstat(open_file.fileno()).st_ino
        (root / "removed").unlink()
        output_of("sync", root)
        (number,) = [each["extent"] for each in why(root, "./17")["extents"]]
        extent = why(root, str(number))
        assert extent["state"] == "open" and extent["stream"] == "data"
        assert {hold["kind"] for hold in extent["holds"]} >= {"open", "live"}
        assert sum(file["bytes"] for file in extent["files"]) == extent["live_bytes"]
        by_ino = {file["ino"]: file for file in extent["files"]}
        small = by_ino[(root / "17").stat().st_ino]
        assert sorted(small["paths"]) == ["/17", "/again"] and small["ranges"] == [[0, 9000]]
        answer = why(root, f"inode:{ino}")
        assert answer["removed"] == "open" and answer["stored_bytes"] == 200_000
        number = answer["extents"][0]["extent"]
        assert f"inode {ino} (removed, and still open" in output_of("why", root, str(number))
        mounted_shardfs.kill()
    device = mounted_shardfs.device
    found = {file["ino"]: file for file in why(device, str(number))["files"]}
    assert found[ino]["removed"] == "freed-by-next-mount" and found[ino]["paths"] == []
    (first, *_) = why(device, "with, a name\nof two lines")["extents"]
    assert "a name\\nof two lines" in output_of("why", device, str(first["extent"]))
    assert why(device, "0")["holds"][0]["kind"] == "superblock"
    assert "it is free" in output_of("why", device, "200")
    refused("why", device, "4711", saying="no extent 4711")
