"""Bloom filters that say which segments cannot hold a key.

Role: a thin door to the rbloom library with a hash of our own that is the same on every machine
and in every process, so that a filter can be stored. A key is hashed once, however many filters
are asked for it. Source: Bloom, "Space/time trade-offs in hash coding with allowable errors", CACM
1970.

Invariants:
    I1. A key that was added is always found.

Not here: where filters are stored (segment.py).
"""

from __future__ import annotations

from collections.abc import Iterable

import xxhash
from rbloom import Bloom

from shardfs import limits
from shardfs.errors import CorruptionError

_SIGNED_OFFSET = 1 << 127
_HEADER_BYTES = 8
_HASHES_MAX = 64


def hash_of(key: bytes) -> int:
    """What filters know a key by."""
    return xxhash.xxh3_128_intdigest(key) - _SIGNED_OFFSET


class Filter:
    """A set of keys that may answer yes by mistake, never no."""

    def __init__(self, bloom: Bloom) -> None:
        self._bloom = bloom

    @classmethod
    def of(cls, keys: Iterable[bytes], count: int) -> Filter:
        """The filter of `count` keys, or of the first of them: `add` takes the others."""
        found = cls(Bloom(max(1, count), limits.FILTER_FALSE_POSITIVE_RATE, int))
        found.add(keys)
        return found

    @classmethod
    def of_all(cls) -> Filter:
        """A filter that admits every key."""
        return cls.decode((1).to_bytes(_HEADER_BYTES, "little") + b"\xff" * _HEADER_BYTES)

    def add(self, keys: Iterable[bytes]) -> None:
        """Take in some of the keys that it was made for."""
        self._bloom.update(map(hash_of, keys))

    @property
    def memory_bytes(self) -> int:
        """What it takes in memory."""
        return self._bloom.size_in_bits // 8

    @classmethod
    def decode(cls, data: bytes) -> Filter:
        """The filter encoded as `data`.

        Raises:
            CorruptionError: not a filter.
        """
        # The library trusts its input: it panics on short data and loops on a huge hash count.
        hashes = int.from_bytes(data[:_HEADER_BYTES], "little")
        if len(data) <= _HEADER_BYTES or not 1 <= hashes <= _HASHES_MAX:
            raise CorruptionError("the filter does not decode", "tree")
        return cls(Bloom.load_bytes(data, int))

    def encode(self) -> bytes:
        """The filter as stored."""
        return bytes(self._bloom.save_bytes())

    def may_contain(self, key_hash: int) -> bool:
        """False only if no key with this `hash_of` was ever added."""
        return key_hash in self._bloom
