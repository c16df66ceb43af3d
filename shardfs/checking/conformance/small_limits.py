"""Limits that are small in part of the cases, so that what takes one step mostly takes several.

Role: the small values, and what puts them in force while a case runs.

Not here: which cases have them (file_world.py, store_world.py), the values else (limits.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from shardfs import limits

OF_FILES: Final = {
    "DIRECTORY_PAGE_ENTRIES": 2,
    "INODES_PER_LEASE": 2,
    "PIECES_PER_SHARD_MAX": 66,
    "SHARDS_PER_BATCH_MAX": 2,
}
"""Then what is done page by page or batch by batch takes several, and shards are gathered."""
OF_TREES: Final = {
    "RUN_BLOCK_BYTES": 256,
    "RUNS_PER_LEVEL_MAX": 2,
    "SEGMENT_BYTES_MAX": 512,
}
"""Then a tree of few entries has several levels, and merges take many steps beside each other."""
SMALL_TREE_PROBABILITY: Final = 0.25
"""Of a case of any world to have such a tree."""


@contextmanager
def replaced(module: dict[str, Any], changes: Mapping[str, Any]) -> Iterator[None]:
    """A module, given as its variables, with other values while the body runs."""
    before = {name: module[name] for name in changes}
    module.update(changes)
    try:
        yield
    finally:
        module.update(before)


@contextmanager
def in_force(changes: Mapping[str, int], *, wanted: bool) -> Iterator[None]:
    """The limits are small while the body runs, if that is wanted."""
    with replaced(vars(limits), changes if wanted else {}):
        yield
