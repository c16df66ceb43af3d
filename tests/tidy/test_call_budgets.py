"""The budget of calls in docs/performance.md is the one that the test of the handlers holds."""

from __future__ import annotations

from tests.fuse.call_budgets import CALLS
from tests.tidy.documents import documents, sections


def test_the_document_has_the_budget_of_the_test() -> None:
    document = sections(documents()["docs/performance.md"])
    told = document["Calls, which do not depend on the machine"].table()
    assert [row[:2] for row in told] == [(name, str(most)) for name, most in CALLS.items()]
