"""A bounded cache of what was read from the device.

Role: values keyed by (extent, epoch, offset), least recently used out first, sizes in bytes.
Those who miss on the same key wait for one load.

Invariants:
    I1. The sizes of the values held sum up to at most `bytes_max`.
    I2. The epoch is part of the key: a value of before a reset is never found after it.
    I3. Who waits for a load gets what it gave, also if the cache does not hold it any more.

Not here: data that the device does not have yet (extents.py keeps it).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import trio

Key = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Counts since the store was opened; bytes as of now."""

    hits: int
    misses: int
    held_bytes: int
    bytes_max: int


@dataclass(slots=True, eq=False)
class _Load:
    """One load under way; `value` stays None if it fails."""

    done: trio.Event = field(default_factory=trio.Event)
    value: Any | None = None


class Cache:
    """Byte-bounded, least recently used, with single-flight loading."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._values: OrderedDict[Key, tuple[Any, int]] = OrderedDict()
        self._loading: dict[Key, _Load] = {}
        self._held_bytes = 0
        self._hits = 0
        self._misses = 0

    def get(self, key: Key) -> Any | None:
        """The value, or None; never checkpoints."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        self._hits += 1
        return found[0]

    def holds(self, key: Key) -> bool:
        """Whether the value is there; does not count as a use."""
        return key in self._values

    async def load(self, key: Key, loader: Callable[[], Awaitable[tuple[Any, int]]]) -> Any:
        """The value, loaded by the first who asks while the others wait.

        Args:
            key: of the value.
            loader: returns the value and its size in bytes; its errors reach the caller whose
                loader it is, and the next one who waits tries its own.

        Checkpoints: only on a miss.
        """
        while True:
            value = self.get(key)
            if value is not None:
                return value
            load = self._loading.get(key)
            if load is None:
                break
            await load.done.wait()
            if load.value is not None:
                self._hits += 1
                return load.value
        self._misses += 1
        load = self._loading[key] = _Load()
        try:
            load.value, size = await loader()
            self._put(key, load.value, size)
            return load.value
        finally:
            del self._loading[key]
            load.done.set()

    def statistics(self) -> CacheStatistics:
        """Counts and sizes as of now."""
        return CacheStatistics(self._hits, self._misses, self._held_bytes, self._bytes_max)

    def _put(self, key: Key, value: Any, size: int) -> None:
        if size > self._bytes_max:
            return
        self._values[key] = (value, size)
        self._held_bytes += size
        self.limit(self._bytes_max)

    @property
    def bytes_max(self) -> int:
        """What is held is at most this."""
        return self._bytes_max

    @property
    def held_bytes(self) -> int:
        """Sizes of what is held."""
        return self._held_bytes

    def limit(self, bytes_max: int) -> None:
        """Hold no more than that from now on."""
        self._bytes_max = bytes_max
        while self._held_bytes > bytes_max:
            _, (_, dropped) = self._values.popitem(last=False)
            self._held_bytes -= dropped
