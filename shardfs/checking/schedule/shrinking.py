"""Makes a failing schedule small: fewer and plainer choices, with the same finding.

Role: delta debugging (Zeller, Hildebrandt, "Simplifying and isolating failure-inducing input",
2002) over a trace's choices: cut the end, remove and zero chunks, lower what is left. What remains
is close to "one task after the other, but for these few switches".

Invariants:
    I1. The result fails like the original (Finding.is_like), and is a recorded run's own trace:
        replaying it gives that run.
    I2. At most `attempts_max` runs are made.

Not here: what a finding is (findings.py); `check`, which explores first (checks.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from shardfs.checking.schedule.explorer import STEPS_MAX, Program, Run, run_once
from shardfs.checking.schedule.strategies import Replay

T = TypeVar("T")

Choices = tuple[int, ...]


def shrink(
    program: Program[T], failure: Run[T], *, attempts_max: int = 2000, steps_max: int = STEPS_MAX
) -> Run[T]:
    """The smallest failing run found.

    Args:
        program: that failed.
        failure: a run with a finding.
        attempts_max: runs to spend.
        steps_max: as in the failing run.
    """
    assert failure.finding is not None
    best = failure
    attempts = 0
    improved = True
    while improved:
        improved = False
        for candidate in _candidates(best.trace.choices):
            if attempts == attempts_max:
                return best
            attempts += 1
            run = run_once(program, Replay(candidate), steps_max=steps_max)
            if failure.finding.is_like(run.finding) and _size(run) < _size(best):
                best = run
                improved = True
                break
    return best


def _size(run: Run[T]) -> tuple[int, int, int, int]:
    choices = run.trace.choices
    return run.trace.deviations, len(choices), sum(choices), run.steps


def _candidates(choices: Choices) -> Iterator[Choices]:
    """Smaller choices to try, the boldest first."""
    length = len(choices)
    chunk = length
    while chunk:
        for start in range(length - chunk, -1, -chunk):
            before, behind = choices[:start], choices[start + chunk :]
            if any(choices[start : start + chunk]):
                yield before + (0,) * chunk + behind
            yield before + behind
        chunk //= 2
    for at, choice in enumerate(choices):
        for lower in {choice // 2, choice - 1} - {0}:
            if 0 < lower < choice:
                yield (*choices[:at], lower, *choices[at + 1 :])
