"""Plots of the benchmarks, as SVG files that do not change unless the figures do.

Not here: measuring, tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from bench_tables import PEER_MARK, breakers, ratios

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "shardfs"
from matplotlib import pyplot  # noqa: E402  (the way of drawing is chosen first)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)


def plot_peers(figures: Mapping[str, Any], path: Path) -> None:
    """How many times as fast as the best peer, as ext4 and as the floor shardfs is, row by row."""
    rows = list(figures["rows"])[::-1]
    broken = breakers(figures["rows"])
    found = [ratios(figures["rows"][row]["systems"], figures["kinds"], broken) for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 0.36 * len(rows) + 1.2))
    series = (
        ("best FUSE peer", [each.peer for each in found], "o", "tab:blue"),
        ("ext4", [each.ext4 for each in found], "s", "tab:gray"),
        ("floor", [each.floor for each in found], "^", "tab:orange"),
    )
    for label, values, marker, color in series:
        points = [(value, at) for at, value in enumerate(values) if value]
        axes.scatter(*zip(*points, strict=True), label=label, marker=marker, color=color, zorder=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.axvline(PEER_MARK, color="tab:blue", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("rate of shardfs divided by the rate of ...; dashed: the mark beside peers")
    axes.grid(axis="both", color="0.9", zorder=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    _save(figure, path)


def plot_memory(figures: Mapping[str, Any], path: Path) -> None:
    """The most memory that each server had in each row, and the bound of shardfs."""
    rows = list(figures["rows"])
    servers = [name for name, kind in figures["kinds"].items() if kind in ("shardfs", "fuse")]
    figure, axes = pyplot.subplots(figsize=(9, 4))
    for name in servers:
        cells = [figures["rows"][row]["systems"].get(name) for row in rows]
        sizes = [cell["resident_bytes"] / 2**20 if cell else None for cell in cells]
        is_own = figures["kinds"][name] == "shardfs"
        axes.plot(
            range(len(rows)), sizes, "o-", label=name, linewidth=2 if is_own else 0.8, markersize=4
        )
    axes.axhline(512, color="black", linestyle="--", linewidth=0.8, label="bound (-o cache)")
    axes.set_yscale("log")
    axes.set_ylabel("most resident in the row, MiB")
    axes.set_xticks(range(len(rows)), rows, rotation=60, ha="right", fontsize="small")
    axes.grid(color="0.9", zorder=0)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, path)


def plot_scale(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Cost a call, memory, time to open and bytes written, over the number of files."""
    figure, ((calls, memory), (opening, written)) = pyplot.subplots(2, 2, figsize=(10, 7))
    files = [point["files"] for point in points]
    for call in points[0]["calls"]:
        calls.plot(files, [point["calls"][call]["median_us"] for point in points], "o-", label=call)
    calls.set_yscale("log")
    calls.set_ylabel("median call, microseconds")
    calls.legend(fontsize="x-small", ncols=2)
    memory.plot(files, [point["resident_bytes"] / 2**20 for point in points], "o-")
    memory.axhline(512, color="black", linestyle="--", linewidth=0.8)
    memory.set_ylabel("resident, MiB")
    for key, label in (("open_clean_s", "closed in order"), ("open_crash_s", "after a crash")):
        opening.plot(files, [point[key] for point in points], "o-", label=label)
    opening.axhline(1, color="black", linestyle="--", linewidth=0.8)
    opening.set_ylabel("open, seconds")
    opening.legend()
    written.plot(files, [point["written_bytes"] for point in points], "o-")
    written.set_ylabel("bytes written for each file of 4 KiB")
    written.set_ylim(bottom=0)
    for axes in (calls, memory, opening, written):
        axes.set_xscale("log")
        axes.set_xlabel("files")
        axes.grid(color="0.9")
    figure.tight_layout()
    _save(figure, path)
