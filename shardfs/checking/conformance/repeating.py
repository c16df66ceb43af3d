"""Repeats a case from its line, and says how exact the repetition is.

Role: `repeat` runs the case; where the outcome is another than the line says, it runs it again to
tell a changed shardfs from checks that something beside the seed decides.

Not here: the line (lines.py), one run (running.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from shardfs.checking.conformance.lines import Case
from shardfs.checking.conformance.running import Outcome, run_case
from shardfs.checking.schedule import NondeterminismError


class Exactness(StrEnum):
    """How a repetition compares with what was to be repeated."""

    SAME = "the run is the same, digest included"
    UNKNOWN = "the line has no digest to compare with"
    CHANGED = "the run is another than the line says: shardfs or its checks have changed since"
    UNSTABLE = "two runs of the case differ: something beside its choices decides"


@dataclass(frozen=True, slots=True)
class Repetition:
    """What came of a case that was run again.

    Args:
        outcome: of the last run.
        exactness: see Exactness.
    """

    outcome: Outcome
    exactness: Exactness

    @property
    def is_finding(self) -> bool:
        """It fails, or is not repeatable."""
        return self.outcome.run.finding is not None or self.exactness is Exactness.UNSTABLE


def repeat(case: Case, *, narrated: bool = False) -> Repetition:
    """Run a case as its line says.

    Args:
        case: with the digest of the line, if it has one.
        narrated: keep the story of the schedule.

    Raises:
        UsageError: it names no world.
    """
    try:
        outcome = run_case(case, narrated=narrated)
    except NondeterminismError:
        free = replace(case, digest="")
        first, outcome = run_case(free), run_case(free, narrated=narrated)
        is_stable = first.digest == outcome.digest
        return Repetition(outcome, Exactness.CHANGED if is_stable else Exactness.UNSTABLE)
    return Repetition(outcome, Exactness.SAME if case.digest else Exactness.UNKNOWN)
