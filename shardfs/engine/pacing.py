"""How fast the background works, and how much writers are slowed: the rate follows the debt.

Role: the control law, as functions of numbers alone, and the two things that carry it out: `Slices`
cuts background work into short stretches with rests between them, `Throttle` delays writers.

The law. A *debt* says how far some background work is behind: 0, nothing need be done; 1, writers
must wait for it (`share_between`). Each kind of work is paced by its own debt:

    rest after a slice    REST_S_MAX * (1 - debt)^2; below REST_S_MIN none at all
    delay of a writer     length / RATE * (debt - 1/2) / (1 - debt) for debts above 1/2,
                          at most ADMISSION_DELAY_S_MAX a call

So at little debt the background leaves most of the processor to requests; near exhaustion it takes
all it can get, one slice at a time, and writers come in no faster than it gives back. As the debt
of each kind rises with what users write and falls with what the background does, both rates meet
in between. The delay's curve is that of OpenZFS's write throttle ("ZFS transaction delay").

Invariants:
    I1. No slice does more than limits.SLICE_COST_MAX, and what one step of the work costs.
    I2. Nothing here reads a clock but trio's, so that a test or a schedule explorer decides.
    I3. Delays of several writers at once follow each other, so that their number does not matter,
        as far as nobody waits longer than ADMISSION_DELAY_S_MAX.

Not here: what the debts are (debts.py), what the work is.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from shardfs import limits

_THROTTLE_FROM = 0.5
_THROTTLE_BYTES_PER_S = 8 * limits.MIB
_SLEEP_S_MIN = 0.001
_CHANGE_BYTES = 4 * limits.KIB


def share_between(value: float, nothing: float, everything: float) -> float:
    """Where `value` stands between two bounds: 0 at or before the first, 1 at or past the second.

    Args:
        nothing: the value that means no debt.
        everything: the value at which writers must wait; another, larger or smaller.
    """
    return min(1.0, max(0.0, (value - nothing) / (everything - nothing)))


def rest_s(debt: float) -> float:
    """Seconds that background work rests after a slice."""
    rest = limits.REST_S_MAX * (1.0 - debt) ** 2
    return rest if rest >= limits.REST_S_MIN else 0.0


def delay_s(debt: float, length: int) -> float:
    """Seconds that a writer of `length` bytes is owed to wait, as far as one call may.

    Args:
        debt: the largest of those that the writer adds to.
        length: bytes; a change without data counts as a block.
    """
    if debt <= _THROTTLE_FROM:
        return 0.0
    if debt >= 1.0:
        return limits.ADMISSION_DELAY_S_MAX
    seconds = (length + _CHANGE_BYTES) / _THROTTLE_BYTES_PER_S
    return min(limits.ADMISSION_DELAY_S_MAX, seconds * (debt - _THROTTLE_FROM) / (1.0 - debt))


class Slices:
    """Cuts one piece of work into slices (I1). Where none is given, nothing rests.

    Args:
        debt: gives the debt, or urgency, of this work, whenever a slice has ended; None: somebody
            waits for it, it never rests.
    """

    def __init__(self, debt: Callable[[], float] | None = None) -> None:
        self._debt = debt
        self._cost = 0

    async def spend(self, cost: int) -> None:
        """Some work has been done; give way if it was enough for one slice.

        Args:
            cost: about as many microseconds of Python, or entries of the tree.

        Checkpoints: once limits.SLICE_COST_MAX has been spent since the last time.
        """
        self._cost += cost
        if self._cost < limits.SLICE_COST_MAX:
            return
        self._cost = 0
        rest = rest_s(self._debt()) if self._debt is not None else 0.0
        if rest:
            await trio.sleep(rest)
        else:
            await trio.lowlevel.checkpoint()


class Throttle:
    """Delays the writers of one store (I3)."""

    def __init__(self) -> None:
        self._turn = 0.0

    async def delay(self, debt: float, length: int) -> None:
        """Wait as the law says for `length` bytes. Checkpoints: only then.

        What is too short for a timer is owed by whoever comes next.
        """
        owed = delay_s(debt, length)
        if not owed:
            return
        now = trio.current_time()
        self._turn = min(max(self._turn, now) + owed, now + limits.ADMISSION_DELAY_S_MAX)
        if self._turn - now >= _SLEEP_S_MIN:
            await trio.sleep_until(self._turn)
