"""Times file-system calls on shardfs and on ext4, both on the same loop device.

Role: the measurement behind docs/performance.md. Each round formats the device for one file
system after the other and runs every row; medians over the rounds are printed, with the ratio.
Machines are noisy: read the ratios, and the spread beside them.

Not here: tests. Nothing asserts a time.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

FILES = 4000
DURABLE_FILES = 300
OVERWRITES = 8000
FILE_BYTES = 4096
MIB = 1024 * 1024
DEVICE_BYTES = 3 * 1024 * MIB
SHARDFS = Path(sys.executable).with_name("shardfs")


def run(*command: str | Path) -> str:
    """Run a command; its output, or an end with what it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout.strip()


def drop_caches() -> None:
    """Write back and forget everything that the kernel caches."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


@contextmanager
def mounted_ext4(device: str, path: Path) -> Iterator[None]:
    """A fresh ext4, mounted."""
    run("mkfs.ext4", "-q", "-F", device)
    run("mount", device, path)
    try:
        yield
    finally:
        run("umount", path)


@contextmanager
def mounted_shardfs(device: str, path: Path, options: str = "defaults") -> Iterator[None]:
    """A fresh shardfs, mounted."""
    run(SHARDFS, "mkfs", "--force", device)
    run(SHARDFS, "mount", device, path, "-o", options)
    try:
        yield
    finally:
        run(SHARDFS, "umount", path)


FileSystems = dict[str, Callable[[str, Path], AbstractContextManager[None]]]


def file_systems(more_options: Iterable[str]) -> FileSystems:
    """The columns: shardfs, ext4, and shardfs with other mount options."""
    found: FileSystems = {"shardfs": mounted_shardfs, "ext4": mounted_ext4}
    for options in more_options:
        found[f"shardfs -o {options}"] = partial(mounted_shardfs, options=options)
    return found


class Rows:
    """The rows of one round on one mount; each returns what it counted, per second."""

    def __init__(self, root: Path, large_mib: int) -> None:
        self.root = root
        self.large_mib = large_mib
        self.data = random.Random(1).randbytes(FILE_BYTES)
        self.block = random.Random(2).randbytes(MIB)
        (root / "many").mkdir()
        self.paths = [f"{root}/many/file-{number}" for number in range(FILES)]
        self.shuffled = random.Random(3).sample(self.paths, FILES)

    def create_4k(self) -> int:
        """Create, write in one call, close."""
        for path in self.paths:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(handle, self.data)
            os.close(handle)
        return FILES

    def stat_hot(self) -> int:
        """stat of each, just created."""
        for path in self.paths:
            os.stat(path)
        return FILES

    def stat_cold(self) -> int:
        """scandir with stat of each."""
        with os.scandir(self.root / "many") as entries:
            return sum(entry.stat().st_size == FILE_BYTES for entry in entries)

    def read_4k(self) -> int:
        """Open, read, close, in random order."""
        for path in self.shuffled:
            handle = os.open(path, os.O_RDONLY)
            assert len(os.read(handle, FILE_BYTES)) == FILE_BYTES
            os.close(handle)
        return FILES

    def rename_4k(self) -> int:
        """Rename each, and back."""
        for path in self.paths:
            os.rename(path, path + "-")
        for path in self.paths:
            os.rename(path + "-", path)
        return 2 * FILES

    def unlink_4k(self) -> int:
        """Unlink each."""
        for path in self.paths:
            os.unlink(path)
        return FILES

    def durable_4k(self) -> int:
        """Create, write, fsync, close."""
        for number in range(DURABLE_FILES):
            handle = os.open(f"{self.root}/durable-{number}", os.O_CREAT | os.O_WRONLY)
            os.write(handle, self.data)
            os.fsync(handle)
            os.close(handle)
        return DURABLE_FILES

    def large_write(self) -> int:
        """Write in 1 MiB calls, fsync."""
        handle = os.open(self.root / "large", os.O_CREAT | os.O_WRONLY)
        for _ in range(self.large_mib):
            os.write(handle, self.block)
        os.fsync(handle)
        os.close(handle)
        return self.large_mib

    def overwrite_4k(self) -> int:
        """Overwrite blocks at random places of the large file, one fsync at the end."""
        handle = os.open(self.root / "large", os.O_RDWR)
        choose = random.Random(4)
        for _ in range(OVERWRITES):
            place = choose.randrange(self.large_mib * MIB // FILE_BYTES)
            os.pwrite(handle, self.data, place * FILE_BYTES)
        os.fsync(handle)
        os.close(handle)
        return OVERWRITES

    def large_read(self) -> int:
        """Read in 1 MiB calls."""
        handle = os.open(self.root / "large", os.O_RDONLY)
        while os.read(handle, MIB):
            pass
        os.close(handle)
        return self.large_mib


def plan(rows: Rows) -> list[tuple[str, str, Callable[[], int], bool]]:
    """(row, unit, work, caches dropped first), in the order they run."""
    return [
        ("create 4K", "/s", rows.create_4k, False),
        ("stat hot", "/s", rows.stat_hot, False),
        ("ls -l cold", "/s", rows.stat_cold, True),
        ("read 4K cold", "/s", rows.read_4k, True),
        ("read 4K hot", "/s", rows.read_4k, False),
        ("rename", "/s", rows.rename_4k, False),
        ("unlink", "/s", rows.unlink_4k, False),
        ("durable put 4K", "/s", rows.durable_4k, False),
        ("seq write+fsync", "MiB/s", rows.large_write, False),
        ("seq read cold", "MiB/s", rows.large_read, True),
        ("rand overwrite 4K+fsync", "/s", rows.overwrite_4k, False),
    ]


def measure(
    device: str, path: Path, rounds: int, large_mib: int, columns: FileSystems
) -> dict[str, dict[str, list[float]]]:
    """row -> file system -> rates, one a round."""
    rates: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name, mounted in columns.items():
            with mounted(device, path):
                for row, unit, work, cold in plan(Rows(path, large_mib)):
                    if cold:
                        drop_caches()
                    started = time.perf_counter()
                    count = work()
                    rate = count / (time.perf_counter() - started)
                    label = f"{row} ({unit})"
                    rates.setdefault(label, {}).setdefault(name, []).append(rate)
    return rates


def print_table(rates: dict[str, dict[str, list[float]]]) -> None:
    """A Markdown table: median (lowest to highest) of each, and the ratio of the medians."""
    names = list(next(iter(rates.values())))
    print(f"| row | {' | '.join(names)} | {names[0]} / {names[1]} |")
    print("|---" * (len(names) + 2) + "|")
    for row, columns in rates.items():
        medians = [statistics.median(columns[name]) for name in names]
        cells = [
            f"{median:,.0f} ({min(columns[name]):,.0f} to {max(columns[name]):,.0f})"
            for name, median in zip(names, medians, strict=True)
        ]
        print(f"| {row} | {' | '.join(cells)} | {medians[0] / medians[1]:.2f} |")


def main() -> None:
    """Set up one loop device, measure, clean up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large-mib", type=int, default=1024)
    parser.add_argument("--folder", default=None, help="where the image file is made")
    parser.add_argument(
        "--also", action="append", default=[], metavar="OPTIONS", help="one more column: -o OPTIONS"
    )
    options = parser.parse_args()
    if os.getuid() != 0:
        sys.exit("bench: needs root (loop devices, mounts, dropping caches)")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        image, path = Path(folder, "disk.img"), Path(folder, "mnt")
        path.mkdir()
        with image.open("wb") as file:
            file.truncate(DEVICE_BYTES)
        device = run("losetup", "--find", "--show", image)
        try:
            rates = measure(
                device, path, options.rounds, options.large_mib, file_systems(options.also)
            )
        finally:
            run("losetup", "--detach", device)
    print(
        f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}; "
        f"{options.rounds} rounds, median (lowest to highest); load at the start {load:.1f}\n"
    )
    print_table(rates)


if __name__ == "__main__":
    main()
