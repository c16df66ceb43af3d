"""The example in the documentation runs, and ends as the text says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shardfs.checking.schedule import FindingKind, ScheduleFailure, replay

FOLDER = Path(__file__).parents[2] / "docs"
HEADING = "# The schedule explorer"


def _section() -> str:
    for path in sorted(FOLDER.glob("checking*.md")):
        text = path.read_text(encoding="utf-8")
        if HEADING in text:
            return text.partition(HEADING)[2]
    raise AssertionError(f"no page has the section {HEADING!r}")


def test_the_ten_lines() -> None:
    found = re.search(r"```python\n(.*?)```\n.*?```text\n(.*?)```", _section(), re.DOTALL)
    assert found is not None
    code, shown = found.groups()
    namespace: dict[str, object] = {}
    with pytest.raises(ScheduleFailure) as caught:
        exec(compile(code, "example.py", "exec"), namespace)
    finding = caught.value.run.finding
    assert finding is not None and finding.kind is FindingKind.ASSERTION
    told = str(caught.value)
    for line in shown.splitlines():
        start = re.match(
            r"found in run \d+; 1 choices off|\s+\d+  \w+#\d+|assertion at step \d+", line
        )
        assert line.startswith("replay: 1.") or (start is not None and start.group() in told), line
    program = namespace["program"]
    assert callable(program)
    assert replay(program, caught.value.run.trace).finding == finding
