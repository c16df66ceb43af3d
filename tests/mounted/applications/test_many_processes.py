"""Counters and journals that many processes change at once, each with its own way of locking.

A counter that loses one addition, or a line that is torn, is the finding.
"""

from __future__ import annotations

from pathlib import Path

from tests.mounted.applications.test_saving import run_side_by_side
from tests.mounted.mounts import MountedShardfs

PROCESSES = 4
ADDITIONS = 60

COUNT = """
import contextlib, fcntl, os, sys, time
path, way, additions = sys.argv[1], sys.argv[2], int(sys.argv[3])

@contextlib.contextmanager
def descriptor_lock(lock):
    descriptor = os.open(path + ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        lock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

@contextlib.contextmanager
def exclusive_file(take):
    while True:
        try:
            take()
            break
        except FileExistsError:
            time.sleep(0.001)
    yield
    os.unlink(path + ".held")

def make():
    os.close(os.open(path + ".held", os.O_CREAT | os.O_EXCL | os.O_WRONLY))

def link():
    own = "%s.%d" % (path, os.getpid())
    open(own, "w").close()
    try:
        os.link(own, path + ".held")
    finally:
        os.unlink(own)

ways = {
    "flock": lambda: descriptor_lock(fcntl.flock),
    "fcntl": lambda: descriptor_lock(fcntl.lockf),
    "O_EXCL": lambda: exclusive_file(make),
    "link": lambda: exclusive_file(link),
}
for number in range(additions):
    with ways[way]():
        with open(path, "r+b") as file:
            count = int(file.read())
            file.seek(0)
            file.write(b"%d" % (count + 1))
"""
WAYS = ("flock", "fcntl", "O_EXCL", "link")

APPEND = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
for number in range(int(sys.argv[3])):
    length = 50 + number * 97 % 6000
    line = b"%s %d " % (sys.argv[2].encode(), number)
    line += b"." * length + b"\\n"
    assert os.write(descriptor, line) == len(line)
"""

MAPPED = """
import fcntl, mmap, os, struct, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
with mmap.mmap(descriptor, 8192) as memory:
    for number in range(int(sys.argv[3])):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for at in (0, 4092, 8184):
            count, = struct.unpack_from("<q", memory, at)
            struct.pack_into("<q", memory, at, count + 1)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        if number % 50 == 0:
            memory.flush()
"""


def count_work(folder: Path, seed: int) -> None:
    """A counter for each way of locking; each has what all processes added."""
    for way in WAYS:
        path = folder / way
        path.write_bytes(b"0")
        run_side_by_side(COUNT, [[path, way, f"{ADDITIONS}"]] * PROCESSES)
        assert int(path.read_bytes()) == PROCESSES * ADDITIONS, way
        assert not (folder / f"{way}.held").exists()


def append_work(folder: Path, seed: int) -> None:
    """Lines of up to 6 KiB appended by all to one file: each is there once, whole, in order."""
    path = folder / "journal"
    run_side_by_side(APPEND, [[path, f"{number}", f"{ADDITIONS}"] for number in range(PROCESSES)])
    lines = path.read_bytes().splitlines()
    assert len(lines) == PROCESSES * ADDITIONS
    order: dict[bytes, list[int]] = {}
    for line in lines:
        process, number, dots = line.split(b" ")
        assert dots == b"." * (50 + int(number) * 97 % 6000)
        order.setdefault(process, []).append(int(number))
    assert all(numbers == list(range(ADDITIONS)) for numbers in order.values())


def mapped_work(folder: Path, seed: int) -> None:
    """Counters in a file that all have mapped, one of them across two pages."""
    path = folder / "mapped"
    path.write_bytes(bytes(8192))
    run_side_by_side(MAPPED, [[path, "", f"{ADDITIONS * 20}"]] * PROCESSES)
    data = path.read_bytes()
    counts = [int.from_bytes(data[at : at + 8], "little") for at in (0, 4092, 8184)]
    assert counts == [PROCESSES * ADDITIONS * 20] * 3


def many_processes_work(folder: Path, seed: int) -> None:
    """All of these."""
    for work in (count_work, append_work, mapped_work):
        work(folder, seed)


def test_nothing_is_lost(mounted_shardfs: MountedShardfs) -> None:
    many_processes_work(mounted_shardfs.path, 1)
