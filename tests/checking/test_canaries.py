"""Planted bugs are caught by the ordinary random sequences; docs/checking.md says how soon.

Those that the table there says take long to catch are marked slow.
"""

from __future__ import annotations

from functools import cache

import pytest
from _pytest.mark import ParameterSet

from shardfs import limits
from shardfs.checking.canaries import Canary, PlantingError, catalog, hunt
from shardfs.checking.canaries.planting import Edit, Setting, planted
from shardfs.checking.conformance.running import Case, run_case, worlds
from shardfs.engine import framing
from tests.tidy.documents import Row, documents, sections

QUICK_SEQUENCES_MAX = 60
QUICK_SECONDS_MAX = 1.5
ISSUES = range(1, 17)


@cache
def table() -> dict[str, Row]:
    """The rows of the document's table, by mutant."""
    rows = sections(documents()["docs/checking.md"])["Planted bugs"].table()
    return {row[0]: row for row in rows}


def sequences_of(name: str) -> int:
    """How many sequences it took to catch a mutant, as the document has it."""
    return int(table()[name][3].replace(",", ""))


def hunts() -> list[ParameterSet]:
    """Each canary as a test's parameter, slow ones marked."""
    found: list[ParameterSet] = []
    for canary in catalog():
        row = table().get(canary.name)
        quick = (
            row is not None
            and sequences_of(canary.name) <= QUICK_SEQUENCES_MAX
            and float(row[4]) < QUICK_SECONDS_MAX
        )
        marks = () if quick else (pytest.mark.slow, pytest.mark.timeout(900))
        found.append(pytest.param(canary, id=canary.name, marks=marks))
    return found


@pytest.mark.parametrize("canary", hunts())
def test_it_is_caught(canary: Canary) -> None:
    result = hunt(canary)
    assert result.caught, f"{canary.name} survives {result.sequences} sequences"
    assert result.check in canary.worlds
    assert result.finding
    with canary.planted():
        again = run_case(Case(result.check, int(result.line.split(":")[2])))
    assert again.line == result.line


@pytest.mark.parametrize("world", sorted({world for each in catalog() for world in each.worlds}))
def test_the_same_sequences_find_nothing_where_nothing_is_planted(world: str) -> None:
    for seed in range(QUICK_SEQUENCES_MAX):
        outcome = run_case(Case(world, seed))
        assert outcome.run.finding is None, f"{outcome.line}: {outcome.run.finding}"


def test_every_issue_has_a_canary() -> None:
    canaries = catalog()
    assert [each.issue for each in canaries if each.issue is not None] == list(ISSUES)
    assert len(canaries) >= 30
    assert len({each.name for each in canaries}) == len(canaries)
    for each in canaries:
        assert each.description.endswith((".", ".)")), each.name
        assert each.changes
        assert set(each.worlds) <= set(worlds())


@pytest.mark.parametrize("canary", catalog(), ids=lambda canary: canary.name)
def test_each_can_be_planted(canary: Canary) -> None:
    """Shardfs still reads as each mutant expects."""
    with canary.planted():
        pass


def test_the_document_lists_the_catalog() -> None:
    wanted = [(each.name, str(each.issue or "")) for each in catalog()]
    assert [row[:2] for row in table().values()] == wanted
    for each in catalog():
        assert table()[each.name][2] in each.worlds, f"{each.name} is caught by nothing"


# --- planting --------------------------------------------------------------------------------


def test_planting_ends_with_its_context() -> None:
    edit = Edit(framing.align, "return -(-length", "return 1 -(-length")
    with planted((edit, Setting(limits, "LINKS_MAX", 7))):
        assert framing.align(8) == 9
        assert vars(limits)["LINKS_MAX"] == 7
    assert framing.align(8) == 8
    assert vars(limits)["LINKS_MAX"] > 7


def test_importers_run_the_mistake_too() -> None:
    edit = Edit(framing.align, "return -(-length", "return 1 -(-length")
    before = framing.frame_bytes(3, 100_000)
    with planted((edit,)):
        assert framing.frame_bytes(3, 100_000) == before + 1


def test_edits_of_one_function_add_up() -> None:
    edits = (
        Edit(framing.align, "return -(-length", "return 1 -(-length"),
        Edit(framing.align, "return 1", "return 2"),
    )
    with planted(edits):
        assert framing.align(8) == 10


@pytest.mark.parametrize(
    "change",
    [
        Edit(framing.align, "these words are not there", ""),
        Edit(framing.align, "limits", "sizes"),
        Edit(len, "", ""),
        Setting(limits, "NO_SUCH_LIMIT", 1),
    ],
)
def test_what_cannot_be_planted_is_told(change: Edit | Setting) -> None:
    with pytest.raises(PlantingError), planted((change,)):
        pass


def test_lines_below_the_first_count_from_its_indentation() -> None:
    edit = Edit(
        framing.digests_of,
        "if len(buffers) == 1:\n    return granule",
        "if len(buffers) == 1 and buffers:\n    return b'x' + granule",
    )
    with planted((edit,)):
        assert framing.digests_of([b"1234"]).startswith(b"x")
