"""The `shardfs install` command, in a directory that stands for /."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shardfs.cli import main as cli
from shardfs.cli.install import COMPLETIONS, LINKS, SHARE, UNIT


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the scripts as pip installs them."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("shardfs", *LINKS.values()):
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(directory / "shardfs")])
    return directory


def test_install_and_remove(
    scripts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    for _ in range(2):
        assert cli.run(["install", "--root", str(root)]) == 0
    assert str(root / UNIT) in capsys.readouterr().out
    for place, name in LINKS.items():
        assert (root / place).readlink() == scripts / name
    unit = (root / UNIT).read_text()
    page = (root / SHARE / "man/man1/shardfs-mkfs.1").read_text()
    assert (
        ".SH NAME\nshardfs\\-mkfs" in page and (root / SHARE / "man/man8/mount.shardfs.8").exists()
    )
    assert all("shardfs" in (root / place).read_text() for place in COMPLETIONS.values())
    assert f"ExecStart={scripts / 'shardfs'} " in unit and "Type=notify" in unit
    assert "@SHARDFS@" not in unit
    if shutil.which("systemd-analyze"):
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", root / UNIT],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        about_it = [line for line in done.stderr.splitlines() if "shardfs" in line]
        assert about_it == [], done.stderr
    assert cli.run(["install", "--remove", "--root", str(root)]) == 0
    assert [path for path in root.rglob("*") if not path.is_dir()] == []
    assert cli.run(["install", "--remove", "--root", str(root)]) == 0


@pytest.mark.parametrize("place", [*LINKS, UNIT, COMPLETIONS["zsh"], f"{SHARE}/man/man1/shardfs.1"])
def test_what_is_not_ours_stays(
    scripts: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text("foreign")
    for arguments in (["install"], ["install", "--remove"]):
        assert cli.run([*arguments, "--root", str(tmp_path)]) == 2
        assert "not ours" in capsys.readouterr().err
    assert path.read_text() == "foreign"
    others = [each for each in (*LINKS, UNIT) if each != place]
    assert not any((tmp_path / each).exists() for each in others), "nothing was begun"


def test_scripts_that_are_missing(
    scripts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scripts / "mount.shardfs").unlink()
    assert cli.run(["install", "--root", str(tmp_path)]) == 2
    assert "pip" in capsys.readouterr().err
