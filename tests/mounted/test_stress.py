"""stress-ng's filesystem class with --verify on a mount, and fsck afterwards.

Role: each of its stressors runs for a moment, one after the other; those that a FUSE file system
or this machine cannot run skip themselves. What counts is that none finds a difference, that the
mount lives, and that fsck finds nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.mounted.conftest import ImageFactory, MountFactory

LEFT_OUT = ("binderfs", "eventfd", "ioprio", "procfs", "fsize")
"""Stressors of that class that do not use the file system under test; and fsize, which expects
EFBIG and SIGXFSZ of fallocate(2) itself. (test_file_size_limits has the same for what there is.)"""
IMAGE_BYTES = 1024 * 1024 * 1024
TROUBLE = re.compile(r"stress-ng: (?:fail|error):", re.MULTILINE)


def run_stressors(folder: Path, seconds_each: int) -> str:
    """Run them all in a folder; what stress-ng says."""
    command = ["stress-ng", "--class", "filesystem", "--sequential", "1", "--verify"]
    command += ["--exclude", ",".join(LEFT_OUT), "--timeout", str(seconds_each)]
    command += ["--temp-path", str(folder)]
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"stress-ng ended with status {done.returncode}\n{said}"
    return said


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.skipif(shutil.which("stress-ng") is None, reason="no stress-ng (Debian: stress-ng)")
def test_stressors_find_no_difference(
    make_image: ImageFactory, mount_shardfs: MountFactory
) -> None:
    options = ["suid", "dev"] if os.geteuid() == 0 else []
    mounted = mount_shardfs(make_image(IMAGE_BYTES), options, seconds_max=950)
    folder = mounted.path / "folder"
    folder.mkdir()
    folder.chmod(0o777)
    said = run_stressors(folder, 1)
    assert not TROUBLE.search(said), said
    assert mounted.is_running
