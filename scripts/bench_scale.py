"""One store grown to a million files: what calls cost, memory, opening, bytes written.

Role: `scripts/bench --scale`. At each level the store is grown through the file layer, closed,
opened cold, mounted, and sampled: the same number of files at random, each call timed by itself.
In turn with it, at every level, the same is done to a second store that keeps the first level's
files: a ratio compares two stores at nearly the same time, so the machine's load is in both.

    cold    a fresh mount and caches dropped: what is asked was never asked before
    warm    the kernel has forgotten names and attributes, the server need not have
    hot     the same call again

Not here: growing and opening (bench_scale_store.py).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import bench_noise
import bench_tables
from bench_noise import Canary
from bench_scale_store import FILE_BYTES, FILES_PER_DIRECTORY, directory_name, file_name
from bench_systems import (
    BIN,
    SCRIPTS,
    BenchError,
    Mounted,
    Place,
    as_nice_as_this,
    attached,
    disk_of_device,
    kill_server,
    say,
    serve,
    stop_in_order,
    unmount,
)
from bench_tables import DOCS

LEVELS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
MOUNTS = 4
COLD_CALLS = 40
COLD_LISTINGS = 2
HOT_CALLS = 1000
HOT_LISTINGS = 10
UNSYNCED = 3000
DEVICE_BYTES_PER_FILE = 8192
DEVICE_BYTES_MIN = 1 << 30
CALL_MARK, RESIDENT_MARK_BYTES, OPEN_MARK_S = 1.3, 512 << 20, 1.0
MIB = 1 << 20
IMAGE = "disk.img"


def ask_store(what: str, device: str, *numbers: int) -> dict[str, Any]:
    """Run bench_scale_store.py; what it has found.

    Raises:
        BenchError: it failed.
    """
    words = [sys.executable, str(SCRIPTS / "bench_scale_store.py"), what, device]
    done = subprocess.run(
        [*words, *map(str, numbers)], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise BenchError(f"{what}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Sample:
    """Calls on files at random, through mounts of one store.

    Args:
        root: where it is mounted.
        disk: its device.
        files: how many there are.
        seed: of the choice.
    """

    def __init__(self, root: Path, disk: Mounted, files: int, seed: int) -> None:
        self._root, self._disk, self._files = root, disk, files
        self._choose = random.Random(seed)
        self._data = random.Random(seed).randbytes(FILE_BYTES)
        self._times_ns: dict[str, list[int]] = defaultdict(list)
        self._reads: dict[str, int] = defaultdict(int)

    @property
    def medians_us(self) -> dict[str, float]:
        """Of each call, microseconds; of readdir for each entry."""
        return {
            name: statistics.median(times_ns)
            / (1000 * (FILES_PER_DIRECTORY if name.startswith("readdir") else 1))
            for name, times_ns in self._times_ns.items()
        }

    @property
    def device_reads(self) -> dict[str, float]:
        """Of each call; of readdir for each listing."""
        return {name: self._reads[name] / len(times) for name, times in self._times_ns.items()}

    def run_cold(self) -> None:
        """Requires: a fresh mount and dropped caches. The same files are there afterwards.

        There are few calls, each on other files: the whole index of a small store would soon be
        in memory, and later calls would not be cold.
        """
        paths = self._paths(5 * COLD_CALLS)
        looked, read, renamed, removed, others = (paths[at::5] for at in range(5))
        made = [path + ".new" for path in others]
        # So that a call does not pay for its directory, of which a small store has few.
        self._look_at_folders_of(paths)
        self._time("stat cold", os.stat, looked)
        self._time("open-read cold", self._open_and_read, read)
        self._time("create cold", self._create, made)
        self._time("rename cold", self._rename, renamed)
        self._time("unlink cold", os.unlink, removed)
        self._time("readdir cold", self._list, self._folders(COLD_LISTINGS))
        for path in made:
            os.unlink(path)
        for path in renamed:
            os.rename(path + "-", path)
        for path in removed:
            self._create(path)

    def run_hot(self) -> None:
        """The same files are there afterwards."""
        paths, folders = self._paths(HOT_CALLS), self._folders(HOT_LISTINGS)
        made = [path + ".new" for path in paths]
        for path in paths * 2:  # the second time their access times are settled
            self._open_and_read(path)
        self._forget(paths)
        self._time("stat warm", os.stat, paths)
        self._time("stat hot", os.stat, paths)
        self._time("open-read warm", self._open_and_read, paths)
        self._time("open-read hot", self._open_and_read, paths)
        self._time("create hot", self._create, made)
        self._time("rename hot", self._rename, made)
        self._time("unlink hot", os.unlink, [path + "-" for path in made])
        for folder in folders:
            self._list(folder)
        self._time("readdir hot", self._list, folders)

    def _paths(self, count: int) -> list[str]:
        chosen = self._choose.sample(range(self._files), count)
        return [f"{self._root}/{directory_name(each)}/{file_name(each)}" for each in chosen]

    def _folders(self, count: int) -> list[str]:
        chosen = self._choose.sample(range(self._files // FILES_PER_DIRECTORY), count)
        return [f"{self._root}/{directory_name(each * FILES_PER_DIRECTORY)}" for each in chosen]

    def _look_at_folders_of(self, paths: Sequence[str]) -> None:
        for folder in sorted({os.path.dirname(path) for path in paths}):
            os.stat(folder)

    def _forget(self, paths: Sequence[str]) -> None:
        """Have the kernel forget names and attributes, and with them what files hold."""
        Path("/proc/sys/vm/drop_caches").write_text("2")
        self._look_at_folders_of(paths)

    def _time(self, name: str, call: Callable[[str], object], paths: Sequence[str]) -> None:
        times_ns, reads = self._times_ns[name], self._disk.counts().reads
        for path in paths:
            started = time.perf_counter_ns()
            call(path)
            times_ns.append(time.perf_counter_ns() - started)
        self._reads[name] += self._disk.counts().reads - reads

    def _open_and_read(self, path: str) -> None:
        handle = os.open(path, os.O_RDONLY)
        if len(os.read(handle, FILE_BYTES + 1)) != FILE_BYTES:
            raise BenchError(f"{path} has another size")
        os.close(handle)

    def _create(self, path: str) -> None:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(handle, self._data)
        os.close(handle)

    def _rename(self, path: str) -> None:
        os.rename(path, path + "-")

    def _list(self, path: str) -> None:
        with os.scandir(path) as entries:
            for entry in entries:
                entry.stat()


def walk(root: Path) -> int:
    """Look at every file, as find -size does; how many there are."""
    count = 0
    for folder, _, names in os.walk(root):
        for name in names:
            os.stat(f"{folder}/{name}")
        count += len(names)
    return count


def drop_caches_of(place: Place) -> None:
    """Forget everything cached, also what the image's own file system has of it."""
    for path in (Path(place.device), place.folder.parent / IMAGE):
        handle = os.open(path, os.O_RDWR)
        os.fsync(handle)
        os.close(handle)
    Path("/proc/sys/vm/drop_caches").write_text("3")


