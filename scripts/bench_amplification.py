#!/usr/bin/env python3
"""Measures write amplification in steady state: bytes the device is sent for each byte of a user.

Each cell fills a store in memory to a share of what user data may take, overwrites pieces of one
size, uniformly or with nine writes in ten going to a tenth of the pieces, until what is live has
been replaced several times, and counts. Bytes are counted and the clock is simulated, so neither
the machine nor its load matters.

Beside each cell stands what greedy cleaning needs in theory (see `greedy_theory`).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import trio
from trio.testing import MockClock

from shardfs import limits
from shardfs.engine.device import Buffer, DeviceCounts
from shardfs.engine.framing import frame_bytes
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.store import Store

KIB, MIB = limits.KIB, limits.MIB
PAGE_BYTES = limits.BLOCK_BYTES
KEY = b"piece %09d"
ZEROS = bytes(PAGE_BYTES)
EXTENT_COUNT = 256
EXTENT_BYTES = {4 * KIB: 512 * KIB, 64 * KIB: 2 * MIB, 1 * MIB: 32 * MIB}
"""Of the device that pieces of a size go to: an extent holds many of them."""
LIVE_SHARES = (0.5, 0.7, 0.8, 0.9)
HOT_PIECES, HOT_WRITES = 0.1, 0.9
REPLACED_BEFORE, REPLACED_WHILE = 3.0, 1.5
"""What is live is overwritten so often before counting begins, and while counting."""
SECONDS_TO_FILL = 60.0
"""Simulated: the user writes as fast as to fill the device in this time."""


class MemoryDevice:
    """A device in memory that keeps only pages with something in them; never fails."""

    def __init__(self, size_bytes: int) -> None:
        self.path = "memory"
        self.size_bytes = size_bytes
        self.sector_bytes = PAGE_BYTES
        self.read_only = False
        self.counts = DeviceCounts()
        self._pages: dict[int, bytes] = {}

    async def read(self, offset: int, length: int) -> bytes:
        self.counts.reads += 1
        self.counts.read_bytes += length
        first, skip = divmod(offset, PAGE_BYTES)
        last = -(-(offset + length) // PAGE_BYTES)
        find = self._pages.get
        return b"".join([find(number, ZEROS) for number in range(first, last)])[
            skip : skip + length
        ]

    async def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        self.counts.writes += 1
        self.counts.write_bytes += len(data)
        number = offset // PAGE_BYTES
        for at in range(0, len(data), PAGE_BYTES):
            page = data[at : at + PAGE_BYTES]
            if page == ZEROS:
                self._pages.pop(number, None)
            else:
                self._pages[number] = page
            number += 1
        await trio.lowlevel.checkpoint()

    def write_at_once(self, offset: int, buffers: Sequence[Buffer]) -> bool:
        """See Device.write_at_once: everything goes to `write`."""
        return False

    async def measure(self) -> int:
        """See Device.measure."""
        return self.size_bytes

    async def set_length(self, size_bytes: int) -> bool:
        """See Device.set_length."""
        return False

    async def flush(self) -> None:
        self.counts.flushes += 1
        await trio.lowlevel.checkpoint()

    async def reset(self, offset: int, length: int) -> None:
        self.counts.resets += 1

    async def discard(self, offset: int, length: int) -> None:
        self.counts.discards += 1
        for number in range(offset // PAGE_BYTES, (offset + length) // PAGE_BYTES):
            self._pages.pop(number, None)

    def expect_extents(self, extent_bytes: int) -> None:
        """See Device.expect_extents."""

    def write_pointer(self, offset: int) -> int | None:
        return None

    def close(self) -> None:
        pass


class Cell(NamedTuple):
    """One measurement to make."""

    piece_bytes: int
    live_share: float
    skewed: bool
    extent_bytes: int


def greedy_theory(utilization: float) -> float:
    """Write amplification of greedy cleaning under uniform overwrites, pages per block unbounded.

    A block is cleaned when a share u of it is still live, with utilization = (1 - u) / -ln(u);
    what is written for each page of the user is then 1 / (1 - u). In closed form, with a the
    inverse of the utilization and W Lambert's function, a / (a + W(-a exp(-a))).

    Sources: Desnoyers, "Analytic modeling of SSD write performance", SYSTOR 2012 (there for
    cleaning the oldest block, which greedy cleaning approaches as blocks get larger); the same
    fixed point in Menon, "A performance comparison of RAID-5 and log-structured arrays", 1995.
    Rosenblum and Ousterhout, 1992, have 2 / (1 - u), as they count what cleaning reads as well.
    """
    low, high = 1e-12, 1 - 1e-12
    while high - low > 1e-12:
        middle = (low + high) / 2
        if (1 - middle) / -math.log(middle) < utilization:
            low = middle
        else:
            high = middle
    return 1 / (1 - low)


def separated_theory(utilization: float) -> float:
    """The same with hot and cold pieces on blocks of their own, spare room divided at best.

    Each of the two is overwritten uniformly, so `greedy_theory` holds for each (Desnoyers 2012).
    """
    spare = 1 / utilization - 1

    def both(share: float) -> float:
        hot = greedy_theory(HOT_PIECES / (HOT_PIECES + spare * share))
        cold = greedy_theory((1 - HOT_PIECES) / (1 - HOT_PIECES + spare * (1 - share)))
        return HOT_WRITES * hot + (1 - HOT_WRITES) * cold

    return min(both(percent / 200) for percent in range(1, 200))


def chosen_pieces(count: int, skewed: bool, seed: int) -> Iterator[int]:
    """Numbers of the pieces to overwrite, for ever."""
    rng = random.Random(seed)
    order = list(range(count))
    rng.shuffle(order)
    hot = max(1, int(count * HOT_PIECES))
    while True:
        if not skewed:
            yield rng.randrange(count)
        elif rng.random() < HOT_WRITES:
            yield order[rng.randrange(hot)]
        else:
            yield order[rng.randrange(hot, count)]


class Run:
    """One cell being measured, on a store of its own."""

    def __init__(self, store: Store, device: MemoryDevice, cell: Cell, clock: MockClock) -> None:
        self._store = store
        self._device = device
        self._cell = cell
        self._clock = clock
        self._value = bytes(cell.piece_bytes)
        self._seconds = cell.piece_bytes / device.size_bytes * SECONDS_TO_FILL

    async def _put(self, number: int) -> None:
        await self._store.put(KEY % number, self._value)
        self._clock.jump(self._seconds)
        await trio.lowlevel.checkpoint()

    async def fill(self) -> int:
        """Fill to the cell's share; how many pieces there are."""
        frame = frame_bytes(len(KEY % 0), self._cell.piece_bytes)
        count = 0
        while True:
            space = self._store.space()
            live = count * frame
            if live >= self._cell.live_share * (live + space.free_bytes):
                return count
            await self._put(count)
            count += 1

    async def overwrite(self, numbers: Iterator[int], count: int) -> dict[str, float]:
        """Overwrite `count` pieces; device bytes for each byte of the user, in parts."""
        before, sent_before = self._by_stream(), self._device.counts.write_bytes
        for _ in range(count):
            await self._put(next(numbers))
        await self._store.sync()
        user = count * self._cell.piece_bytes
        sent = self._device.counts.write_bytes - sent_before
        parts = {name: (n - before[name]) / user for name, n in self._by_stream().items()}
        parts["superblock"] = sent / user - sum(parts.values())
        return {"total": sent / user, **parts}

    def _by_stream(self) -> dict[str, int]:
        return dict(self._store.statistics().stream_bytes)


