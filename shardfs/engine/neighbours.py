"""Whether what lies around a small read will be wanted too, guessed from the reads before it.

Role: small files that were written together lie together, and are often read together; blocks at
random places of a large file are not. A second read that misses the page cache in one WINDOW, or
the first behind one, says that the window is worth reading whole: for a disk that costs little more
than the read itself.

Invariants:
    I1. What is remembered is bounded, and old misses count for nothing: reads at random places of
        a large disk are hardly ever enlarged.

Not here: reading (block_device.py).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from shardfs import limits

WINDOW_BYTES: Final = 64 * limits.KIB
AHEAD_BYTES_MAX: Final = 512 * limits.KIB
"""Who goes on and on gets so much at once."""
_REMEMBERED: Final = 64


class Span(NamedTuple):
    """Bytes of a device."""

    offset: int
    length: int


class Neighbours:
    """Misses of one device, lately."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, int] = OrderedDict()
        """Window -> bytes read at once up to its end; 0: only a miss."""

    def missed(self, offset: int, length: int, size_bytes: int) -> Span | None:
        """The page cache has not had these bytes.

        Args:
            size_bytes: of the device.

        Returns:
            What to read into it in their place; None: nothing but them.
        """
        window = offset // WINDOW_BYTES
        before = self._known.get(window - 1)
        if before is None and window not in self._known:
            self._note(window, 0)
            return None
        wanted = min(max(2 * (before or 0), WINDOW_BYTES), AHEAD_BYTES_MAX)
        begin = window * WINDOW_BYTES
        end = max(begin + wanted, offset + length)
        self._note((end - 1) // WINDOW_BYTES, wanted)
        return Span(begin, min(end, size_bytes) - begin)

    def _note(self, window: int, read_bytes: int) -> None:
        self._known[window] = read_bytes
        self._known.move_to_end(window)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
