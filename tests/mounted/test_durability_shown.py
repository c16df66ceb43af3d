"""Durability shown on a mount: the attribute, `shardfs pending`, `shardfs sync --wait`."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import output_of, run, stop_everything_at
from tests.mounted.mounts import errno_of, run_command

pytestmark = pytest.mark.usefixtures("runtime")

NAME = "user.shardfs.persistent"


@pytest.fixture
def mounted(image_file: Path, fuse_is_usable: None, tmp_path: Path) -> Iterator[Path]:
    """A mount in the background, of a fresh image."""
    path = tmp_path / "mnt"
    path.mkdir()
    output_of("mkfs", image_file)
    output_of("mount", image_file, path)
    yield path
    stop_everything_at(path)


def test_from_write_to_sync(mounted: Path) -> None:
    file = mounted / "file"
    file.write_bytes(b"data")
    if os.getxattr(file, NAME) == b"no":  # a slow machine may have stored it by itself
        done = run("pending", file, "--json")
        assert done.returncode == (0 if json.loads(done.stdout)["persistent"] else 1)
    output_of("sync", "--wait", file)
    assert os.getxattr(file, NAME) == b"yes"
    assert json.loads(output_of("pending", file, "--json")) == {"persistent": True, "files": []}
    assert "everything is durable" in output_of("pending", mounted)
    with file.open("ab") as handle:
        handle.write(b"more")
        handle.flush()
        os.fsync(handle.fileno())
    assert os.getxattr(file, NAME) == b"yes", "fsync has made it durable"
    output_of("sync", "--wait", mounted)


def test_nobody_copies_it(mounted: Path, tmp_path: Path) -> None:
    file = mounted / "file"
    file.write_bytes(b"data")
    os.setxattr(file, "user.mine", b"1")
    assert os.listxattr(file) == ["user.mine"]
    assert errno_of(os.setxattr, file, NAME, b"yes") == errno.EPERM
    assert errno_of(os.removexattr, file, NAME) == errno.EPERM
    run_command("cp", "-a", file, mounted / "copy")
    assert os.listxattr(mounted / "copy") == ["user.mine"]
    if shutil.which("rsync") is not None:
        run_command("rsync", "-aX", file, mounted / "synced")
        assert os.listxattr(mounted / "synced") == ["user.mine"]
    assert NAME not in run_command("getfattr", "-d", file)
    assert f'{NAME}="' in run_command("getfattr", "-n", NAME, file)
