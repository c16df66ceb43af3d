"""What extents are, for those who draw them: kind, temperature, and how much of each is there.

Role: one table of kinds, with a letter and a colour each, for the map in the terminal and the SVG.

Not here: drawing (extent_map.py, extent_svg.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

Extent = dict[str, Any]
"""An extent as the request "extents-more" has it."""


@dataclass(frozen=True)
class Kind:
    """A kind of extent.

    letter: for the terminal.
    style: colour there, in rich's words.
    color: in the SVG.
    meaning: with its temperature.
    """

    name: str
    letter: str
    style: str
    color: str
    meaning: str


KINDS: Final = (
    Kind("superblock", "S", "magenta", "#a04fb5", "superblock, two copies"),
    Kind("meta", "L", "yellow", "#c9a227", "delta log"),
    Kind("runs", "T", "cyan", "#2a9db0", "tree: runs and manifest"),
    Kind("hot", "H", "red", "#d1495b", "data, hot: overwritten often"),
    Kind("data", "D", "green", "#3c9d4e", "data, warm: as it arrived"),
    Kind("survivors", "C", "blue", "#3a6fb0", "data, cold: moved once, lives long"),
    Kind("free", ".", "dim", "#e8e8e8", "free"),
)
_BY_NAME: Final = {kind.name: kind for kind in KINDS}


def kind_of(extent: Extent) -> Kind:
    """The kind of an extent."""
    if extent["state"] in ("free", "superblock"):
        return _BY_NAME[extent["state"]]
    return _BY_NAME[extent["stream"]]


@dataclass(frozen=True)
class Sums:
    """What some extents hold together, bytes; `open`: those that are being written to."""

    count: int
    live_bytes: int
    garbage_bytes: int
    size_bytes: int
    open: tuple[Extent, ...]

    @property
    def live_share(self) -> float:
        """Of all their bytes."""
        return self.live_bytes / self.size_bytes if self.size_bytes else 0.0

    @property
    def garbage_share(self) -> float:
        """Of all their bytes."""
        return self.garbage_bytes / self.size_bytes if self.size_bytes else 0.0


def sums_of(extents: Iterable[Extent], extent_bytes: int) -> Sums:
    """Some extents added up. More than an extent's size counts as its size."""
    found = list(extents)
    return Sums(
        count=len(found),
        live_bytes=sum(min(extent_bytes, each["live_bytes"]) for each in found),
        garbage_bytes=sum(min(extent_bytes, each["garbage_bytes"]) for each in found),
        size_bytes=len(found) * extent_bytes,
        open=tuple(each for each in found if each["state"] == "open"),
    )
