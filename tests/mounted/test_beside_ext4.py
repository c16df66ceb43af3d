"""The same random system calls on shardfs and on ext4: every result, error and attribute alike.

Role: ext4 says what a local file system of Linux does; a call that ends otherwise on shardfs, or
moves another time, or leaves another tree, is a difference. What cannot be alike is left out by
call_sequences.py and call_runner.py, each with its reason. A difference is cut down to the fewest
calls that show it.

CALLS_FIRST_SEED and CALLS_SEQUENCES in the environment ask the slow form for other sequences, or
for more of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mounted import call_runner
from tests.mounted.call_sequences import Call, make_calls
from tests.mounted.conftest import LoopDeviceFactory, MountFactory
from tests.mounted.mounts import MountedShardfs, run_command

Results = list[object]
FIRST_SEED = int(os.environ.get("CALLS_FIRST_SEED", "1000"))
SEQUENCES = int(os.environ.get("CALLS_SEQUENCES", "100"))
SLOW_SECONDS_MAX = 3600 + 60 * SEQUENCES

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="acts for several users: needs root"),
    pytest.mark.skipif(
        shutil.which("mkfs.ext4") is None, reason="no mkfs.ext4 (Debian package e2fsprogs)"
    ),
]


class Pair:
    """A shardfs and an ext4, both empty at the beginning of each sequence."""

    def __init__(self, shardfs: MountedShardfs, ext4: Path) -> None:
        self.shardfs = shardfs
        self._folders = (shardfs.path, ext4)

    def difference(self, calls: list[Call], mode: str) -> tuple[int, object, object] | None:
        """The first call that differs, by its place, and what it gave on shardfs and on ext4."""
        here, there = (run_calls(folder, calls, mode) for folder in self._folders)
        assert len(here) == len(there) == len(calls) + 1
        for place, (ours, theirs) in enumerate(zip(here, there, strict=True)):
            if ours != theirs:
                return place, ours, theirs
        return None

    def compare(self, seed: int, count: int, mode: str) -> None:
        """Raises: AssertionError with the fewest calls that show a difference."""
        calls = make_calls(seed, count)
        found = self.difference(calls, mode)
        if found is None:
            return
        calls = self._shrunk(calls[: found[0] + 1], mode)
        again = self.difference(calls, mode)
        story = "\n".join(json.dumps(call) for call in calls)
        raise AssertionError(
            f"seed {seed}: call {found[0]} differs: shardfs {found[1]}, ext4 {found[2]}\n"
            f"fewest calls:\n{story}\n(place, shardfs, ext4): {again}"
        )

    def _shrunk(self, calls: list[Call], mode: str) -> list[Call]:
        """As few of the calls as still differ."""
        step = len(calls) // 2
        while step:
            start = 0
            while start < len(calls):
                fewer = calls[:start] + calls[start + step :]
                if fewer and self.difference(fewer, mode) is not None:
                    calls = fewer
                else:
                    start += step
            step //= 2
        return calls


def run_calls(folder: Path, calls: list[Call], mode: str) -> Results:
    """Perform calls in an emptied file system, in a process of their own: a line for each."""
    empty(folder)
    done = subprocess.run(
        [sys.executable, "-S", call_runner.__file__, str(folder), mode],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def empty(folder: Path) -> None:
    """Remove all, and give the root directory the attributes of a new one."""
    for path in folder.iterdir():
        if not path.is_symlink() and path.is_dir():  # a link may lead to a name too long to ask for
            shutil.rmtree(path)
        else:
            path.unlink()
    for name in os.listxattr(folder):
        os.removexattr(folder, name)
    os.chown(folder, 0, 0)
    folder.chmod(0o777)
    os.utime(folder)


@pytest.fixture
def pair(
    loop_device: LoopDeviceFactory,
    mount_shardfs: MountFactory,
    tmp_path: Path,
    kernel_resources: ExitStack,
) -> Pair:
    """Both mounted. An ext4 with attributes as long as the kernel lets them be."""
    mounted = mount_shardfs(loop_device(), ["suid", "dev"], seconds_max=SLOW_SECONDS_MAX)
    device, folder = loop_device(), tmp_path / "ext4"
    folder.mkdir()
    run_command("mkfs.ext4", "-q", "-b", "4096", "-O", "ea_inode", device)
    mount = ["mount", "-t", "ext4", str(device), str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True, timeout=60, check=False)
    if made.returncode != 0:
        pytest.skip(f"this kernel mounts no ext4: {made.stderr.strip()}")
    kernel_resources.callback(run_command, "umount", folder)
    return Pair(mounted, folder)


def test_results_and_trees(pair: Pair) -> None:
    for seed in range(4):
        pair.compare(seed, 400, "results")


def test_times(pair: Pair) -> None:
    pair.compare(100, 120, "times")


@pytest.mark.slow
@pytest.mark.timeout(SLOW_SECONDS_MAX)
def test_many_results_and_times(pair: Pair) -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + SEQUENCES):
        pair.compare(seed, 1000, "results")
        if seed % 5 == 0:
            pair.compare(1000 + seed, 200, "times")
