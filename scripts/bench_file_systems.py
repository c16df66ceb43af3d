"""The file systems that the benchmarks compare: how each is made on a device and mounted.

Role: `ALL` names them. juicefs and s3ql have no device: they keep their data and their metadata in
a directory of the disk that the image file is on, so a read of theirs does not pass a loop device.

Not here: mounting and taking away as such (bench_systems.py), what is measured (bench_rows.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench_systems import (
    BIN,
    SCRIPTS,
    Mounted,
    Place,
    System,
    disk_of_device,
    disk_of_folder,
    run,
    serve,
    unmount,
)


def kernel_system(name: str, *mkfs: str) -> System:
    """A file system of the kernel."""

    def make(place: Place) -> None:
        run(*mkfs, place.device)

    def mount(place: Place, stack: ExitStack) -> Mounted:
        run("mount", "-t", name, place.device, place.mountpoint)
        stack.callback(unmount, place.mountpoint)
        return Mounted(disk_of_device(place.device))

    return System(name, "kernel", (mkfs[0],), make, mount)


def served_system(
    name: str,
    kind: str,
    mkfs: Sequence[str | Path],
    server: Sequence[str | Path],
    options: Sequence[str] = (),
) -> System:
    """One with a server of its own on the device.

    Args:
        mkfs, server: commands without device and mount point.
        options: behind those of the server.
    """

    def make(place: Place) -> None:
        run(*mkfs, place.device)

    def mount(place: Place, stack: ExitStack) -> Mounted:
        command = [*server, place.device, place.mountpoint, *options]
        return Mounted(disk_of_device(place.device), serve(command, place, stack))

    needs = () if kind == "shardfs" else (str(mkfs[0]), str(server[0]))
    return System(name, kind, needs, make, mount)


def shardfs_system(options: str = "") -> System:
    """shardfs, with mount options."""
    program, more = BIN / "shardfs", ["-o", options] if options else []
    name = f"shardfs -o {options}" if options else "shardfs"
    mkfs, server = [program, "mkfs", "--force"], [program, "mount", "-f"]
    return served_system(name, "shardfs", mkfs, server, more)


def _make_nothing(_place: Place) -> None:
    """What lives in memory need not be made."""


def _mount_floor(place: Place, stack: ExitStack) -> Mounted:
    return Mounted(
        None, serve([sys.executable, SCRIPTS / "floor.py", place.mountpoint], place, stack)
    )


def _juicefs_store(place: Place) -> tuple[str, str]:
    """Where it keeps metadata and data."""
    return f"badger://{place.folder}/meta", f"{place.folder}/data/"


def _make_juicefs(place: Place) -> None:
    meta, data = _juicefs_store(place)
    store = ["--storage", "file", "--bucket", data, "--trash-days", "0"]
    run("juicefs", "format", *store, meta, "bench")


def _mount_juicefs(place: Place, stack: ExitStack) -> Mounted:
    meta, _ = _juicefs_store(place)
    quiet = ["--no-usage-report", "--backup-meta", "0"]
    cache: list[str | Path] = ["--cache-dir", place.folder / "cache"]
    command = ["juicefs", "mount", *cache, *quiet, meta, place.mountpoint]
    return Mounted(disk_of_folder(place.folder), serve(command, place, stack))


def _s3ql_store(place: Place) -> list[str]:
    """Where it keeps what, as its commands want it said."""
    return ["--cachedir", str(place.folder / "cache"), "--authfile", os.devnull]


def _make_s3ql(place: Place) -> None:
    (place.folder / "data").mkdir()
    run("mkfs.s3ql", *_s3ql_store(place), "--plain", f"local://{place.folder}/data")


def _mount_s3ql(place: Place, stack: ExitStack) -> Mounted:
    data = f"local://{place.folder}/data"
    command = ["mount.s3ql", *_s3ql_store(place), "--fg", data, place.mountpoint]
    return Mounted(disk_of_folder(place.folder), serve(command, place, stack))


_MKFS_NTFS = ("mkfs.ntfs", "--fast", "--force", "--quiet")
_MKFS_EXT4 = ("mkfs.ext4", "-q", "-F")

ALL = (
    shardfs_system(),
    System("floor", "floor", (), _make_nothing, _mount_floor),
    kernel_system("ext4", *_MKFS_EXT4),
    kernel_system("xfs", "mkfs.xfs", "-q", "-f"),
    served_system("ntfs-3g", "fuse", _MKFS_NTFS, ["ntfs-3g"], ["-o", "no_detach,big_writes"]),
    served_system("fuse2fs", "fuse", _MKFS_EXT4, ["fuse2fs", "-f"]),
    System("juicefs", "fuse", ("juicefs",), _make_juicefs, _mount_juicefs),
    System("s3ql", "fuse", ("mkfs.s3ql", "mount.s3ql"), _make_s3ql, _mount_s3ql),
)
