"""Draws the extents of a device as a map in the terminal.

Role: each cell is one extent, or a few neighbours where there are too many. Three lines a row: what
kind it is (small letters: being written to), how much of it is live, how much is garbage.

Invariants:
    I1. No line is wider than the terminal. The map has at most ROWS_MAX rows.
    I2. A share of half a percent or more is never drawn as nothing; less always is.

Not here: what kinds there are (extent_kinds.py), whether colours are shown (rich decides).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from shardfs.cli.extent_kinds import KINDS, Extent, Kind, kind_of, sums_of
from shardfs.cli.output import size_text

if TYPE_CHECKING:
    from rich.text import Text

ROWS_MAX: Final = 12
_SHARE_SHOWN_MIN: Final = 0.005
_LABEL_WIDTH: Final = 9
_CELLS_STEP: Final = 8
_BARS: Final = " ▁▂▃▄▅▆▇█"
_DIGITS: Final = " 123456789"
_GARBAGE_STYLE: Final = "bright_red"


def map_lines(
    extents: Sequence[Extent], extent_bytes: int, width: int, *, unicode: bool = True
) -> Iterator[Text]:
    """The map, its legend below it.

    Args:
        extents: all of them, in order.
        width: columns of the terminal.
        unicode: bars may be drawn; else digits from 1 to 9.
    """
    from rich.text import Text

    cells = max(_CELLS_STEP, (width - _LABEL_WIDTH) // _CELLS_STEP * _CELLS_STEP)
    per_cell = max(1, -(-len(extents) // (cells * ROWS_MAX)))
    bars = _BARS if unicode else _DIGITS
    for row in range(0, len(extents), cells * per_cell):
        kinds, live, garbage = (
            Text(f"{label:<{_LABEL_WIDTH}}", style="dim") for label in (str(row), " live", " garb")
        )
        for first in range(row, min(row + cells * per_cell, len(extents)), per_cell):
            group = extents[first : first + per_cell]
            kind, sums = _kind_of_group(group), sums_of(group, extent_bytes)
            kinds.append(kind.letter.lower() if sums.open else kind.letter, style=kind.style)
            live.append(_bar(sums.live_share, bars), style=kind.style)
            garbage.append(_bar(sums.garbage_share, bars), style=_GARBAGE_STYLE)
        yield kinds
        yield from (line for line in (live, garbage) if line.plain[_LABEL_WIDTH:].strip())
    if per_cell > 1:
        yield Text(f"each cell is {per_cell} extents")
    yield Text()
    yield from _legend(extents, extent_bytes, width)


def _kind_of_group(group: Sequence[Extent]) -> Kind:
    """The kind that most of them are, free ones left out where there are others."""
    kinds = Counter(kind_of(each) for each in group)
    return max(kinds, key=lambda kind: (kind.name != "free", kinds[kind]))


def _bar(share: float, bars: str) -> str:
    steps = len(bars) - 1
    if share < _SHARE_SHOWN_MIN:
        return bars[0]
    return bars[min(steps, max(1, round(share * steps)))]


def _legend(extents: Sequence[Extent], extent_bytes: int, width: int) -> Iterator[Text]:
    from rich.text import Text

    header = f"  {'KIND':<36}{'EXTENTS':>7}{'LIVE':>12}{'GARBAGE':>12}"
    yield Text(header[:width].rstrip(), style="bold")
    for kind in KINDS:
        sums = sums_of((each for each in extents if kind_of(each) is kind), extent_bytes)
        line = Text(f"{kind.letter} ", style=kind.style)
        sizes = f"{size_text(sums.live_bytes):>12}{size_text(sums.garbage_bytes):>12}"
        line.append(f"{kind.meaning:<36}{sums.count:>7}{'' if kind.name == 'free' else sizes}", "")
        line.truncate(width)
        yield line
        for each in sums.open:
            share = each["write_pointer"] / extent_bytes
            doing = "is being written" if share else "is set aside"
            text = f"  {kind.letter.lower()} extent {each['extent']} {doing}: "
            text += f"write pointer {each['write_pointer']} ({100 * share:.0f} %)"
            open_line = Text(text, style=kind.style)
            open_line.truncate(width)
            yield open_line
