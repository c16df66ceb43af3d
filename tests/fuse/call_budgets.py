"""How many calls of Python functions a request may cost; docs/performance.md shows the same.

Calls do not depend on the machine or its load, and a handler's time follows them closely.
"""

from __future__ import annotations

from typing import Final

CALLS: Final = {
    "lookup of a name that is not there": 20,
    "create": 85,
    "getattr": 12,
    "write of 4 KiB": 48,
    "giving a file of 4 KiB to the engine": 175,
    "lookup": 18,
    "open": 24,
    "rename": 90,
    "unlink": 77,
    "entry of a directory": 21,
    "freeing a removed file": 100,
    "fsync of a file of 4 KiB": 520,
    "read of 4 KiB of a file in pieces": 58,
}
"""Functions written in Python, builtin ones not counted; those of trio are. In freeing and fsync
the background has its turns, so they have more to spare."""
