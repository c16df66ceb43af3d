"""rename(2) and renameat2(2) in all cases: every kind of file onto every other, with every flag.

Role: what is there before and after, told by inode numbers, against what POSIX says. The cases
are the product of kinds, so none is left out; all use one mount.
"""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest

from tests.mounted.test_posix_names import EXCHANGE, NOREPLACE, errno_of, rename_with_flags

KINDS = ("nothing", "file", "link", "fifo", "empty", "full")
DIRECTORIES = ("empty", "full")


def make(path: Path, kind: str) -> int:
    """Make something of a kind; its inode number, 0 for nothing."""
    if kind == "file":
        path.write_text(str(path))
    elif kind == "link":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind in DIRECTORIES:
        path.mkdir()
        if kind == "full":
            (path / "inside").touch()
    return number(path)


def number(path: Path) -> int:
    """The inode that a name stands for; 0: none."""
    return path.lstat().st_ino if os.path.lexists(path) else 0


def expected_errno(old: str, new: str, flags: int) -> int:
    """What POSIX and rename(2) say."""
    if old == "nothing" or (new == "nothing" and flags == EXCHANGE):
        return errno.ENOENT
    if new == "nothing" or flags == EXCHANGE:
        return 0
    if flags == NOREPLACE:
        return errno.EEXIST
    if (old in DIRECTORIES) != (new in DIRECTORIES):
        return errno.ENOTDIR if old in DIRECTORIES else errno.EISDIR
    return errno.ENOTEMPTY if new == "full" else 0


@pytest.mark.parametrize("flags", [0, NOREPLACE, EXCHANGE], ids=["plain", "noreplace", "exchange"])
@pytest.mark.parametrize("across", [False, True], ids=["inside", "across"])
def test_every_kind_onto_every_other(folder: Path, flags: int, across: bool) -> None:
    for old, new in itertools.product(KINDS, KINDS):
        place = folder / f"{old}-{new}"
        (place / "a").mkdir(parents=True)
        (place / "b").mkdir()
        source, target = place / "a/x", place / ("b/y" if across else "a/y")
        numbers = make(source, old), make(target, new)
        expected = expected_errno(old, new, flags)
        assert rename_with_flags(source, target, flags) == expected, (old, new)
        if expected:
            after = numbers
        else:
            after = (numbers[1] if flags == EXCHANGE else 0, numbers[0])
        assert (number(source), number(target)) == after, (old, new)
        for directory in (place / "a", place / "b"):
            below = [
                entry for entry in directory.iterdir() if entry.is_dir() and not entry.is_symlink()
            ]
            assert directory.stat().st_nlink == 2 + len(below), (old, new)
        for name in (source, target):
            if name.is_dir() and not name.is_symlink():
                assert (name / "..").stat().st_ino == name.parent.stat().st_ino


def test_into_oneself_and_above(folder: Path) -> None:
    (folder / "a/b/c").mkdir(parents=True)
    top = folder / "a"
    for inside in ("a/x", "a/b", "a/b/c", "a/b/c/x"):
        for flags in (0, NOREPLACE):
            refusal = rename_with_flags(top, folder / inside, flags)
            assert refusal in (errno.EINVAL, errno.EEXIST if flags else errno.EINVAL), inside
    for above in ("a", "a/b"):
        assert rename_with_flags(folder / "a/b/c", folder / above, 0) in (0, errno.ENOTEMPTY)
        assert rename_with_flags(folder / "a/b/c", folder / above, EXCHANGE) == errno.EINVAL
    assert rename_with_flags(top, top, 0) == 0
    assert rename_with_flags(top, top, EXCHANGE) == 0
    assert rename_with_flags(top, top, NOREPLACE) == errno.EEXIST
    assert (folder / "a/b/c").is_dir()


def test_names_of_one_file(folder: Path) -> None:
    """Renaming one name of a file onto another keeps both."""
    (folder / "a").write_text("x")
    os.link(folder / "a", folder / "b")
    for flags, expected in ((0, 0), (EXCHANGE, 0), (NOREPLACE, errno.EEXIST)):
        assert rename_with_flags(folder / "a", folder / "b", flags) == expected
        assert number(folder / "a") == number(folder / "b") != 0
        assert (folder / "a").stat().st_nlink == 2


def test_dots_loops_and_other_file_systems(folder: Path, tmp_path: Path) -> None:
    (folder / "a").mkdir()
    (folder / "file").touch()
    for old, new in (("a/.", "b"), ("a/..", "b"), ("a", "a/."), ("a", "a/..")):
        refused = errno_of(os.rename, f"{folder}/{old}", f"{folder}/{new}")
        assert refused in (errno.EBUSY, errno.EINVAL, errno.ENOTEMPTY), (old, new)
    (folder / "loop").symlink_to("loop")
    assert errno_of(os.stat, folder / "loop") == errno.ELOOP
    assert errno_of(os.open, folder / "loop", os.O_RDONLY | os.O_NOFOLLOW) == errno.ELOOP
    assert errno_of(os.rename, folder / "loop/x", folder / "b") == errno.ELOOP
    for number_of_links in range(45):
        target = f"s{number_of_links - 1}" if number_of_links else "file"
        (folder / f"s{number_of_links}").symlink_to(target)
    assert (folder / "s35").stat().st_size == 0
    assert errno_of(os.stat, folder / "s44") == errno.ELOOP
    assert errno_of(os.rename, folder / "file", tmp_path / "file") == errno.EXDEV
    assert errno_of(os.link, folder / "file", tmp_path / "file") == errno.EXDEV
    assert errno_of(os.rename, folder / "file/x", folder / "b") == errno.ENOTDIR
    assert errno_of(os.rename, folder / "none/x", folder / "b") == errno.ENOENT
    too_long = folder / ("x" * 256)
    assert errno_of(os.rename, folder / "file", too_long) == errno.ENAMETOOLONG
    assert errno_of(os.rename, too_long, folder / "file") == errno.ENAMETOOLONG