@contextmanager
def mounted_cold(place: Place) -> Iterator[Mounted]:
    """A mount of the store, with nothing cached."""
    drop_caches_of(place)
    with ExitStack() as stack:
        command: list[str | Path] = [BIN / "shardfs", "mount", "-f", place.device, place.mountpoint]
        yield Mounted(disk_of_device(place.device), serve(command, place, stack))


def measure_calls(places: Mapping[str, tuple[Place, int]], seed: int) -> dict[str, Any]:
    """Sample stores in turn: name -> (place, files); what was found of each."""
    samples = {
        name: Sample(place.mountpoint, Mounted(disk_of_device(place.device)), files, seed)
        for name, (place, files) in places.items()
    }
    resident = {}
    for number in range(MOUNTS):
        for name, (place, _) in places.items():
            with mounted_cold(place) as mount:
                samples[name].run_cold()
                if number % 2:
                    samples[name].run_hot()
                resident[name] = mount.counts().resident_bytes
    return {
        name: {
            "calls": sample.medians_us,
            "reads": sample.device_reads,
            "resident_bytes": resident[name],
        }
        for name, sample in samples.items()
    }


def walk_and_crash(place: Place, files: int) -> dict[str, Any]:
    """Look at every file, then kill the server in the middle of creating; what was found."""
    with mounted_cold(place) as mount:
        started = time.perf_counter()
        count = walk(place.mountpoint)
        if count != files:
            raise BenchError(f"{count} files in place of {files}")
        walk_us = 1e6 * (time.perf_counter() - started) / files
        resident_bytes = mount.counts().resident_bytes
        leftovers = place.mountpoint / "unsynced"
        leftovers.mkdir()
        for number in range(UNSYNCED):
            (leftovers / f"{number}").write_bytes(b"x" * FILE_BYTES)
        kill_server(mount.session)
        unmount(place.mountpoint)
    return {"walk_us": walk_us, "resident_bytes": resident_bytes}


