"""Compares shardfs' engine, as a library, with RocksDB, LMDB and SQLite.

Role: `scripts/bench --engine`. In each round every store does all rows in a process of its own,
in an order that changes from round to round. Prints Markdown; keeps raw figures if asked.

Not here: how the stores are used (bench_engine_systems.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bench_noise
import bench_tables
from bench_engine_systems import SYSTEMS
from bench_noise import Canary
from bench_systems import SCRIPTS, BenchError, as_nice_as_this, say, stop_in_order
from bench_tables import DOCS

SIZES = {"4 KiB": (4096, 20_000, 300), "1 MiB": (1024 * 1024, 300, 60)}
QUICK_PART = 5
"""--quick does so many times less."""
PUT_MARK = 0.5
WRITTEN_MARKS = {"4 KiB": 1.35, "1 MiB": 1.02}


def measure_one(name: str, folder: str | None, numbers: tuple[int, int, int]) -> dict[str, Any]:
    """One store with values of one size, in a process and a directory of its own.

    Raises:
        BenchError: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as own:
        words = [sys.executable, str(SCRIPTS / "bench_engine_systems.py"), name, own]
        done = subprocess.run(
            [*words, *map(str, numbers)], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    if done.returncode:
        raise BenchError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(folder: str | None, rounds: int, *, quick: bool) -> dict[str, Any]:
    """All stores, all sizes, all rounds."""
    canary, begun = Canary(), time.monotonic()
    rates: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    written: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    names = list(SYSTEMS)
    for number in range(rounds):
        first = number % len(names)
        for size, (value_bytes, count, durable) in SIZES.items():
            if quick:
                count, durable = count // QUICK_PART, durable // QUICK_PART
            for name in [*names[first:], *names[:first]]:
                canary.look()
                say(f"round {number + 1} of {rounds}: {size}, {name}")
                found = measure_one(name, folder, (value_bytes, count, durable))
                written[size][name].append(found["written"])
                for row, (done, seconds) in found["rows"].items():
                    rates[f"{row} {size}"][name].append(done / seconds)
    canary.look()
    return {
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "rounds": rounds,
        "minutes": (time.monotonic() - begun) / 60,
        "noise": canary.figures(),
        "rates": rates,
        "written": written,
    }


def report(figures: Mapping[str, Any]) -> str:
    """All tables, in Markdown."""
    names = list(SYSTEMS)
    own, *others = names
    lines = []
    for row, columns in figures["rates"].items():
        medians = {name: statistics.median(columns[name]) for name in names}
        lines.append(
            [f"{row} (/s)"]
            + [str(bench_tables.Spread.of(columns[name])) for name in names]
            + [f"{medians[own] / medians[name]:.2f}" for name in others]
        )
    written = [
        [size, *(f"{statistics.median(columns[name]):.3f}" for name in names)]
        for size, columns in figures["written"].items()
    ]
    return "\n\n".join(
        [
            f"{figures['machine']}; {figures['date']}, {figures['rounds']} rounds, "
            f"{figures['minutes']:.0f} minutes. {bench_noise.summary(figures['noise'])}",
            "Median (lowest to highest) a second; ratios are shardfs' median divided by the "
            "other's.",
            bench_tables.table(["row", *names, *(f"/ {name}" for name in others)], lines),
            "Bytes given to write calls for each byte put, logs, merges and the orderly end "
            "included (marks for shardfs: "
            + ", ".join(f"{mark} at {size}" for size, mark in WRITTEN_MARKS.items())
            + "):",
            bench_tables.table(["values", *names], written),
            "Missed: " + ("; ".join(misses(figures)) or "nothing") + ".",
        ]
    )


def misses(figures: Mapping[str, Any]) -> list[str]:
    """The marks that were not reached, in words."""
    put = figures["rates"]["put 4 KiB"]
    ratio = statistics.median(put["shardfs"]) / statistics.median(put["RocksDB"])
    found = [] if ratio >= PUT_MARK else [f"put 4 KiB / RocksDB {ratio:.2f} < {PUT_MARK}"]
    for size, mark in WRITTEN_MARKS.items():
        written = statistics.median(figures["written"][size]["shardfs"])
        if written > mark:
            found.append(f"bytes written for each byte of {size} {written:.3f} > {mark}")
    return found


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench --engine", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=None, help="3; with --quick 1")
    parser.add_argument("--quick", action="store_true", help="less of everything, one round")
    parser.add_argument("--folder", help="where the stores are made")
    parser.add_argument("--json", metavar="FILE", help="keep the raw figures")
    parser.add_argument("--from-json", metavar="FILE", help="measure nothing, report these figures")
    parser.add_argument("--write-docs", action="store_true", help="tables into docs/")
    options = parser.parse_args()
    with stop_in_order("bench"):
        if options.from_json:
            figures = json.loads(Path(options.from_json).read_text())
        else:
            rounds = options.rounds or (1 if options.quick else 3)
            with as_nice_as_this():
                figures = measure(options.folder, rounds, quick=options.quick)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    print(report(figures))
    if options.write_docs:
        bench_tables.write_part(DOCS / "performance.md", "bench-engine", report(figures))
        (DOCS / "bench-engine.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
