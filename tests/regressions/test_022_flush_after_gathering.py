"""Data that had been taken could not be flushed for want of room, with half of the device garbage.

Gathering a scattered shard before its next flush took the room that had been made ready for the
flush, and found none for all of itself. Found by the world of files when its devices became small
and full, seed 523 of its day.
"""

from __future__ import annotations

import pytest

from shardfs.checking.conformance.case import Operation
from shardfs.checking.conformance.running import Case, run_case

OPERATIONS = (
    Operation("setup", (4, 0, 0, 8)),
    Operation("create", (0, 3)),
    Operation("churn", (0, 3, 3, 34801)),
    Operation("unlink", (0, 0)),
    Operation("create", (0, 0)),
    Operation("churn", (0, 0, 9, 52223)),
)


@pytest.mark.parametrize("rounds", range(7, 13))
def test_what_was_taken_is_flushed(rounds: int) -> None:
    last = Operation("churn", (0, 0, rounds, 52223))
    outcome = run_case(Case("files", 523, (*OPERATIONS[:-1], last)))
    assert outcome.run.finding is None, f"{outcome.line}: {outcome.run.finding}"
