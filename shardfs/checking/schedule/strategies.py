"""Ways to make the choices of a run: at random, by priorities, all of them, or as told.

Role: a Strategy is asked at each choice of a run, and told when the next run begins.

Invariants:
    I1. A strategy's choices depend on its arguments, the number of the run and what it is asked,
        on nothing else.
    I2. Exhaustive gives every sequence of choices within its bounds exactly once.

Sources: Burckhardt, Kothari, Musuvathi, Nagarakatte, "A randomized scheduler with probabilistic
guarantees of finding bugs", ASPLOS 2010 (Priorities); Musuvathi, Qadeer, "Iterative context
bounding for systematic testing of multithreaded programs", PLDI 2007 (preemptions_max); Emmi,
Qadeer, Rakamarić, "Delay-bounded scheduling", POPL 2011 (deviations_max).

Not here: what is chosen among, and when (driver.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

_RUNS_OF_A_SEED = 1 << 40
_CANCELLATION_PROBABILITY = 1 / 8


class ActorKind(StrEnum):
    """What something that can be chosen does when it is."""

    TASK = "task"
    CANCELLATION = "cancellation"
    CLOCK = "clock"
    HOUSE = "house"
    """A task of trio's own: it runs as soon as it can and is no choice."""


@dataclass(slots=True, eq=False)
class Actor:
    """Something that can be chosen to happen next.

    Args:
        number: in the order of first appearance in this run.
        name: of the task, or of the scope that would be cancelled.
        kind: see ActorKind.
        step: when it ran last, -1 before it ever has.
        is_current: nothing else has run since.
    """

    number: int
    name: str
    kind: ActorKind
    step: int = -1
    is_current: bool = False


class NondeterminismError(Exception):
    """The same choices led to another run: the program depends on something beside them.

    Usual causes: a thread, the wall clock, a random number not drawn from the control, an
    iteration over a set, state kept from an earlier run.
    """


class Strategy(Protocol):
    """Makes the choices of one run after the other."""

    def begin(self) -> bool:
        """A run begins; False when there is none left to make."""

    def choose(self, actors: Sequence[Actor]) -> int:
        """Index of the actor that goes on. At least two; tasks come before cancellations, and the
        task that ran last, if it can go on, comes first."""

    def draw(self, bound: int) -> int:
        """A number from 0 to bound - 1; bound is at least 2."""


