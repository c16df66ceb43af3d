"""Completion in shells: what is offered, and scripts that the shells themselves accept."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from shardfs.cli.completion_scripts import SHELLS
from tests.cli.commands import output_of
from tests.mounted.mounts import SHARDFS


@pytest.mark.parametrize(
    ("line", "offered", "not_offered"),
    [
        ("shardfs ", {"mkfs", "mount", "completion"}, {"replay"}),
        ("shardfs sh", {"shards", "shrink"}, {"mkfs"}),
        ("shardfs check ", {"replay", "crashes"}, {"mkfs"}),
        ("shardfs df --", {"--json", "--help"}, set()),
        ("shardfs completion z", {"zsh"}, {"bash"}),
    ],
)
def test_what_bash_offers(line: str, offered: set[str], not_offered: set[str]) -> None:
    script = (
        'source <("$1" completion bash); read -ra COMP_WORDS <<<"$2"; '
        '[[ $2 == *" " ]] && COMP_WORDS+=(""); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); '
        '_shardfs_completion "$1"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", SHARDFS, line],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PATH": f"{SHARDFS.parent}:{os.environ['PATH']}"},
    )
    found = set(done.stdout.split())
    assert offered <= found and not not_offered & found, done


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_what_the_shell_accepts(shell: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(output_of("completion", shell))
    assert "_SHARDFS_COMPLETE" in script.read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    subprocess.run([shell, "-n", script], check=True, timeout=60)
