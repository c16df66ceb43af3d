"""A load that does the work of all applications in turn, run as a child of test_all_at_once.py.

Role: goes through all of them in an order of its own, again and again, each time in a new folder.
What an application left is kept until the same one has come by again, so that the mount always
has old files beside those in the making. Ends with the first work that is not content.

Lines: "done NAME SECONDS", "skipped NAME REASON".

Arguments: the folder to work in, a seed, seconds to go on for (work that has begun is finished),
a folder with the wheel to install (or "-" for none).
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.mounted.applications.programs import Work
from tests.mounted.applications.test_building import build_work, ccache_work
from tests.mounted.applications.test_copying import (
    move_work,
    rclone_work,
    rsync_work,
    tar_and_cp_work,
    zip_work,
)
from tests.mounted.applications.test_databases import gdbm_work, lmdb_work
from tests.mounted.applications.test_fio import fio_work
from tests.mounted.applications.test_git import git_work
from tests.mounted.applications.test_many_processes import many_processes_work
from tests.mounted.applications.test_postgresql import postgresql_work
from tests.mounted.applications.test_python_packages import install_and_use
from tests.mounted.applications.test_saving import saving_work
from tests.mounted.applications.test_sqlite import sqlite_work

WORKS: dict[str, Work] = {
    "building": build_work,
    "ccache": ccache_work,
    "fio": fio_work,
    "gdbm": gdbm_work,
    "git": git_work,
    "lmdb": lmdb_work,
    "many processes": many_processes_work,
    "mv": move_work,
    "postgresql": postgresql_work,
    "rclone": rclone_work,
    "rsync": rsync_work,
    "saving": saving_work,
    "sqlite": sqlite_work,
    "tar and cp": tar_and_cp_work,
    "zip": zip_work,
}


def python_work(wheels: Path, folder: Path, seed: int) -> None:
    """The wheel in a virtual environment."""
    install_and_use(folder, wheels)


def turns(works: dict[str, Work], rng: random.Random) -> Iterator[tuple[str, Work]]:
    """All works, in an order that changes each time."""
    while True:
        order = list(works.items())
        rng.shuffle(order)
        yield from order


def say(line: str) -> None:
    """One whole line, at once."""
    os.write(1, f"{line}\n".encode())


def main() -> None:
    """See the module's docstring."""
    root, seed, seconds, wheels = Path(sys.argv[1]), *map(int, sys.argv[2:4]), sys.argv[4]
    works = dict(WORKS)
    if wheels != "-":
        works["python packages"] = partial(python_work, Path(wheels))
    deadline = time.monotonic() + seconds
    left: dict[str, Path] = {}
    for number, (name, work) in enumerate(turns(works, random.Random(seed))):
        began = time.monotonic()
        if began > deadline:
            return
        folder = root / f"{number}-{name.replace(' ', '-')}"
        folder.mkdir()
        try:
            work(folder, seed + number)
        except pytest.skip.Exception as reason:
            say(f"skipped {name.replace(' ', '-')} {reason}")
        except BaseException:
            # Said at once, and before the traceback: which of the works it was.
            say(f"failed {name.replace(' ', '-')} {folder}")
            raise
        else:
            say(f"done {name.replace(' ', '-')} {time.monotonic() - began:.1f}")
        if name in left:
            shutil.rmtree(left[name])
        left[name] = folder


if __name__ == "__main__":
    main()