class Random:
    """Every choice at random, evenly among tasks.

    Args:
        seed: of the first run; run n of a seed is always the same.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._run = -1
        self._random = random.Random()

    def begin(self) -> bool:
        """See Strategy.begin."""
        self._run += 1
        self._random = random.Random(self._seed * _RUNS_OF_A_SEED + self._run)
        return True

    def choose(self, actors: Sequence[Actor]) -> int:
        """See Strategy.choose; a cancellation happens about once in eight chances."""
        fraction = self._random.random()
        count = len(actors)
        if actors[-1].kind is ActorKind.CANCELLATION:
            tasks = sum(actor.kind is not ActorKind.CANCELLATION for actor in actors)
            if fraction < _CANCELLATION_PROBABILITY:
                return tasks + int(fraction / _CANCELLATION_PROBABILITY * (count - tasks))
            fraction = (fraction - _CANCELLATION_PROBABILITY) / (1 - _CANCELLATION_PROBABILITY)
            count = tasks
        return int(fraction * count)

    def draw(self, bound: int) -> int:
        """See Strategy.draw."""
        return self._random.randrange(bound)


class Priorities:
    """Probabilistic concurrency testing (PCT): strict random priorities, changed a few times.

    With n actors and k choices a run, each run finds a bug of depth d with a probability of at
    least 1 / (n * k ** (d - 1)), however rare the bug is for Random.

    Args:
        depth: d, the number of ordering constraints a bug may need; d - 1 times in a run the
            actor with the highest priority gets the lowest.
        seed: of the first run.
        choices_expected: k for the first run; later runs use the longest one seen.
    """

    def __init__(self, depth: int = 3, seed: int = 0, choices_expected: int = 64) -> None:
        assert depth >= 1 and choices_expected >= 1
        self._depth = depth
        self._seed = seed
        self._run = -1
        self._random = random.Random()
        self._choices_expected = choices_expected
        self._choices_longest = 0
        self._choices = 0
        self._changes: dict[int, float] = {}
        self._priorities: dict[int, float] = {}

    def begin(self) -> bool:
        """See Strategy.begin."""
        self._run += 1
        self._random = random.Random(self._seed * _RUNS_OF_A_SEED + self._run)
        self._choices_longest = max(self._choices_longest, self._choices)
        self._choices = 0
        self._priorities = {}
        longest = self._choices_longest or self._choices_expected
        self._changes = {
            self._random.randrange(longest): -1.0 - number for number in range(self._depth - 1)
        }
        return True

    def choose(self, actors: Sequence[Actor]) -> int:
        """See Strategy.choose."""
        priorities = self._priorities
        for actor in actors:
            if actor.number not in priorities:
                priorities[actor.number] = self._random.random()
        lowered = self._changes.get(self._choices)
        self._choices += 1
        if lowered is not None:
            priorities[max(actors, key=self._priority).number] = lowered
        return max(range(len(actors)), key=lambda index: priorities[actors[index].number])

    def draw(self, bound: int) -> int:
        """See Strategy.draw; evenly at random."""
        return self._random.randrange(bound)

    def _priority(self, actor: Actor) -> float:
        return self._priorities[actor.number]


class Exhaustive:
    """Every sequence of choices, depth first; `begin` says False after the last.

    Args:
        preemptions_max: how often a task that could go on may be left for another task in one
            run; None: as often as there are chances. Most bugs need two or three.
        deviations_max: how many choices of a run may be other than the plainest, draws not
            counted; None: all. With k chances among n actors a run, about (k * n) ** d / d! runs.
    """

    def __init__(
        self, preemptions_max: int | None = None, *, deviations_max: int | None = None
    ) -> None:
        self._preemptions_max = preemptions_max
        self._preemptions = 0
        self._deviations_max = deviations_max
        self._deviations = 0
        self._path: list[_Branch] = []
        self._at = 0
        self._begun = False

    def begin(self) -> bool:
        """See Strategy.begin."""
        if self._begun:
            while self._path and self._path[-1].is_last:
                self._path.pop()
            if not self._path:
                return False
            self._path[-1].taken += 1
        self._begun = True
        self._at = 0
        self._preemptions = 0
        self._deviations = 0
        return True

    def choose(self, actors: Sequence[Actor]) -> int:
        """See Strategy.choose."""
        current = actors[0].is_current
        if self._deviations == self._deviations_max:
            return 0
        indices: Sequence[int] = range(len(actors))
        if current and self._preemptions == self._preemptions_max:
            # Cancelling is no preemption.
            indices = [0, *(i for i in indices if actors[i].kind is ActorKind.CANCELLATION)]
        index = indices[self._next(len(indices))]
        if current and index and actors[index].kind is ActorKind.TASK:
            self._preemptions += 1
        self._deviations += index > 0
        return index

    def draw(self, bound: int) -> int:
        """See Strategy.draw; every number in turn."""
        return self._next(bound)

    def _next(self, count: int) -> int:
        if self._at == len(self._path):
            self._path.append(_Branch(count))
        branch = self._path[self._at]
        if branch.count != count:
            raise NondeterminismError(
                f"choice {self._at} had {branch.count} possibilities in the run before, now {count}"
            )
        self._at += 1
        return branch.taken


@dataclass(slots=True)
class _Branch:
    count: int
    taken: int = field(default=0)

    @property
    def is_last(self) -> bool:
        return self.taken == self.count - 1


class Replay:
    """The choices of a trace, once; 0 behind its end, and the last possibility for an index
    beyond the count (which happens only when the choices are another run's)."""

    def __init__(self, choices: Sequence[int]) -> None:
        self._choices = choices
        self._at = 0
        self._begun = False

    def begin(self) -> bool:
        """See Strategy.begin; once."""
        begun, self._begun = self._begun, True
        return not begun

    def choose(self, actors: Sequence[Actor]) -> int:
        """See Strategy.choose."""
        return self._next(len(actors))

    def draw(self, bound: int) -> int:
        """See Strategy.draw."""
        return self._next(bound)

    def _next(self, count: int) -> int:
        if self._at >= len(self._choices):
            return 0
        choice = self._choices[self._at]
        self._at += 1
        return min(choice, count - 1)
