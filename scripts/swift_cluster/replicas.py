"""Whether all replicas of an object are the same, on the disks where the ring wants them.

Role: looks below the mounts, past Swift: file name (its timestamp), bytes, and Swift's extended
attributes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from scripts.swift_cluster.cluster import Cluster

ACCOUNT: Final = "AUTH_test"

Replica = dict[str, tuple[str, dict[str, bytes]]]
"""File name -> (digest of its bytes, its attributes)."""


def read_replica(folder: Path) -> Replica:
    """What one disk has of an object; empty if nothing."""
    if not folder.is_dir():
        return {}
    replica: Replica = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        replica[path.name] = (digest, attributes)
    return replica


def replica_differences(
    cluster: Cluster, container: str, keys: Iterable[str], *, there: bool
) -> list[str]:
    """Objects whose replicas differ, or are not where the ring wants them.

    Args:
        there: whether these objects exist; else no replica may hold their data.
    """
    found = []
    for key in keys:
        folder, disks = cluster.rings.place(ACCOUNT, container, key)
        replicas = {disk: read_replica(cluster.layout.nodes / disk / folder) for disk in disks}
        first = next(iter(replicas.values()))
        has_data = any(name.endswith(".data") for name in first)
        if any(replica != first for replica in replicas.values()):
            found.append(f"{key}: replicas differ: {_short(replicas)}")
        elif has_data is not there:
            found.append(f"{key}: {'no data' if there else 'data of a deleted object'}")
    return found


def quarantined(cluster: Cluster) -> list[str]:
    """What Swift has put aside as damaged, on any disk."""
    return [
        str(path.relative_to(cluster.layout.nodes))
        for path in cluster.layout.nodes.glob("*/quarantined/*/*")
    ]


def _short(replicas: dict[str, Replica]) -> str:
    return ", ".join(f"{disk} has {sorted(files) or 'nothing'}" for disk, files in replicas.items())
