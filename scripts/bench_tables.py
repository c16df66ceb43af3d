"""What the benchmarks make of their figures: medians, ratios, marks, Markdown tables.

Role: pure functions from raw figures to text, and putting generated text into a document between
two marks, so that nobody copies a table by hand.

A *cell* is what one system did in one row: {"rates": [one a round], "failed": reason or "",
"flushes": [of the device, for each thing done], "fsyncs": for each thing done}.

Not here: measuring (bench_peers.py), plots (bench_plots.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Cell = Mapping[str, Any]
Columns = Mapping[str, Cell]
DOCS = Path(__file__).parent.parent / "docs"
PEER_MARK = 1.2
FLOOR_MARK = 0.8
EXT4_MARKS = {"seq write+fsync": 0.95, "seq read cold": 0.9, "durable put 4K": 1.0}
KERNEL_ROWS = frozenset({"stat again"})
"""Answered by the kernel's cache wherever a server allows it: there is no mark."""
PROMISE_ROW = "durable put 4K"
METADATA_ROWS = frozenset(
    {"create 4K", "stat hot", "stat missing", "ls -l cold", "rename", "unlink"}
    | {"mixed small calls", "create 4K x4 procs", "rm -rf tree"}
)
COLD_WORDS = frozenset({"cold", "new"})
"""One of these is in the name of a row that begins with dropped caches."""
PROMISE_KEPT = 0.95
"""Flushes for each fsync; a server may share one among a few, and one more or less is the disk's
other users."""


@dataclass(frozen=True)
class Spread:
    """The median of some figures, with the lowest and the highest."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Of at least one figure."""
        return cls(statistics.median(figures), min(figures), max(figures))

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.lowest)} to {number(self.highest)})"


def number(figure: float) -> str:
    """Three digits or all before the point."""
    if figure >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}"


def median(cell: Cell | None) -> float | None:
    """The median rate of a cell; None: it failed, or was not measured."""
    if cell is None or cell["failed"] or not cell["rates"]:
        return None
    return float(statistics.median(cell["rates"]))


def breaks_promise(cell: Cell) -> bool:
    """There were fewer flushes of the device than calls of fsync."""
    fsyncs, flushes = cell.get("fsyncs", 0), cell.get("flushes") or []
    return bool(fsyncs and flushes and statistics.median(flushes) < PROMISE_KEPT * fsyncs)


def breakers(rows: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """The systems whose durable puts reach no disk: so no fsync of theirs is a promise.

    One fsync at the end of a row may look kept by somebody else's flush.
    """
    puts = rows[PROMISE_ROW]["systems"] if PROMISE_ROW in rows else {}
    return frozenset(name for name, cell in puts.items() if breaks_promise(cell))


def best_peer(
    columns: Columns, kinds: Mapping[str, str], broken: Collection[str] = ()
) -> tuple[str, float] | None:
    """The fastest FUSE peer of a row that keeps its promise: (name, rate); None: there is none.

    Args:
        broken: whose fsync promises nothing.
    """
    rates = {
        name: rate
        for name, cell in columns.items()
        if kinds[name] == "fuse"
        and not _counts_for_nothing(name, cell, broken)
        and (rate := median(cell)) is not None
    }
    return max(rates.items(), key=lambda item: item[1]) if rates else None


def _counts_for_nothing(name: str, cell: Cell, broken: Collection[str]) -> bool:
    return breaks_promise(cell) or bool(name in broken and cell.get("fsyncs"))


@dataclass(frozen=True)
class Ratios:
    """shardfs divided by others in one row; None where there is nothing to divide by."""

    peer: float | None
    peer_name: str
    ext4: float | None
    floor: float | None

    def misses(self, row: str) -> list[str]:
        """The marks of a row that were not reached, in words."""
        if row in KERNEL_ROWS:
            return []
        wanted = [
            (self.peer, PEER_MARK, "best FUSE"),
            (self.ext4, EXT4_MARKS.get(row, 0.0), "ext4"),
            (self.floor, FLOOR_MARK if row in METADATA_ROWS else 0.0, "floor"),
        ]
        return [
            f"{what} {ratio:.2f} < {mark:g}"
            for ratio, mark, what in wanted
            if ratio is not None and ratio < mark
        ]


def ratios(columns: Columns, kinds: Mapping[str, str], broken: Collection[str] = ()) -> Ratios:
    """How shardfs compares in a row."""
    own = median(columns.get("shardfs"))

    def over(other: float | None) -> float | None:
        return own / other if own is not None and other else None

    peer = best_peer(columns, kinds, broken)
    return Ratios(
        over(peer[1]) if peer else None,
        peer[0] if peer else "",
        over(median(columns.get("ext4"))),
        over(median(columns.get("floor"))),
    )


def table(head: Sequence[str], lines: Sequence[Sequence[str]], numbers_from: int = 1) -> str:
    """A Markdown table; columns from `numbers_from` on are aligned to the right."""
    rule = ["---" if at < numbers_from else "---:" for at in range(len(head))]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in [head, rule, *lines]]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _ratio(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


def rates_table(rows: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, str]) -> str:
    """Medians of every system in every row, with ratios of shardfs and missed marks."""
    lines, broken = [], breakers(rows)
    for row, found in rows.items():
        columns: Columns = found["systems"]
        cells = []
        for name in kinds:
            rate = median(columns.get(name))
            cell = columns.get(name)
            mark = "†" if cell and _counts_for_nothing(name, cell, broken) else ""
            failed = cell and cell["failed"]
            cells.append("failed" if failed else "–" if rate is None else number(rate) + mark)
        compared = ratios(columns, kinds, broken)
        peer = f"{_ratio(compared.peer)} ({compared.peer_name})" if compared.peer_name else "–"
        misses = "; ".join(compared.misses(row)) or (
            "met" if compared.peer and row not in KERNEL_ROWS else "–"
        )
        compared_cells = [peer, _ratio(compared.ext4), _ratio(compared.floor), misses]
        lines.append([f"{row} ({found['unit']})", *cells, *compared_cells])
    head = ["row", *kinds, "/ best FUSE", "/ ext4", "/ floor", "marks"]
    return table(head, lines)


