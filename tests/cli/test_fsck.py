"""What `shardfs fsck` prints for people."""

from __future__ import annotations

import pytest

from shardfs.cli.fsck import _print
from shardfs.engine.findings import Finding, Report


def test_what_helps_is_said_once_for_findings_in_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    for number, invariant in enumerate(("E5", "E5", "E11", "E5")):
        report.add(
            Finding(invariant, f"trouble {number}", length=1 if invariant == "E11" else None)
        )
    _print("disk.img", report, data=True)
    lines = capsys.readouterr().out.splitlines()
    helps = [number for number, line in enumerate(lines) if line.startswith("    repair would ")]
    assert [line for line in lines if "trouble" in line] == [
        "E5 trouble 0",
        "E5 trouble 1",
        "E11 trouble 2",
        "E5 trouble 3",
    ]
    assert helps == [2, 4, 6]
    assert lines[2] == lines[6] != lines[4]
