"""Compares shardfs with the kernel's file systems, other FUSE file systems and the floor.

Role: `scripts/bench` without --engine or --scale. In each round every file system is made anew on
the same device and takes all rows, one after the other, in an order that changes from round to
round; between them a canary looks at the machine. Prints Markdown; keeps raw figures if asked.

Not here: what the rows do (bench_rows.py), how file systems are mounted (bench_systems.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import bench_noise
import bench_tables
from bench_file_systems import ALL, shardfs_system
from bench_noise import Canary
from bench_rows import QUICK, Rows, Sizes, make_archive, make_tree, time_row
from bench_systems import (
    MIB,
    BenchError,
    Counts,
    Place,
    System,
    alive,
    as_nice_as_this,
    loop_device,
    say,
    stop_in_order,
)
from bench_tables import DOCS

DEVICE_BYTES = 3 * 1024 * MIB
QUICK_DEVICE_BYTES = 1280 * MIB
FSYNCS = {"durable put 4K": "each", "seq write+fsync": "one", "rand overwrite 4K+fsync": "one"}
NEEDED = {
    "create 4K": "stat hot, stat again, stat missing, ls -l cold, read 4K cold, read 4K hot, "
    "rename",
    "rename": "unlink",
    "seq write+fsync": "seq read cold, rand overwrite 4K+fsync, rand read 4K cold",
    "cp -r tree": "du + grep tree cold, tar c tree, git status, rm -rf tree",
    "untar small files": "ls -l new mount, read 4K new mount",
}
"""Row -> rows that work on what it has left."""
COUNTED = ("rates", "flushes", "read_bytes", "written_bytes", "server_us")
EMPTY_CELL = {"failed": "", "resident_bytes": 0, "fsyncs": 0.0}
Results = dict[str, dict[str, Any]]


def wanted_rows(wishes: Sequence[str], known: Sequence[str]) -> set[str]:
    """The rows to run: all that contain one of the wishes, and those they need.

    Raises:
        BenchError: a wish fits none.
    """
    if not wishes:
        return set(known)
    for wish in wishes:
        if not any(wish in row for row in known):
            raise BenchError(f"no row has {wish!r} in its name; rows: {', '.join(known)}")
    rows = {row for row in known if any(wish in row for wish in wishes)}
    while True:
        needed = {base for base, users in NEEDED.items() if rows & set(users.split(", "))} - rows
        if not needed:
            return rows
        rows |= needed


def measure_round(
    system: System, place: Place, rows: Rows, wanted: set[str], results: Results
) -> None:
    """All wanted rows once on a fresh file system of this kind; figures go into `results`."""
    plan = [row for row in rows.plan() if row.name in wanted]
    for row in plan:
        found = results.setdefault(row.name, {"unit": row.unit, "systems": {}})
        found["systems"].setdefault(system.name, dict(EMPTY_CELL) | {each: [] for each in COUNTED})
    try:
        with alive(system, place) as life:
            for row in plan:
                if row.anew:
                    life.mount_anew()
                cell, mount = results[row.name]["systems"][system.name], life.mount
                mount.forget_peak()
                before = mount.counts()
                try:
                    count, seconds = time_row(row)
                except BenchError as error:
                    cell["failed"] = str(error)
                    continue
                note(cell, row.name, count, seconds, before, mount.counts())
    except (BenchError, OSError) as error:
        for row in plan:
            cell = results[row.name]["systems"][system.name]
            cell["failed"] = cell["failed"] or str(error)


def note(
    cell: dict[str, Any], row: str, count: int, seconds: float, before: Counts, after: Counts
) -> None:
    """Put what was measured into a cell, for each of the `count` things that were done."""
    cell["rates"].append(count / seconds)
    cell["flushes"].append((after.flushes - before.flushes) / count)
    cell["read_bytes"].append((after.read_bytes - before.read_bytes) / count)
    cell["written_bytes"].append((after.written_bytes - before.written_bytes) / count)
    cell["server_us"].append(1e6 * (after.server_s - before.server_s) / count)
    cell["resident_bytes"] = max(cell["resident_bytes"], after.peak_bytes)
    cell["fsyncs"] = {"each": count, "one": 1}.get(FSYNCS.get(row, ""), 0) / count


def measure(
    systems: Sequence[System],
    folder: Path,
    sizes: Sizes,
    rounds: int,
    wishes: Sequence[str],
    device_bytes: int,
) -> dict[str, Any]:
    """Everything: raw figures of all rounds."""
    canary, results, begun = Canary(), Results(), time.monotonic()
    mountpoint, stores, source = folder / "mnt", folder / "stores", folder / "source"
    for path in (mountpoint, stores, source):
        path.mkdir()
    tree, archive = make_tree(source), make_archive(source, sizes.files // 4)
    known = [row.name for row in Rows(Path("/"), replace(sizes, files=4), tree, archive).plan()]
    wanted = wanted_rows(wishes, known)
    with loop_device(folder, device_bytes) as device:
        place = Place(device, mountpoint, stores)
        canary.look()
        for number in range(rounds):
            first = number * max(1, len(systems) // rounds)
            for system in [*systems[first:], *systems[:first]]:
                say(f"round {number + 1} of {rounds}: {system.name}")
                rows = Rows(mountpoint, sizes, tree, archive)
                measure_round(system, place, rows, wanted, results)
                canary.look()
    return {
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "rounds": rounds,
        "minutes": (time.monotonic() - begun) / 60,
        "sizes": asdict(sizes),
        "kinds": {system.name: system.kind for system in systems},
        "noise": canary.figures(),
        "rows": {row: results[row] for row in known if row in results},
    }


def report(figures: Mapping[str, Any]) -> str:
    """All tables and what has to be said beside them, in Markdown."""
    rows, kinds, sizes = figures["rows"], figures["kinds"], figures["sizes"]
    parts = [
        f"{figures['machine']}; {figures['date']}, {figures['rounds']} rounds of "
        f"{sizes['files']:,} files, {sizes['durable']} durable puts and {sizes['large_mib']} MiB, "
        f"{figures['minutes']:.0f} minutes. {bench_noise.summary(figures['noise'])}",
        "Medians; ratios are shardfs' median divided by the other's. † fsync returned without a "
        "flush of the device: not counted as a peer in this row.",
        bench_tables.rates_table(rows, kinds),
    ]
    absent = [f"{name}: {why}" for name, why in figures["absent"].items()]
    failed = bench_tables.failures(rows)
    if absent or failed:
        parts.append("\n".join(f"- {line}" for line in ["What is missing:", *absent, *failed][1:]))
    parts += [
        "What an fsync costs and whether it reaches the disk, counted by the device:",
        bench_tables.promises_table(rows, kinds),
        "Bytes read from the disk for each thing done, where the kernel's caches had been dropped; "
        "what is not read is remembered by the server, or not yet given up by the kernel:",
        bench_tables.reads_table(rows, kinds),
        f"The most that shardfs' server has taken of the machine's memory: {most(rows)}.",
        "Median (lowest to highest) of the rounds:",
        bench_tables.spreads_table(rows, kinds),
    ]
    return "\n\n".join(parts) + "\n"


def most(rows: Mapping[str, Any]) -> str:
    """The row in which shardfs' server was largest, and how large it was."""
    sizes = {
        row: found["systems"]["shardfs"]["resident_bytes"]
        for row, found in rows.items()
        if "shardfs" in found["systems"]
    }
    row = max(sizes, key=sizes.__getitem__, default="")
    return f"{sizes[row] / MIB:.0f} MiB ({row})" if row else "not measured"


