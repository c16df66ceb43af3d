"""The package's modules as parsed trees, and the repository's files, for the tidy tests.

Role: every tidy check is a function from a `Module` to a list of findings (one line each); its
test runs it over `package_modules()`, and its self-check over a `sample()` it must object to.
"""

from __future__ import annotations

import ast
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGE = "shardfs"


@dataclass(frozen=True)
class Module:
    """One Python module: its dotted name and its source."""

    name: str
    source: str
    is_package: bool = False

    @property
    def tree(self) -> ast.Module:
        """The parsed source."""
        return _parse(self.source)

    @property
    def room(self) -> str:
        """First name below the package: "engine" for shardfs.engine.store, "" for shardfs."""
        return self.name.partition(".")[2].partition(".")[0]

    def at(self, node: ast.AST) -> str:
        """Where a finding is, as "module:line"."""
        return f"{self.name}:{getattr(node, 'lineno', 1)}"


@cache
def _parse(source: str) -> ast.Module:
    return ast.parse(source)


def sample(name: str, source: str, *, is_package: bool = False) -> Module:
    """A module that exists only in a test."""
    return Module(name, source, is_package)


@cache
def package_modules() -> tuple[Module, ...]:
    """Every module of shardfs, in the order of its path."""
    modules = []
    for path in sorted((REPOSITORY / PACKAGE).rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return tuple(modules)


@cache
def repository_files() -> tuple[Path, ...]:
    """Files that are, or would be, in version control; without git, all but dotted folders."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        paths = [REPOSITORY / name for name in listing.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [
            path
            for path in REPOSITORY.rglob("*")
            if not any(part.startswith(".") for part in path.relative_to(REPOSITORY).parts[:-1])
        ]
    return tuple(path for path in sorted(paths) if path.is_file() and not path.is_symlink())
