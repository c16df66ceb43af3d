"""Runs that merging leaves alone because it could not read them.

Role: rot does not go away before the next open; a device that did not answer may do so later, so
such a run is tried again: after a while, and then after twice as long each time. Each time all that
was written up to the place that cannot be read is garbage, so an idle device would write for ever.

Not here: merging (checkpoint.py), what to do about damage (fsck.py).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import trio

RETRY_FIRST_S: Final = 5.0
RETRY_LAST_S: Final = 3600.0


class _Pause(NamedTuple):
    """Until when, and how long it was made to be."""

    until: float
    length_s: float


class SetAside:
    """The runs of one open store that are not merged for the moment, by id."""

    def __init__(self) -> None:
        self._pauses: dict[int, _Pause] = {}

    def add(self, run_id: int, *, is_rot: bool) -> None:
        """It could not be read, because of rot or because the device failed."""
        if is_rot:
            length_s = math.inf
        else:
            before = self._pauses.get(run_id)
            length_s = RETRY_FIRST_S if before is None else 2 * before.length_s
            length_s = min(length_s, RETRY_LAST_S)
        self._pauses[run_id] = _Pause(trio.current_time() + length_s, length_s)

    def ids(self) -> set[int]:
        """Those that are to be left alone now."""
        now = trio.current_time()
        return {run_id for run_id, pause in self._pauses.items() if now < pause.until}

    def keep(self, run_ids: set[int]) -> None:
        """There are no other runs any more."""
        self._pauses = {each: pause for each, pause in self._pauses.items() if each in run_ids}
