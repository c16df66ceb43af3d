"""Directories with many entries: listed in full and once, while others come and go.

Role: telldir and seekdir positions stay valid whatever happens to other entries; readdir gives
what is there all the time exactly once. Those that are marked slow have 100,000 and 1,000,000
entries.
"""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from itertools import cycle
from pathlib import Path

import pytest

from tests.mounted.conftest import ImageFactory, MountFactory
from tests.mounted.full_load import wait_for_free

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.opendir.restype = LIBC.readdir.restype = ctypes.c_void_p
LIBC.telldir.restype = ctypes.c_long
LIBC.opendir.argtypes = [ctypes.c_char_p]
for _name in ("readdir", "telldir", "closedir", "rewinddir"):
    getattr(LIBC, _name).argtypes = [ctypes.c_void_p]
LIBC.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
HANDS = 4
"""Processes that make and remove entries."""
NAME_AT = 19
"""Where struct dirent has the name, on 64-bit Linux."""


class Directory:
    """An open directory of the C library."""

    def __init__(self, path: Path) -> None:
        self._stream = LIBC.opendir(os.fsencode(path))
        assert self._stream, os.strerror(ctypes.get_errno())

    def read(self) -> str | None:
        """The next name, dots included."""
        entry = LIBC.readdir(self._stream)
        return entry and os.fsdecode(ctypes.string_at(entry + NAME_AT))

    def rest(self) -> list[str]:
        """All names that are left."""
        names = []
        while (name := self.read()) is not None:
            names.append(name)
        return names

    def tell(self) -> int:
        """telldir(3)."""
        return int(LIBC.telldir(self._stream))

    def seek(self, position: int) -> None:
        """seekdir(3)."""
        LIBC.seekdir(self._stream, position)

    def rewind(self) -> None:
        """rewinddir(3)."""
        LIBC.rewinddir(self._stream)

    def close(self) -> None:
        """closedir(3)."""
        LIBC.closedir(self._stream)


HAND = """
import os, sys
act = {"make": os.mknod, "remove": os.unlink}[sys.argv[1]]
for line in sys.stdin:
    act(line[:-1])
"""
"""Does to each name it is told what it is there for, in its directory."""


def act_on_all(folder: Path, action: str, names: Iterable[str]) -> None:
    """Make or remove entries, by several processes that are told their names one by one."""
    command = [sys.executable, "-S", "-c", HAND, action]
    hands = [
        subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, text=True)
        for _ in range(HANDS)
    ]
    for name, hand in zip(names, cycle(hands), strict=False):
        assert hand.stdin is not None
        hand.stdin.write(name + "\n")
    for hand in hands:
        hand.communicate()
        assert hand.returncode == 0


def fill(folder: Path, count: int, prefix: str = "file") -> set[str]:
    """Create files; their names."""
    names = {f"{prefix}-{number}" for number in range(count)}
    act_on_all(folder, "make", names)
    return names


def test_positions_stay_valid(folder: Path) -> None:
    names = fill(folder, 700)
    with closing(Directory(folder)) as stream:
        assert [stream.read(), stream.read()] == [".", ".."]
        places = [(stream.tell(), stream.read())]
        while places[-1][1] is not None:
            places.append((stream.tell(), stream.read()))
        end, _ = places.pop()
        assert {name for _, name in places} == names
        assert len({position for position, _ in places}) == len(places)
        random.Random(1).shuffle(places)
        for position, name in places[:200]:
            stream.seek(position)
            assert stream.read() == name
        # Others come and go: from each position that was told on, its name still comes, behind
        # new ones at most.
        gone = {name for _, name in places[:350] if name is not None}
        for name in gone:
            (folder / name).unlink()
        added = fill(folder, 700, "new")
        for position, name in places[350:550]:
            stream.seek(position)
            while (found := stream.read()) != name:
                assert found in added
        stream.seek(end)
        assert set(stream.rest()) <= added
        stream.rewind()
        assert sorted(stream.rest()) == sorted([".", "..", *(names - gone), *added])
        with closing(Directory(folder)) as other:
            stream.seek(places[600][0])
            other.seek(places[600][0])
            assert other.rest() == stream.rest(), "a position holds for another stream, too"


