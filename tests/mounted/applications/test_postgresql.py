"""PostgreSQL on a mount: initdb, pgbench, a server of shardfs that is killed, recovery.

pgbench's transactions keep three sums equal and leave a row of history each, so what is there
afterwards says whether any was lost or torn. pg_amcheck compares tables and indexes, checksums of
pages are on, and pg_dump reads all of it.
"""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from tests.mounted.applications.postgresql import Cluster
from tests.mounted.mounts import MountedShardfs, shardfs

CLIENTS = 4
TRANSACTIONS = 50
PROCESSED = re.compile(r"number of transactions actually processed: (\d+)")


def prepare(cluster: Cluster) -> None:
    """A new cluster with pgbench's tables in it, running."""
    cluster.initialize()
    cluster.start()
    cluster.client("pgbench", "-i", "-s", "1", "-q", "postgres")
    cluster.ask("create extension amcheck")


def check(cluster: Cluster, committed: int) -> None:
    """All is sound, and at least so many transactions have left their row."""
    sums = cluster.ask(
        "select (select sum(abalance) from pgbench_accounts),"
        " (select sum(bbalance) from pgbench_branches),"
        " (select sum(tbalance) from pgbench_tellers),"
        " (select coalesce(sum(delta), 0) from pgbench_history),"
        " (select count(*) from pgbench_history)"
    ).split("|")
    assert len(set(sums[:4])) == 1, f"transactions are torn: {sums}"
    assert int(sums[4]) >= committed, "committed transactions are lost"
    cluster.client("pg_amcheck", "--heapallindexed", "-d", "postgres")
    dump = cluster.client("pg_dump", "-d", "postgres")
    assert dump.count("\n") > 100_000
    assert "CREATE TABLE public.pgbench_history" in dump


def check_at_rest(cluster: Cluster) -> None:
    """The checksum of every page, while no server runs."""
    cluster.run("pg_checksums", "--check", "-D", cluster.data)


def postgresql_work(folder: Path, seed: int) -> None:
    """A cluster made, used by several clients, stopped, verified, started and asked again."""
    with Cluster(folder) as cluster:
        prepare(cluster)
        load = ("-c", str(CLIENTS), "-j", "2", "-n", "-t", str(TRANSACTIONS))
        said = cluster.client("pgbench", *load, "--random-seed", str(seed), "postgres")
        done = PROCESSED.search(said)
        assert done is not None and int(done[1]) == CLIENTS * TRANSACTIONS, said
        cluster.ask("vacuum full pgbench_accounts")
        cluster.ask("reindex table pgbench_accounts")
        cluster.stop()
        check_at_rest(cluster)
        cluster.start()
        check(cluster, CLIENTS * TRANSACTIONS)


def killed_rounds(mounted: MountedShardfs, rounds: int) -> None:
    """pgbench's load, shardfs killed under it; PostgreSQL recovers, with all it had committed."""
    with Cluster(mounted.path) as cluster:
        prepare(cluster)
        committed = 0
        for number in range(rounds):
            load = ("-c", str(CLIENTS), "-n", "-T", "60", "postgres")
            client = cluster.start_client("pgbench", *load)
            try:
                time.sleep(2 + 0.31 * number)
                mounted.kill()
                cluster.stop(signal.SIGQUIT)
                said, _ = client.communicate(timeout=60)
            finally:
                client.kill()
                client.wait()
            done = PROCESSED.search(said)
            assert done is not None, said
            committed += int(done[1])
            shardfs("fsck", mounted.device)
            mounted.start()
            # The lock file names a server that is gone; it lies on the mount, as the data does.
            cluster.start()
            check(cluster, committed)
        assert committed > rounds, "next to nothing was committed: this tests nothing"
        cluster.stop()
        check_at_rest(cluster)


def test_pgbench(mounted_shardfs: MountedShardfs) -> None:
    postgresql_work(mounted_shardfs.path, 1)


def test_postgresql_recovers_when_shardfs_is_killed(mounted_shardfs: MountedShardfs) -> None:
    killed_rounds(mounted_shardfs, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_postgresql_recovers_many_times(mounted_shardfs: MountedShardfs) -> None:
    killed_rounds(mounted_shardfs, 15)
