"""One case of conformance checking as plain data: which world, which operations.

Role: an Operation is a name and whole numbers, so that sequences of any world can be generated,
printed, shortened and replayed by code that knows nothing of the world. A World turns a sequence
into a program for the schedule explorer.

Invariants:
    I1. What a case does depends on its operations and on what the program draws from its Control,
        on nothing else: neither the clock, nor the hash seed, nor cases run before.
    I2. Every sequence of operations can be run, also one with operations removed or numbers
        lowered: what makes no sense at its place does nothing.
    I3. Lower numbers are simpler; 0 is the simplest.

Not here: running cases (running.py), the worlds themselves.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from shardfs.checking.schedule import Program


class Operation(NamedTuple):
    """One step of a sequence, as in "put 3 4097"."""

    name: str
    arguments: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.name, *map(str, self.arguments)))


Operations = tuple[Operation, ...]


@dataclass(slots=True)
class Coverage:
    """What cases have gone through, to be added up over many of them.

    Args:
        counts: how often, by a word for what: "operation put", "crash torn", "fault read once".
        crash_states: a digest of each device content that was opened after a crash.
    """

    counts: Counter[str] = field(default_factory=Counter)
    crash_states: set[int] = field(default_factory=set)

    def add(self, other: Coverage) -> None:
        """Take another's counts and states in."""
        self.counts.update(other.counts)
        self.crash_states |= other.crash_states


class World(Protocol):
    """A system and its model, on which sequences of operations run."""

    @property
    def name(self) -> str:
        """One word; part of the lines that replay cases."""

    @property
    def alphabet(self) -> Sequence[str]:
        """Names of all operations, simple to complex."""

    def generate(self, rng: random.Random) -> Operations:
        """A random sequence. The first operations set the device up."""

    def program(self, operations: Operations, coverage: Coverage) -> Program[None]:
        """What runs the operations on a new system and its model.

        An AssertionError from it is a finding, and so is any exception that it does not expect.
        """
