"""A temporary database, for what grows with the device and so has no place in memory.

Role: an SQLite database in a file that has no name any more. Base of frame_index.py and
tree_remains.py.

Invariants:
    I1. The file goes with the process, however that ends.

Not here: what is in it.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from types import TracebackType
from typing import Final, Self

_CACHE_KIB: Final = 16 * 1024


class Scratch:
    """A database. A context manager.

    Args:
        tables: SQL that makes its tables.
        directory: where the file is made; by default where temporary files are.
    """

    def __init__(self, tables: str, directory: str | None = None) -> None:
        descriptor, path = tempfile.mkstemp(prefix="shardfs-", dir=directory)
        os.close(descriptor)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA temp_store=FILE; "
            f"PRAGMA cache_size=-{_CACHE_KIB}; {tables} BEGIN;"
        )
        os.unlink(path)  # it lives as long as it is open

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()
