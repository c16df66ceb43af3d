"""The repository as a whole: no leftovers, no large files, a changelog with room for news.

Role: checks on files of any kind, where test_imports, test_shape and test_banned read Python.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.tidy.sources import REPOSITORY, repository_files

FILE_BYTES_MAX = 1024 * 1024
# Spelled in two halves, so that this file does not find itself.
LEFTOVERS = re.compile(r"\b(?:" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)) + r")\b")


def check_leftovers(name: str, content: bytes) -> list[str]:
    """Notes to self that were meant to be gone by now."""
    if b"\0" in content:
        return []
    return [
        f"{name}:{number}: {found.group()} left; do it, or write it down where plans are kept"
        for number, line in enumerate(content.decode(errors="replace").splitlines(), 1)
        if (found := LEFTOVERS.search(line))
    ]


def check_size(name: str, size_bytes: int) -> list[str]:
    """Files that do not belong in version control."""
    if size_bytes <= FILE_BYTES_MAX:
        return []
    return [f"{name}: {size_bytes} bytes; make it when it is needed instead of keeping it in git"]


def check_changelog(text: str) -> list[str]:
    """A changelog whose newest section is not 'Unreleased', or says nothing."""
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    if not sections or not sections[0].startswith("Unreleased"):
        return ["docs/changelog.md: the first section must be '## Unreleased'"]
    return []


def check_pins(pyproject: str) -> list[str]:
    """Dependencies that must be one exact version and are not."""
    dependencies = tomllib.loads(pyproject)["project"]["dependencies"]
    trio = [entry for entry in dependencies if re.match(r"trio\b", entry)]
    if len(trio) != 1 or not re.fullmatch(r"trio==\d+\.\d+\.\d+", trio[0]):
        return [f"pyproject.toml: pin trio to one version (the schedule explorer): {trio}"]
    return []


def test_no_leftovers() -> None:
    paths = repository_files()
    assert len(paths) > 10
    findings = []
    for path in paths:
        findings += check_leftovers(str(path.relative_to(REPOSITORY)), path.read_bytes())
    assert findings == []


def test_no_large_files() -> None:
    findings = []
    for path in repository_files():
        findings += check_size(str(path.relative_to(REPOSITORY)), path.stat().st_size)
    assert findings == []


def test_changelog() -> None:
    assert check_changelog((REPOSITORY / "docs" / "changelog.md").read_text()) == []


def test_pins() -> None:
    assert check_pins((REPOSITORY / "pyproject.toml").read_text()) == []


@pytest.mark.parametrize("name", ["quickstart", "test", "../.ci/run"])
def test_entry_points_can_be_run(name: str) -> None:
    path = REPOSITORY / "scripts" / name
    assert path.stat().st_mode & 0o111
    assert path.read_text().startswith("#!/usr/bin/env bash\n")


def test_bad_samples_are_found() -> None:
    assert check_leftovers("a.py", b"x = 1\n# " + b"TO" + b"DO: more\n") != []
    assert check_leftovers("a.md", b"X" * 3 + b" here") != []
    assert check_leftovers("a.img", b"\0" + b"TO" + b"DO") == []
    assert check_leftovers("a.sh", b"mktemp /tmp/name." + b"X" * 6) == []
    assert check_size("a.img", FILE_BYTES_MAX + 1) != []
    assert check_size("a.img", FILE_BYTES_MAX) == []
    assert check_changelog("# Changelog\n\n## 1.0\n") != []
    assert check_changelog("# Changelog\n") != []
    assert check_changelog("# Changelog\n\n## Unreleased\n\n## 1.0\n") == []
    for bad in ("trio", "trio>=0.35.0", "trio==0.35.*"):
        assert check_pins(f"[project]\ndependencies = ['{bad}']") != []


def test_the_list_of_files_is_real() -> None:
    names = {path.relative_to(REPOSITORY) for path in repository_files()}
    assert {Path("pyproject.toml"), Path("tests/tidy/test_repository.py")} <= names
    assert not any(".venv" in name.parts for name in names)
