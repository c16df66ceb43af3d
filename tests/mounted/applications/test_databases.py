"""Databases that map their file into memory, LMDB and gdbm; LMDB also when the server is killed."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.mounted.applications.key_value_load import RECORDS
from tests.mounted.applications.programs import debian_python_with, run_in
from tests.mounted.mounts import MountedShardfs, shardfs

LOAD = Path(__file__).with_name("key_value_load.py")
TRANSACTIONS = 40
# Of every five transactions one loses half of its records again.
RECORDS_LEFT = TRANSACTIONS * RECORDS - TRANSACTIONS // 5 * (RECORDS // 2)


def lmdb_work(folder: Path, seed: int) -> None:
    """LMDB: transactions, then a walk through all of it; the whole again in a copy."""
    python = debian_python_with("lmdb", "python3-lmdb")
    load = (python, LOAD, "lmdb")
    run_in(folder, *load, "write", "lmdb", f"{TRANSACTIONS}", f"{seed}")
    assert int(run_in(folder, *load, "verify", "lmdb", "0", f"{seed}")) == RECORDS_LEFT
    run_in(folder, "cp", "-r", "--sparse=always", "lmdb", "copy")
    assert int(run_in(folder, *load, "verify", "copy", "0", f"{seed}")) == RECORDS_LEFT


def gdbm_work(folder: Path, seed: int) -> None:
    """gdbm: records and syncs, then a walk through all of it; opened, and reorganized, again."""
    python = debian_python_with("dbm.gnu", "python3-gdbm")
    load = (python, LOAD, "gdbm")
    for _ in range(2):
        run_in(folder, *load, "write", "records.gdbm", f"{TRANSACTIONS}", f"{seed}")
        said = run_in(folder, *load, "verify", "records.gdbm", "0", f"{seed}")
        assert int(said) == RECORDS_LEFT


def test_lmdb(mounted_shardfs: MountedShardfs) -> None:
    """Its work; then a load under which the server is killed: what was committed is there."""
    work = mounted_shardfs.path / "work"
    work.mkdir()
    lmdb_work(work, 1)
    python = debian_python_with("lmdb", "python3-lmdb")
    path = mounted_shardfs.path / "lmdb"
    command = [str(python), str(LOAD), "lmdb"]
    load = subprocess.Popen(
        [*command, "write", str(path), "0", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        time.sleep(2)
        mounted_shardfs.kill()
        # SIGBUS or an error of the system, once the mapped file cannot be read any more.
        said, _ = load.communicate(timeout=60)
    finally:
        load.kill()
        load.wait()
    committed = len(said.split())
    assert committed > 2, "next to nothing was committed: this tests nothing"
    shardfs("fsck", mounted_shardfs.device)
    mounted_shardfs.start()
    there = int(run_in(mounted_shardfs.path, *command, "verify", path, "0", "1"))
    assert there >= committed * RECORDS - committed // 5 * (RECORDS // 2)


def test_gdbm(mounted_shardfs: MountedShardfs) -> None:
    gdbm_work(mounted_shardfs.path, 1)