def time_opening(place: Place) -> float:
    """Seconds, with nothing cached."""
    drop_caches_of(place)
    return float(ask_store("open", place.device)["seconds"])


def remove_leftovers(place: Place) -> None:
    """Take away what was written before the crash, as far as it is there."""
    with mounted_cold(place):
        subprocess.run(["rm", "-rf", str(place.mountpoint / "unsynced")], check=True)


def measure_level(place: Place, reference: Place, before: int, files: int) -> dict[str, Any]:
    """Grow to this many files and measure."""
    say(f"growing from {before:,} to {files:,} files")
    mounted = Mounted(disk_of_device(place.device))
    written = mounted.counts().written_bytes
    grown = ask_store("grow", place.device, before, files)
    os.sync()
    written = mounted.counts().written_bytes - written
    point: dict[str, Any] = {
        "files": files,
        "written_bytes": written / (files - before),
        "created_per_s": (files - before) / grown["seconds"],
    }
    say(f"measuring {files:,} files")
    point["open_clean_s"] = statistics.median(time_opening(place) for _ in range(3))
    found = measure_calls({"store": (place, files), "beside": (reference, LEVELS[0])}, files)
    point["resident_sampled_bytes"] = found["store"]["resident_bytes"]
    beside = found["beside"]["calls"]
    point["calls"] = {
        call: {
            "median_us": median_us,
            "beside_us": beside[call],
            "ratio": median_us / beside[call],
            "reads": found["store"]["reads"][call],
            "beside_reads": found["beside"]["reads"][call],
        }
        for call, median_us in found["store"]["calls"].items()
    }
    point |= walk_and_crash(place, files)
    point["open_crash_s"] = time_opening(place)
    remove_leftovers(place)
    return point


def measure(folder: Path, levels: Sequence[int]) -> dict[str, Any]:
    """All levels."""
    canary, points, begun = Canary(), list[dict[str, Any]](), time.monotonic()
    with ExitStack() as stack:
        places = []
        for name, files in (("reference", levels[0]), ("store", levels[-1])):
            home = folder / name
            (home / "mnt").mkdir(parents=True)
            (home / "stores").mkdir()
            size = max(DEVICE_BYTES_MIN, files * DEVICE_BYTES_PER_FILE)
            device = stack.enter_context(attached(home / IMAGE, size))
            places.append(Place(device, home / "mnt", home / "stores"))
            ask_store("make", device)
        reference, place = places
        ask_store("grow", reference.device, 0, levels[0])
        before = 0
        for files in levels:
            canary.look()
            points.append(measure_level(place, reference, before, files))
            before = files
            say(json.dumps(points[-1]))
        canary.look()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "minutes": (time.monotonic() - begun) / 60,
        "noise": canary.figures(),
        "points": points,
    }


