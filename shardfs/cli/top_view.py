"""How `shardfs top` looks: the figures of one interval as tables that fit the terminal.

Role: figures in, something that rich can print out. Narrow terminals get what matters most below
each other; wide ones get everything side by side, with the distribution of durations.

Invariants:
    I1. Nothing is wider or higher than the terminal: requests that came least are left out first,
        and how many is said.

Not here: the figures (cli/top_figures.py), the terminal (cli/top.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shardfs.cli.output import printable, size_text

_WIDE_COLUMNS: Final = 130
"""From this width on everything stands side by side."""
_FIXED_ROWS: Final = 17
"""Lines of a narrow view that are not requests."""
_ROWS_MIN: Final = 3
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_SPREAD: Final = range(11, 33)
"""Powers of 2 of a nanosecond that the distribution shows: 1 us to 4 s."""
_TROUBLE: Final = frozenset({"EIO", "ENOSPC", "EROFS", "ESTALE"})
"""Answers that are worth a look; others, such as ENODATA, are everyday."""
_BAR_WIDTH: Final = 20
_ALARMED: Final = 0.5
"""A debt above this slows writers (engine/pacing.py)."""

Figures = dict[str, Any]


def view(figures: Figures, columns: int, rows: int, hint: str = "") -> RenderableType:
    """One picture of a mount.

    Args:
        figures: see top_figures.figures.
        columns, rows: of the terminal.
        hint: a few words for the last line.
    """
    is_wide = columns >= _WIDE_COLUMNS
    room = max(_ROWS_MIN, rows - (5 if is_wide else _FIXED_ROWS))
    requests = _requests(figures, room, with_spread=is_wide)
    parts: list[RenderableType] = [_head(figures), _totals(figures), Text()]
    facts = _facts(figures)
    if is_wide:
        side = Table.grid(padding=(0, 4))
        side.add_row(requests, _fact_table(facts))
        parts.append(side)
    else:
        parts += [requests, Text(), _fact_table(facts)]
    if hint:
        parts.append(Text(hint, style="dim"))
    return Group(*parts)


def _head(figures: Figures) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    is_healthy = figures["health"] == "healthy"
    text.append(figures["health"], style="bold green" if is_healthy else "bold red")
    text.append(f"  {printable(figures['mountpoint'])}", style="bold")
    text.append(f"  {printable(figures['device'])}  {size_text(figures['device_bytes'])}")
    if figures["reason"]:
        text.append(f"  {printable(figures['reason'])}", style="red")
    return text


def _totals(figures: Figures) -> Text:
    everything = figures["all_requests"]
    errors = ", ".join(
        f"{name} {count}" for name, count in figures["errors"].items() if count and name in _TROUBLE
    )
    half, most = time_text(everything["p50_us"]), time_text(everything["p99_us"])
    return Text(
        f"{everything['per_s']:,.0f} requests/s, half within {half}, 99 % within {most}"
        + (f"; errors: {errors}" if errors else ""),
        no_wrap=True,
        overflow="ellipsis",
    )


def _requests(figures: Figures, room: int, *, with_spread: bool) -> Table:
    """What is asked for, the most frequent first."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("REQUEST", no_wrap=True, min_width=14)
    for name in ("PER S", "P50", "P99", "TOTAL"):
        table.add_column(name, justify="right", no_wrap=True, min_width=9)
    if with_spread:
        table.add_column("1 µs" + "DURATIONS".center(len(_SPREAD) - 7) + "4 s", no_wrap=True)
    ranked = sorted(
        figures["requests"].items(), key=lambda item: (-item[1]["per_s"], -item[1]["total"])
    )
    shown = ranked if len(ranked) <= room else ranked[: room - 1]
    for name, each in shown:
        is_quiet = not each["per_s"]
        cells = [
            name,
            "-" if is_quiet else f"{each['per_s']:,.0f}",
            "-" if is_quiet else time_text(each["p50_us"]),
            "-" if is_quiet else time_text(each["p99_us"]),
            f"{each['total']:,}",
        ]
        if with_spread:
            cells.append(_spread(each["buckets"]))
        table.add_row(*cells, style="dim" if is_quiet else "")
    if len(shown) < len(ranked):
        table.add_row(f"{len(ranked) - len(shown)} more", style="dim")
    if not ranked:
        table.add_row("none yet", style="dim")
    return table


