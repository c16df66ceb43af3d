"""Loads for LMDB and gdbm, run as children under a Python that has their modules.

Role: writes numbered records into a database, in transactions or with syncs, and prints the
number of each transaction that has been committed; or verifies what a database holds, and prints
how many records it has.

Lines: the number of a transaction that is durable; of a verification, the number of records.

Arguments: "lmdb" or "gdbm", "write" or "verify", the database, transactions to make (0: without
end, until the mount goes away), a seed.

Not here: what must be there afterwards (test_databases.py).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

RECORDS = 20
MAP_BYTES = 64 << 20


def record(transaction: int, index: int, seed: int) -> tuple[bytes, bytes]:
    """Key and value of a record: of many lengths, and to be told from any other."""
    digest = hashlib.sha256(b"%d %d %d" % (seed, transaction, index)).digest()
    length = random.Random(transaction * 1000 + index).choice((1, 100, 2000, 9000))
    return b"%d %d" % (transaction, index), (digest * (length // 32 + 1))[:length]


def say(number: int) -> None:
    """One line, at once."""
    os.write(1, b"%d\n" % number)


def open_lmdb(path: str) -> Any:
    """An environment with a map that is synced at each commit."""
    import lmdb  # type: ignore[import-not-found, unused-ignore]  # Debian's Python has it

    return lmdb.open(path, map_size=MAP_BYTES, subdir=True, max_dbs=2)


def write_lmdb(path: str, numbers: Iterator[int], seed: int) -> None:
    """Transactions of RECORDS records, each of them durable when its number is said."""
    with open_lmdb(path) as environment:
        for number in numbers:
            with environment.begin(write=True) as transaction:
                for index in range(RECORDS):
                    transaction.put(*record(number, index, seed))
                if number % 5 == 4:
                    for index in range(RECORDS // 2):
                        transaction.delete(record(number - 2, index, seed)[0])
            say(number)


def verify_lmdb(path: str, seed: int) -> None:
    """Walk the whole tree, backwards too, and compare each value."""
    with open_lmdb(path) as environment:
        with environment.begin() as transaction:
            entries = list(transaction.cursor())
            keys = [key for key, _ in entries]
            assert keys == sorted(keys)
            backwards = transaction.cursor().iterprev(values=False)
            assert list(backwards) == keys[::-1]
            assert environment.stat()["entries"] == len(keys)
        verify_entries(entries, seed)


def write_gdbm(path: str, numbers: Iterator[int], seed: int) -> None:
    """Records with a sync after RECORDS of them, some deleted again."""
    import dbm.gnu

    with dbm.gnu.open(path, "c") as database:
        for number in numbers:
            for index in range(RECORDS):
                key, value = record(number, index, seed)
                database[key] = value
            if number % 5 == 4:
                for index in range(RECORDS // 2):
                    del database[record(number - 2, index, seed)[0]]
            database.sync()
            say(number)
        database.reorganize()


def verify_gdbm(path: str, seed: int) -> None:
    """Walk all keys, and compare each value."""
    import dbm.gnu

    with dbm.gnu.open(path, "r") as database:
        entries = []
        key = database.firstkey()
        while key is not None:
            entries.append((key, database[key]))
            key = database.nextkey(key)
    verify_entries(entries, seed)


def verify_entries(entries: list[tuple[bytes, bytes]], seed: int) -> None:
    """Each value is the one that its key had; transactions are whole. Says how many there are."""
    transactions: dict[int, int] = {}
    for key, value in entries:
        number, index = map(int, key.split())
        assert value == record(number, index, seed)[1], key
        transactions[number] = transactions.get(number, 0) + 1
    torn = {
        number: count
        for number, count in transactions.items()
        if count not in (RECORDS, RECORDS // 2)
    }
    assert not torn, torn
    say(len(entries))


def main() -> None:
    """See the module's docstring."""
    kind, what, path, count, seed = (*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]))
    if what == "verify":
        (verify_lmdb if kind == "lmdb" else verify_gdbm)(path, seed)
        return
    numbers = iter(range(count)) if count else itertools.count()
    (write_lmdb if kind == "lmdb" else write_gdbm)(path, numbers, seed)


if __name__ == "__main__":
    main()
