"""The server killed at random moments under load: nothing promised is lost, and no repair.

Each round mounts, loads, kills with SIGKILL, mounts again and compares what is there with what
the load was promised. The image is the same all through, so that one round's leavings are the
next one's start.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.mounted.conftest import ImageFactory, MountFactory
from tests.mounted.crash_load import content
from tests.mounted.mounts import MountedShardfs, run_command, shardfs

ROUNDS = 50
IMAGE_BYTES = 1024 * 1024 * 1024
LOAD = Path(__file__).with_name("crash_load.py")


def run_load_and_kill(
    mounted: MountedShardfs, folder: Path, seed: int, seconds: float
) -> list[str]:
    """Load the mount for a while, kill its server, and return the promises made."""
    folder.mkdir()
    load = subprocess.Popen(
        [sys.executable, str(LOAD), str(folder), str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    try:
        time.sleep(seconds)
        mounted.kill()
        said, _ = load.communicate(timeout=60)
    finally:
        load.kill()
    return [line for line in said.splitlines() if line]


def broken_promises(root: Path, lines: Iterable[str]) -> list[str]:
    """What the tree under `root` does not keep of the promises in `lines`."""
    durable: dict[str, int] = {}
    renamed: dict[str, int] = {}
    for line in lines:
        word, name, *rest = line.split()
        if word == "fsync":
            durable[name] = int(rest[0])
        elif word == "rename":
            renamed[name] = int(rest[0])
    found = []
    for name, version in durable.items():
        path = root / name
        if not path.exists():
            found.append(f"{name}: gone, but fsync had returned")
        elif path.read_bytes() != content(name, version):
            found.append(f"{name}: {path.stat().st_size} bytes, not what fsync had made durable")
    for name, version in renamed.items():
        path = root / name
        # One more version may have been renamed without the load having come to say so. The last
        # rename of each name need not be durable: the state before it is as good.
        allowed = [content(name, number) for number in range(max(1, version - 1), version + 2)]
        if version > 1 and not path.exists():
            found.append(f"{name}: gone in the middle of a rename")
        elif path.exists() and path.read_bytes() not in allowed:
            found.append(f"{name}: {path.stat().st_size} bytes, neither old nor new")
    return found


def test_promises_are_checked(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(content("a/f", 0))
    (tmp_path / "a" / "r").write_bytes(content("a/r", 4))
    kept = ["fsync a/f 0", "rename a/r 4", "made a/m 0"]
    assert broken_promises(tmp_path, kept) == []
    broken = ["fsync a/g 0", "fsync a/r 0", "rename a/r 9", "rename a/x 2"]
    assert len(broken_promises(tmp_path, broken)) == 4


@pytest.mark.timeout(900)
def test_killed_at_fifty_random_moments(
    make_image: ImageFactory, mount_shardfs: MountFactory
) -> None:
    rng = random.Random(20260101)
    mounted = mount_shardfs(make_image(IMAGE_BYTES), seconds_max=850)
    promises = 0
    for number in range(ROUNDS):
        folder = mounted.path / f"round-{number}"
        lines = run_load_and_kill(mounted, folder, number, rng.uniform(0.15, 1.2))
        promises += len(lines)
        shardfs("fsck", mounted.device, *(["--data"] if number % 10 == 9 else []))
        mounted.start()
        assert broken_promises(mounted.path / f"round-{number}", lines) == [], f"round {number}"
        if number >= 1:
            run_command("rm", "-rf", mounted.path / f"round-{number - 1}")
    assert promises > 10 * ROUNDS, "the load made next to no promises: it tests nothing"
