"""Says in words what came of a case: its operations, its finding, the line that repeats it.

Role: text for people, from an Outcome.

Not here: the line itself (lines.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from shardfs.checking.conformance.running import Outcome

_STORY_LINES_MAX = 2000


def tell_finding(outcome: Outcome) -> str:
    """The finding as one line."""
    finding = outcome.run.finding
    return "no finding" if finding is None else " ".join(str(finding).split())


def tell(outcome: Outcome) -> str:
    """The case, readable: the operations one a line, then what went wrong."""
    return "\n".join(_lines(outcome))


def _lines(outcome: Outcome) -> Iterator[str]:
    operations, run = outcome.operations, outcome.run
    width = len(str(len(operations)))
    yield f"world {outcome.case.world}, {len(operations)} operations:"
    for number, operation in enumerate(operations, 1):
        yield f"  {number:>{width}}  {operation}"
    yield (
        f"under a schedule of {run.steps} steps and {run.choices} choices, "
        f"{run.trace.deviations} of them not the plainest"
    )
    if run.story:
        left_out = len(run.story) - _STORY_LINES_MAX
        if left_out > 0:
            yield f"  … {left_out} steps before …"
        for step in run.story[-_STORY_LINES_MAX:]:
            yield f"  {step}"
    yield "no finding" if run.finding is None else f"finding: {run.finding}"
