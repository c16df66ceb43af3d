"""Compares Swift on shardfs disks with the same Swift on XFS disks: S3 calls a second.

Usage: scripts/bench_swift [--rounds N] [--folder DIR] [--json FILE]

Four clusters run side by side, and take turns: in each round every row is measured on one after
the other, the first of them changing from round to round. One client, one call at a time. In the
second cluster the objects lie on shardfs and the account and container databases on XFS. The disks
of the third are none: a pyfuse3 server of dictionaries whose fsync does nothing (scripts/floor),
which is what a Python server could reach if its own work cost nothing.

At the end a disk of each of the others is replaced by an empty one and refilled by Swift's
replicators, and a shardfs disk is scrubbed as fast as it goes: two inputs of
scripts/simulate_durability.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.swift_cluster.bucket import Bucket
from scripts.swift_cluster.cluster import Cluster
from scripts.swift_cluster.disks import SHARDFS, Disk
from scripts.swift_cluster.processes import end_in_order_on_sigterm, run
from scripts.swift_cluster.replicas import replica_differences

SMALL_COUNT = 60
SMALL_BYTES = 16 << 10
LARGE_COUNT = 6
LARGE_BYTES = 8 << 20
MIB = 1 << 20
REFILL_LARGE_COUNT = 40
REFILL_SMALL_COUNT = 100
SCRUB_S_MAX = 300
FLOOR = "floor"
BASE = "XFS"
CLUSTERS: dict[str, tuple[str, str | None]] = {
    "shardfs": ("shardfs", None),
    "objects on shardfs": ("shardfs", "xfs"),
    FLOOR: ("floor", None),
    "XFS": ("xfs", None),
}
"""Column of the table -> file systems of the disks, and of databases that lie elsewhere."""
Rates = dict[str, list[float]]


class Round:
    """One round of all rows on one cluster."""

    def __init__(self, bucket: Bucket, number: int) -> None:
        self._bucket = bucket
        self._small = [f"small-{number}-{each}" for each in range(SMALL_COUNT)]
        self._large = [f"large-{number}-{each}" for each in range(LARGE_COUNT)]

    def rows(self) -> dict[str, Callable[[], float]]:
        """Row -> measures it; calls or MiB a second."""
        return {
            "PUT 16 KiB (/s)": lambda: self._put(self._small, SMALL_BYTES),
            "GET 16 KiB (/s)": lambda: self._get(self._small),
            "PUT 8 MiB (MiB/s)": lambda: self._put(self._large, LARGE_BYTES) * 8,
            "GET 8 MiB (MiB/s)": lambda: self._get(self._large) * 8,
            "DELETE (/s)": self._delete,
        }

    def _put(self, keys: list[str], length: int) -> float:
        contents = {key: self._bucket.content(length) for key in keys}
        began = time.perf_counter()
        for key, content in contents.items():
            if not self._bucket.put(key, content):
                raise SystemExit(f"{key} was not stored")
        return len(keys) / (time.perf_counter() - began)

    def _get(self, keys: list[str]) -> float:
        began = time.perf_counter()
        for key in keys:
            if self._bucket.get(key) is None:
                raise SystemExit(f"{key} is gone")
        return len(keys) / (time.perf_counter() - began)

    def _delete(self) -> float:
        keys = self._small + self._large
        began = time.perf_counter()
        for key in keys:
            self._bucket.delete(key)
        return len(keys) / (time.perf_counter() - began)


def refill(cluster: Cluster, bucket: Bucket) -> float:
    """Lose a disk, have it refilled; MiB a second, less the time of a pass that has nothing to do.

    Raises:
        ClusterError: the replicators failed.
    """
    for number in range(REFILL_LARGE_COUNT + REFILL_SMALL_COUNT):
        length = LARGE_BYTES if number < REFILL_LARGE_COUNT else SMALL_BYTES
        if not bucket.put(f"refill-{number}", bucket.content(length)):
            raise SystemExit(f"refill-{number} was not stored")
    cluster.repair_once()
    idle_s = _seconds(cluster.repair_once)
    disk = next(iter(cluster.disks.values()))
    disk.unmount()
    disk.replace()
    disk.mount()
    busy_s = _seconds(cluster.repair_once)
    if replica_differences(cluster, bucket.name, bucket.known, there=True):
        raise SystemExit("one pass of the replicators did not refill the disk")
    return _data_bytes(disk) / MIB / (busy_s - idle_s)


def scrub(disk: Disk) -> float:
    """Verify every byte of a mounted shardfs disk, at no bound; MiB of objects a second."""
    command = [str(SHARDFS), "scrub"]
    began = time.perf_counter()
    run(*command, "start", disk.path, "--rate", "100G")
    while json.loads(run(*command, "status", disk.path, "--json"))["state"] == "running":
        if time.perf_counter() - began > SCRUB_S_MAX:
            raise SystemExit(f"{disk.name}: the scrub does not end")
        time.sleep(0.02)
    return _data_bytes(disk) / MIB / (time.perf_counter() - began)


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _data_bytes(disk: Disk) -> int:
    return sum(path.stat().st_size for path in (disk.path / "objects").rglob("*.data"))


def measure(folder: Path, rounds: int) -> tuple[dict[str, Rates], float]:
    """Row -> system -> rates, one a round; the rate of the scrub in MiB/s."""
    rates: dict[str, Rates] = {}
    clusters: dict[str, Cluster] = {}
    with ExitStack() as stack:
        buckets = {}
        for number, (system, (disks, databases)) in enumerate(CLUSTERS.items()):
            cluster = stack.enter_context(
                Cluster(folder / str(number), file_system=disks, database_file_system=databases)
            )
            clusters[system] = cluster
            buckets[system] = Bucket(cluster.layout.endpoint, "bench")
            buckets[system].create()
            Round(buckets[system], -1).rows()["PUT 16 KiB (/s)"]()  # connections, first folders
        for number in range(rounds):
            first = number % len(CLUSTERS)
            turns = [*CLUSTERS][first:] + [*CLUSTERS][:first]
            for row in Round(buckets[BASE], 0).rows():
                for system in turns:
                    rate = Round(buckets[system], number).rows()[row]()
                    rates.setdefault(row, {}).setdefault(system, []).append(rate)
        for system in CLUSTERS:
            if system == FLOOR:  # it keeps nothing
                continue
            rate = refill(clusters[system], buckets[system])
            rates.setdefault("refilling a lost disk (MiB/s)", {})[system] = [rate]
        return rates, scrub(next(iter(clusters["shardfs"].disks.values())))


def table(rates: dict[str, Rates]) -> str:
    """The rates as a table in Markdown."""
    others = [system for system in CLUSTERS if system != BASE]
    heads = ["row", *CLUSTERS, *(f"{system} / {BASE}" for system in others)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * (1 + len(CLUSTERS))}{'---:|' * len(others)}"]
    for row, by_system in rates.items():
        medians = {system: statistics.median(values) for system, values in by_system.items()}
        cells = [
            f"{medians[system]:.1f} ({min(by_system[system]):.1f} to {max(by_system[system]):.1f})"
            if system in medians
            else "-"
            for system in CLUSTERS
        ]
        cells += [
            f"{medians[system] / medians[BASE]:.2f}" if system in medians else "-"
            for system in others
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    end_in_order_on_sigterm()
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {chosen.rounds} rounds", flush=True
    )
    with tempfile.TemporaryDirectory(prefix="shardfs-swift-", dir=chosen.folder) as folder:
        for number in range(len(CLUSTERS)):
            (Path(folder) / str(number)).mkdir()
        rates, scrub_mib_s = measure(Path(folder), chosen.rounds)
    print(table(rates))
    print(f"\nA scrub of a shardfs disk, as fast as it goes: {scrub_mib_s:.0f} MiB/s.")
    if chosen.json:
        chosen.json.write_text(json.dumps({"rates": rates, "scrub_mib_s": scrub_mib_s}, indent=1))


if __name__ == "__main__":
    main()
