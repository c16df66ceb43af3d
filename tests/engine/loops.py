"""Loop devices over image files, for tests of what only a block device does."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def attached(image: Path) -> Iterator[str]:
    """The path of a loop device over an image file; the test is skipped where there is none."""
    if os.geteuid() or not shutil.which("losetup") or not os.path.exists("/dev/loop-control"):
        pytest.skip("loop devices need root, losetup and /dev/loop-control")
    command = ["losetup", "--find", "--show", str(image)]
    name = subprocess.check_output(command, text=True).strip()
    try:
        yield name
    finally:
        subprocess.run(["losetup", "--detach", name], check=True)
