"""Folders, ports and names of a cluster.

Role: one place that says where things are. A disk has account, container and object servers of its
own, so that one hung disk holds nobody else up.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ADDRESS: Final = "127.0.0.1"
KINDS: Final = ("account", "container", "object")
REPLICAS: Final = 3
PART_POWER: Final = 4
"""Sixteen partitions: enough to spread a few hundred objects, few enough for quick passes."""


def free_ports(count: int) -> list[int]:
    """Ports on the loopback interface that nobody listens at just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((ADDRESS, 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass(frozen=True)
class Layout:
    """Where a cluster keeps its things.

    folder: everything is below it.
    disk_count: how many disks.
    are_databases_apart: account and container databases lie on partitions of their own.
    """

    folder: Path
    disk_count: int
    are_databases_apart: bool = False
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ["proxy", "memcached", "rsync"]
        names += [f"{kind}-{disk}" for kind in KINDS for disk in self.disks]
        self.ports.update(zip(names, free_ports(len(names)), strict=True))
        folders = (self.nodes, self.databases, self.settings, self.logs, self.images, self.cache)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def disks(self) -> list[str]:
        """The names of the disks, as the rings have them."""
        return [f"d{number}" for number in range(1, self.disk_count + 1)]

    @property
    def nodes(self) -> Path:
        """Mount points; /srv/node of a real machine."""
        return self.folder / "node"

    @property
    def databases(self) -> Path:
        """Mount points of what holds the account and container databases."""
        return self.folder / "databases" if self.are_databases_apart else self.nodes

    def devices(self, kind: str) -> Path:
        """Mount points of what a kind of server keeps; `devices` in its configuration."""
        return self.nodes if kind == "object" else self.databases

    @property
    def settings(self) -> Path:
        """Configuration files and rings; /etc/swift of a real machine."""
        return self.folder / "etc"

    @property
    def logs(self) -> Path:
        """A file for each process."""
        return self.folder / "log"

    @property
    def images(self) -> Path:
        """What the disks lie on."""
        return self.folder / "images"

    @property
    def cache(self) -> Path:
        """Swift's recon files and locks."""
        return self.folder / "cache"

    @property
    def endpoint(self) -> str:
        """Where S3 is spoken."""
        return f"http://{ADDRESS}:{self.ports['proxy']}"
