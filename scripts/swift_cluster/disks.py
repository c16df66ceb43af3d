"""One disk of a cluster: an image on a loop device, its file system, its mount, and what can go
wrong with it.

Role: shardfs disks are mounted by a daemon each; for comparison XFS disks by the kernel, and disks
that are none, only the benchmarks' floor (scripts/floor), by a server each as well.

Invariants:
    I1. Only loop devices attached here are used; `close` unmounts and detaches, whatever happened.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Final

from scripts.swift_cluster.layout import Layout
from scripts.swift_cluster.processes import ClusterError, Process, run, wait_until

SHARDFS: Final = Path(sys.executable).with_name("shardfs")
FLOOR: Final = Path(__file__).resolve().parent.parent / "floor"
OPTIONS: Final = "errors=unmount,noatime"
LEFT_BYTES_OF_A_BROKEN_DISK: Final = 4 << 20
_FILL_BYTES: Final = 1 << 20


def is_mounted(path: Path) -> bool:
    """Whether something is mounted there, without touching it."""
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").open())


class Disk:
    """One disk.

    Args:
        name: as in the rings.
        file_system: "shardfs", "xfs", or "floor".
        size_mib: of its image.
        devices: folder of its mount point; layout.nodes if None.
    """

    def __init__(
        self,
        layout: Layout,
        name: str,
        file_system: str,
        size_mib: int,
        devices: Path | None = None,
    ) -> None:
        self.name = name
        self.path = (devices or layout.nodes) / name
        own_name = f"{self.path.parent.name}-{name}"
        self._image = layout.images / f"{own_name}.img"
        self._log = layout.logs / f"{own_name}.log"
        self._file_system = file_system
        self._size_bytes = size_mib << 20
        self._loop: Path | None = None
        self._server: Process | None = None
        self.path.mkdir()
        self.replace()

    @property
    def server(self) -> Process:
        """The daemon that serves the mount. Requires: a mounted shardfs disk."""
        if self._server is None:
            raise ClusterError(f"{self.name}: no shardfs is mounted")
        return self._server

    def replace(self) -> None:
        """Put an empty disk in its place, formatted and not mounted."""
        self._detach()
        self._image.unlink(missing_ok=True)
        with self._image.open("xb") as file:
            file.truncate(self._size_bytes)
        self._loop = Path(run("losetup", "--find", "--show", self._image).strip())
        if self._file_system == "xfs":
            run("mkfs.xfs", "-q", self._loop)
        elif self._file_system == "shardfs":
            run(SHARDFS, "mkfs", self._loop, "--label", self.name)

    def mount(self) -> None:
        """Mount it. A mount point that a dead daemon has left is cleaned up."""
        if self._file_system == "xfs":
            run("mount", "-t", "xfs", "-o", "noatime", str(self._loop), self.path)
            return
        command: list[str | Path] = [SHARDFS, "mount", str(self._loop), self.path, "--foreground"]
        if self._file_system == "floor":
            command = [FLOOR, self.path]
        server = self._server = Process([*command, "-o", OPTIONS], self._log)

        def answers() -> bool:
            if not server.is_running:
                raise ClusterError(f"{self.name} cannot be mounted; see {self._log}")
            return is_mounted(self.path) and os.path.ismount(self.path)

        wait_until(answers, f"{self.name} is mounted")

    def unmount(self) -> None:
        """Unmount it in order: everything is on the device."""
        if self._file_system == "xfs":
            run("umount", self.path)
            return
        run(*((SHARDFS, "umount") if self._file_system == "shardfs" else ("umount",)), self.path)
        self.server.wait(60)
        self._server = None

    def kill(self) -> None:
        """End the daemon as a crash would. Its mount point stays, and answers with errors."""
        self.server.send(signal.SIGKILL)
        self.server.wait(10)
        self._server = None

    def stop(self) -> None:
        """Let the daemon hang: it answers nothing any more, and does not end."""
        self.server.send(signal.SIGSTOP)

    def go_on(self) -> None:
        """End that."""
        self.server.send(signal.SIGCONT)

    def break_device(self) -> None:
        """Take the end of the device away: it can be neither read nor written any more."""
        assert self._loop is not None, "no device"
        os.truncate(self._image, LEFT_BYTES_OF_A_BROKEN_DISK)
        run("losetup", "--set-capacity", self._loop)
        run("blockdev", "--flushbufs", self._loop)
        Path("/proc/sys/vm/drop_caches").write_text("1")

    def wait_until_gone(self) -> None:
        """The daemon has given its disk up: nothing is mounted, and it has ended."""
        wait_until(lambda: not is_mounted(self.path), f"{self.name} is unmounted")
        self.server.wait(30)
        self._server = None

    def fill(self) -> Path:
        """Write one file until nothing fits any more; the file."""
        path = self.path / "filler"
        with path.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(os.urandom(_FILL_BYTES))
            except OSError as error:
                if not path.stat().st_size:
                    raise ClusterError(f"{self.name}: {error}") from error
        return path

    def verify(self) -> None:
        """Check the unmounted disk, its data included.

        Raises:
            ClusterError: there is a finding.
        """
        if self._file_system == "shardfs":
            run(SHARDFS, "fsck", str(self._loop), "--data")

    def close(self) -> None:
        """Leave nothing behind but the image's folder."""
        self._detach()
        self._image.unlink(missing_ok=True)

    def _detach(self) -> None:
        if self._server is not None:
            self._server.send(signal.SIGCONT)
            self._server.end()
            self._server = None
        while is_mounted(self.path):
            run("umount", "-l", self.path)
        if self._loop is not None:
            run("losetup", "--detach", self._loop)
            self._loop = None
