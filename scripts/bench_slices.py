"""How long the tasks of a store hold the trio thread: a histogram of slices by task.

Role: fills an image file to a share of its size with small and large values, overwrites at random
with all background work running, and measures each stretch between two checkpoints of every task,
in CPU time of the thread: what other processes of the machine take is not counted. Python's
garbage collector runs as in the process of a mount (shardfs/cli/heap.py); --default-collector
measures without that.

Not here: latencies of a mount (bench_space_latency), tests of the bounds (they count, and do not
time).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import trio

from shardfs.cli.heap import short_pauses
from shardfs.engine.block_device import open_device
from shardfs.engine.images import create_image
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.store import Store

MIB = 1024 * 1024
LONG_S = 1e-3
TASKS = ("maintenance.", "scheduler.")
"""The engine's own; the others are this script's and trio's."""


class SliceClock(trio.abc.Instrument):
    """Measures how long each step of each task takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.ended_at: dict[str, list[float]] = defaultdict(list)
        """Slices of over a millisecond, by the place where they ended."""
        self._started = time.thread_time_ns()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """The task has the thread from here."""
        self._started = time.thread_time_ns()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """The task has given the thread back."""
        taken = (time.thread_time_ns() - self._started) / 1e9
        self.seconds[task.name.rpartition(".engine.")[2]].append(taken)
        if taken > LONG_S:
            self.ended_at[place_of(task)].append(taken)


def place_of(task: trio.lowlevel.Task) -> str:
    """The functions of the engine that a task is in, innermost first."""
    names = []
    at = task.coro
    while at is not None:
        frame = getattr(at, "cr_frame", None) or getattr(at, "ag_frame", None)
        if frame is not None and "shardfs/engine" in frame.f_code.co_filename:
            names.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
        at = getattr(at, "cr_await", None) or getattr(at, "ag_await", None)
    return " < ".join(reversed(names[-4:])) or task.name


def percentile(ordered: list[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def figures(seconds: list[float]) -> dict[str, float]:
    """Count, total and percentiles of slices, milliseconds."""
    ordered = sorted(seconds)
    names = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    found = {name: round(percentile(ordered, share) * 1e3, 3) for name, share in names.items()}
    longer = sum(each > LONG_S for each in ordered)
    return {
        "slices": len(ordered),
        "total_ms": round(sum(ordered) * 1e3),
        **found,
        "max": round(ordered[-1] * 1e3, 3),
        "over_1_ms": longer,
    }


@contextmanager
def timed(clock: SliceClock) -> Iterator[None]:
    """The clock runs while the body does."""
    trio.lowlevel.add_instrument(clock)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(clock)


def key_of(number: int) -> bytes:
    """Keys in an order unlike that in which they are written."""
    return b"key %016x" % (number * 0x9E3779B97F4A7C15 % (1 << 64))


async def fill(store: Store, entries: int, share: float, chooser: random.Random) -> list[int]:
    """Records until there are `entries`, values of 4 KiB to 64 KiB until the share is reached."""
    for number in range(entries):
        await store.put(b"record %016x" % (number * 0x9E3779B97F4A7C15 % (1 << 64)), bytes(100))
    block = chooser.randbytes(MIB)
    sizes = []
    left = (1 - share) * store.space().free_bytes
    while store.space().free_bytes > left:
        length = chooser.choice((4096, 4096, 4096, 16384, 65536))
        await store.put(key_of(len(sizes)), block[:length])
        sizes.append(length)
    await store.sync()
    return sizes


async def overwrite(store: Store, sizes: list[int], seconds: float, chooser: random.Random) -> int:
    """Replace values at random for a while; bytes written."""
    block = chooser.randbytes(MIB)
    end = trio.current_time() + seconds
    written = number = 0
    while trio.current_time() < end:
        which = chooser.randrange(len(sizes))
        await store.put(key_of(which), block[: sizes[which]])
        await store.put(b"record %016x" % chooser.getrandbits(64), bytes(100))
        written += sizes[which]
        number += 1
        if number % 8 == 0:
            await trio.lowlevel.checkpoint()
    return written


async def measure(path: Path, options: argparse.Namespace) -> dict[str, object]:
    """Fill, overwrite, and tell."""
    create_image(path, options.size_mib * MIB)
    device = open_device(path)
    clock = SliceClock()
    chooser = random.Random(1)
    try:
        await format_device(device, plan(device.size_bytes, device.sector_bytes))
        async with Store.open(device) as store:
            sizes = await fill(store, options.entries, options.share, chooser)
            print(f"filled: {len(sizes)} values", file=sys.stderr)
            collector = nullcontext() if options.default_collector else short_pauses()
            with collector, timed(clock):
                written = await overwrite(store, sizes, options.seconds, chooser)
            counts = device.counts
            told = {
                "overwritten_mib": written // MIB,
                "device_written_mib": counts.write_bytes // MIB,
                "levels": store.statistics().levels,
                "health": store.statistics().reason,
            }
    finally:
        device.close()
    by_task = {name: figures(found) for name, found in sorted(clock.seconds.items())}
    background = [
        each for name, found in clock.seconds.items() if name.startswith(TASKS) for each in found
    ]
    long_ones = {
        place: {"slices": len(found), "max_ms": round(max(found) * 1e3, 1)}
        for place, found in sorted(clock.ended_at.items(), key=lambda item: -len(item[1]))
    }
    return {**told, "background": figures(background), "tasks": by_task, "over_1_ms": long_ones}


def main() -> None:
    """Measure, print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=300_000, help="small records of the tree")
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--share", type=float, default=0.7, help="of the store, that is live")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--folder", default=None, help="where the image file is made")
    parser.add_argument("--default-collector", action="store_true", help="as Python has it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(json.dumps(trio.run(measure, Path(folder, "disk.img"), options), indent=2))


if __name__ == "__main__":
    main()
