"""A load of SQLite transactions, run as a child: says what has been committed.

Role: adds numbered groups of rows to one database, each group a transaction with
`synchronous=extra`, and prints the group's number once COMMIT has returned. Groups change a sum
that every group keeps, so that half a transaction would show.

Arguments: the database, its journal mode, this process's number, groups to commit (0: without
end, until the mount goes away).

Not here: checking what is in the database afterwards (test_sqlite.py).
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import sys

ROWS = 8


def connect(path: str, mode: str) -> sqlite3.Connection:
    """The database in a journal mode, made if it does not exist."""
    database = sqlite3.connect(path, isolation_level=None, timeout=60)
    # Changing the mode is not waited for with the timeout: only the first of many may have to.
    if database.execute("pragma journal_mode").fetchone() != (mode,):
        database.execute(f"pragma journal_mode = {mode}")
    # With "full" SQLite does not sync the directory after it has removed a journal: the last
    # transaction of mode "delete" may be rolled back after a power cut, on any file system.
    database.execute("pragma synchronous = extra")
    return database


def prepare(path: str, mode: str) -> None:
    """Make the tables."""
    database = connect(path, mode)
    database.execute("create table entries (process, grp, amount, filler)")
    database.execute("create index by_group on entries (process, grp)")
    database.execute("create table total (amount)")
    database.execute("insert into total values (0)")
    database.close()


def commit_group(database: sqlite3.Connection, process: int, number: int) -> None:
    """One transaction: ROWS rows and the sum of all rows."""
    database.execute("begin immediate")
    rows = [(process, number, number + row, os.urandom(150 * row)) for row in range(ROWS)]
    database.executemany("insert into entries values (?, ?, ?, ?)", rows)
    amount = sum(row[2] for row in rows)
    database.execute("update total set amount = amount + ?", (amount,))
    database.execute("commit")


def sync_directory(path: str) -> None:
    """Make the removal of a journal durable, or fail.

    SQLite does so itself, but overlooks that it can not open a directory whose mount has just gone.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main() -> None:
    """See the module's docstring."""
    path, mode, process, groups = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    database = connect(path, mode)
    try:
        for number in range(groups) if groups else itertools.count():
            commit_group(database, process, number)
            sync_directory(os.path.dirname(path))
            os.write(1, f"{number}\n".encode())
    except (sqlite3.Error, OSError):
        if groups:
            raise
        return  # the mount has gone: that is what an endless load is for


if __name__ == "__main__":
    main()
