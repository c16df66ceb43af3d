"""How many requests a program's system calls may cost: the budget of docs/performance.md.

Role: one row for each sequence of system calls, with the most requests of each kind that a program
waits for. test_round_trips.py counts them on a mount; tests/tidy/test_round_trips.py compares the
table in the document with this one. A kind that is not named may not come at all.

What a program does not wait for (release, releasedir, forget) is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

UNWAITED: Final = frozenset({"release", "releasedir", "forget"})

BUDGETS: Final[Mapping[str, Mapping[str, int]]] = {
    "create, write 4 KiB, close": {
        "getattr": 1,
        "lookup": 1,
        "create": 1,
        "getxattr": 1,
        "write": 1,
    },
    "stat of a file just written": {"getattr": 2},
    "stat again": {},
    "stat, cold": {"getattr": 1, "lookup": 1},
    "stat of a name that does not exist, again": {},
    "open, read 4 KiB, close, cold": {"getattr": 1, "lookup": 1, "open": 1, "read": 1},
    "open, read 4 KiB, close, hot": {"open": 1},
    "scandir with stat of 100 files, cold": {"lookup": 1, "opendir": 1, "readdir": 3},
    "rename": {"getattr": 1, "lookup": 1, "rename": 1},
    "unlink": {"getattr": 1, "unlink": 1},
    "create, write 8 MiB in calls of 1 MiB, close": {
        "getattr": 1,
        "lookup": 1,
        "create": 1,
        "getxattr": 1,
        "write": 8,
    },
    "open, read 8 MiB in calls of 1 MiB, close, cold": {
        "getattr": 1,
        "lookup": 1,
        "open": 1,
        "read": 10,
    },
    "64 writes of 4 KiB at random places of an open file": {"getxattr": 1, "write": 64},
    "fsync after it": {"fsync": 1},
    "cp of a file of 4 KiB in a directory, cold": {
        "getattr": 1,
        "lookup": 4,
        "open": 1,
        "read": 1,
        "create": 1,
        "getxattr": 1,
        "write": 1,
    },
    "tar x of a file of 4 KiB": {
        "getattr": 1,
        "opendir": 1,
        "lookup": 1,
        "create": 1,
        "getxattr": 2,
        "write": 1,
        "setattr": 3,
    },
}
