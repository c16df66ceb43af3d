"""Shrinking on a world of toys, where the smallest case is known."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import pytest

from shardfs.checking.conformance import running, shrinking
from shardfs.checking.conformance.case import Coverage, Operation, Operations, World
from shardfs.checking.conformance.running import Case, run_case
from shardfs.checking.conformance.shrinking import shrink_case
from shardfs.checking.schedule import Control, Program


class Toys:
    """A stack that breaks when more than 100 is pushed, then something popped, with bad luck."""

    name = "toys"
    alphabet = ("push", "pop", "unlucky")

    def generate(self, rng: random.Random) -> Operations:
        """See World.generate."""
        names = rng.choices(self.alphabet, k=40)
        return tuple(Operation(name, (rng.randrange(1000), 5)) for name in names)

    def program(self, operations: Operations, coverage: Coverage) -> Program[None]:
        """See World.program."""

        async def program(control: Control) -> None:
            heavy = unlucky = False
            for operation in operations:
                luck = control.draw(1000)
                match operation.name:
                    case "push":
                        heavy |= operation.arguments[0] > 100
                    case "unlucky":
                        unlucky |= luck > 700
                    case _:
                        assert not (heavy and unlucky)

        return program


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known: Mapping[str, World] = {"toys": Toys()}
    monkeypatch.setattr(running, "worlds", lambda: known)
    monkeypatch.setattr(shrinking, "worlds", lambda: known)
    yield


def failing() -> running.Outcome:
    """A case with a finding."""
    for seed in range(100):
        outcome = run_case(Case("toys", seed))
        if outcome.run.finding is not None:
            return outcome
    raise AssertionError("no toys broke")


def test_operations_numbers_and_choices_become_few_and_low() -> None:
    smallest = shrink_case(failing())
    assert sorted(map(str, smallest.operations)) == ["pop 0 0", "push 101 0", "unlucky 0 0"]
    assert smallest.operations[-1].name == "pop"
    choices = smallest.run.trace.choices
    assert [choice for choice in choices if choice] == [701]


def test_the_smallest_case_has_a_line_that_repeats_it() -> None:
    smallest = shrink_case(failing())
    again = run_case(running.decode_line(smallest.line))
    assert str(again.run.finding) == str(smallest.run.finding)
    assert again.operations == smallest.operations


def test_attempts_and_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = failing()
    runs = 0

    def counted(case: Case) -> running.Outcome:
        nonlocal runs
        runs += 1
        return run_case(case)

    monkeypatch.setattr(shrinking, "run_case", counted)
    shrink_case(outcome, attempts_max=20)
    assert runs <= 20
    assert shrink_case(outcome, seconds_max=0).operations == outcome.operations
