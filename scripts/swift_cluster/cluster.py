"""A whole cluster: disks, rings, servers, replicators.

Role: a context manager. When it ends, however it ends, its processes, mounts, loop devices and
images are gone; logs stay in its folder.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

from scripts.swift_cluster import configuration
from scripts.swift_cluster.disks import Disk
from scripts.swift_cluster.layout import ADDRESS, KINDS, Layout
from scripts.swift_cluster.processes import ClusterError, Process, listens, run, wait_until
from scripts.swift_cluster.rings import Rings

_RUNNER: Final = Path(__file__).with_name("run_swift.py")
_SERVERS: Final = {
    "account": "swift.account.server",
    "container": "swift.container.server",
    "object": "swift.obj.server",
}
_PASSES: Final = (
    ("swift.obj.updater", "object"),
    ("swift.container.updater", "container"),
    ("swift.account.replicator", "account"),
    ("swift.container.replicator", "container"),
    ("swift.obj.replicator", "object"),
)
_PASS_S_MAX: Final = 300.0


class Cluster:
    """Swift on `disk_count` disks, each with servers of its own, and S3 in front.

    Args:
        folder: empty; everything is below it.
        file_system: of the disks: "shardfs", "xfs", or "floor".
        database_file_system: of a partition beside each disk that holds the account and container
            databases; None: they lie on the disk, as everything else.
    """

    def __init__(
        self,
        folder: Path,
        *,
        file_system: str = "shardfs",
        database_file_system: str | None = None,
        disk_count: int = 4,
        size_mib: int = 1024,
    ) -> None:
        self.layout = Layout(folder, disk_count, database_file_system is not None)
        self.disks: dict[str, Disk] = {}
        self._file_system = file_system
        self._database_file_system = database_file_system
        self._size_mib = size_mib
        self._servers: dict[str, Process] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:  # whatever ended it, nothing stays
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        layout = self.layout
        configuration.write_all(layout)
        self.rings = Rings(layout)
        for name in layout.disks:
            self.disks[name] = self._attach(name, self._file_system, layout.nodes)
            if self._database_file_system:
                self._attach(name, self._database_file_system, layout.databases)
        ports = layout.ports
        self._serve(
            "memcached", "memcached", "-u", "root", "-l", ADDRESS, "-p", str(ports["memcached"])
        )
        self._serve(
            "rsync", "rsync", "--daemon", "--no-detach", f"--config={layout.settings}/rsyncd.conf"
        )
        for kind, module in _SERVERS.items():
            for disk_name in layout.disks:
                name = f"{kind}-{disk_name}"
                self._serve_swift(name, module, f"{name}.conf")
        self._serve_swift("proxy", "swift.proxy.server", "proxy-server.conf")
        for name, process in self._servers.items():
            wait_until(partial(self._answers, name, process), f"{name} answers")

    def _attach(self, name: str, file_system: str, devices: Path) -> Disk:
        disk = Disk(self.layout, name, file_system, self._size_mib, devices)
        self._stack.callback(disk.close)
        disk.mount()
        return disk

    def _answers(self, name: str, process: Process) -> bool:
        if not process.is_running:
            raise ClusterError(f"{name} has ended at once; see {process.log}")
        return listens(self.layout.ports[name])

    def _serve(self, name: str, *command: str) -> None:
        process = Process(command, self.layout.logs / f"{name}.log")
        self._stack.callback(process.end)
        self._servers[name] = process

    def _serve_swift(self, name: str, module: str, conf: str) -> None:
        self._serve(name, *self._swift("serve", module, str(self.layout.settings / conf)))

    def _swift(self, *words: str) -> list[str]:
        return [sys.executable, str(_RUNNER), str(self.layout.settings / "swift.conf"), *words]

    def repair_once(self) -> None:
        """One pass of what Swift's daemons do all the time: updaters, then replicators.

        Updaters bring what was noted down while a server was away to containers and accounts.

        Raises:
            ClusterError: one of them failed.
        """
        words: list[str] = []
        for module, kind in _PASSES:
            confs = [str(self.layout.settings / f"{kind}-{disk}.conf") for disk in self.disks]
            words += ["--", module, *confs]
        said = run(*self._swift("once", *words[1:]), seconds_max=_PASS_S_MAX)
        with (self.layout.logs / "daemons.log").open("a") as log:
            log.write(said)


assert set(_SERVERS) == set(KINDS)
