"""POSIX access lists through the kernel: enforced, inherited, kept equal with the mode, stored.

Role: what acl(5) says, through setfacl(1) and getfacl(1) and through the calls of a user who has
rights by a list only. Where root has not made the mount there are no lists, and asking says so.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.mounts import MountedShardfs, run_command
from tests.mounted.test_posix_attributes import as_root

pytestmark = [
    as_root,
    pytest.mark.skipif(shutil.which("setfacl") is None, reason="no setfacl (Debian: acl)"),
]

ALICE, BOB, STAFF = 4001, 4002, 4100
MINIMAL = "02000000" + "01000600ffffffff" + "04000600ffffffff" + "20000600ffffffff"
"""The list u::rw,g::rw,o::rw."""
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def set_list(path: Path, *arguments: str) -> None:
    """setfacl(1)."""
    run_command("setfacl", *arguments, path)


def get_list(path: Path) -> list[str]:
    """getfacl(1), without comments."""
    said = run_command("getfacl", "--omit-header", "--numeric", "--no-effective", "-p", path)
    return said.split()


def as_user(user: int, call: str, path: Path, *, group: int | None = None) -> int:
    """The errno of a Python expression about `path`, evaluated by another user; 0 if it works.

    The way to the directory of `path` need not be open to that user, nor the interpreter.
    """
    groups = [] if group is None else [group]
    script = f"""
import os, sys
path = {path.name!r}
os.setgroups({groups})
os.setresgid({user}, {user}, {user})
os.setresuid({user}, {user}, {user})
try:
    {call}
except OSError as error:
    sys.exit(error.errno)
