"""The world of files: a file system without a kernel, beside the model of names and contents.

Role: the World "files". What its operations mean is in file_alphabet.py, what is checked in
file_run.py and file_client.py.

Invariants:
    I1. Times in inodes do not come from the wall clock.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from shardfs import clock, limits
from shardfs.checking.conformance.case import Coverage, Operations
from shardfs.checking.conformance.file_alphabet import ALPHABET, generate
from shardfs.checking.conformance.file_devices import ground
from shardfs.checking.conformance.file_run import FileRun, setup_of
from shardfs.checking.schedule import Control, Program

_FIRST_NS: Final = 1_700_000_000 * 10**9
"""Each look at the clock is one nanosecond later (I1)."""
_SMALL_LIMITS: Final = {
    "DIRECTORY_PAGE_ENTRIES": 2,
    "INODES_PER_LEASE": 2,
    "PIECES_PER_SHARD_MAX": 66,
    "SHARDS_PER_BATCH_MAX": 2,
}
"""Then what is done page by page or batch by batch takes several, and shards are gathered."""


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
            small = _SMALL_LIMITS if setup.variety & 8 else {}
            with _replaced(vars(clock), times), _replaced(vars(limits), small):
                await FileRun(control, coverage, setup, base, operations).run()

        return program


@contextmanager
def _replaced(module: dict[str, Any], changes: Mapping[str, Any]) -> Iterator[None]:
    """A module with other values while the body runs."""
    before = {name: module[name] for name in changes}
    module.update(changes)
    try:
        yield
    finally:
        module.update(before)
