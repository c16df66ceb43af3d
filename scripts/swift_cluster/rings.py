"""The rings: which disks have which replica, in which order others stand in.

Role: builds one ring a kind with Swift's own builder and asks Swift's own ring where things are.
"""

from __future__ import annotations

import importlib
from typing import Any

from scripts.swift_cluster.layout import ADDRESS, KINDS, PART_POWER, REPLICAS, Layout


class Rings:
    """The account, container and object ring of a cluster.

    Args:
        layout: where they are written; swift.conf has to be there already.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        utils: Any = importlib.import_module("swift.common.utils")
        utils.SWIFT_CONF_FILE = str(layout.settings / "swift.conf")
        self._ring = importlib.import_module("swift.common.ring")
        for kind in KINDS:
            self._build(kind)
        # Swift reads the words that go into each hash once a process; a second cluster of this
        # process has the same.
        utils.validate_hash_conf()

    def _build(self, kind: str) -> None:
        builder = self._ring.RingBuilder(PART_POWER, REPLICAS, 0)
        for number, disk in enumerate(self._layout.disks):
            port = self._layout.ports[f"{kind}-{disk}"]
            builder.add_dev(
                {
                    "region": 1,
                    "zone": number + 1,
                    "ip": ADDRESS,
                    "port": port,
                    "replication_ip": ADDRESS,
                    "replication_port": port,
                    "device": disk,
                    "weight": 100.0,
                    "meta": "",
                }
            )
        builder.rebalance(seed="shardfs")
        builder.get_ring().save(str(self._layout.settings / f"{kind}.ring.gz"))

    def place(self, account: str, container: str, name: str) -> tuple[str, list[str]]:
        """Where an object belongs: its folder below a disk's, and the disks of its replicas."""
        utils = importlib.import_module("swift.common.utils")
        ring: Any = self._ring.Ring(str(self._layout.settings), ring_name="object")
        part, nodes = ring.get_nodes(account, container, name)
        digest = utils.hash_path(account, container, name)
        folder = f"objects/{part}/{digest[-3:]}/{digest}"
        return folder, [node["device"] for node in nodes]