CHURN = """
import os, random, sys
source = random.Random(int(sys.argv[1]))
mine = set()
print("begun", flush=True)
while os.path.exists("go on"):
    name = f"churn-{sys.argv[1]}-{source.randrange(400)}"
    if name in mine:
        if source.random() < 0.5:
            os.unlink(name)
            mine.discard(name)
        else:
            os.rename(name, name + "-moved")
            os.rename(name + "-moved", name)
    else:
        os.mknod(name)
        mine.add(name)
"""


def list_beside_change(folder: Path, count: int, rounds: int) -> None:
    """What is there all the time is listed once, whatever two other processes do."""
    names = fill(folder, count) | {"go on"}
    (folder / "go on").touch()
    command = [sys.executable, "-S", "-c", CHURN]
    others = [
        subprocess.Popen([*command, str(seed)], cwd=folder, stdout=subprocess.PIPE)
        for seed in range(2)
    ]
    try:
        for other in others:
            assert other.stdout is not None and other.stdout.readline() == b"begun\n"
        for _ in range(rounds):
            listed = os.listdir(folder)
            assert len(listed) == len(set(listed)), "no name twice"
            assert names <= set(listed)
            assert all(name in names or name.startswith("churn-") for name in listed)
    finally:
        (folder / "go on").unlink()
        for other in others:
            assert other.wait(60) == 0
            assert other.stdout is not None
            other.stdout.close()


def test_listing_beside_change(folder: Path) -> None:
    list_beside_change(folder, 2000, 10)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_thousand_entries(make_image: ImageFactory, mount_shardfs: MountFactory) -> None:
    mounted = mount_shardfs(make_image(1 << 30), seconds_max=1100)
    folder = mounted.path / "many"
    folder.mkdir()
    list_beside_change(folder, 100_000, 3)
    mounted.remount()
    before = set(os.listdir(folder))
    assert len(before) >= 100_000
    assert (folder / "file-77777").stat().st_size == 0
    remove_all(folder)


def tell_and_return(folder: Path, names: set[str], every: int) -> None:
    """Each name comes once; each of many positions leads back, also when every third is gone."""
    with closing(Directory(folder)) as stream:
        assert [stream.read(), stream.read()] == [".", ".."]
        left = set(names)
        places: list[tuple[int, str]] = []
        position = stream.tell()
        while (name := stream.read()) is not None:
            left.remove(name)
            if len(left) % every == 0:
                places.append((position, name))
            position = stream.tell()
        assert not left
        assert len(places) == len(names) // every
        random.Random(2).shuffle(places)
        gone = {name for _, name in places[::3]}
        for name in gone:
            (folder / name).unlink()
        names -= gone
        for position, name in places:
            stream.seek(position)
            if name in gone:
                following = stream.read()
                assert following is None or following in names
            else:
                assert stream.read() == name


def stat_all(folder: Path, names: set[str]) -> None:
    """What a listing says of each entry is what the entry itself says."""
    numbers = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            assert (entry.inode(), status.st_nlink, status.st_size) == (status.st_ino, 1, 0)
            numbers.add(status.st_ino)
    assert len(numbers) == len(names), "each entry is a file of its own"


def remove_all(folder: Path) -> None:
    """Every entry, in the order of a listing that goes on meanwhile."""
    with os.scandir(folder) as entries:
        act_on_all(folder, "remove", (entry.name for entry in entries))
    assert os.listdir(folder) == []
    folder.rmdir()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_million_entries(make_image: ImageFactory, mount_shardfs: MountFactory) -> None:
    mounted = mount_shardfs(make_image(4 << 30), seconds_max=7000)
    before = os.statvfs(mounted.path)
    folder = mounted.path / "many"
    folder.mkdir()
    names = fill(folder, 1_000_000)
    tell_and_return(folder, names, 1000)
    mounted.remount()
    assert set(os.listdir(folder)) == names
    stat_all(folder, names)
    remove_all(folder)
    mounted.remount()
    after = os.statvfs(mounted.path)
    assert after.f_files - after.f_ffree == before.f_files - before.f_ffree
    # Once the tombstones of a million entries have been merged away, in the background.
    wanted = (before.f_bfree - before.f_blocks // 100) * before.f_frsize
    assert wait_for_free(mounted.path, wanted) >= wanted, "all space is back"