async def run_cell(cell: Cell, clock: MockClock) -> dict[str, Any]:
    device = MemoryDevice(EXTENT_COUNT * cell.extent_bytes)
    identity = plan(device.size_bytes, PAGE_BYTES, extent_bytes=cell.extent_bytes)
    await format_device(device, identity)
    async with Store.open(device) as store:
        run = Run(store, device, cell, clock)
        count = await run.fill()
        numbers = chosen_pieces(count, cell.skewed, seed=count)
        await run.overwrite(numbers, int(count * REPLACED_BEFORE))
        half = int(count * REPLACED_WHILE / 2)
        halves = [await run.overwrite(numbers, half) for _ in range(2)]
        live_bytes = count * cell.piece_bytes
        framed_bytes = count * frame_bytes(len(KEY % 0), cell.piece_bytes)
        share = framed_bytes / (framed_bytes + store.space().free_bytes)
    parts = {name: sum(half[name] for half in halves) / 2 for name in halves[0]}
    return {
        "piece_bytes": cell.piece_bytes,
        "pattern": "90/10" if cell.skewed else "uniform",
        "device_bytes": device.size_bytes,
        "extent_bytes": identity.extent_bytes,
        "pieces": count,
        "live_share": cell.live_share,
        "live_share_at_end": share,
        "live_share_of_device": live_bytes / device.size_bytes,
        "write_amplification": parts["total"],
        "halves": [half["total"] for half in halves],
        "parts": parts,
        "framed": frame_bytes(len(KEY % 0), cell.piece_bytes) / cell.piece_bytes,
        "theory": greedy_theory(cell.live_share),
        "theory_separated": separated_theory(cell.live_share) if cell.skewed else 0,
        "theory_of_device": greedy_theory(live_bytes / device.size_bytes),
    }


