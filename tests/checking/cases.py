"""What the tests of every world do with cases: hunt, shrink, and run them in another process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

from shardfs.checking.conformance.running import Case, Outcome, decode_line, run_case
from shardfs.checking.conformance.shrinking import shrink_case
from shardfs.checking.conformance.telling import tell

Plant = Callable[[], AbstractContextManager[object]]
_SCRIPT = """
import sys
from shardfs.checking.conformance.running import decode_line, run_case
for line in sys.argv[1:]:
    print(run_case(decode_line(line)).line)
"""


def first_finding(world: str, cases_max: int) -> Outcome:
    """The first case of a world that fails."""
    for seed in range(cases_max):
        outcome = run_case(Case(world, seed))
        if outcome.run.finding is not None:
            return outcome
    raise AssertionError(f"nothing was found in {cases_max} cases")


def check_found_and_shrunk(
    world: str, plant: Plant, *, cases_max: int, attempts_max: int, operations_max: int
) -> None:
    """A planted bug is found, made small, repeated from its line, and gone without the bug."""
    with plant():
        outcome = first_finding(world, cases_max)
        assert outcome.run.finding is not None
        smallest = shrink_case(outcome, attempts_max=attempts_max)
        assert outcome.run.finding.is_like(smallest.run.finding)
        assert len(smallest.operations) <= operations_max, tell(smallest)
        again = run_case(decode_line(smallest.line))
        assert str(again.run.finding) == str(smallest.run.finding)
    case = smallest.case
    mended = run_case(Case(world, case.seed, smallest.operations, case.choices))
    assert mended.run.finding is None


def check_same_elsewhere(world: str, seeds: tuple[int, ...], hash_seed: str) -> None:
    """Cases have the same lines, digests included, in a process with another hash seed."""
    lines = [run_case(Case(world, seed)).line for seed in seeds]
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *lines],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == lines
