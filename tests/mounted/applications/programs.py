"""Programs that the application tests run: found, or skipped with the Debian package to install.

Role: a way to say what a test needs, and to run it in a folder with an environment of its own,
so that neither the user's settings nor those of the machine decide what happens.

An application's work is a function of an empty folder and a seed, which raises what pytest would
report if the application is not content with its own results. The test of one application calls
it on a mount; test_all_at_once.py calls all of them side by side.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.mounted.mounts import run_command

Work = Callable[[Path, int], None]
DEBIAN_PYTHON = Path("/usr/bin/python3")
"""Debian's own interpreter: the one that python3-lmdb and python3-gdbm are made for."""
REPOSITORY = Path(__file__).parents[3]


def need(package: str, *programs: str) -> None:
    """Skip the test, and name the Debian package, where a program is missing."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} on this machine (Debian package {package})")


def run_in(
    folder: Path,
    *command: str | Path,
    expected_status: int = 0,
    seconds_max: float = 300.0,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Run a command in a folder; its standard output.

    Args:
        folder: where it runs, and its HOME.
        variables: what is in its environment beside PATH, HOME and LC_ALL.

    Raises: AssertionError with all the output if its exit status is another one.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LC_ALL": "C.UTF-8",
        **(variables or {}),
    }
    settings = [f"{name}={value}" for name, value in environment.items()]
    return run_command(
        *("env", "-i", "-C", folder, *settings, *command),
        expected_status=expected_status,
        seconds_max=seconds_max,
    )


def git(folder: Path, *arguments: str | Path) -> str:
    """Run git in a folder, by an author and at a time that are always the same."""
    settings = {
        "core.fsync": "all",
        "core.fsyncMethod": "fsync",
        "gc.auto": "0",
        "init.defaultBranch": "main",
        "protocol.file.allow": "always",
    }
    options = [word for pair in settings.items() for word in ("-c", "=".join(pair))]
    environment = {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (
            ("NAME", "A"),
            ("EMAIL", "a@example.org"),
            ("DATE", "1700000000 +0000"),
        )
    }
    environment["GIT_CONFIG_NOSYSTEM"] = "1"
    return run_in(folder, "git", *options, *arguments, variables=environment)


@cache
def debian_python_with(module: str, package: str) -> Path:
    """Debian's Python, if it can import a module; skips the test if not."""
    if not DEBIAN_PYTHON.exists():
        pytest.skip(f"no {DEBIAN_PYTHON} on this machine (Debian package python3)")
    command = ("sh", "-c", f"{DEBIAN_PYTHON} -c 'import {module}' 2>&1 || true")
    if said := run_command(*command).strip():
        reason = said.splitlines()[-1]
        pytest.skip(f"{DEBIAN_PYTHON} says: {reason} (Debian package {package})")
    return DEBIAN_PYTHON
