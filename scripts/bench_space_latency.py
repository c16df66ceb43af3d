"""Latency of 4 KiB reads and creates on a nearly full device, while its space is reclaimed.

Role: fills a loop device to a share of what df calls its size, with files (or values) of 4 KiB
and of 64 KiB, and has a second process overwrite whole files at random as fast as
it can, so that extents are emptied and runs are merged all the time. Meanwhile it reads and creates
small files, one after the other, and measures each call. Twice: through a real mount, and through
the engine alone, where the loads are tasks of one process.

A flush of the device takes what the device takes. Each flush is logged with its begin and end, and
every call is told twice: as it was, and less the time in which a flush was running. The second
says what shardfs adds; it gives a call that did not wait for a flush running beside it too much
credit, so both are shown. A row of its own tells how late the measuring process wakes up from a
short sleep, which has nothing to do with shardfs: on a busy machine that is the floor of all rows.

Not here: tests. Nothing asserts a time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from shardfs.cli.heap import short_pauses
from shardfs.engine.block_device import BlockDevice, open_device
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.store import Store

KIB = 1024
MIB = 1024 * KIB
SMALL_BYTES = 4 * KIB
LARGE_BYTES = 64 * KIB
SMALL_SHARE = 0.1
"""Of what is live, in files of SMALL_BYTES."""
FILES_PER_FOLDER = 500
KEPT_CREATED = 200
NAP_S = 0.002
NOISE = "the machine: waking up from a sleep"
Interval = tuple[float, float]
Call = tuple[float, float]


# --- flushes ------------------------------------------------------------------------------------


def log_flushes(path: str) -> None:
    """From here on every flush of a device is written down: begin and end, monotonic seconds."""
    log = open(path, "a", buffering=1)  # noqa: SIM115 - open as long as the process
    real = BlockDevice.flush

    async def flush(self: BlockDevice) -> None:
        started = time.monotonic()
        try:
            await real(self)
        finally:
            log.write(f"{started} {time.monotonic()}\n")

    BlockDevice.flush = flush  # type: ignore[method-assign]  # for the whole process


def read_flushes(path: Path) -> list[Interval]:
    """The flushes of a log, in order of their begin; they do not overlap."""
    lines = (line.split() for line in path.read_text().splitlines())
    return sorted((float(fields[0]), float(fields[1])) for fields in lines)


def less_flushes(call: Call, flushes: list[Interval]) -> float:
    """Seconds of a call in which no flush was running."""
    started, ended = call
    left = ended - started
    at = max(0, bisect_left(flushes, (started, 0.0)) - 1)
    for begin, end in flushes[at:]:
        if begin >= ended:
            break
        left -= max(0.0, min(end, ended) - max(begin, started))
    return max(0.0, left)


# --- figures ------------------------------------------------------------------------------------


def percentiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(seconds)
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    found = {
        name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3
        for name, share in shares.items()
    }
    return {name: round(value, 2) for name, value in found.items()} | {
        "max": round(ordered[-1] * 1e3, 2)
    }


def told(calls: list[Call], flushes: list[Interval]) -> dict[str, Any]:
    """Both figures of one row, and both lists for the plot."""
    whole = [ended - started for started, ended in calls]
    less = [less_flushes(call, flushes) for call in calls]
    return {
        "calls": len(calls),
        "as_it_was_ms": percentiles(whole),
        "less_flushes_ms": percentiles(less),
        "sorted_as_it_was_ms": thinned(whole),
        "sorted_less_flushes_ms": thinned(less),
    }


def thinned(seconds: list[float]) -> list[list[float]]:
    """(share of calls that took longer, milliseconds), dense towards the longest."""
    ordered = sorted(seconds)
    count = len(ordered)
    points = []
    rank = count
    while rank >= 1:
        points.append([rank / count, round(ordered[count - rank] * 1e3, 3)])
        rank = min(rank - 1, int(rank / 1.1))
    return points


# --- a mount ------------------------------------------------------------------------------------


def run(*command: str | Path) -> str:
    """Run a command; its output, or an end with what it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def loop_device(folder: Path, size_bytes: int) -> Iterator[str]:
    """A loop device over an image that takes all its space at once."""
    image = folder / "disk.img"
    with image.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    device = run("losetup", "--find", "--show", image)
    try:
        yield device
    finally:
        run("losetup", "--detach", device)
        image.unlink()


