"""A load that fills a mount to its last byte, looks at what it has, and empties it again.

Role: what the tests of a full disk do to a mount, with plain system calls, and what they check at
each step: what df says, where ENOSPC comes, that nothing fails afterwards. The same seed gives
the same files, so that two cycles can be compared.

Not here: mounts and devices (conftest.py).
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

SMALL_FILE_BYTES = 4 * KIB
LARGE_FILE_BYTES = GIB
LARGE_WRITE_BYTES = MIB
FILES_PER_DIRECTORY = 1000
SECONDS_TO_SETTLE_MAX = 600.0
"""A tree of a million tombstones is merged in a minute or so, with rests between its slices."""
_PATTERN = random.Random(4096).randbytes(LARGE_WRITE_BYTES + 64 * KIB)


def small_files(rng: random.Random) -> Iterator[int]:
    """Sizes of files of 4 KiB, for ever."""
    while True:
        yield SMALL_FILE_BYTES


def large_files(rng: random.Random) -> Iterator[int]:
    """Sizes of files of 1 GiB, for ever; a smaller device is filled by a part of the first."""
    while True:
        yield LARGE_FILE_BYTES


def mixed_files(rng: random.Random) -> Iterator[int]:
    """Sizes from one byte to 16 MiB, each magnitude as often as the next, for ever."""
    while True:
        yield rng.randint(1, 4 * KIB << rng.randrange(13))


MIXES: dict[str, Callable[[random.Random], Iterator[int]]] = {
    "4K": small_files,
    "1G": large_files,
    "mixed": mixed_files,
}

AfterWrite = Callable[[int, str, int], None]


@dataclass
class Filling:
    """What one filling of a folder has brought.

    sizes: bytes that write(2) has taken for each file, by name within the folder.
    seconds: when each file was done, from the start of the filling on.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    @property
    def accepted_bytes(self) -> int:
        """Bytes that write(2) has taken."""
        return sum(self.sizes.values())

    def files_per_second(self, start: float, end: float) -> float:
        """Files made per second between two parts of the filling, as fractions of its files."""
        times = [0.0, *self.seconds]
        first, last = int(start * (len(times) - 1)), int(end * (len(times) - 1))
        return (last - first) / max(1e-9, times[last] - times[first])


def content(name: str, start: int, length: int) -> memoryview:
    """Bytes [start, start + length) of the file `name`. Requires: within one large write."""
    assert start // LARGE_WRITE_BYTES == (start + length - 1) // LARGE_WRITE_BYTES
    number = start // LARGE_WRITE_BYTES
    shift = random.Random(f"{name} {number}").randrange(64 * KIB)
    at = shift + start % LARGE_WRITE_BYTES
    return memoryview(_PATTERN)[at : at + length]


def free_bytes(path: Path) -> int:
    """What df calls available."""
    numbers = os.statvfs(path)
    return numbers.f_bavail * numbers.f_frsize


def used_bytes(path: Path) -> int:
    """What df calls used."""
    numbers = os.statvfs(path)
    return (numbers.f_blocks - numbers.f_bfree) * numbers.f_frsize


def fill(
    folder: Path,
    mix: str,
    seed: int,
    *,
    after_write: AfterWrite = lambda file, name, taken: None,
) -> Filling:
    """Write files until not even a small one fits.

    Args:
        folder: made by this; empty, if it exists.
        mix: one of MIXES.
        after_write: called after each write(2) with the open file, its name, and its length.

    Raises:
        OSError: anything other than ENOSPC from mkdir, open or write; and any error of close.
    """
    rng = random.Random(seed)
    sizes = MIXES[mix](rng)
    filling = Filling()
    started = time.monotonic()
    folder.mkdir(exist_ok=True)
    is_full = False
    while not is_full:
        wanted = next(sizes)
        name = f"{len(filling.sizes) // FILES_PER_DIRECTORY}/{len(filling.sizes)}"
        taken = _write_file(folder / name, name, wanted, after_write)
        if taken is not None:
            filling.sizes[name] = taken
            filling.seconds.append(time.monotonic() - started)
        is_full = taken is None or taken < min(wanted, SMALL_FILE_BYTES)
        if taken is not None and taken < wanted and not is_full:
            # The rest of the room is for smaller files.
            sizes = small_files(rng)
    return filling


def _write_file(path: Path, name: str, wanted: int, after_write: AfterWrite) -> int | None:
    """Write up to `wanted` bytes; how many were taken, None if not even the file could be made."""
    try:
        path.parent.mkdir(exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except OSError as error:
        _require_full(error)
        return None
    taken = 0
    part = LARGE_WRITE_BYTES
    try:
        while taken < wanted:
            length = min(part, wanted - taken, LARGE_WRITE_BYTES - taken % LARGE_WRITE_BYTES)
            try:
                taken += os.write(file, content(name, taken, length))
            except OSError as error:
                _require_full(error)
                if length <= SMALL_FILE_BYTES:
                    break
                part = max(SMALL_FILE_BYTES, part // 4)
            else:
                after_write(file, name, taken)
    finally:
        os.close(file)  # an error here fails the test: it must have come at write(2)
    return taken


def _require_full(error: OSError) -> None:
    if error.errno != errno.ENOSPC:
        raise error


def differences(folder: Path, filling: Filling, *, every: int = 1) -> list[str]:
    """What the files of a folder have lost of what was written; each `every`-th is read."""
    found = []
    for number, (name, size) in enumerate(filling.sizes.items()):
        path = folder / name
        if number % every:
            continue
        if not path.exists():
            found.append(f"{name}: gone")
        elif path.stat().st_size != size:
            found.append(f"{name}: {path.stat().st_size} bytes, not {size}")
        elif not _is_content(path, name, size):
            found.append(f"{name}: other bytes than were written")
    return found


def _is_content(path: Path, name: str, size: int) -> bool:
    with path.open("rb", buffering=0) as file:
        for start in range(0, size, LARGE_WRITE_BYTES):
            length = min(LARGE_WRITE_BYTES, size - start)
            if file.read(length) != content(name, start, length):
                return False
    return True


def sync(folder: Path) -> None:
    """Make everything durable: fsync of the folder and of each file, which must not fail."""
    for path in (folder, *folder.rglob("*")):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def empty(folder: Path, *, before_unlink: Callable[[Path], None] = lambda path: None) -> None:
    """Remove everything in a folder, which must work however full the disk is."""
    for directory, _, names in os.walk(folder, topdown=False):
        for name in names:
            before_unlink(Path(directory, name))
            os.unlink(os.path.join(directory, name))
        if Path(directory) != folder:
            os.rmdir(directory)


def wait_for_free(path: Path, wanted_bytes: int) -> int:
    """Wait until df calls that much available, or for SECONDS_TO_SETTLE_MAX; what it calls so."""
    deadline = time.monotonic() + SECONDS_TO_SETTLE_MAX
    while (free := free_bytes(path)) < wanted_bytes and time.monotonic() < deadline:
        time.sleep(0.1)
    return free
