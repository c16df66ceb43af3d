"""Every mount option by its effect on a real mount.

Role: a mount is slow to make, so one test covers what can be seen together.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.commands import refused
from tests.mounted.conftest import MountFactory
from tests.mounted.mounts import MountedShardfs, errno_of, find_mount, run_command, shardfs
from tests.mounted.test_posix_attributes import as_nobody, as_root

DAY_NS = 24 * 3600 * 10**9


def kernel_options(path: Path) -> set[str]:
    """The options that the kernel shows for a mount."""
    return set(run_command("findmnt", "-no", "OPTIONS", path).strip().split(","))


def moves_atime(path: Path, *, flags: int = 0) -> bool:
    """Whether reading a file, directory or link moves its access time."""
    before = os.lstat(path).st_atime_ns
    if path.is_symlink():
        os.readlink(path)
    elif path.is_dir():
        os.listdir(path)
    else:
        descriptor = os.open(path, os.O_RDONLY | flags)
        os.read(descriptor, 100)
        os.close(descriptor)
    return os.lstat(path).st_atime_ns != before


# --- access times ---------------------------------------------------------------------------


def make_readables(root: Path) -> list[Path]:
    """A file, a directory with an entry, and a link."""
    (root / "directory").mkdir()
    (root / "directory" / "entry").touch()
    (root / "file").write_bytes(b"x" * 8192)
    (root / "link").symlink_to("file")
    return [root / name for name in ("file", "directory", "link")]


def test_access_times(image_file: Path, mount_shardfs: MountFactory) -> None:
    mounted = mount_shardfs(image_file)
    paths = make_readables(mounted.path)
    assert "relatime" in kernel_options(mounted.path)
    for path in paths:
        assert moves_atime(path), f"{path.name}: relatime, first read after a change"
        assert not moves_atime(path), f"{path.name}: relatime, second read"
    file = paths[0]
    content = file.read_bytes()
    with file.open("r+b") as writing:
        writing.write(b"y" * 8192)  # whole pages: the kernel could answer the next read itself
    assert moves_atime(file) and not moves_atime(file), "the first read after a write"
    file.chmod(0o600)
    assert moves_atime(file, flags=os.O_RDWR) and not moves_atime(file)
    os.utime(file, ns=(time.time_ns() - 2 * DAY_NS, time.time_ns() - 4 * DAY_NS))
    # utimensat has set ctime, so this read moves it; then nothing does, in either state.
    assert moves_atime(file) and not moves_atime(file)
    file.touch()
    assert not moves_atime(file, flags=os.O_NOATIME) and moves_atime(file)
    times = file.stat()
    os.close(os.open(file, os.O_RDONLY))
    file.touch()
    before = file.stat().st_atime_ns
    os.close(os.open(file, os.O_RDONLY))
    assert file.stat().st_atime_ns == before, "opening is not reading"
    assert content != file.read_bytes() and times.st_mtime_ns <= file.stat().st_mtime_ns
    kept = {path: os.lstat(path).st_atime_ns for path in paths}

    mounted.remount(["noatime"])
    assert "noatime" in kernel_options(mounted.path)
    assert {path: os.lstat(path).st_atime_ns for path in paths} == kept, "atime is durable"
    file.touch()
    for path in paths:
        assert not moves_atime(path), f"{path.name}: noatime"
    mounted.remount(["strictatime"])
    for path in paths:
        assert moves_atime(path) and moves_atime(path), f"{path.name}: strictatime"
    mounted.remount(["strictatime", "nodiratime"])
    assert [moves_atime(path) for path in paths] == [True, False, True]
    mounted.remount(["ro", "strictatime"])
    for path in paths:
        assert not moves_atime(path), f"{path.name}: read-only"


# --- durability -----------------------------------------------------------------------------

NAME_CHANGES = (
    "touch a",
    "mkdir d",
    "mknod p p",
    "ln -s target s",
    "ln a b",
    "mv a c",
    "rm b",
    "rmdir d",
)


def names_after_a_kill(mounted: MountedShardfs, scripts: Sequence[str]) -> list[str]:
    """Run commands, kill the server at once, mount again: what is there."""
    run_command("sh", "-c", " && ".join([f"cd '{mounted.path}'", *scripts]))
    mounted.kill()
    mounted.start()
    return sorted(os.listdir(mounted.path))


def test_sync_and_dirsync(image_file: Path, mount_shardfs: MountFactory) -> None:
    mounted = mount_shardfs(image_file, ["dirsync"])
    assert names_after_a_kill(mounted, NAME_CHANGES) == ["c", "p", "s"]
    mounted.remount(["sync"])
    path = mounted.path / "data"
    assert "data" in names_after_a_kill(mounted, ["echo hello >data", "chmod 640 data"])
    assert path.read_text() == "hello\n" and stat.S_IMODE(path.stat().st_mode) == 0o640
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"more\n")
    os.ftruncate(descriptor, 8)
    os.setxattr(path, "user.a", b"1")
    mounted.kill()
    assert errno_of(os.close, descriptor) in (0, errno.ENOTCONN)
    mounted.start()
    assert path.read_text() == "hello\nmo" and os.getxattr(path, "user.a") == b"1"
    mounted.remount(["async"])
    assert "sync" not in kernel_options(mounted.path)


# --- what the kernel allows -----------------------------------------------------------------


@as_root
def test_suid_dev_exec(image_file: Path, mount_shardfs: MountFactory) -> None:
    mounted = mount_shardfs(image_file, ["suid", "dev", "exec"])
    root = mounted.path
    run_command("cp", "/usr/bin/id", root / "id")
    run_command("mknod", root / "zero", "c", "1", "5")
    (root / "id").chmod(0o4755)
    root.chmod(0o755)
    assert as_nobody('test "$(./id -u)" = 0', root), "suid"
    with (root / "zero").open("rb") as device:
        assert device.read(3) == bytes(3)
    mounted.remount(["nosuid", "nodev"])
    assert {"nosuid", "nodev"} <= kernel_options(root)
    assert as_nobody('test "$(./id -u)" = 65534', root), "nosuid"
    assert errno_of((root / "zero").read_bytes) == errno.EACCES
    mounted.remount(["noexec"])
    assert errno_of(subprocess.run, [str(root / "id")]) == errno.EACCES
    assert {"nosuid", "nodev", "noexec"} <= kernel_options(root), "the defaults of a FUSE mount"


@as_root
def test_owners(image_file: Path, mount_shardfs: MountFactory) -> None:
    mounted = mount_shardfs(image_file, ["uid=1234,gid=2345"])
    root = mounted.path
    assert (root.stat().st_uid, root.stat().st_gid) == (1234, 2345), "the new root directory"
    mounted.remount([])
    (root / "of root").touch()
    assert (root.stat().st_uid, (root / "of root").stat().st_uid) == (1234, 0)
    mounted.remount(["uid=65534", "gid=65534"])
    for path in (root, root / "of root"):
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)
    assert as_nobody("echo x >mine && echo y >>'of root' && chmod 600 mine", root)
    assert errno_of(os.chown, root / "mine", 0, -1) == errno.EPERM
    assert errno_of(os.chown, root / "mine", -1, 0) == errno.EPERM
    os.chown(root / "mine", 65534, 65534)
    mounted.remount([])
    owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in root.iterdir()}
    assert owners == {"of root": (0, 0), "mine": (65534, 65534)}


@as_root
def test_who_may_enter(image_file: Path, mount_shardfs: MountFactory) -> None:
    mounted = mount_shardfs(image_file)
    mounted.path.chmod(0o755)
    assert "allow_other" in kernel_options(mounted.path), "the default for root"
    assert as_nobody("ls", mounted.path)
    mounted.remount(["private", "default_permissions"])
    assert "allow_other" not in kernel_options(mounted.path)
    assert not as_nobody("ls", mounted.path)
    mounted.remount(["allow_other"])
    assert as_nobody("ls", mounted.path)
    assert "default_permissions" in kernel_options(mounted.path)


# --- the rest -------------------------------------------------------------------------------


def test_read_only_and_without_attributes(image_file: Path, mount_shardfs: MountFactory) -> None:
    mounted = mount_shardfs(image_file)
    path = mounted.path / "file"
    path.write_text("hello")
    os.setxattr(path, "user.a", b"1")
    mounted.remount(["noxattr"])
    for refusal in (
        errno_of(os.getxattr, path, "user.a"),
        errno_of(os.setxattr, path, "user.b", b"2"),
        errno_of(os.removexattr, path, "user.a"),
    ):
        assert refusal == errno.EOPNOTSUPP
    assert errno_of(os.listxattr, path) in (0, errno.EOPNOTSUPP)
    path.write_text("hello again")
    mounted.remount(["ro"])
    assert "ro" in kernel_options(mounted.path)
    assert path.read_text() == "hello again" and os.getxattr(path, "user.a") == b"1"
    before = image_file.read_bytes()
    for refusal in (
        errno_of(path.write_text, "x"),
        errno_of(path.chmod, 0o600),
        errno_of((mounted.path / "d").mkdir),
        errno_of(os.setxattr, path, "user.b", b"2"),
    ):
        assert refusal == errno.EROFS
    mounted.umount()
    assert image_file.read_bytes() == before, "a read-only mount writes nothing"


def test_refusals(image_file: Path, tmp_path: Path, fuse_is_usable: None) -> None:
    shardfs("mkfs", image_file)
    place = tmp_path / "place"
    place.mkdir()
    for option in ("fast", "uid=root", "dirty=1", "sync=1"):
        text = refused("mount", image_file, place, "-o", f"ro,{option}", saying=option)
        assert "noatime" in text or "option" in text
    assert find_mount(place) is None
    facts = json.loads(shardfs("info", image_file, "--json"))
    assert facts["clean"] is True


@pytest.mark.skipif(os.geteuid() != 0, reason="remounts: needs root")
def test_remounting(image_file: Path, mount_shardfs: MountFactory) -> None:
    mounted = mount_shardfs(image_file, ["strictatime"])
    place, path = mounted.path, mounted.path / "file"

    def remount(options: str) -> None:
        shardfs("mount", image_file, place, "-o", f"remount,{options}")

    with path.open("w") as file:
        file.write("x")
        file.flush()
        refused("mount", image_file, place, "-o", "remount,ro", saying="busy")
        file.write("y")
    remount("ro")
    # The kernel shows strictatime by showing neither of the two others.
    assert "ro" in kernel_options(place) and "relatime" not in kernel_options(place)
    assert errno_of(path.touch) == errno.EROFS
    assert not moves_atime(path)
    copy = place.parent / "copy.img"
    run_command("cp", "--sparse=always", image_file, copy)
    assert shardfs("shards", "cat", copy, "file") == "xy", "durable when remounted"
    remount("rw,noatime,noexec,nodiratime")
    assert {"rw", "noatime", "noexec", "nodiratime"} <= kernel_options(place)
    path.write_text("z")
    assert not moves_atime(path)
    remount("relatime,exec,diratime")
    assert moves_atime(path) and "noexec" not in kernel_options(place)
    remount("dirsync")
    assert "new" in names_after_a_kill(mounted, ["touch new"])
    refused("mount", image_file, place, "-o", "remount,uid=5", saying="cannot be changed")
    refused("mount", image_file, place, "-o", "remount,fast", saying="fast")