def write_docs(figures: Mapping[str, Any]) -> None:
    """Put tables and plots into docs/."""
    import bench_plots

    text = f"{report(figures)}\n![ratios of each row](bench-peers.svg)\n"
    text += "\n![memory of the server in each row](bench-memory.svg)\n"
    bench_tables.write_part(DOCS / "performance.md", "bench-peers", text)
    (DOCS / "bench-peers.json").write_text(json.dumps(figures, indent=1) + "\n")
    bench_plots.plot_peers(figures, DOCS / "bench-peers.svg")
    bench_plots.plot_memory(figures, DOCS / "bench-memory.svg")


def chosen_systems(names: str, also: Sequence[str]) -> tuple[list[System], dict[str, str]]:
    """The systems to measure, and those that cannot be had with the reason.

    Raises:
        BenchError: a name is unknown.
    """
    systems = [*ALL, *(shardfs_system(options) for options in also)]
    if names:
        wanted = names.split(",")
        unknown = set(wanted) - {system.name for system in systems}
        if unknown:
            known = ", ".join(system.name for system in systems)
            raise BenchError(f"unknown: {', '.join(sorted(unknown))}; systems: {known}")
        wanted += [f"shardfs -o {options}" for options in also]
        systems = [system for system in systems if system.name in wanted]
    absent = {system.name: why for system in systems if (why := system.missing())}
    return [system for system in systems if system.name not in absent], absent


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=None, help="3; with --quick 1")
    parser.add_argument("--quick", action="store_true", help="less of everything, one round")
    parser.add_argument("--rows", default="", help="parts of names, separated by commas")
    parser.add_argument("--systems", default="", help="names, separated by commas")
    parser.add_argument(
        "--also", action="append", default=[], metavar="OPTIONS", help="one more column: -o OPTIONS"
    )
    parser.add_argument("--folder", help="where the image is made (4 GiB, on the disk to measure)")
    parser.add_argument("--json", metavar="FILE", help="keep the raw figures")
    parser.add_argument("--from-json", metavar="FILE", help="measure nothing, report these figures")
    parser.add_argument("--write-docs", action="store_true", help="tables and plots into docs/")
    return parser.parse_args()


def measure_chosen(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what the command line asks for.

    Raises:
        BenchError: it cannot be done here.
    """
    if os.getuid() != 0:
        raise BenchError("needs root (loop devices, mounts, dropping caches)")
    systems, absent = chosen_systems(options.systems, options.also)
    for name, why in absent.items():
        say(f"left out: {name}: {why}")
    rounds = options.rounds or (1 if options.quick else 3)
    wishes = [wish for wish in options.rows.split(",") if wish]
    sizes, device_bytes = Sizes(), DEVICE_BYTES
    if options.quick:
        sizes, device_bytes = QUICK, QUICK_DEVICE_BYTES
    with (
        as_nice_as_this(),
        tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder,
    ):
        figures = measure(systems, Path(folder), sizes, rounds, wishes, device_bytes)
    return figures | {"absent": absent}


def main() -> None:
    """Measure, print, clean up."""
    options = parse()
    with stop_in_order("bench"):
        if options.from_json:
            figures = json.loads(Path(options.from_json).read_text())
        else:
            figures = measure_chosen(options)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    print(report(figures), end="")
    if options.write_docs:
        write_docs(figures)


if __name__ == "__main__":
    main()
