"""A mapping that forgets what was not used for long, bounded in bytes of memory.

Role: the caches of inodes and directory entries (tables.py).

Invariants:
    I1. What is held, and what is still to go, takes at most the bound, but for the last value.

Not here: what sizes are (tables.py), how large the bound is (memory.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_LEAVING_AT_ONCE: Final = 4
_ABSENT: Final[Any] = object()
"""None is a value: of what was deleted."""


class RecentCache(Generic[K, V]):
    """A mapping that keeps the keys used last, at least half of what its bound allows.

    Two generations: what is used moves to the young one; when that is half full the old one goes.
    It goes a little with each new value, because letting go of all of it takes milliseconds.

    Args:
        bytes_max: of memory; never more, but for the value set last.
        size: of a key and its value, bytes. It must be the same for each value of a key.
    """

    def __init__(self, bytes_max: int, size: Callable[[K, V], int]) -> None:
        self._half_bytes = bytes_max // 2
        self._size = size
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._leaving: dict[K, V] = {}
        self._young_bytes = 0
        self._old_bytes = 0
        self._leaving_each = 0.0

    def __contains__(self, key: K) -> bool:
        return key in self._young or key in self._old

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())

    @property
    def held_bytes(self) -> int:
        """Memory of what is kept, and of what is still to go."""
        leaving_bytes = int(self._leaving_each * len(self._leaving))
        return self._young_bytes + self._old_bytes + leaving_bytes

    def limit(self, bytes_max: int) -> None:
        """Hold no more than that from now on; when it is less, most goes at once."""
        self._half_bytes = bytes_max // 2
        if self.held_bytes > bytes_max:
            self._leaving = {}
            if self._young_bytes + self._old_bytes > bytes_max:
                self._old, self._old_bytes = {}, 0
            if self._young_bytes > bytes_max:
                self._young, self._young_bytes = {}, 0

    def __getitem__(self, key: K) -> V:
        """The value; KeyError when it is not kept."""
        try:
            return self._young[key]
        except KeyError:
            value = self._old[key]
        self[key] = value
        return value

    def get(self, key: K) -> V | None:
        """The value; None when it is not kept. It does not count as used."""
        value: V | None = self._young.get(key, _ABSENT)
        return self._old.get(key) if value is _ABSENT else value

    def __setitem__(self, key: K, value: V) -> None:
        if key not in self._young:
            self._young_bytes += self._size(key, value)
        self._young[key] = value
        leaving = self._leaving
        if leaving:
            for _ in range(min(_LEAVING_AT_ONCE, len(leaving))):
                leaving.popitem()
        if self._young_bytes >= self._half_bytes:
            self._leaving = self._old
            self._leaving_each = self._old_bytes / max(1, len(self._old))
            self._old, self._old_bytes = self._young, self._young_bytes
            self._young, self._young_bytes = {}, 0