def measure(cell: Cell) -> dict[str, Any]:
    began = time.monotonic()
    clock = MockClock(autojump_threshold=0)
    result = trio.run(run_cell, cell, clock, clock=clock)
    return {**result, "took_s": round(time.monotonic() - began, 1)}


def size(length: int) -> str:
    return f"{length // MIB} MiB" if length >= MIB else f"{length // KIB} KiB"


def table(results: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| piece | overwrites | live share | of the device | measured | theory | new data | moved "
        "| tree and log |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in results:
        parts = each["parts"]
        data = sum(parts[name] for name in DATA_STREAMS)
        lines.append(
            f"| {size(each['piece_bytes'])} | {each['pattern']} | {each['live_share']:.0%} "
            f"| {each['live_share_of_device']:.0%} | {each['write_amplification']:.2f} "
            f"| {each['theory']:.2f} | {each['framed']:.2f} | {data - each['framed']:.2f} "
            f"| {parts['total'] - data:.2f} |"
        )
    return "\n".join(lines)


DATA_STREAMS = ("data", "hot", "survivors")


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    shares = [0.4 + 0.005 * step for step in range(109)]
    for axes, pattern in zip(both, ("uniform", "90/10"), strict=True):
        axes.plot(shares, [greedy_theory(u) for u in shares], "k-", label="greedy, in theory")
        if pattern == "90/10":
            label = "hot and cold apart, in theory"
            axes.plot(shares, [separated_theory(u) for u in shares], "k:", label=label)
        for piece_bytes, mark in zip(EXTENT_BYTES, "osv", strict=True):
            cells = [
                each
                for each in results
                if each["piece_bytes"] == piece_bytes and each["pattern"] == pattern
            ]
            axes.plot(
                [each["live_share"] for each in cells],
                [each["write_amplification"] for each in cells],
                mark + "-",
                label=f"{size(piece_bytes)} pieces",
            )
        axes.set_title(f"{pattern} overwrites")
        axes.set_xlabel("live data, as a share of what user data may take")
        axes.grid(alpha=0.3)
        axes.legend()
    both[0].set_ylabel("device bytes written for each user byte")
    both[0].set_ylim(1, 7)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pieces-kib", type=int, nargs="*", default=[4, 64, 1024])
    parser.add_argument("--shares", type=float, nargs="*", default=list(LIVE_SHARES))
    parser.add_argument("--patterns", nargs="*", default=["uniform", "90/10"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="a rough look: extents a fourth as large"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here (needs matplotlib)")
    arguments = parser.parse_args()
    scale = 4 if arguments.quick else 1
    cells = [
        Cell(kib * KIB, share, pattern == "90/10", EXTENT_BYTES[kib * KIB] // scale)
        for share in arguments.shares
        for kib in arguments.pieces_kib
        for pattern in arguments.patterns
    ]
    results = []
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs) as pool:
        for result in pool.map(measure, cells):
            results.append(result)
            print(json.dumps(result), file=sys.stderr, flush=True)
    results.sort(
        key=lambda each: (each["piece_bytes"], each["pattern"] != "uniform", each["live_share"])
    )
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
