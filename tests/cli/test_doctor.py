"""`shardfs doctor`: each way in which a machine or a device is not ready, found and explained."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from shardfs.cli import machine
from shardfs.cli.machine import FINDING, NOTE, OK, Result
from shardfs.engine.claims import backing_file_of
from tests.cli.commands import output_of, run
from tests.mounted.conftest import LoopDeviceFactory


def results(path: Path) -> dict[str, Result]:
    """What is found of a device, by what was looked at."""
    found = {each.check: each for each in machine.run(machine.device_checks(str(path)))}
    assert all(each.advice or each.state != FINDING for each in found.values()), found
    return found


def states(path: Path) -> dict[str, str]:
    return {name: each.state for name, each in results(path).items()}


def test_this_machine(fuse_is_usable: None) -> None:
    done = run("doctor", "--json")
    answer = json.loads(done.stdout)
    found = {each["check"]: each for each in answer["checks"]}
    assert found["trial mount"]["state"] == OK and found["libfuse"]["state"] == OK
    assert answer["ready"] is (done.returncode == 0)
    assert all(each["advice"] or each["state"] == OK for each in found.values())
    assert "trial mount" in output_of("doctor")


def test_an_image_that_can_be_used(image_file: Path, formatted: Path) -> None:
    assert set(states(image_file).values()) == {OK}
    assert run("doctor", formatted).returncode == 0


def test_what_is_not_there(tmp_path: Path) -> None:
    assert states(tmp_path / "absent") == {"device": FINDING}
    assert run("doctor", tmp_path / "absent").returncode == 1
    found = {each.check: each for each in machine.run(machine.device_checks(str(tmp_path)))}
    assert found["device"].state == NOTE


def test_a_device_that_is_too_small(tmp_path: Path) -> None:
    small = tmp_path / "small.img"
    small.write_bytes(bytes(1 << 20))
    assert states(small)["size"] == FINDING


def test_a_device_that_carries_something(tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    with other.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", other], check=True, timeout=60)
    found = results(other)["content"]
    assert found.state == NOTE and "ext" in found.found and "--force" in found.advice


def test_a_device_in_use(formatted: Path, mountpoint: Path, loop_device: LoopDeviceFactory) -> None:
    output_of("mount", formatted, mountpoint)
    found = results(formatted)["in use"]
    assert found.state == NOTE and str(mountpoint) in found.found
    output_of("umount", mountpoint)
    device = loop_device()
    backing = backing_file_of(os.stat(device).st_rdev)
    assert backing is not None
    assert states(Path(backing)) == {"in use": FINDING}


def test_an_image_without_room(image_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs

    def nearly_full(path: str) -> os.statvfs_result:
        facts = list(real(path))
        facts[4] = 1  # f_bavail
        return os.statvfs_result(facts)

    monkeypatch.setattr(os, "statvfs", nearly_full)
    found = results(image_file)["room"]
    assert found.state == FINDING and "read-only" in found.advice


def test_a_block_device(loop_device: LoopDeviceFactory) -> None:
    found = results(loop_device())
    assert {"discard", "write cache", "medium"} <= set(found)
    assert found["in use"].state == found["opening"].state == OK


@pytest.mark.parametrize(
    ("check", "name"),
    [("fusermount3", "shutil.which"), ("/dev/fuse", "pathlib.Path.exists")],
)
def test_a_machine_that_lacks_something(
    check: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name, lambda *_args, **_more: None)
    checks = [each for each in machine.machine_checks() if each[0] == check]
    (found,) = machine.run(checks)
    assert found.state == FINDING and found.advice


def test_a_check_that_fails_does_not_end_the_others() -> None:
    def broken() -> list[Result]:
        raise OSError(5, "no luck")

    found = list(machine.run([("a", lambda: iter(broken())), ("b", lambda: iter([]))]))
    assert [each.state for each in found] == [NOTE] and "no luck" in found[0].found