def this_script(*arguments: str | Path) -> list[str]:
    """The command that runs another part of this script."""
    return [sys.executable, __file__, *map(str, arguments)]


@contextmanager
def mounted(device: str, path: Path, log: Path) -> Iterator[None]:
    """A fresh mount whose server writes its flushes down."""
    command = [sys.executable, "-c", "from shardfs.cli.main import main; main()"]
    run(*command, "mkfs", "--force", device)
    server = subprocess.Popen(this_script("--serve", device, path, log))
    try:
        while not os.path.ismount(path):
            if server.poll() is not None:
                sys.exit("the mount has not come up")
            time.sleep(0.05)
        yield
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def serve(device: str, path: str, log: str) -> None:
    """The mount's own process."""
    log_flushes(log)
    sys.argv = ["shardfs", "mount", "--foreground", device, path]
    from shardfs.cli.main import main

    main()


def fill_files(root: Path, share: float) -> tuple[list[str], list[str]]:
    """Small and large files until the share of the device is taken."""
    chooser = random.Random(1)
    block = chooser.randbytes(LARGE_BYTES)
    space = os.statvfs(root)
    wanted = int(space.f_blocks * space.f_frsize * share)
    small = []
    for number in range(int(wanted * SMALL_SHARE) // SMALL_BYTES):
        if number % FILES_PER_FOLDER == 0:
            (root / f"small-{number // FILES_PER_FOLDER}").mkdir()
        small.append(f"{root}/small-{number // FILES_PER_FOLDER}/{number}")
        Path(small[-1]).write_bytes(block[:SMALL_BYTES])
    large: list[str] = []
    while True:
        space = os.statvfs(root)
        if (space.f_blocks - space.f_bavail) * space.f_frsize >= wanted:
            os.sync()
            return small, large
        large.append(f"{root}/large-{len(large)}")
        Path(large[-1]).write_bytes(block)


def load(root: str) -> None:
    """Overwrites at random for ever, as fast as it can; tells the bytes when it is ended."""
    chooser = random.Random(os.getpid())
    block = chooser.randbytes(LARGE_BYTES)
    small = sorted(str(path) for path in Path(root).glob("small-*/*"))
    large = sorted(str(path) for path in Path(root).glob("large-*"))
    written = 0
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    while not ended:
        is_small = chooser.random() < 0.5
        handle = os.open(chooser.choice(small if is_small else large), os.O_WRONLY)
        written += os.pwrite(handle, block[: SMALL_BYTES if is_small else LARGE_BYTES], 0)
        os.close(handle)
    print(written)


def timed(calls: list[Call], work: Callable[[], None]) -> None:
    """Do something and note when it began and ended."""
    started = time.monotonic()
    work()
    calls.append((started, time.monotonic()))


def measure_mount(root: Path, small: list[str], seconds: float) -> dict[str, list[Call]]:
    """Reads and creates in turn; what is read is dropped from the kernel's cache before."""
    chooser = random.Random(2)
    block = chooser.randbytes(SMALL_BYTES)
    reads: list[Call] = []
    naps: list[Call] = []
    creates: list[Call] = []
    folder = root / "created"
    folder.mkdir()

    def create(name: str) -> None:
        handle = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(handle, block)
        os.close(handle)

    def read(handle: int) -> None:
        assert len(os.read(handle, SMALL_BYTES)) == SMALL_BYTES

    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        handle = os.open(chooser.choice(small), os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        timed(reads, lambda: read(handle))  # noqa: B023 - called at once
        os.close(handle)
        timed(creates, lambda: create(f"{folder}/{number}"))  # noqa: B023 - called at once
        number += 1
        if number > KEPT_CREATED:
            os.unlink(f"{folder}/{number - KEPT_CREATED - 1}")
        timed(naps, lambda: time.sleep(NAP_S))
    return {"mount: read 4 KiB": reads, "mount: create 4 KiB": creates, NOISE: late(naps)}


def late(naps: list[Call]) -> list[Call]:
    """By how much sleeping took longer than asked for: what the machine's other work costs."""
    return [(started + NAP_S, max(started + NAP_S, ended)) for started, ended in naps]


def bench_mount(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The rows of a real mount."""
    root, log = folder / "mnt", folder / "flushes"
    root.mkdir()
    with loop_device(folder, options.size_mib * MIB) as device, mounted(device, root, log):
        small, large = fill_files(root, options.share)
        print(f"filled: {len(small)} small, {len(large)} large", file=sys.stderr)
        before = device_written(device)
        loads = subprocess.Popen(this_script("--load", root), stdout=subprocess.PIPE, text=True)
        time.sleep(options.warm_s)
        try:
            found = measure_mount(root, small, options.seconds)
        finally:
            loads.send_signal(signal.SIGTERM)
            overwritten = int(loads.communicate()[0] or 0)
        written = device_written(device) - before
        space = os.statvfs(root)
        share = 1 - space.f_bavail / space.f_blocks
    flushes = read_flushes(log)
    return {
        "rows": {name: told(calls, flushes) for name, calls in found.items()},
        "overwritten_mib": overwritten // MIB,
        "device_written_mib": written // MIB,
        "flushes_ms": percentiles([end - begin for begin, end in flushes]),
        "full_at_the_end": round(share, 3),
    }


def device_written(device: str) -> int:
    """Bytes that reached the loop device so far."""
    fields = Path(f"/sys/block/{Path(device).name}/stat").read_text().split()
    return int(fields[6]) * 512


# --- the engine ---------------------------------------------------------------------------------


async def bench_engine(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The rows of the engine alone: the loads and the calls are tasks of one process."""
    log = folder / "engine-flushes"
    log_flushes(str(log))
    with loop_device(folder, options.size_mib * MIB) as path:
        device = open_device(path)
        try:
            await format_device(device, plan(device.size_bytes, device.sector_bytes))
            async with Store.open(device) as store:
                values = await fill_store(store, options.share)
                before = device.counts.write_bytes
                calls: dict[str, list[Call]] = {"engine: get 4 KiB": [], "engine: put 4 KiB": []}
                with short_pauses():  # as the process of a mount does
                    overwritten = await load_store(store, values, calls, options)
                written = device.counts.write_bytes - before
                levels = store.statistics().levels
                reason = store.health.reason
        finally:
            device.close()
    flushes = read_flushes(log)
    return {
        "rows": {name: told(found, flushes) for name, found in calls.items()},
        "overwritten_mib": overwritten // MIB,
        "device_written_mib": written // MIB,
        "levels": levels,
        "health": reason,
    }


async def fill_store(store: Store, share: float) -> list[int]:
    """Values until the share of what the store takes is taken; their lengths."""
    chooser = random.Random(1)
    block = chooser.randbytes(LARGE_BYTES)
    wanted = int(store.space().free_bytes * share)
    values: list[int] = []
    taken = 0
    while taken < wanted:
        length = SMALL_BYTES if chooser.random() < 0.7 else LARGE_BYTES
        await store.put(b"value %07d" % len(values), block[:length])
        values.append(length)
        taken += length + 200
    await store.sync()
    return values


async def load_store(
    store: Store, values: list[int], calls: dict[str, list[Call]], options: argparse.Namespace
) -> int:
    """Overwrite at random with all there is, and measure beside it; bytes overwritten."""
    chooser = random.Random(3)
    block = chooser.randbytes(LARGE_BYTES)
    overwritten = 0

    async def overwrite() -> None:
        nonlocal overwritten
        while True:
            which = chooser.randrange(len(values))
            await store.put(b"value %07d" % which, block[: values[which]])
            overwritten += values[which]
            await trio.lowlevel.checkpoint()

    async def measure() -> None:
        await trio.sleep(options.warm_s)
        gets, puts = calls.values()
        for number in range(1 << 40):
            key = b"value %07d" % chooser.randrange(len(values))
            started = time.monotonic()
            await store.get(key, 0, SMALL_BYTES)
            gets.append((started, time.monotonic()))
            started = time.monotonic()
            await store.put(b"new %07d" % (number % KEPT_CREATED), block[:SMALL_BYTES])
            puts.append((started, time.monotonic()))
            await trio.sleep(NAP_S)

    with trio.move_on_after(options.warm_s + options.seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(overwrite)
            nursery.start_soon(overwrite)
            nursery.start_soon(measure)
    return overwritten


# --- telling ------------------------------------------------------------------------------------


def print_table(result: dict[str, Any]) -> None:
    """A Markdown table."""
    print("| call | count | p50 | p99 | p99.9 | longest |  less flushes: p50 | p99 | p99.9 |")
    print("|---" + "|---:" * 8 + "|")
    for part in ("mount", "engine"):
        for name, row in result.get(part, {}).get("rows", {}).items():
            whole, less = row["as_it_was_ms"], row["less_flushes_ms"]
            cells = [f"{whole[key]:.1f}" for key in ("p50", "p99", "p99.9", "max")]
            cells += [f"{less[key]:.1f}" for key in ("p50", "p99", "p99.9")]
            print(f"| {name} | {row['calls']:,} | {' | '.join(cells)} |")


def plot(result: dict[str, Any], path: Path) -> None:
    """The share of calls that took longer than so many milliseconds."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "shardfs"
    figure, axes = pyplot.subplots(figsize=(8, 5))
    rows = {
        name: row
        for part in ("mount", "engine")
        for name, row in result.get(part, {}).get("rows", {}).items()
    }
    for number, (name, row) in enumerate(rows.items()):
        for key, style, label in (
            ("sorted_as_it_was_ms", ":", None),
            ("sorted_less_flushes_ms", "-", name),
        ):
            shares, times = zip(*row[key], strict=True)
            axes.plot(times, shares, style, color=f"C{number}", label=label, linewidth=1.4)
    axes.axvline(50, color="grey", linewidth=0.8)
    axes.axhline(1e-3, color="grey", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="milliseconds", ylabel="share that took longer")
    axes.set_title(
        f"{result['share']:.0%} full, overwritten at full speed; dotted: device flushes included"
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure on one device, write JSON and plot, print the table."""
    if sys.argv[1:2] == ["--serve"]:
        return serve(*sys.argv[2:5])
    if sys.argv[1:2] == ["--load"]:
        return load(sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of each measurement")
    parser.add_argument("--warm-s", type=float, default=10, help="of load before it")
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--share", type=float, default=0.85, help="of the device that is full")
    parser.add_argument("--folder", default=None, help="where the image file is made")
    parser.add_argument("--output", type=Path, default=None, help="folder; docs by default")
    parser.add_argument("--only", choices=("mount", "engine"), default=None)
    options = parser.parse_args()
    if os.getuid() != 0:
        sys.exit("bench_space_latency: needs root (a loop device, a mount)")
    output = options.output or Path(__file__).parent.parent / "docs"
    output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}",
        "load_before": [round(each, 1) for each in os.getloadavg()],
        "share": options.share,
        "size_mib": options.size_mib,
        "seconds": options.seconds,
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.only != "engine":
            result["mount"] = bench_mount(Path(folder), options)
        if options.only != "mount":
            result["engine"] = trio.run(bench_engine, Path(folder), options)
    result["load_after"] = [round(each, 1) for each in os.getloadavg()]
    print_table(result)
    (output / "space-latency.json").write_text(json.dumps(result) + "\n")
    plot(result, output / "space-latency.svg")
    for part in ("mount", "engine"):
        figures = {key: value for key, value in result.get(part, {}).items() if key != "rows"}
        print(part, figures, file=sys.stderr)


if __name__ == "__main__":
    main()
