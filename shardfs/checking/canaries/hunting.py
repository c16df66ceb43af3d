"""Hunts a canary: plants it, and runs ordinary cases until one of them has a finding.

Role: the worlds that run know nothing of mutants; their seeds are 0, 1, 2 and so on. So the number
of sequences a hunt takes says how soon a mistake of that kind would be found.

Invariants:
    I1. With the same canary, seed and shardfs, a hunt finds the same after as many sequences.

Not here: which mutants there are (the modules beside this one).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from shardfs.checking.canaries.canary import Canary
from shardfs.checking.conformance.running import Case, run_case

SECONDS_MAX = 600.0


@dataclass(frozen=True, slots=True)
class Hunt:
    """How a hunt went.

    Args:
        canary: that was planted.
        caught: something was found.
        check: the world that found it; empty if none did.
        sequences: run, the finding one included.
        seconds: it took.
        line: repeats the finding while the mutant is planted.
        finding: in words.
    """

    canary: Canary
    caught: bool
    check: str
    sequences: int
    seconds: float
    line: str
    finding: str


def hunt(
    canary: Canary,
    *,
    seconds_max: float = SECONDS_MAX,
    sequences_max: int | None = None,
    seed: int = 0,
) -> Hunt:
    """Plant a mutant and run cases of its worlds, in turns, until one has a finding.

    Args:
        canary: to plant.
        seconds_max: give up after so long.
        sequences_max: give up after so many sequences.
        seed: of the first sequence of each world.

    Raises:
        PlantingError: shardfs no longer reads as the mutant expects.
        AssertionError: a sequence has a finding without the mutant.
    """
    for world in canary.worlds:
        # Also makes what worlds keep for all their cases, before anything is planted.
        outcome = run_case(Case(world, seed))
        assert outcome.run.finding is None, f"{world}, nothing planted: {outcome.run.finding}"
    began = time.monotonic()
    sequences = 0
    with canary.planted():
        for world, number in _cases(canary, seed):
            if time.monotonic() - began >= seconds_max or sequences == sequences_max:
                break
            outcome = run_case(Case(world, number))
            sequences += 1
            if outcome.run.finding is not None:
                seconds = time.monotonic() - began
                finding = str(outcome.run.finding)
                return Hunt(canary, True, world, sequences, seconds, outcome.line, finding)
    return Hunt(canary, False, "", sequences, time.monotonic() - began, "", "")


def _cases(canary: Canary, seed: int) -> Iterator[tuple[str, int]]:
    for number in count(seed):
        for world in canary.worlds:
            yield world, number
