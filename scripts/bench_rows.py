"""The rows of the comparison: what programs do to a mounted file system, and how often a second.

Role: `plan` lists the rows in the order they run in; each counts what it has done. The work is the
same for every file system, down to names, order and bytes.

Not here: file systems (bench_systems.py), medians and tables (bench_tables.py).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench_systems import BenchError, drop_caches

FILE_BYTES = 4096
MIB = 1024 * 1024
PROCESSES = 4
COPIES = 3
ARCHIVED = "small"
"""The directory in the archive."""
STAMP_BYTES = 16
ROW_TIMEOUT_S = 180


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    files: of 4 KiB in one directory.
    durable: files of which each is fsynced.
    large_mib: the large file.
    blocks: random reads and overwrites in it.
    """

    files: int = 4000
    durable: int = 300
    large_mib: int = 1024
    blocks: int = 8000


QUICK = Sizes(files=1500, durable=100, large_mib=256, blocks=2000)


@dataclass(frozen=True)
class Row:
    """One row: `work` does it and returns how many.

    cold: the kernel's caches are dropped first; what a server remembers is not.
    anew: the file system is mounted anew before that: nothing is remembered anywhere.
    """

    name: str
    unit: str
    work: Callable[[], int]
    cold: bool = False
    anew: bool = False


