"""What can happen to a disk of a cluster, and what has to be true all the while and afterwards.

Role: each fault is a pair of steps: do it, and put it right. `survive` runs one of them under a
client that goes on, then has Swift's replicators repair, and says what is wrong.

What has to hold (numbered as in the findings):
    F1. While the fault lasts, calls succeed: objects are stored, read, removed and (but for a full
        disk) listed.
    F2. Nothing that was acknowledged is lost, neither while it lasts nor afterwards.
    F3. Afterwards every replica on the ring's disks has the same bytes and attributes.
    F4. Nothing good was put into quarantine.
    F5. The disks pass fsck.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from scripts.swift_cluster.bucket import Bucket
from scripts.swift_cluster.cluster import Cluster
from scripts.swift_cluster.disks import Disk
from scripts.swift_cluster.replicas import quarantined, replica_differences

_PASSES_MAX: Final = 4
_SIZES: Final = (0, 1, 1000, 4096, 70_000, 1_000_000)


@dataclass(frozen=True)
class Fault:
    """One thing that happens to one disk.

    name: of the fault.
    begin: makes it happen.
    end: puts it right, so that the disk is mounted again.
    calls: how many rounds of calls while it lasts: each takes long when a disk hangs.
    lists: listings show what was just stored. Not on a full disk: a bucket's database there still
        answers, and takes nothing new until it is repaired; Swift says nothing else of listings.
    """

    name: str
    begin: Callable[[Disk], None]
    end: Callable[[Disk], None]
    calls: int = 12
    lists: bool = True


def _break_and_read(disk: Disk) -> None:
    disk.break_device()
    # Somebody has to read before the disk can be known to be bad.
    with suppress(OSError):
        for path in disk.path.rglob("*.data"):
            path.read_bytes()
    disk.wait_until_gone()


def _replace(disk: Disk) -> None:
    disk.replace()
    disk.mount()


def _unmount_and_replace(disk: Disk) -> None:
    disk.unmount()
    disk.replace()


def _empty(disk: Disk) -> None:
    (disk.path / "filler").unlink()


FAULTS: Final = (
    Fault("unmounted", Disk.unmount, Disk.mount),
    Fault("daemon killed", Disk.kill, Disk.mount),
    Fault("daemon stopped", Disk.stop, Disk.go_on, calls=3),
    Fault("device broken", _break_and_read, _replace),
    Fault("disk full", lambda disk: _ignore(disk.fill()), _empty, lists=False),
    Fault("replaced", _unmount_and_replace, Disk.mount),
)


def _ignore(_: object) -> None:
    return None


def use(bucket: Bucket, prefix: str, rounds: int) -> list[str]:
    """Store, read, list and remove objects; what did not work (F1, F2)."""
    found = []
    for number in range(rounds):
        key, doomed = f"{prefix}-{number}", f"{prefix}-{number}-doomed"
        content = bucket.content(_SIZES[number % len(_SIZES)])
        if not bucket.put(key, content):
            found.append(f"{key}: not stored")
        elif bucket.get(key) != content:
            found.append(f"{key}: not read as it was stored")
        if not (bucket.put(doomed, b"for a moment") and bucket.delete(doomed)):
            found.append(f"{doomed}: not stored and removed")
        elif bucket.get(doomed) is not None:
            found.append(f"{doomed}: still there")
    return found


def unlisted(bucket: Bucket) -> list[str]:
    """Acknowledged objects that a listing does not show."""
    return [f"{key}: not listed" for key in sorted(set(bucket.known) - bucket.names())]


def survive(
    cluster: Cluster, bucket: Bucket, fault: Fault, disk: Disk, label: str = "demo"
) -> list[str]:
    """Let a fault happen to a disk, put it right, have it repaired; what is wrong (F1 to F4).

    Args:
        label: begins the names of the objects that are stored meanwhile.
    """
    prefix = f"{label}-{fault.name.replace(' ', '-')}-{disk.name}"
    fault.begin(disk)
    try:
        found = [f"F1 {each}" for each in use(bucket, prefix, fault.calls)]
        if fault.lists:
            found += [f"F1 {each}" for each in unlisted(bucket)]
    finally:
        fault.end(disk)
    found += [f"F2 {each}" for each in bucket.differences()]
    found += [f"F3 {each}" for each in repair(cluster, bucket)]
    found += [f"F2 {each}" for each in (*bucket.differences(), *unlisted(bucket))]
    found += [f"F4 {each}" for each in quarantined(cluster)]
    return found


def repair(cluster: Cluster, bucket: Bucket) -> list[str]:
    """Run Swift's replicators until all replicas agree; what still differs after some passes."""
    differences: list[str] = []
    for _ in range(_PASSES_MAX):
        cluster.repair_once()
        differences = replica_differences(cluster, bucket.name, bucket.known, there=True)
        if not differences:
            break
    return differences


def verify_disks(cluster: Cluster) -> None:
    """Unmount, check and mount every disk (F5).

    Raises:
        ClusterError: there is a finding.
    """
    for disk in cluster.disks.values():
        disk.unmount()
        disk.verify()
        disk.mount()
