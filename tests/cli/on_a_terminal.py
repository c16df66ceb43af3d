"""Runs inside a terminal: one command of shardfs after the other, each behind a line of its own.

Usage: python -m tests.cli.on_a_terminal FILE, which holds one command line on each line.

Not here: the terminal, and what is expected of it (test_terminals.py).
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from shardfs.cli import main

MARK = "=== "


def run_all(path: Path) -> None:
    """Run the command lines of a file; what they are goes before each, its status behind it."""
    for line in path.read_text().splitlines():
        sys.stdout.write(f"{MARK}{line.partition('|')[0]}\n")
        sys.stdout.flush()
        status = main.run(shlex.split(line.partition("|")[2]))
        sys.stdout.write(f"{MARK}status {status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    os.chdir(Path(sys.argv[1]).parent)
    run_all(Path(sys.argv[1]))
