"""The budget of round trips in docs/performance.md is the one that the test on a mount holds."""

from __future__ import annotations

from tests.mounted.budgets import BUDGETS
from tests.tidy.documents import documents, sections


def test_the_document_has_the_budget_of_the_test() -> None:
    told = sections(documents()["docs/performance.md"])["Round trips"].table()
    wanted = [
        (
            sequence,
            str(sum(counts.values())),
            ", ".join(f"{name} {count}" for name, count in counts.items()) or "none",
        )
        for sequence, counts in BUDGETS.items()
    ]
    assert [row[:3] for row in told] == wanted
