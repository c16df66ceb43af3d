"""How commands print: text for people, or JSON for programs.

Role: one place for tables, sizes and times, so that every command looks alike.

Invariants:
    I1. With --json, standard output is JSON and nothing else; keys are never renamed lightly.

Not here: errors (cli/errors.py), logging (cli/main.py).
"""

from __future__ import annotations

import datetime
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import click

_WIDE_COLUMNS = 130
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def print_json(value: Any) -> None:
    """A value as one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


def print_json_line(value: Any) -> None:
    """A value as one line of JSON, for long lists."""
    click.echo(json.dumps(value, ensure_ascii=True))


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line, the values below each other."""
    pairs = list(facts)
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        print_line(f"{name:<{width}}  {value}", indent=width + 2)


def print_resized(target: str, facts: dict[str, Any], *, as_json: bool) -> None:
    """The size of a store before and after it was changed, as a mount or device answers it."""
    if as_json:
        print_json(facts)
        return
    moved = f"{size_text(facts['moved_bytes'])} moved, " if "moved_bytes" in facts else ""
    click.echo(
        f"{target}: {size_text(facts['before_bytes'])} -> {size_text(facts['device_bytes'])}, "
        f"{facts['extent_count']} extents; {moved}{size_text(facts['free_bytes'])} free"
    )


def print_line(text: str, *, indent: int = 4) -> None:
    """A line. On a terminal that is narrower it is broken between words, and goes on below, behind
    `indent` spaces; a number is broken only if it alone is wider."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    text = text.rstrip()
    if not columns or len(text) <= columns:
        click.echo(text)
        return
    head = len(text) - len(text.lstrip())
    broken = textwrap.TextWrapper(
        columns,
        initial_indent=text[:head],
        subsequent_indent=" " * min(indent, columns // 2),
        break_on_hyphens=False,
        replace_whitespace=False,
        expand_tabs=False,
    )
    for part in broken.wrap(text[head:]):
        click.echo(part.rstrip())


def is_wide() -> bool:
    """There is room for columns that few people need: the terminal is wide, or there is none."""
    return not sys.stdout.isatty() or shutil.get_terminal_size().columns >= _WIDE_COLUMNS


def print_row(cells: Sequence[str], widths: Sequence[int]) -> None:
    """One line of a table; a negative width means right-aligned, the last cell is as it is."""
    *first, last = cells
    parts = [
        cell.rjust(-width) if width < 0 else cell.ljust(width)
        for cell, width in zip(first, widths, strict=False)
    ]
    print_line("  ".join([*parts, last]), indent=sum(len(part) + 2 for part in parts))


def size_text(length: int) -> str:
    """A number of bytes for people: 1536 is "1.5 KiB"."""
    if length < 1024:
        return f"{length} B"
    value = float(length)
    for unit in _UNITS:
        value /= 1024
        if round(value, 1) < 1024 or unit == _UNITS[-1]:
            break
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"


def time_text(time_ns: int) -> str:
    """A moment for people, in UTC.

    Args:
        time_ns: nanoseconds since 1970.
    """
    moment = datetime.datetime.fromtimestamp(time_ns // 10**9, tz=datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def printable(text: str) -> str:
    """A path or label as one line that no terminal takes for a command."""
    raw = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in raw)
