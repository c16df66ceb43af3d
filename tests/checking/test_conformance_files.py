"""Random lives of the file system beside the models of names and contents; planted bugs are found.

A seed that fails here is repeated by `run_case(decode_line(line))` with the line in the message.
"""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from functools import partial
from unittest import mock

import pytest

from shardfs.checking.conformance.case import Coverage, Operation
from shardfs.checking.conformance.file_run import setup_of
from shardfs.checking.conformance.file_world import FileWorld
from shardfs.checking.conformance.running import Case, run_case
from shardfs.checking.conformance.telling import tell
from shardfs.fuse import files
from shardfs.fuse.handles import Handles
from shardfs.fuse.keys import orphan_key
from shardfs.fuse.namespace import Namespace
from shardfs.fuse.rename import Renaming, apply_rename
from shardfs.fuse.writeback import Writeback
from tests.checking.cases import Plant, check_found_and_shrunk, check_same_elsewhere

CASES = 300
CASES_TO_FIND_MAX = 2500
SEEDS = (1, 2, 3, 5, 8)


def test_random_lives() -> None:
    coverage = Coverage()
    for seed in range(CASES):
        outcome = run_case(Case("files", seed))
        assert outcome.run.finding is None, f"{outcome.line}\n{tell(outcome)}"
        coverage.add(outcome.coverage)
    for kind in ("lose all", "keep all", "subset", "torn", "within"):
        assert coverage.counts[f"crash {kind}"] > 0
    for kind in ("read", "write", "flush"):
        assert coverage.counts[f"fault {kind}"] > 0
    assert coverage.counts["operation rename"] > CASES
    assert len(coverage.crash_states) > CASES / 3


def test_all_of_the_alphabet_is_used() -> None:
    world = FileWorld()
    used = {each.name for seed in range(1000) for each in world.generate(random.Random(seed))}
    assert used == set(world.alphabet)


def test_any_numbers_make_a_sequence() -> None:
    rng = random.Random(5)
    alphabet = FileWorld().alphabet
    for _ in range(60):
        operations = tuple(
            Operation(
                rng.choice(alphabet), tuple(rng.randrange(10**6) for _ in range(rng.randrange(6)))
            )
            for _ in range(12)
        )
        outcome = run_case(Case("files", 0, operations))
        assert outcome.run.finding is None, f"{outcome.line}\n{tell(outcome)}"


def test_an_end_in_the_middle_of_a_shrink() -> None:
    """Free is then what it is in a store of the size to come."""
    setup, shrink = Operation("setup", (1, 0, 0, 0)), Operation("shrink", (3, 0))
    outcome = run_case(Case("files", 0, (setup, shrink, Operation("shrink", (0, 1)))))
    assert outcome.run.finding is None, f"{outcome.line}\n{tell(outcome)}"


def test_without_a_setup_it_is_the_plainest() -> None:
    assert setup_of([Operation("create", (0, 1))]) == (0, 0, 0, 0)


@pytest.mark.parametrize("hash_seed", ["0", "1234"])
def test_a_case_is_the_same_in_another_process(hash_seed: str) -> None:
    check_same_elsewhere("files", SEEDS, hash_seed)


# --- planted bugs


def fsync_does_not_wait() -> AbstractContextManager[object]:
    """fsync gives the data to the store, and nothing makes it durable."""
    return mock.patch.object(Writeback, "fsync", Writeback.flush)


def truncation_keeps_the_last_piece() -> AbstractContextManager[object]:
    """What lies beyond the new end of the last piece stays, and shows when the file grows."""
    return mock.patch.object(files, "truncate", lambda pieces, length: pieces if length else ())


def rename_leaves_the_content_behind() -> AbstractContextManager[object]:
    """The new file's buffered data is not stored before it replaces the old one."""

    async def rename(
        self: Namespace, old: int, name: bytes, new: int, new_name: bytes, flags: int = 0
    ) -> None:
        renaming = Renaming(old, name, new, new_name, flags)
        nameless = await self._tables.run(partial(apply_rename, self._tables, renaming))
        if nameless is not None:
            self._handles.nameless(nameless)

    return mock.patch.object(Namespace, "rename", rename)


def an_open_file_is_freed_with_its_name() -> AbstractContextManager[object]:
    """unlink does not ask whether the file is open."""

    def nameless(self: Handles, ino: int) -> None:
        self._orphans.queue(ino)

    return mock.patch.object(Handles, "nameless", nameless)


def a_removed_file_has_no_mark() -> AbstractContextManager[object]:
    """The orphan mark names another inode."""
    return mock.patch("shardfs.fuse.namespace.orphan_key", lambda ino: orphan_key(ino + 1_000_000))


@pytest.mark.parametrize(
    ("plant", "operations_max"),
    [
        (fsync_does_not_wait, 4),
        (truncation_keeps_the_last_piece, 6),
        (rename_leaves_the_content_behind, 8),
        (an_open_file_is_freed_with_its_name, 5),
        (a_removed_file_has_no_mark, 3),
    ],
)
def test_a_planted_bug_is_found_and_shrunk(plant: Plant, operations_max: int) -> None:
    check_found_and_shrunk(
        "files",
        plant,
        cases_max=CASES_TO_FIND_MAX,
        attempts_max=600,
        operations_max=operations_max,
    )
