"""Real trees through real tools on a real loop device: what was copied in is what is there."""

from __future__ import annotations

import os
import shlex
import shutil
import sysconfig
from pathlib import Path

import pytest

from tests.mounted.conftest import LoopDeviceFactory, MountFactory
from tests.mounted.mounts import run_command

GIB = 1024 * 1024 * 1024
FILES_MIN = 5000
_LISTING = "%P|%y|%m|%U|%G|%n|%T@|%l|%s\\0"


def library_sample(target: Path) -> int:
    """Part of the Python standard library, with links and xattrs added; the number of files."""
    source = Path(sysconfig.get_paths()["stdlib"])
    count = 0
    target.mkdir()
    for folder, names, files in os.walk(source):
        names[:] = sorted(name for name in names if name != "site-packages")
        here = target / Path(folder).relative_to(source)
        here.mkdir(exist_ok=True)
        for name in sorted(files):
            shutil.copy2(Path(folder) / name, here / name, follow_symlinks=False)
            count += 1
    copy = 0
    while count < FILES_MIN:
        shutil.copytree(source / "json", target / f"again-{copy}")
        count += sum(len(files) for _, _, files in os.walk(source / "json"))
        copy += 1
    (target / "symlink").symlink_to("os.py")
    (target / "dangling").symlink_to("nowhere/at/all")
    os.link(target / "os.py", target / "hardlink.py")
    os.mkfifo(target / "fifo", 0o640)
    (target / "sealed").mkdir(mode=0o1731)
    (target / "os.py").chmod(0o4751)
    os.utime(target / "hardlink.py", ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    os.setxattr(target / "re", "user.shape", b"\x00\xff tree")
    return count


def listing(root: Path) -> list[str]:
    """Everything that stat says and a copy must keep, one entry a file, in order."""
    lines = run_command("find", root, "-mindepth", "1", "-printf", _LISTING).split("\0")
    # A directory's size is the file system's own affair.
    return sorted(line.rpartition("|")[0] if "|d|" in line else line for line in lines)


def xattrs(root: Path) -> str:
    """All user xattrs below a directory."""
    return run_command(
        "sh", "-c", f"cd {shlex.quote(str(root))} && getfattr -R -h -d -m user. . | sort"
    )


@pytest.mark.timeout(600)
def test_a_tree_and_a_large_file_come_back_equal(
    loop_device: LoopDeviceFactory, mount_shardfs: MountFactory, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    assert library_sample(source) >= FILES_MIN
    large = tmp_path / "large"
    with large.open("wb") as file:
        for _ in range(GIB // (64 << 20)):
            file.write(os.urandom(64 << 20))
    mounted = mount_shardfs(loop_device(3 * GIB), seconds_max=550)
    run_command("cp", "-a", source, mounted.path / "copy", seconds_max=300)
    run_command("cp", "-a", large, mounted.path / "large", seconds_max=120)
    mounted.remount()
    # diff calls any two FIFOs different; the listing below compares them.
    compare = ("diff", "-r", "--no-dereference", "-x", "fifo")
    run_command(*compare, source, mounted.path / "copy", seconds_max=300)
    run_command("cmp", large, mounted.path / "large", seconds_max=120)
    assert listing(mounted.path / "copy") == listing(source)
    assert xattrs(mounted.path / "copy") == xattrs(source)
