"""Draws the extents of a device as an SVG: a page for a browser, one box an extent.

Role: a box is filled from below: live bytes in the colour of its kind, garbage hatched above them,
a line at the write pointer of an extent that is being written to. Pointing at a box tells more.

Invariants:
    I1. Nothing but text goes in that is escaped; no script, no link, nothing is loaded.

Not here: what kinds there are (extent_kinds.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from xml.sax.saxutils import escape

from shardfs.cli.extent_kinds import KINDS, Extent, kind_of, sums_of
from shardfs.cli.output import size_text

_COLUMNS: Final = 64
_BOX: Final = (14, 20)
_GAP: Final = 2
_MARGIN: Final = 16
_LINE: Final = 18
_STYLE: Final = (
    "text{font:12px sans-serif;fill:#333} .h{font-size:15px;font-weight:bold} "
    ".b{fill:#fff;stroke:#999;stroke-width:.5} .p{stroke:#000;stroke-width:1.5}"
)
_GARBAGE: Final = (
    '<pattern id="g" width="4" height="4" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect width="4" height="4" fill="#f4c7c3"/>'
    '<rect width="1.5" height="4" fill="#d1495b"/></pattern>'
)


def draw_svg(extents: Sequence[Extent], extent_bytes: int, title: str) -> str:
    """The picture as a text."""
    columns = min(_COLUMNS, max(1, len(extents)))
    rows = -(-len(extents) // columns)
    width = max(560, 2 * _MARGIN + columns * (_BOX[0] + _GAP))
    top = _MARGIN + _LINE + 8
    boxes_end = top + rows * (_BOX[1] + _GAP) + _LINE
    height = boxes_end + (len(KINDS) + 2) * _LINE + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">',
        f"<style>{_STYLE}</style><defs>{_GARBAGE}</defs>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(_MARGIN, _MARGIN + 12, title, "h"),
    ]
    for number, extent in enumerate(extents):
        row, column = divmod(number, columns)
        x, y = _MARGIN + column * (_BOX[0] + _GAP), top + row * (_BOX[1] + _GAP)
        parts += _box(extent, extent_bytes, x, y)
    parts += _legend(extents, extent_bytes, boxes_end)
    return "\n".join([*parts, "</svg>", ""])


def _box(extent: Extent, extent_bytes: int, x: int, y: int) -> Iterator[str]:
    kind = kind_of(extent)
    width, height = _BOX
    sums = sums_of([extent], extent_bytes)
    live = height * sums.live_share
    garbage = min(height - live, height * sums.garbage_share)
    tip = (
        f"extent {extent['extent']}: {kind.meaning}, {extent['state']}; "
        f"live {size_text(extent['live_bytes'])} ({100 * sums.live_share:.0f} %), "
        f"garbage {size_text(extent['garbage_bytes'])}, "
        f"write pointer {extent['write_pointer']}, epoch {extent['epoch']}"
    )
    yield f"<g><title>{escape(tip)}</title>"
    fill = f' style="fill:{kind.color}"' if kind.name == "free" else ""
    yield f'<rect class="b" x="{x}" y="{y}" width="{width}" height="{height}"{fill}/>'
    bottom = y + height
    if live:
        yield (
            f'<rect x="{x}" y="{bottom - live:.1f}" width="{width}" height="{live:.1f}" '
            f'fill="{kind.color}"/>'
        )
    if garbage:
        yield (
            f'<rect x="{x}" y="{bottom - live - garbage:.1f}" width="{width}" '
            f'height="{garbage:.1f}" fill="url(#g)"/>'
        )
    if extent["state"] == "open":
        at = bottom - height * extent["write_pointer"] / extent_bytes
        yield f'<line class="p" x1="{x}" x2="{x + width}" y1="{at:.1f}" y2="{at:.1f}"/>'
    yield "</g>"


def _legend(extents: Sequence[Extent], extent_bytes: int, y: int) -> Iterator[str]:
    for number, kind in enumerate(KINDS):
        sums = sums_of((each for each in extents if kind_of(each) is kind), extent_bytes)
        line = y + number * _LINE
        text = f"{kind.meaning}: {sums.count} extents"
        if kind.name != "free":
            text += f", {size_text(sums.live_bytes)} live"
            text += f", {size_text(sums.garbage_bytes)} garbage" if sums.garbage_bytes else ""
        yield f'<rect x="{_MARGIN}" y="{line - 10}" width="12" height="12" fill="{kind.color}"/>'
        yield _text(_MARGIN + 20, line, text)
    line = y + len(KINDS) * _LINE
    yield f'<rect x="{_MARGIN}" y="{line - 10}" width="12" height="12" fill="url(#g)"/>'
    yield _text(_MARGIN + 20, line, "garbage; a black line is the write pointer of an open extent")


def _text(x: int, y: int, text: str, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text x="{x}" y="{y}"{kind}>{escape(text)}</text>'