class Rows:
    """The work of one round on one mount.

    Args:
        root: of the mount, empty.
        sizes: how much.
        tree: a git checkout, elsewhere.
        archive: a tar file of small files, elsewhere.
    """

    def __init__(self, root: Path, sizes: Sizes, tree: Path, archive: Path) -> None:
        self.root, self.sizes, self.tree, self.archive = root, sizes, tree, archive
        self.data = random.Random(1).randbytes(FILE_BYTES)
        self.paths = [f"{root}/many/file-{number}" for number in range(sizes.files)]
        self.shuffled = random.Random(3).sample(self.paths, sizes.files)

    def plan(self) -> list[Row]:
        """All rows, in the order they have to run in."""
        return [
            Row("create 4K", "/s", self.create),
            Row("stat hot", "/s", self.stat),
            Row("stat again", "/s", self.stat_again),
            Row("stat missing", "/s", self.stat_missing),
            Row("ls -l cold", "/s", self.list_all, cold=True),
            Row("read 4K cold", "/s", self.read, cold=True),
            Row("read 4K hot", "/s", self.read),
            Row("rename", "/s", self.rename),
            Row("unlink", "/s", self.unlink),
            Row("mixed small calls", "/s", self.mixed),
            Row("durable put 4K", "/s", self.durable),
            Row("create 4K x4 procs", "/s", self.create_in_processes),
            Row("seq write+fsync", "MiB/s", self.write_large),
            Row("seq read cold", "MiB/s", self.read_large, cold=True),
            Row("rand overwrite 4K+fsync", "/s", self.overwrite_blocks),
            Row("rand read 4K cold", "/s", self.read_blocks, cold=True),
            Row("cp -r tree", "/s", self.copy_tree),
            Row("du + grep tree cold", "/s", self.search_tree, cold=True),
            Row("tar c tree", "/s", self.archive_tree),
            Row("git status", "/s", self.git_status),
            Row("rm -rf tree", "/s", self.remove_tree),
            Row("untar small files", "files/s", self.unpack),
            Row("ls -l new mount", "/s", self.list_unpacked, cold=True, anew=True),
            Row("read 4K new mount", "/s", self.read_unpacked, cold=True, anew=True),
        ]

    # --- many small files

    def create(self) -> int:
        """Create, write in one call, close."""
        os.mkdir(self.root / "many")
        return _create(self.paths, self.data)

    def stat(self) -> int:
        """stat of each, just written."""
        for path in self.paths:
            os.stat(path)
        return len(self.paths)

    def stat_again(self) -> int:
        """stat of each, for the second to the fourth time."""
        return self.stat() + self.stat() + self.stat()

    def stat_missing(self) -> int:
        """stat of names that are not there, each for the first and the second time."""
        for _ in range(2):
            for path in self.paths:
                if os.path.exists(path + ".missing"):
                    raise BenchError(f"{path}.missing is there")
        return 2 * len(self.paths)

    def list_all(self) -> int:
        """scandir with stat of each."""
        return _list(self.root / "many", len(self.paths))

    def read(self) -> int:
        """Open, read, close, in random order."""
        for path in self.shuffled:
            if _contents(path) != self.data:
                raise BenchError(f"{path} reads as something else than was written")
        return len(self.paths)

    def rename(self) -> int:
        """Rename each."""
        for path in self.paths:
            os.rename(path, path + "-")
        return len(self.paths)

    def unlink(self) -> int:
        """Unlink each."""
        for path in self.paths:
            os.unlink(path + "-")
        return len(self.paths)

    def mixed(self) -> int:
        """Create, read, stat, rename and unlink, chosen at random among 500 files."""
        folder = self.root / "mixed"
        folder.mkdir()
        choose, there = random.Random(5), list[str]()
        for number in range(self.sizes.files):
            what = choose.random()
            if len(there) < 500 and (what < 0.3 or not there):
                there.append(f"{folder}/file-{number}")
                _create(there[-1:], self.data)
                continue
            place = choose.randrange(len(there))
            if what < 0.6:
                handle = os.open(there[place], os.O_RDONLY)
                os.read(handle, FILE_BYTES)
                os.close(handle)
            elif what < 0.8:
                os.stat(there[place])
            elif what < 0.9:
                os.rename(there[place], there[place] + "-")
                there[place] += "-"
            else:
                os.unlink(there[place])
                there[place] = there[-1]
                there.pop()
        return self.sizes.files

    def durable(self) -> int:
        """Create, write, fsync, close."""
        for number in range(self.sizes.durable):
            handle = os.open(f"{self.root}/durable-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(handle, self.data)
            os.fsync(handle)
            os.close(handle)
        return self.sizes.durable

    def create_in_processes(self) -> int:
        """Create, write, close, by four processes in four directories."""
        each = self.sizes.files // PROCESSES
        folders = [self.root / f"process-{number}" for number in range(PROCESSES)]
        children = []
        for folder in folders:
            folder.mkdir()
            child = os.fork()
            if child == 0:
                try:
                    _create([f"{folder}/file-{number}" for number in range(each)], self.data)
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(child)
        failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
        if failed:
            raise BenchError(f"{failed} of {PROCESSES} processes failed")
        return each * PROCESSES

    # --- one large file

    def write_large(self) -> int:
        """Write random bytes in 1 MiB calls, fsync."""
        block = bytearray(random.Random(2).randbytes(MIB))
        handle = os.open(self.root / "large", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        for number in range(self.sizes.large_mib):
            block[:STAMP_BYTES] = number.to_bytes(STAMP_BYTES, "little")  # no two blocks alike
            if os.write(handle, block) != MIB:
                raise BenchError("a short write")
        os.fsync(handle)
        os.close(handle)
        return self.sizes.large_mib

    def read_large(self) -> int:
        """Read in 1 MiB calls."""
        handle = os.open(self.root / "large", os.O_RDONLY)
        count = 0
        while block := os.read(handle, MIB):
            count += len(block)
        os.close(handle)
        return _as_expected(count // MIB, self.sizes.large_mib, "MiB")

    def overwrite_blocks(self) -> int:
        """Overwrite blocks at random places of the large file, one fsync at the end."""
        handle = os.open(self.root / "large", os.O_RDWR)
        for place in self._places(4):
            os.pwrite(handle, self.data, place)
        os.fsync(handle)
        os.close(handle)
        return self.sizes.blocks

    def read_blocks(self) -> int:
        """Read blocks at random places of the large file."""
        handle = os.open(self.root / "large", os.O_RDONLY)
        for place in self._places(6):
            _as_expected(len(os.pread(handle, FILE_BYTES, place)), FILE_BYTES, "bytes")
        os.close(handle)
        return self.sizes.blocks

    def _places(self, seed: int) -> Iterator[int]:
        choose = random.Random(seed)
        for _ in range(self.sizes.blocks):
            yield choose.randrange(self.sizes.large_mib * MIB // FILE_BYTES) * FILE_BYTES

    # --- a tree

    def copy_tree(self) -> int:
        """cp -r of a git checkout, so many times."""
        for copy in self._copies():
            _command("cp", "-r", str(self.tree), str(copy))
        return COPIES

    def search_tree(self) -> int:
        """du, then grep -r for what is nowhere, in each copy."""
        for copy in self._copies():
            _command("du", "-s", str(copy))
            _command("grep", "-r", "no such words anywhere", str(copy), expected=1)
        return COPIES

    def archive_tree(self) -> int:
        """tar of each copy to a pipe."""
        for copy in self._copies():
            _command("sh", "-c", 'tar cf - "$1" 2>/dev/null | cat >/dev/null', "sh", str(copy))
        return COPIES

    def git_status(self) -> int:
        """git status in each copy; the first has to look into every file."""
        for copy in self._copies():
            _command("git", "-C", str(copy), "-c", "safe.directory=*", "status", "--short")
        return COPIES

    def remove_tree(self) -> int:
        """rm -rf of each copy."""
        for copy in self._copies():
            _command("rm", "-rf", str(copy))
        return COPIES

    def unpack(self) -> int:
        """tar x of small files."""
        folder = self.root / "unpacked"
        folder.mkdir()
        _command("tar", "xf", str(self.archive), "-C", str(folder))
        return self.sizes.files // 4

    # --- what was unpacked, when nobody remembers it

    def list_unpacked(self) -> int:
        """scandir with stat of each."""
        return _list(self._unpacked, self.sizes.files // 4)

    def read_unpacked(self) -> int:
        """Open, read, close, in random order."""
        count = self.sizes.files // 4
        for number in random.Random(9).sample(range(count), count):
            length = len(_contents(f"{self._unpacked}/file-{number}"))
            _as_expected(length, FILE_BYTES, "bytes")
        return count

    @property
    def _unpacked(self) -> Path:
        return self.root / "unpacked" / ARCHIVED

    def _copies(self) -> list[Path]:
        return [self.root / f"tree-{number}" for number in range(COPIES)]


def _list(folder: Path, expected: int) -> int:
    with os.scandir(folder) as entries:
        count = sum(entry.stat().st_size == FILE_BYTES for entry in entries)
    return _as_expected(count, expected, "files")


def _contents(path: str) -> bytes:
    handle = os.open(path, os.O_RDONLY)
    data = os.read(handle, FILE_BYTES + 1)
    os.close(handle)
    return data


def _create(paths: list[str], data: bytes) -> int:
    for path in paths:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(handle, data)
        os.close(handle)
    return len(paths)


def _as_expected(count: int, expected: int, what: str) -> int:
    if count != expected:
        raise BenchError(f"{count} {what} in place of {expected}")
    return count


def _command(*words: str, expected: int = 0) -> None:
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    if done.returncode != expected:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise BenchError(f"{words[0]}: {said[-1] if said else f'status {done.returncode}'}")


# --- around a row ------------------------------------------------------------------------------


def time_row(row: Row) -> tuple[int, float]:
    """Do the work of a row; how many, and how many seconds it took.

    Raises:
        BenchError: it failed, or took longer than ROW_TIMEOUT_S; says how.
    """
    if row.cold:
        drop_caches()
    try:
        with _limited(ROW_TIMEOUT_S):
            started = time.perf_counter()
            count = row.work()
            return count, time.perf_counter() - started
    except OSError as error:
        raise BenchError(str(error)) from error


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise BenchError(f"not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- what is copied and unpacked ---------------------------------------------------------------


def make_tree(folder: Path) -> Path:
    """A git checkout of about 300 files, always the same."""
    tree = folder / "tree"
    choose = random.Random(7)
    words = [
        "".join(choose.choices("abcdefghijklmnop", k=choose.randint(2, 9))) for _ in range(900)
    ]
    for number in range(300):
        path = tree / f"part-{number % 17}" / f"piece-{number % 5}" / f"file-{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        count = int(choose.lognormvariate(6.2, 1.1)) + 5
        path.write_text(" ".join(choose.choices(words, k=count)))
    identity = ("-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0")
    for words_of_git in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "all of it")):
        _command("git", "-C", str(tree), *identity, *words_of_git)
    return tree


def make_archive(folder: Path, files: int) -> Path:
    """A tar file of files of 4 KiB."""
    source = folder / "small"
    source.mkdir()
    choose = random.Random(8)
    for number in range(files):
        (source / f"file-{number}").write_bytes(choose.randbytes(FILE_BYTES))
    path = folder / "small.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(source, arcname=ARCHIVED)
    shutil.rmtree(source)
    return path
