"""Crash states of real mounts under real programs: git, SQLite, and a mail spool's renames.

Role: each program works on a mount of a loop device with `--record`; afterwards `shardfs check
crashes` opens states that a power cut could have left, and finds every promise kept.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.cli.commands import refused
from tests.mounted.applications.programs import git as run_git
from tests.mounted.applications.programs import need
from tests.mounted.conftest import LoopDeviceFactory, MountFactory
from tests.mounted.mounts import SHARDFS, MountedShardfs, run_command, shardfs

DEVICE_BYTES = 64 << 20
STATES = 100
STATES_SLOW = 5000

Work = Callable[[Path], None]


def git_work(root: Path) -> None:
    """A repository with some commits, a branch that is merged, and a repacking."""
    need("git", "git")
    work = root / "repository"
    git = partial(run_git, work)
    work.mkdir()
    git("init", "--quiet")
    rng = random.Random(1)
    for number in range(3):
        for name in ("a", "b", f"directory-{number}/c"):
            path = work / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(rng.randbytes(3000 * (number + 1)))
        git("add", ".")
        git("commit", "--quiet", "-m", f"commit {number}")
    git("checkout", "--quiet", "-b", "side")
    git("mv", "a", "moved")
    git("commit", "--quiet", "-m", "moved")
    git("checkout", "--quiet", "main")
    git("merge", "--quiet", "--no-ff", "-m", "merged", "side")
    git("gc", "--quiet")
    git("fsck", "--strict")


def sqlite_work(root: Path) -> None:
    """Transactions under each way of journalling, each of them durable when it returns."""
    for mode in ("delete", "truncate", "persist", "wal"):
        database = sqlite3.connect(root / f"{mode}.db", isolation_level=None)
        database.execute("pragma synchronous = full")
        assert database.execute(f"pragma journal_mode = {mode}").fetchone() == (mode,)
        database.execute("create table words (number integer primary key, word text)")
        for number in range(6):
            database.execute("begin")
            rows = [(10 * number + index, "word" * index) for index in range(10)]
            database.executemany("insert into words values (?, ?)", rows)
            database.execute("commit")
        database.execute("delete from words where number % 3 = 0")
        database.execute("vacuum")
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        database.close()


def mail_work(root: Path) -> None:
    """Messages that come in, are delivered by a rename, moved between folders, and deleted."""
    folders = [root / name for name in ("tmp", "new", "cur")]
    for folder in folders:
        folder.mkdir()
    rng = random.Random(2)
    incoming, new, read = folders
    for number in range(25):
        with (incoming / str(number)).open("xb") as file:
            file.write(rng.randbytes(rng.choice((10, 700, 5000, 60_000))))
            file.flush()
            os.fsync(file.fileno())
        (incoming / str(number)).rename(new / str(number))
        sync_directory(new)
        if number % 3 == 0:
            (new / str(number)).rename(read / f"{number}:2,S")
            sync_directory(read)
        if number % 5 == 4:
            (new / str(number - 1)).unlink(missing_ok=True)
        index = root / "index.new"
        index.write_text(f"{number} messages\n" * number)
        if number % 2:
            with index.open("rb") as file:
                os.fdatasync(file.fileno())
        index.rename(root / "index")


def bulk_work(root: Path) -> None:
    """Large files side by side, so that much is unflushed when one of them is synced."""
    rng = random.Random(3)
    with (
        (root / "a").open("wb", buffering=0) as one,
        (root / "b").open("wb", buffering=0) as other,
        (root / "log").open("ab", buffering=0) as log,
    ):
        for number in range(24):
            one.write(rng.randbytes(300_000))
            other.write(rng.randbytes(170_000))
            log.write(b"line %d\n" % number)
            os.fsync((log, log, one, other)[number % 4])
            if number % 7 == 6:
                other.truncate(100_000)
                other.seek(0)


def sync_directory(path: Path) -> None:
    """fsync(2) of a directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def recorded(
    work: Work, recording: Path, loop_device: LoopDeviceFactory, mount_shardfs: MountFactory
) -> MountedShardfs:
    """A mount on which some work was done while it was recorded; unmounted."""
    mounted = mount_shardfs(loop_device(DEVICE_BYTES), arguments=("--record", recording))
    work(mounted.path)
    mounted.umount()
    return mounted


def check_crashes(recording: Path, states: int, per_point: int = 8) -> dict[str, int]:
    """The report of `shardfs check crashes`, which finds nothing."""
    output = run_command(
        *(SHARDFS, "check", "crashes", recording, "--states", str(states)),
        *("--per-point", str(per_point), "--json"),
        seconds_max=60 + states / 10,
    )
    report: dict[str, int] = json.loads(output)
    return report


@pytest.mark.parametrize("work", [git_work, sqlite_work, mail_work, bulk_work])
def test_crash_states(
    work: Work, tmp_path: Path, loop_device: LoopDeviceFactory, mount_shardfs: MountFactory
) -> None:
    recording = tmp_path / "recording"
    recorded(work, recording, loop_device, mount_shardfs)
    report = check_crashes(recording, STATES)
    assert report["states"] >= STATES * 3 // 4
    assert report["promises"] >= 20


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("work", [git_work, sqlite_work, mail_work, bulk_work])
def test_many_crash_states(
    work: Work, tmp_path: Path, loop_device: LoopDeviceFactory, mount_shardfs: MountFactory
) -> None:
    recording = tmp_path / "recording"
    recorded(work, recording, loop_device, mount_shardfs)
    assert check_crashes(recording, STATES_SLOW, 50)["states"] >= 1000


def test_a_killed_mount_leaves_a_recording(
    tmp_path: Path, loop_device: LoopDeviceFactory, mount_shardfs: MountFactory
) -> None:
    recording = tmp_path / "recording"
    mounted = mount_shardfs(loop_device(DEVICE_BYTES), arguments=("--record", recording))
    mail_work(mounted.path)
    mounted.kill()
    assert check_crashes(recording, 40)["promises"] >= 20
    again = tmp_path / "again"
    mounted.arguments = ("--record", str(again))
    mounted.start()
    (mounted.path / "index").read_text()
    (mounted.path / "second").mkdir()
    mail_work(mounted.path / "second")
    mounted.umount()
    assert check_crashes(again, 40)["promises"] >= 20


def test_recordings_that_cannot_be(tmp_path: Path, image_file: Path) -> None:
    shardfs("mkfs", image_file)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    recording = tmp_path / "recording"
    mount = ("mount", image_file, mountpoint, "--record")
    recording.write_text("mine")
    refused(*mount, recording, saying="exists already")
    assert recording.read_text() == "mine"
    refused(*mount, mountpoint / "recording", saying="on the mount that it records")
    refused(*mount, tmp_path / "absent" / "recording", saying="No such file or directory")
    refused(*mount, tmp_path / "new", "-o", "ro", saying="read-only")
    empty = tmp_path / "empty"
    empty.write_bytes(bytes(32 << 20))
    refused("mount", empty, mountpoint, "--record", tmp_path / "new")
    assert not (tmp_path / "new").exists(), "nothing was recorded"
