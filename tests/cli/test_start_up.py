"""What a command loads before it can say anything: as little as it needs.

Counted are modules, not seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from shardfs.cli.commands import SECTIONS, VARIABLE
from shardfs.cli.main import group

_LOADED = "import json, sys; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
_NAME_WIDTH = 14
_MODULES_MAX = 190
"""Loaded by what needs no command: 137 with Python 3.11, of which click has 104."""


def loaded(*arguments: str, **environment: str) -> list[str]:
    """The modules that `shardfs` has loaded when it has run with these arguments."""
    code = (
        "import sys\nfrom shardfs.cli.main import main\n"
        f"sys.argv[1:] = {list(arguments)!r}\n"
        f"try:\n    main()\nfinally:\n    {_LOADED}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return list(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (("--help",), {}),
        (("nonsense",), {}),
        ((), {VARIABLE: "bash_complete", "COMP_WORDS": "shardfs sh", "COMP_CWORD": "1"}),
    ],
    ids=("help", "misuse", "completion"),
)
def test_help_and_completion_load_no_command(
    arguments: tuple[str, ...], environment: dict[str, str]
) -> None:
    modules = loaded(*arguments, **environment)
    assert len(modules) < _MODULES_MAX
    assert not {"trio", "pyfuse3", "importlib.metadata"} & set(modules)


@pytest.mark.parametrize("name", ["df", "stat", "top", "trace", "sync", "umount", "scrub"])
def test_who_asks_a_mount_loads_no_engine(name: str) -> None:
    modules = loaded(name, "--help")
    assert [each for each in modules if each.startswith("shardfs.engine")] == []
    assert "pyfuse3" not in modules


def test_every_command_has_a_line_that_fits_a_terminal() -> None:
    lines = {name: line for section in SECTIONS.values() for name, line in section.items()}
    assert set(lines) == set(group.commands) and len(lines) > 30
    for name, command in group.commands.items():
        assert command.short_help == lines[name]
        assert len(lines[name]) <= 80 - _NAME_WIDTH and lines[name].endswith("."), name