def report(figures: Mapping[str, Any]) -> str:
    """Tables and what missed its mark, in Markdown."""
    points = figures["points"]
    head = ["files", "created /s", "bytes written a file", "open, closed in order, s"]
    head += ["open after a crash, s", "resident after the sample, MiB", "after looking at all, MiB"]
    lines = [
        [
            f"{point['files']:,}",
            f"{point['created_per_s']:,.0f}",
            f"{point['written_bytes']:,.0f}",
            f"{point['open_clean_s']:.2f}",
            f"{point['open_crash_s']:.2f}",
            f"{point['resident_sampled_bytes'] / MIB:.0f}",
            f"{point['resident_bytes'] / MIB:.0f}",
        ]
        for point in points
    ]
    cold = [
        [call, *(f"{point['calls'][call]['reads']:.2f}" for point in points)]
        for call in points[0]["calls"]
        if call.endswith("cold")
    ]
    calls = [
        [call]
        + [f"{point['calls'][call]['median_us']:.1f}" for point in points]
        + [f"{point['calls'][call]['ratio']:.2f}" for point in points]
        for call in points[0]["calls"]
    ]
    levels = [f"{point['files']:,}" for point in points]
    return "\n\n".join(
        [
            f"{figures['date']}, {figures['minutes']:.0f} minutes. "
            f"{bench_noise.summary(figures['noise'])}",
            bench_tables.table(head, lines, 0),
            "Median of each call through the mount, microseconds (readdir: for each entry), then "
            f"the same divided by that of a store of {levels[0]} files measured in turn with "
            f"it (mark: at most {CALL_MARK}):",
            bench_tables.table(
                [
                    "call",
                    *(f"{level}, us" for level in levels),
                    *(f"{level}, /" for level in levels),
                ],
                calls,
            ),
            "Device reads of each cold call (readdir: of each directory), whatever the load:",
            bench_tables.table(["call", *levels], cold),
            "Missed: " + ("; ".join(misses(points)) or "nothing."),
        ]
    )


def misses(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """The marks that were not reached at the last level, in words."""
    last = points[-1]
    found = [
        f"{call} {figures['ratio']:.2f} > {CALL_MARK}"
        for call, figures in last["calls"].items()
        if figures["ratio"] > CALL_MARK
    ]
    if last["resident_bytes"] > RESIDENT_MARK_BYTES:
        found.append(f"resident {last['resident_bytes'] / MIB:.0f} MiB > 512")
    if last["open_crash_s"] >= OPEN_MARK_S:
        found.append(f"open after a crash {last['open_crash_s']:.2f} s, mark 1 s")
    return found


def main() -> None:
    """Measure, print, clean up."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench --scale", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--files", type=int, default=LEVELS[-1], help="the last level")
    parser.add_argument("--folder", help="where images are made (8 KiB a file)")
    parser.add_argument("--json", metavar="FILE", help="keep the raw figures")
    parser.add_argument("--from-json", metavar="FILE", help="measure nothing, report these figures")
    parser.add_argument("--write-docs", action="store_true", help="tables and plots into docs/")
    options = parser.parse_args()
    levels = [level for level in LEVELS if level <= options.files]
    with stop_in_order("bench"):
        if options.from_json:
            figures = json.loads(Path(options.from_json).read_text())
        else:
            if os.getuid() != 0:
                raise BenchError("needs root (loop devices, mounts, dropping caches)")
            with (
                as_nice_as_this(),
                tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder,
            ):
                figures = measure(Path(folder), levels)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    print(report(figures))
    if options.write_docs:
        import bench_plots

        text = f"{report(figures)}\n\n![cost and the number of files](bench-scale.svg)"
        bench_tables.write_part(DOCS / "performance.md", "bench-scale", text)
        (DOCS / "bench-scale.json").write_text(json.dumps(figures, indent=1) + "\n")
        bench_plots.plot_scale(figures["points"], DOCS / "bench-scale.svg")


if __name__ == "__main__":
    main()
