"""A load for crash tests: says on standard output what the file system has promised.

Role: run as a child against a mount that is killed under it. Four threads write, rename, copy and
remove in a directory each; a line is printed the moment a promise holds, so that what has been
read from the pipe is what the file system owes.

Lines: "fsync NAME VERSION" (this content is durable), "rename NAME VERSION" (NAME is this version
or a later one, whole), "removing NAME" (from here on it may be gone), "made NAME VERSION"
(visible, not promised).

Not here: checking the promises (test_sigkill.py).
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

_SIZES = (0, 1, 100, 4095, 4096, 4097, 20_000, 130_000, 1_200_000)
_OUTPUT = threading.Lock()

Work = Callable[[Path, random.Random], None]


def content(name: str, version: int) -> bytes:
    """The bytes that version `version` of file `name` has: its own length and pattern."""
    seed = hashlib.sha256(f"{name} {version}".encode()).digest()
    length = _SIZES[seed[0] % len(_SIZES)] + 32
    return (seed * (length // 32 + 1))[:length]


def say(line: str) -> None:
    """One whole line, at once."""
    with _OUTPUT:
        os.write(1, f"{line}\n".encode())


def write_file(path: Path, data: bytes, *, durable: bool) -> None:
    """Write a file in pieces, and fsync it if asked to."""
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(data), 65536):
            file.write(data[start : start + 65536])
        if durable:
            os.fsync(file.fileno())


def fsync_new_files(folder: Path, rng: random.Random) -> None:
    """New files, each made durable."""
    number = 0
    while True:
        name = f"{folder.name}/durable-{number}"
        number += 1
        write_file(folder / Path(name).name, content(name, 0), durable=True)
        say(f"fsync {name} 0")


def replace_by_rename(folder: Path, rng: random.Random) -> None:
    """A few files, replaced again and again the way editors and mail servers do."""
    versions = dict.fromkeys(range(4), 0)
    while True:
        slot = rng.choice(list(versions))
        versions[slot] += 1
        name = f"{folder.name}/slot-{slot}"
        temporary = folder / f"temporary-{slot}"
        write_file(temporary, content(name, versions[slot]), durable=True)
        os.rename(temporary, folder / f"slot-{slot}")
        say(f"rename {name} {versions[slot]}")


def copy_and_remove(folder: Path, rng: random.Random) -> None:
    """Trees copied in and removed again; nothing is promised but consistency."""
    source = Path(os.__file__).parent / "json"
    number = 0
    while True:
        shutil.copytree(source, folder / f"tree-{number}")
        if number >= 2:
            shutil.rmtree(folder / f"tree-{number - 2}")
        number += 1


def make_and_remove(folder: Path, rng: random.Random) -> None:
    """Files that come and go without any fsync."""
    made: list[str] = []
    number = 0
    while True:
        name = f"{folder.name}/passing-{number}"
        number += 1
        write_file(folder / Path(name).name, content(name, 0), durable=False)
        say(f"made {name} 0")
        made.append(name)
        if len(made) > 20:
            victim = made.pop(rng.randrange(len(made)))
            say(f"removing {victim}")
            (folder / Path(victim).name).unlink()


def until_the_end(work: Work, folder: Path, source: random.Random) -> None:
    """One kind of work for as long as there is a mount."""
    try:
        work(folder, source)
    except (OSError, shutil.Error):
        return  # the mount has gone: that is what this load is for


def main() -> None:
    """Arguments: the directory to work in, and a seed. Ends when the mount does."""
    seed = int(sys.argv[2])
    # From within the mount: copytree makes missing parents, and of an absolute path it would make
    # them below the mount point when the mount has gone.
    os.chdir(sys.argv[1])
    threads = []
    for number, work in enumerate(
        (fsync_new_files, replace_by_rename, copy_and_remove, make_and_remove)
    ):
        folder = Path(work.__name__)
        folder.mkdir()
        source = random.Random(seed * 10 + number)
        threads.append(threading.Thread(target=until_the_end, args=(work, folder, source)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
