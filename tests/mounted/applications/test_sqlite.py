"""SQLite on a mount, in every way of journalling: many processes, and a server that is killed."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mounted.applications.sqlite_load import ROWS, prepare
from tests.mounted.mounts import MountedShardfs, shardfs

LOAD = Path(__file__).with_name("sqlite_load.py")
DURABLE_MODES = ("wal", "delete", "truncate", "persist")
MODES = (*DURABLE_MODES, "memory")
"""Not "off": without a journal a transaction that fails leaves the database corrupt anywhere."""
PROCESSES = 3
GROUPS = 8


def start(path: Path, mode: str, process: int, groups: int) -> subprocess.Popen[str]:
    """A child that adds groups to a database."""
    command = [sys.executable, str(LOAD), str(path), mode, str(process), str(groups)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check(path: Path, committed: Sequence[int], mode: str) -> None:
    """The database is sound, and has every group that was said to be committed, whole.

    Args:
        committed: for each process, how many of its groups were said to be.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as database:
        ask = database.execute
        assert ask("pragma integrity_check").fetchall() == [("ok",)], mode
        assert ask("pragma foreign_key_check").fetchall() == []
        groups = ask("select process, grp, count(*) from entries group by 1, 2").fetchall()
        torn = [each for each in groups if each[2] != ROWS]
        assert torn == [], f"half a transaction, {mode}"
        there = {(process, number) for process, number, _ in groups}
        for process, count in enumerate(committed):
            lost = {(process, number) for number in range(count)} - there
            assert not lost, f"committed in mode {mode}, and lost: {sorted(lost)}"
        entries = ask("select coalesce(sum(amount), 0) from entries").fetchone()
        assert ask("select amount from total").fetchone() == entries, mode
        ask("vacuum")
        assert ask("pragma integrity_check").fetchall() == [("ok",)], mode


def many_processes(path: Path, mode: str) -> None:
    """Several processes add to one database at once; all of it is there."""
    prepare(str(path), mode)
    children = [start(path, mode, number, GROUPS) for number in range(PROCESSES)]
    try:
        for child in children:
            said, complaint = child.communicate(timeout=120)
            assert child.returncode == 0, complaint
            assert len(said.split()) == GROUPS
    finally:
        for child in children:
            child.kill()
            child.wait()
    check(path, [GROUPS] * PROCESSES, mode)


def sqlite_work(folder: Path, seed: int) -> None:
    """One journal mode with many processes; five seeds in a row have all of them."""
    mode = MODES[seed % len(MODES)]
    many_processes(folder / f"{mode}.db", mode)


def test_many_processes_in_each_mode(mounted_shardfs: MountedShardfs) -> None:
    for seed in range(len(MODES)):
        sqlite_work(mounted_shardfs.path, seed)
    mounted_shardfs.remount()
    for mode in MODES:
        check(mounted_shardfs.path / f"{mode}.db", [GROUPS] * PROCESSES, mode)


def killed_rounds(mounted: MountedShardfs, rounds: int) -> None:
    """Transactions in all modes side by side, the server killed under them, again and again."""
    promised = 0
    for number in range(rounds):
        paths = {mode: mounted.path / f"{mode}-{number}.db" for mode in DURABLE_MODES}
        for mode, path in paths.items():
            prepare(str(path), mode)
        children = {mode: start(path, mode, 0, 0) for mode, path in paths.items()}
        said = {}
        try:
            time.sleep(1.5 + 0.37 * number)
            mounted.kill()
            for mode, child in children.items():
                said[mode] = child.communicate(timeout=60)[0].split()
        finally:
            for child in children.values():
                child.kill()
                child.wait()
        shardfs("fsck", mounted.device)
        mounted.start()
        for mode, path in paths.items():
            check(path, [len(said[mode])], mode)
            promised += len(said[mode])
    assert promised > rounds, "next to nothing was committed: this tests nothing"


def test_committed_transactions_survive_a_killed_server(mounted_shardfs: MountedShardfs) -> None:
    killed_rounds(mounted_shardfs, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_committed_transactions_survive_many_killed_servers(
    mounted_shardfs: MountedShardfs,
) -> None:
    killed_rounds(mounted_shardfs, 20)
