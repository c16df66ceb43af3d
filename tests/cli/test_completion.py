"""Completion in shells: what is offered, and scripts that the shells themselves accept."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import termios
from pathlib import Path

import pytest

from shardfs.cli.completion_scripts import SHELLS
from tests.cli.commands import output_of
from tests.mounted.mounts import SHARDFS

SILENCE_S_MAX = 40.0
LINES = [
    ("shardfs ", {"mkfs", "mount", "completion"}, {"replay"}),
    ("shardfs sh", {"shards", "shrink"}, {"mkfs"}),
    ("shardfs check ", {"replay", "crashes"}, {"mkfs"}),
    ("shardfs df --", {"--json", "--help"}, set()),
    ("shardfs completion z", {"zsh"}, {"bash"}),
]


@pytest.mark.parametrize(("line", "offered", "not_offered"), LINES)
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
        pytest.skip(f"no {shell} here; scripts/setup.sh installs it")
    subprocess.run([shell, "-n", script], check=True, timeout=60)


needs = {
    shell: pytest.mark.skipif(
        shutil.which(shell) is None, reason=f"no {shell} here; scripts/setup.sh installs it"
    )
    for shell in ("zsh", "fish")
}


@needs["fish"]
@pytest.mark.parametrize(("line", "offered", "not_offered"), LINES)
def test_what_fish_offers(
    line: str, offered: set[str], not_offered: set[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            "fish",
            "--no-config",
            "-c",
            'shardfs completion fish | source; complete -C "$argv"',
            line,
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=environment(tmp_path),
    )
    found = {each.partition("\t")[0] for each in done.stdout.splitlines()}
    assert offered <= found and not not_offered & found, done


@needs["zsh"]
@pytest.mark.parametrize(
    ("typed", "seen"),
    [
        ("shardfs sh\t", (b"shards ", b"shrink ", b"List, explain, print and verify shards.")),
        ("shardfs completion z\t\x01echo \n", (b"\nshardfs completion zsh",)),
        ("shardfs check rep\t\x01echo \n", (b"\nshardfs check replay",)),
    ],
)
def test_what_zsh_offers(typed: str, seen: tuple[bytes, ...], tmp_path: Path) -> None:
    """As it is typed: zsh completes only on a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (40, 100))
    shell = subprocess.Popen(
        ["zsh", "-f", "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=environment(tmp_path) | {"TERM": "dumb", "ZDOTDIR": str(tmp_path)},
    )
    os.close(theirs)
    try:
        begin = "PS1='rea''dy> '; autoload -Uz compinit; compinit -u -D; "
        os.write(ours, f"{begin}source <(shardfs completion zsh)\n".encode())
        shown = read_until(ours, (b"ready> ",))
        os.write(ours, typed.encode())
        shown = read_until(ours, seen)
        assert all(each in shown for each in seen), shown
    finally:
        shell.kill()
        shell.wait(timeout=60)
        os.close(ours)


def environment(home: Path) -> dict[str, str]:
    return {
        "PATH": f"{SHARDFS.parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
    }


def read_until(terminal: int, wanted: tuple[bytes, ...]) -> bytes:
    """What a terminal shows until all of it is there, or nothing more comes for a while."""
    shown = b""
    while not all(each in shown for each in wanted):
        if not select.select([terminal], [], [], SILENCE_S_MAX)[0]:
            break
        shown += os.read(terminal, 65536)
    return shown