def spreads_table(rows: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, str]) -> str:
    """Median with lowest and highest of every system in every row."""
    lines = []
    for row, found in rows.items():
        cells = []
        for name in kinds:
            cell = found["systems"].get(name)
            rate = median(cell)
            cells.append("–" if rate is None else str(Spread.of(cell["rates"])))
        lines.append([row, *cells])
    return table(["row", *kinds], lines)


def promises_table(rows: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, str]) -> str:
    """Flushes of the device and bytes written to it for each durable put."""
    cells = rows[PROMISE_ROW]["systems"] if PROMISE_ROW in rows else {}
    lines = [
        [
            name,
            f"{statistics.median(cell['flushes']):.2f}",
            f"{statistics.median(cell['written_bytes']):,.0f}",
            "no" if breaks_promise(cell) else "yes",
        ]
        for name, cell in cells.items()
        if cell["flushes"] and kinds[name] != "floor"
    ]
    return table(
        ["system", "flushes for each durable put", "bytes written for each", "reaches the disk"],
        lines,
    )


def reads_table(rows: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, str]) -> str:
    """Bytes read from the disk by every system in rows that are meant to be cold."""
    names = [name for name, kind in kinds.items() if kind != "floor"]
    lines = []
    for row, found in rows.items():
        if COLD_WORDS.isdisjoint(row.split()):
            continue
        cells = [found["systems"].get(name, {}).get("read_bytes") for name in names]
        lines.append([row, *(f"{statistics.median(each):,.0f}" if each else "–" for each in cells)])
    return table(["row", *names], lines)


def failures(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What failed, and why, one line each."""
    return [
        f"{name}, {row}: {cell['failed']}"
        for row, found in rows.items()
        for name, cell in found["systems"].items()
        if cell["failed"]
    ]


def begin_mark(name: str) -> str:
    """The line in a document behind which a generated part stands."""
    return f"<!-- {name}: written by scripts/bench, not by hand -->"


def put_into(document: str, name: str, text: str) -> str:
    """A document with the generated part of this name replaced.

    Raises:
        ValueError: it has no such part.
    """
    begin, end = begin_mark(name), f"<!-- {name} ends -->"
    before, found, rest = document.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"no part between {begin!r} and {end!r}")
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"


def write_part(path: Path, name: str, text: str) -> None:
    """Replace a generated part of a file."""
    path.write_text(put_into(path.read_text(), name, text))
