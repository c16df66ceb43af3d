"""OpenStack Swift on shardfs disks, one fault after the other: service goes on, nothing is lost.

Slow: run by scripts/soak; FAULT_ROUNDS=10 has all of it pass ten times in a row. Needs Swift and
memcached (scripts/swift-demo installs them), rsync, loop devices and FUSE.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.swift_cluster.programs import missing_programs
from tests.mounted.conftest import fuse_obstacle

if TYPE_CHECKING:
    from scripts.swift_cluster.bucket import Bucket
    from scripts.swift_cluster.cluster import Cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.mounted,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("default"),  # of Swift and what it stands on
]
ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))
OBJECTS = 40
NAMES = ("unmounted", "daemon killed", "daemon stopped", "device broken", "disk full", "replaced")


def obstacle(folder: Path) -> str | None:
    """Why a cluster cannot be run here; None if it can."""
    for module in ("swift", "boto3"):
        if find_spec(module) is None:
            return f"no {module} here: run scripts/swift-demo, which installs it"
    missing = missing_programs()
    if missing:
        return f"not installed: {', '.join(missing)}"
    return "loop devices need root" if os.geteuid() != 0 else fuse_obstacle(folder)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four disks, with Swift on them."""
    reason = obstacle(tmp_path_factory.getbasetemp())
    if reason is not None:
        pytest.skip(reason)
    from scripts.swift_cluster.cluster import Cluster

    with Cluster(tmp_path_factory.mktemp("swift")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def bucket(cluster: Cluster) -> Bucket:
    """A bucket with some objects whose replicas are all in place."""
    from scripts.swift_cluster.bucket import Bucket
    from scripts.swift_cluster.faults import repair

    bucket = Bucket(cluster.layout.endpoint, "faults", seed=3)
    bucket.create()
    for number in range(OBJECTS):
        assert bucket.put(f"before-{number}", bucket.content(number * 1000)), number
    assert repair(cluster, bucket) == []
    return bucket


@pytest.mark.parametrize("turn", range(ROUNDS))
@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_a_disk_has_trouble(cluster: Cluster, bucket: Bucket, number: int, turn: int) -> None:
    from scripts.swift_cluster.faults import FAULTS, survive, verify_disks

    assert tuple(fault.name for fault in FAULTS) == NAMES
    disk = list(cluster.disks.values())[(number + turn) % len(cluster.disks)]
    assert survive(cluster, bucket, FAULTS[number], disk, f"turn-{turn}") == []
    verify_disks(cluster)
