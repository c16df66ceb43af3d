"""Attributes through the kernel: modes, owners, times, extended attributes, sizes on disk."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted.mounts import MountedShardfs, errno_of

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts for another user: needs root")


def as_nobody(script: str, directory: Path) -> bool:
    """Run a shell script in a directory as a user without rights; whether it succeeds."""
    for parent in directory.parents:
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o111)
    run = subprocess.run(
        ["sh", "-c", f"cd '{directory}' && {script}"],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        timeout=30,
        check=False,
        cwd="/",
    )
    return run.returncode == 0


def test_modes_and_times_survive(mounted_shardfs: MountedShardfs) -> None:
    path = mounted_shardfs.path / "file"
    path.write_bytes(b"x" * 5000)
    path.chmod(0o4751)
    times = (1_234_567_890_123_456_789, -987_654_321)
    os.utime(path, ns=times)
    before = path.stat()
    mounted_shardfs.remount()
    after = path.stat()
    assert (after.st_atime_ns, after.st_mtime_ns) == times
    assert stat.S_IMODE(after.st_mode) == 0o4751
    for name in ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_ctime_ns"):
        assert getattr(before, name) == getattr(after, name)
    assert after.st_blocks == before.st_blocks == 10
    os.utime(path)
    assert path.stat().st_mtime_ns > 10**18
    os.utime(path, (2**33, 2**33))
    assert path.stat().st_mtime == 2**33


def test_writing_and_naming_move_the_times(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    path = root / "file"
    path.touch()
    changes: tuple[Callable[[], object], ...] = (
        lambda: path.write_bytes(b"x"),
        lambda: os.truncate(path, 0),
        lambda: path.chmod(0o600),
        lambda: os.link(path, root / "other"),
        lambda: (root / "other").unlink(),
        lambda: os.setxattr(path, "user.a", b""),
    )
    for change in changes:
        before = path.stat()
        change()
        assert path.stat().st_ctime_ns > before.st_ctime_ns
    changes = (
        lambda: (root / "d").mkdir(),
        lambda: (root / "d").rename(root / "e"),
        lambda: (root / "e").rmdir(),
    )
    for change in changes:
        before = root.stat()
        change()
        after = root.stat()
        assert after.st_mtime_ns == after.st_ctime_ns > before.st_mtime_ns


def test_extended_attributes(mounted_shardfs: MountedShardfs) -> None:
    path = mounted_shardfs.path / "file"
    path.write_bytes(b"content")
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "user.large", b"x" * 65536)
    for flags, name, expected in [
        (os.XATTR_CREATE, "user.a", errno.EEXIST),
        (os.XATTR_REPLACE, "user.b", errno.ENODATA),
        (0, "system.other", errno.EOPNOTSUPP),
        (0, "other.name", errno.EOPNOTSUPP),
    ]:
        with pytest.raises(OSError) as raised:
            os.setxattr(path, name, b"", flags)
        assert raised.value.errno == expected
    mounted_shardfs.remount()
    assert sorted(os.listxattr(path)) == ["user.a", "user.large"]
    assert os.getxattr(path, "user.large") == b"x" * 65536
    os.removexattr(path, "user.large")
    with pytest.raises(OSError) as raised:
        os.getxattr(path, "user.large")
    assert raised.value.errno == errno.ENODATA


@as_root
def test_set_id_bits_go_when_others_write(mounted_shardfs: MountedShardfs) -> None:
    path = mounted_shardfs.path / "file"
    for script in ("echo more >>file", ": >file", "truncate -s 3 file"):
        path.write_bytes(b"content")
        path.chmod(0o6777)
        assert as_nobody(script, mounted_shardfs.path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o777, script
    path.chmod(0o6777)
    path.write_bytes(b"by root")
    assert stat.S_IMODE(path.stat().st_mode) == 0o6777
    os.chown(path, NOBODY, NOBODY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


@as_root
def test_set_id_bits_go_when_others_write_through_a_handle_of_root(
    mounted_shardfs: MountedShardfs,
) -> None:
    """The kernel leaves these bits to the server, which cannot see who writes (handshake.py)."""
    path = mounted_shardfs.path / "file"
    path.write_bytes(b"content")
    path.chmod(0o6777)
    with path.open("r+b", buffering=0) as file:
        file.write(b"by root")
        assert stat.S_IMODE(path.stat().st_mode) == 0o6777
        subprocess.run(
            ["printf", "others"],
            stdout=file,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            check=True,
        )
    assert path.read_bytes() == b"by rootothers"
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


@as_root
def test_set_id_bits_stay_when_strangers_ask(
    mounted_shardfs: MountedShardfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """chown(2) with neither user nor group takes these bits away, but not for anybody.

    The kernel passed it on unchecked, as the same request as before a write. So whoever could
    reach a program could take its set-user-ID bit away. Found by test_beside_ext4.py.
    """
    path = mounted_shardfs.path / "file"
    path.write_bytes(b"content")
    path.chmod(0o6777)
    monkeypatch.chdir(mounted_shardfs.path)

    def chown_as_nobody() -> int:
        os.seteuid(NOBODY)
        try:
            return errno_of(os.chown, "file", -1, -1)
        finally:
            os.seteuid(0)

    assert chown_as_nobody() == errno.EPERM
    assert stat.S_IMODE(path.stat().st_mode) == 0o6777
    os.chown(path, -1, -1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o6777)
    assert chown_as_nobody() == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


@as_root
def test_permissions_are_checked(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    root.chmod(0o1777)
    (root / "secret").write_text("x")
    (root / "secret").chmod(0o600)
    (root / "closed").mkdir(0o700)
    for script in (
        "cat secret",
        "ls closed",
        "chmod 777 secret",
        "chown 65534 secret",
        "rm -f secret",
        "mv secret own",
        "echo x >secret",
    ):
        assert not as_nobody(script, root), script
    assert as_nobody("echo x >own && cat own && chmod 600 own && test ! -e nothing", root)
    own = (root / "own").stat()
    assert (own.st_uid, own.st_gid, own.st_mode) == (NOBODY, NOBODY, 0o100600)


@as_root
def test_a_set_group_id_directory(mounted_shardfs: MountedShardfs) -> None:
    directory = mounted_shardfs.path / "d"
    directory.mkdir()
    os.chown(directory, 0, 1234)
    directory.chmod(0o2775)
    (directory / "f").touch()
    (directory / "e").mkdir()
    assert (directory / "f").stat().st_gid == 1234
    inner = (directory / "e").stat()
    assert inner.st_gid == 1234 and inner.st_mode & stat.S_ISGID


def test_statfs_adds_up(mounted_shardfs: MountedShardfs) -> None:
    before = os.statvfs(mounted_shardfs.path)
    assert before.f_frsize == 4096 and 0 < before.f_bavail <= before.f_bfree <= before.f_blocks
    with (mounted_shardfs.path / "file").open("wb") as file:
        file.write(os.urandom(8 * 1024 * 1024))
        file.flush()
        os.fsync(file.fileno())
    after = os.statvfs(mounted_shardfs.path)
    used = (before.f_bfree - after.f_bfree) * 4096
    assert 8 * 1024 * 1024 <= used <= 11 * 1024 * 1024
    assert (mounted_shardfs.path / "file").stat().st_blocks == 16 * 1024