"""
    command = [sys.executable, "-S", "-c", script]
    done = subprocess.run(
        command, cwd=path.parent, timeout=60, check=False, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


@pytest.fixture
def root(shared_mount: MountedShardfs) -> Iterator[Path]:
    """An empty directory for one test."""
    path = shared_mount.path / "root"
    path.mkdir(0o755)
    yield path
    shutil.rmtree(path)


def test_lists_are_enforced_and_survive(shared_mount: MountedShardfs, root: Path) -> None:
    path = root / "file"
    path.write_text("content")
    path.chmod(0o600)
    read, write = "open(path).read()", "open(path, 'r+').write('x')"
    assert as_user(ALICE, read, path) == errno.EACCES
    set_list(path, "-m", f"u:{ALICE}:r,g:{STAFF}:rw")
    assert get_list(path) == [
        *("user::rw-", f"user:{ALICE}:r--", "group::---", f"group:{STAFF}:rw-"),
        *("mask::rw-", "other::---"),
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o660, "the mode's group bits are the mask"
    for _ in range(2):
        assert as_user(ALICE, read, path) == 0
        assert as_user(ALICE, write, path) == errno.EACCES
        assert as_user(BOB, read, path) == errno.EACCES
        assert as_user(BOB, write, path, group=STAFF) == 0
        shared_mount.remount()
    path.chmod(0o640)
    assert "mask::r--" in get_list(path)
    assert as_user(BOB, write, path, group=STAFF) == errno.EACCES
    assert as_user(BOB, read, path, group=STAFF) == 0
    assert sorted(os.listxattr(path)) == [ACCESS]
    set_list(path, "-b")
    assert os.listxattr(path) == []
    assert as_user(ALICE, read, path) == errno.EACCES


def test_list_and_mode_are_one(root: Path) -> None:
    path = root / "file"
    path.touch()
    path.chmod(0o4754)
    before = path.stat()
    set_list(path, "-m", "u::rw,g::x,o::-")
    after = path.stat()
    assert stat.S_IMODE(after.st_mode) == 0o4610, "a list of three is the mode and nothing else"
    assert os.listxattr(path) == [] and after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns
    set_list(path, "-m", f"u:{ALICE}:rwx,m::rx")
    assert stat.S_IMODE(path.stat().st_mode) == 0o4650
    path.chmod(0o777)
    assert get_list(path) == [
        *("user::rwx", f"user:{ALICE}:rwx", "group::--x", "mask::rwx", "other::rwx")
    ]
    os.chown(path, ALICE, BOB)
    assert f"user:{ALICE}:rwx" in get_list(path)
    os.removexattr(path, ACCESS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    os.removexattr(path, ACCESS)  # as on ext4: there is none to take away, and that is fine


@pytest.mark.parametrize("umask", [0, 0o022, 0o077], ids=oct)
def test_new_files_inherit(root: Path, umask: int) -> None:
    """A default list takes the place of the umask; what was asked for bounds it."""
    folder = root / "folder"
    folder.mkdir()
    set_list(folder, "-d", "-m", f"u::rwx,u:{ALICE}:rw,g::rx,m::rwx,o::-")
    default = [line for line in get_list(folder) if line.startswith("default:")]
    old = os.umask(umask)
    try:
        os.close(os.open(folder / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.close(os.open(folder / "secret", os.O_CREAT | os.O_WRONLY, 0o600))
        (folder / "inner").mkdir()
        os.mkfifo(folder / "fifo", 0o664)
        (folder / "link").symlink_to("file")
        os.close(os.open(root / "plain", os.O_CREAT | os.O_WRONLY, 0o666))
    finally:
        os.umask(old)
    named = f"user:{ALICE}:rw-"
    assert get_list(folder / "file") == [
        *("user::rw-", named, "group::r-x", "mask::rw-", "other::---")
    ]
    assert get_list(folder / "secret") == [
        *("user::rw-", named, "group::r-x", "mask::---", "other::---")
    ]
    assert get_list(folder / "inner") == [
        *("user::rwx", named, "group::r-x", "mask::rwx", "other::---"),
        *default,
    ]
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in folder.iterdir()}
    assert modes == {"file": 0o660, "secret": 0o600, "inner": 0o770, "fifo": 0o660, "link": 0o777}
    assert stat.S_IMODE((root / "plain").stat().st_mode) == 0o666 & ~umask
    write = "os.close(os.open(path, os.O_WRONLY))"
    set_list(folder, "-m", f"u:{ALICE}:x")
    assert as_user(ALICE, write, folder / "file") == 0
    assert as_user(ALICE, write, folder / "secret") == errno.EACCES
    assert as_user(BOB, write, folder / "file") == errno.EACCES
    set_list(folder, "-k")
    os.close(os.open(folder / "later", os.O_CREAT | os.O_WRONLY, 0o666))
    assert os.listxattr(folder / "later") == []


def test_a_default_list_without_names(root: Path) -> None:
    """It gives a mode and no list; the umask does not count."""
    folder = root / "folder"
    folder.mkdir()
    set_list(folder, "-d", "-m", "u::rw,g::rw,o::r")
    old = os.umask(0o077)
    try:
        (folder / "file").touch()
        (folder / "inner").mkdir()
    finally:
        os.umask(old)
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o664
    assert os.listxattr(folder / "file") == []
    assert os.listxattr(folder / "inner") == [DEFAULT]
    assert stat.S_IMODE((folder / "inner").stat().st_mode) == 0o664


def test_who_may_change_a_list(root: Path) -> None:
    path = root / "file"
    path.touch()
    path.chmod(0o666)
    change = f"os.setxattr(path, {ACCESS!r}, bytes.fromhex({MINIMAL!r}))"
    assert as_user(ALICE, change, path) == errno.EPERM
    os.chown(path, ALICE, STAFF)
    path.chmod(0o2775)
    assert as_user(ALICE, change, path, group=STAFF) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o2666
    assert as_user(ALICE, change, path) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o666, "not of that group: set-group-ID goes"
    for value in (b"\2\0\0", b"\1\0\0\0", bytes.fromhex("0200000001000600ffffffff")):
        with pytest.raises(OSError) as raised:
            os.setxattr(path, ACCESS, value)
        assert raised.value.errno in (errno.EINVAL, errno.EOPNOTSUPP), value
    with pytest.raises(OSError) as raised:
        os.setxattr(path, DEFAULT, bytes.fromhex(MINIMAL))
    assert raised.value.errno == errno.EACCES


def test_copies_keep_lists(root: Path) -> None:
    (root / "a").mkdir()
    set_list(root / "a", "-m", f"u:{ALICE}:rwx,d:u:{BOB}:rx")
    (root / "a/file").write_text("x")
    run_command("cp", "-a", root / "a", root / "b")
    run_command("tar", "-C", root, "--acls", "-cf", root / "t.tar", "a")
    (root / "c").mkdir()
    run_command("tar", "-C", root / "c", "--acls", "-xpf", root / "t.tar")
    for copy in (root / "b", root / "c/a"):
        assert get_list(copy) == get_list(root / "a")
        assert get_list(copy / "file") == get_list(root / "a/file")


def test_long_lists(root: Path) -> None:
    """As long as the kernel takes them from a FUSE server, which is a page."""
    path = root / "file"
    path.touch()
    users = ",".join(f"u:{5000 + number}:r" for number in range(500))
    set_list(path, "-m", users)
    assert len(get_list(path)) == 500 + 4
    assert as_user(5499, "open(path).read()", path) == 0


@pytest.mark.parametrize("option", ["noacl", "noxattr"])
def test_mounts_without_lists(shared_mount: MountedShardfs, root: Path, option: str) -> None:
    path = root / "file"
    path.touch()
    path.chmod(0o600)
    set_list(path, "-m", f"u:{ALICE}:rw")
    shared_mount.remount([option])
    with pytest.raises(OSError) as raised:
        os.setxattr(path, ACCESS, bytes.fromhex(MINIMAL))
    assert raised.value.errno == errno.EOPNOTSUPP
    with pytest.raises(OSError) as raised:
        os.getxattr(path, ACCESS)
    # Once it knows that there are no attributes at all, the kernel says so by itself.
    assert raised.value.errno in (errno.EOPNOTSUPP, errno.ENODATA)
    if option == "noacl":
        assert os.listxattr(path) == []
    path.chmod(0o640)
    shared_mount.remount([])
    assert "mask::r--" in get_list(path), "chmod keeps a list and its mode equal there too"
