"""Runs cases: one sequence of operations of one world, under one schedule.

Role: the door of conformance checking. A Case says what to run, an Outcome what came of it, and
`Outcome.line` is the word that repeats it.

Invariants:
    I1. The same case has the same outcome, digest included, in any process and after any other
        cases.

Not here: many cases (campaign.py), making a failing one small (shrinking.py).
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType

from shardfs.checking.conformance.case import Coverage, Operations, World
from shardfs.checking.conformance.concurrent_world import ConcurrentWorld
from shardfs.checking.conformance.extents_world import ExtentWorld
from shardfs.checking.conformance.file_world import FileWorld
from shardfs.checking.conformance.lines import Case, decode_line, encode_line
from shardfs.checking.conformance.store_world import StoreWorld
from shardfs.checking.schedule import (
    NondeterminismError,
    Priorities,
    Random,
    Replay,
    Run,
    Strategy,
    run_once,
)
from shardfs.errors import UsageError

__all__ = ["Case", "Outcome", "decode_line", "encode_line", "quiet", "run_case", "worlds"]

STEPS_MAX = 200_000
"""A case that takes more steps of tasks is a livelock."""
_PRIORITIES_EVERY = 4
_CHOICES_EXPECTED = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a case.

    Args:
        case: that was run.
        operations: that were run, also when the seed made them.
        run: with the finding, if there is one, and the choices.
        coverage: what the case went through.
        digest: of everything that happened.
    """

    case: Case
    operations: Operations
    run: Run[None]
    coverage: Coverage
    digest: str

    @property
    def line(self) -> str:
        """The word that repeats this outcome."""
        return encode_line(replace(self.case, digest=self.digest))


@cache
def worlds() -> Mapping[str, World]:
    """Every world by its name."""
    every: tuple[World, ...] = (StoreWorld(), FileWorld(), ExtentWorld(), ConcurrentWorld())
    return MappingProxyType({world.name: world for world in every})


def run_case(case: Case, *, narrated: bool = False) -> Outcome:
    """Run a case; what goes wrong in it is the outcome's finding.

    Args:
        case: what to run. With a digest, the outcome must have the same.
        narrated: keep a story of the schedule (slow).

    Raises:
        NondeterminismError: the outcome is not the one that the case was to repeat.
        UsageError: there is no such world.
    """
    world = worlds().get(case.world)
    if world is None:
        raise UsageError(f"there is no world {case.world!r}; there are {', '.join(worlds())}")
    operations = case.operations
    if operations is None:
        operations = world.generate(random.Random(case.seed))
    coverage = Coverage()
    program = world.program(operations, coverage)
    strategy = _strategy(case)
    strategy.begin()
    with quiet():
        run = run_once(program, strategy, steps_max=STEPS_MAX, narrated=narrated)
    digest = _digest(operations, run)
    if case.digest and case.digest != digest:
        raise NondeterminismError(
            f"the case has the digest {digest}, not {case.digest}: shardfs or its checks have "
            "changed since, or something beside the seed decides what happens"
        )
    return Outcome(case, operations, run, coverage, digest)


def _strategy(case: Case) -> Strategy:
    if case.choices is not None:
        return Replay(case.choices.choices)
    if case.seed % _PRIORITIES_EVERY == _PRIORITIES_EVERY - 1:
        return Priorities(seed=case.seed, choices_expected=_CHOICES_EXPECTED)
    return Random(case.seed)


def _digest(operations: Operations, run: Run[None]) -> str:
    whole = hashlib.blake2b(run.trace.digest.encode(), digest_size=8)
    whole.update(";".join(map(str, operations)).encode())
    return whole.hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """The body's stores log nothing: what they say of planned faults is not worth telling."""
    logger = logging.getLogger("shardfs")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
