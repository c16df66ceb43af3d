"""Mounts that grow, shrink and are trimmed while they are used."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.cli.commands import output_of, refused
from tests.mounted.conftest import ImageFactory, LoopDeviceFactory, MountFactory
from tests.mounted.mounts import run_command

pytestmark = pytest.mark.usefixtures("runtime")

MIB = 1024 * 1024


def content_of(number: int, size: int = MIB) -> bytes:
    return b"%08d" % number * (size // 8)


def write_files(folder: Path, numbers: range, size: int = MIB) -> None:
    for number in numbers:
        (folder / f"file {number}").write_bytes(content_of(number, size))


def require_files(folder: Path, numbers: range, size: int = MIB) -> None:
    for number in numbers:
        assert (folder / f"file {number}").read_bytes() == content_of(number, size)


def free_bytes(path: Path) -> int:
    figures = os.statvfs(path)
    return figures.f_bavail * figures.f_frsize


def backing_file(device: Path) -> Path:
    listed = run_command("losetup", "--noheadings", "--output", "BACK-FILE", device)
    return Path(listed.strip())


def test_a_block_device_that_has_become_larger(
    loop_device: LoopDeviceFactory, mount_shardfs: MountFactory
) -> None:
    device = loop_device(64 * MIB)
    mounted = mount_shardfs(device)
    write_files(mounted.path, range(40))
    refused("grow", mounted.path, saying="nothing to gain")
    refused("grow", mounted.path, "--size", "128M", saying="enlarge the device first")
    os.truncate(backing_file(device), 192 * MIB)
    run_command("losetup", "--set-capacity", device)
    before = free_bytes(mounted.path)
    facts = json.loads(output_of("grow", mounted.path, "--json"))
    assert (facts["device_bytes"], facts["extent_count"]) == (192 * MIB, 192)
    assert free_bytes(mounted.path) > before + 100 * MIB
    write_files(mounted.path, range(40, 140))
    mounted.remount()
    require_files(mounted.path, range(140))
    assert json.loads(output_of("info", mounted.path, "--json"))["extent_count"] == 192


def test_a_block_device_that_was_enlarged_and_not_grown(
    loop_device: LoopDeviceFactory, mount_shardfs: MountFactory
) -> None:
    device = loop_device(64 * MIB)
    mounted = mount_shardfs(device)
    write_files(mounted.path, range(10))
    mounted.umount()
    os.truncate(backing_file(device), 100 * MIB)
    run_command("losetup", "--set-capacity", device)
    mounted.start()
    require_files(mounted.path, range(10))
    assert json.loads(output_of("info", mounted.path, "--json"))["device_bytes"] == 64 * MIB
    mounted.umount()
    assert "64 MiB -> 100 MiB" in output_of("grow", device)
    mounted.start()
    require_files(mounted.path, range(10))
    mounted.umount()
    assert "100 MiB -> 40 MiB" in output_of("shrink", device, "--size", "40M")
    assert os.stat(backing_file(device)).st_size == 100 * MIB
    mounted.start()
    require_files(mounted.path, range(10))


def test_an_image_grows_and_shrinks_while_it_is_used(
    make_image: ImageFactory, mount_shardfs: MountFactory
) -> None:
    image = make_image(64 * MIB)
    mounted = mount_shardfs(image)
    write_files(mounted.path, range(30))
    stop = threading.Event()
    failures: list[BaseException] = []

    def use() -> None:
        folder = mounted.path / "used"
        folder.mkdir()
        try:
            while not stop.is_set():
                write_files(folder, range(6), 300_000)
                require_files(folder, range(6), 300_000)
                os.unlink(folder / "file 3")
        except BaseException as error:  # of a thread: told by the test
            failures.append(error)
            raise

    user = threading.Thread(target=use)
    user.start()
    try:
        assert "-> 256 MiB" in output_of("grow", mounted.path, "--size", "256M")
        write_files(mounted.path, range(30, 130))
        for number in range(40, 130):
            os.unlink(mounted.path / f"file {number}")
        output_of("sync", mounted.path)
        refused("shrink", mounted.path, "--size", "40M", status=1, saying="bytes short")
        assert "-> 96 MiB" in output_of("shrink", mounted.path, "--size", "96M")
    finally:
        stop.set()
        user.join(60)
    assert not failures
    assert os.stat(image).st_size == 96 * MIB
    assert free_bytes(mounted.path) < 60 * MIB
    require_files(mounted.path, range(40))
    mounted.remount()
    require_files(mounted.path, range(40))


def test_trimming_a_mounted_block_device_frees_its_backing_file(
    loop_device: LoopDeviceFactory, mount_shardfs: MountFactory
) -> None:
    device = loop_device(64 * MIB)
    backing = backing_file(device)
    with device.open("r+b", buffering=0) as raw:
        for _ in range(64):
            raw.write(b"\xa5" * MIB)
        os.fsync(raw.fileno())
    assert os.stat(backing).st_blocks * 512 >= 64 * MIB
    mounted = mount_shardfs(device, format_arguments=("--force",))
    write_files(mounted.path, range(10))
    output_of("sync", mounted.path)  # or it would be written to what was trimmed
    discarded = json.loads(output_of("trim", mounted.path, "--json"))["discarded_bytes"]
    assert discarded > 40 * MIB
    subprocess.run(["sync", "-f", str(backing)], check=True, timeout=60)
    assert os.stat(backing).st_blocks * 512 <= 64 * MIB - discarded + 2 * MIB
    require_files(mounted.path, range(10))
    for number in range(10):
        os.unlink(mounted.path / f"file {number}")
    mounted.remount()
    more = json.loads(output_of("trim", mounted.path, "--json"))["discarded_bytes"]
    assert more >= discarded - 4 * MIB