def _spread(buckets: Sequence[Sequence[int]]) -> str:
    """How durations are distributed: one column for each power of 2."""
    counts = dict.fromkeys(_SPREAD, 0)
    for upper, count in buckets:
        exponent = min(max(upper.bit_length() - 1, _SPREAD[0]), _SPREAD[-1])
        counts[exponent] += count
    highest = max(counts.values())
    if not highest:
        return ""
    return "".join(_BLOCKS[-(-count * (len(_BLOCKS) - 1) // highest)] for count in counts.values())


def _facts(figures: Figures) -> list[tuple[str, RenderableType]]:
    """Everything but requests: a word and a line each."""
    rates = {
        name: f"{size_text(int(figures[f'{name}_bytes_per_s']))}/s"
        for name in ("read", "written", "device_read", "device_written", "moved")
    }
    share = figures["cache_hit_share"]
    space, total = figures["space"], figures["device_bytes"]
    facts: list[tuple[str, RenderableType]] = [
        ("files", f"{rates['read']} read, {rates['written']} written"),
        (
            "buffered",
            f"{size_text(figures['dirty_bytes'])} dirty in {figures['dirty_files']:,} files, "
            f"{size_text(figures['queued_bytes'])} queued",
        ),
        (
            "device",
            f"{rates['device_read']} read, {rates['device_written']} written, "
            f"{figures['device_flushes_per_s']:,.0f} flushes/s",
        ),
        (
            "cache",
            ("no look-ups" if share is None else f"{100 * share:.1f} % hits")
            + f", {size_text(figures['caches_bytes'])}"
            + f" of {size_text(figures['caches_bound_bytes'])}",
        ),
        (
            "server",
            f"{100 * figures['processor_share']:.0f} % of a core, "
            f"{size_text(figures['resident_bytes'])} of memory "
            f"(bound {size_text(figures['memory_bound_bytes'])})",
        ),
    ]
    remarks = {
        "checkpoint": f"{size_text(figures['uncommitted_bytes'])} not committed",
        "reclamation": f"{size_text(space['garbage_bytes'])} garbage, {rates['moved']} moved",
        "queue": "",
    }
    for work, debt in figures["debts"].items():
        style = "red" if debt >= 1 else "yellow" if debt > _ALARMED else "green"
        line = _bar(debt, style)
        line.append(f" {100 * debt:3.0f} %  {remarks.get(work, '')}".rstrip())
        facts.append((work, line))
    used = 1 - figures["available_bytes"] / total
    line = _bar(used, "blue")
    line.append(f" {100 * used:3.0f} %  {size_text(figures['available_bytes'])} can be written")
    facts.append(("space", line))
    if figures["removed_files_waiting"]:
        facts.append(("removed", f"{figures['removed_files_waiting']:,} files not yet freed"))
    if (scrub := _scrub_text(figures["scrub"])) is not None:
        facts.append(("scrub", scrub))
    return facts


def _scrub_text(scrub: Figures) -> Text | None:
    """How far a scrub is, while there is something to say of it."""
    is_clean = not scrub["damaged_bytes"] and not scrub["tree_damaged"]
    if is_clean and scrub["state"] in ("idle", "done"):
        return None
    share = scrub["verified_bytes"] / max(1, scrub["total_bytes"])
    text = _bar(share, "blue")
    text.append(f" {100 * share:3.0f} %  {scrub['state']}")
    if not is_clean:
        found = [size_text(scrub["damaged_bytes"])] if scrub["damaged_bytes"] else []
        found += [f"{scrub['tree_damaged']} parts of the tree"] if scrub["tree_damaged"] else []
        text.append(f", damaged: {', '.join(found)}", style="red")
    return text


def _fact_table(facts: Sequence[tuple[str, RenderableType]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=12)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for name, value in facts:
        table.add_row(name, value)
    return table


def _bar(share: float, style: str) -> Text:
    filled = min(_BAR_WIDTH, round(max(share, 0) * _BAR_WIDTH))
    text = Text("[")
    text.append("#" * filled, style=style)
    text.append("." * (_BAR_WIDTH - filled), style="dim")
    text.append("]")
    return text


def time_text(microseconds: float) -> str:
    """A duration for people."""
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    if microseconds < 1_000_000:
        return f"{microseconds / 1000:.1f} ms"
    return f"{microseconds / 1_000_000:.1f} s"
