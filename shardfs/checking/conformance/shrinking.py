"""Makes a failing case small: fewer and simpler operations, then a plainer schedule, then both.

Role: delta debugging over operations (remove chunks, then single ones, then lower their numbers),
generic over worlds. What remains is usually a handful of operations that a person can follow.

Invariants:
    I1. The result fails like the original (Finding.is_like), and its line repeats it exactly.
    I2. About `attempts_max` cases are run at most, and none is begun when the time is up.

Ordering: operations, then the choices of the schedule, then what is left of the operations
(faults among them) once more under those choices.

Not here: shrinking a schedule (schedule/shrinking.py), telling the result (telling.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf

from shardfs.checking.conformance.case import Coverage, Operation, Operations
from shardfs.checking.conformance.lines import Case
from shardfs.checking.conformance.running import STEPS_MAX, Outcome, quiet, run_case, worlds
from shardfs.checking.schedule import Trace, shrink

_PLAIN = Trace(())
_OTHER_SEEDS = 2
_SCHEDULE_SHARE = 0.5

_Candidates = Callable[[Operations], Iterator[Operations]]


def shrink_case(
    outcome: Outcome, attempts_max: int = 2000, seconds_max: float | None = None
) -> Outcome:
    """The smallest case found that fails alike.

    Args:
        outcome: with a finding.
        attempts_max: cases to run.
        seconds_max: to spend, if there is a limit.
    """
    assert outcome.run.finding is not None
    deadline = inf if seconds_max is None else time.monotonic() + seconds_max
    search = _Search(outcome, attempts_max, deadline)
    search.shrink_operations()
    search.shrink_schedule()
    search.shrink_operations()
    return search.best


class _Search:
    """The smallest failing case so far, and what may still be spent.

    Args:
        outcome: to begin with.
        attempts: to spend.
        deadline: on the monotonic clock.
    """

    def __init__(self, outcome: Outcome, attempts: int, deadline: float) -> None:
        self.best = outcome
        self._finding = outcome.run.finding
        self._attempts = attempts
        self._deadline = deadline

    def shrink_operations(self) -> None:
        """Fewer operations, lower numbers, under whichever schedule fails."""
        improved = True
        while improved:
            improved = self._improve(_fewer) or self._improve(_lower)

    def shrink_schedule(self) -> None:
        """Plainer choices for the same operations."""
        attempts = int(self._attempts * _SCHEDULE_SHARE)
        if attempts < 1 or self._is_over() or not self.best.run.trace.choices:
            return
        case, operations = self.best.case, self.best.operations
        program = worlds()[case.world].program(operations, Coverage())
        with quiet():
            run = shrink(program, self.best.run, attempts_max=attempts, steps_max=STEPS_MAX)
        self._attempts -= attempts
        self._try(Case(case.world, case.seed, operations, run.trace))

    def _improve(self, candidates: _Candidates) -> bool:
        """Takes every candidate that fails, beginning anew behind it; whether any did."""
        improved = False
        position = 0
        while not self._is_over():
            for number, operations in enumerate(candidates(self.best.operations)):
                if number >= position and self._fails(operations):
                    improved = True
                    position = number
                    break
                if self._is_over():
                    break
            else:
                if position == 0:
                    return improved
                position = 0
        return improved

    def _fails(self, operations: Operations) -> bool:
        return any(self._try(case) for case in self._schedules(operations))

    def _schedules(self, operations: Operations) -> Iterator[Case]:
        """The operations under the plainest schedule, the present one, and some others."""
        case = self.best.case
        yield replace(case, operations=operations, choices=_PLAIN, digest="")
        if case.choices is None:
            for seed in range(case.seed, case.seed + 1 + _OTHER_SEEDS):
                yield replace(case, seed=seed, operations=operations, digest="")
        elif case.choices.choices:
            yield replace(case, operations=operations, digest="")

    def _try(self, case: Case) -> bool:
        if self._is_over():
            return False
        self._attempts -= 1
        outcome = run_case(case)
        assert self._finding is not None
        if not self._finding.is_like(outcome.run.finding):
            return False
        self.best = outcome
        return True

    def _is_over(self) -> bool:
        return self._attempts <= 0 or time.monotonic() > self._deadline


def _fewer(operations: Operations) -> Iterator[Operations]:
    """Sequences with a part left out, the boldest first."""
    chunk = len(operations)
    while chunk:
        for start in range(len(operations) - chunk, -1, -chunk):
            yield operations[:start] + operations[start + chunk :]
        chunk //= 2


def _lower(operations: Operations) -> Iterator[Operations]:
    """Sequences with one number lowered."""
    for at, operation in enumerate(operations):
        for index, number in enumerate(operation.arguments):
            less = number
            while less:
                arguments = list(operation.arguments)
                arguments[index] = number - less
                lowered = Operation(operation.name, tuple(arguments))
                yield (*operations[:at], lowered, *operations[at + 1 :])
                less = less // 4 or less // 2
