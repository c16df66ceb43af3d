"""The world of files: a file system without a kernel, beside the model of names and contents.

Role: the World "files". What its operations mean is in file_alphabet.py, what is checked in
file_run.py and file_client.py.

Invariants:
    I1. Times in inodes do not come from the wall clock.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Final

from shardfs import clock
from shardfs.checking.conformance.case import Coverage, Operations
from shardfs.checking.conformance.file_alphabet import ALPHABET, SMALL_TREE, generate
from shardfs.checking.conformance.file_devices import ground
from shardfs.checking.conformance.file_run import FileRun, setup_of
from shardfs.checking.conformance.small_limits import OF_FILES, OF_TREES, in_force, replaced
from shardfs.checking.schedule import Control, Program

_FIRST_NS: Final = 1_700_000_000 * 10**9
"""Each look at the clock is one nanosecond later (I1)."""


class FileWorld:
    """See World."""

    @property
    def name(self) -> str:
        """See World.name."""
        return "files"

    @property
    def alphabet(self) -> Sequence[str]:
        """See World.alphabet."""
        return ALPHABET

    def generate(self, rng: random.Random) -> Operations:
        """See World.generate."""
        return generate(rng)

    def program(self, operations: Operations, coverage: Coverage) -> Program[None]:
        """See World.program."""
        setup = setup_of(operations)
        base = ground(setup)

        async def program(control: Control) -> None:
            times = {"now_ns": itertools.count(_FIRST_NS).__next__}
            small = in_force(OF_FILES, wanted=bool(setup.variety & 8))
            small_tree = in_force(OF_TREES, wanted=bool(setup.variety & SMALL_TREE))
            with replaced(vars(clock), times), small, small_tree:
                await FileRun(control, coverage, setup, base, operations).run()

        return program
