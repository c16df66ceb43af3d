"""Shards decoded a moment ago, for those who look them up again.

Role: the entry of a shard that was written at random names a hundred pieces and more; a program
that reads such a file looks the same few up over and over.

Invariants:
    I1. What is given equals what decoding the value gives, with the generation asked for.
    I2. The decoded shards take at most about `bytes_max`.

Not here: which value is current (lsm/tree.py).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from shardfs.engine.layout import Tag
from shardfs.engine.lsm.entry import decode_value
from shardfs.engine.pieces import Shard

_ENTRY_MEMORY_BYTES: Final = 200
"""What a shard takes besides its pieces: its key, and its place among the others."""
_PIECE_MEMORY_BYTES: Final = 600
"""What tuples and numbers of a piece and its chunk take, besides digests."""


class RecentShards:
    """Decoded shards by key, least recently used out first.

    Args:
        bytes_max: of memory, about.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.held_bytes = 0
        self._shards: OrderedDict[bytes, tuple[bytes, Shard]] = OrderedDict()

    def shard_or_record(self, key: bytes, value: bytes, generation: int) -> bytes | Shard | None:
        """As decode_value.

        Args:
            key: whose value it is.

        Raises:
            CorruptionError: as decode_value.
        """
        if not value or value[0] != Tag.SHARD:
            return decode_value(value, generation)
        kept = self._shards.get(key)
        if kept is not None and (kept[0] is value or kept[0] == value):
            self._shards.move_to_end(key)
            known = kept[1]
            return known if known.generation == generation else Shard(known.pieces, generation)
        shard = decode_value(value, generation)
        assert isinstance(shard, Shard)
        if kept is not None:
            self.held_bytes -= _memory_bytes(*kept)
        self._shards[key] = (value, shard)
        self._shards.move_to_end(key)
        self.held_bytes += _memory_bytes(value, shard)
        self.limit(self._bytes_max)
        return shard

    def limit(self, bytes_max: int) -> None:
        """Hold no more than that from now on."""
        self._bytes_max = bytes_max
        while self.held_bytes > bytes_max:
            _, kept = self._shards.popitem(last=False)
            self.held_bytes -= _memory_bytes(*kept)


def _memory_bytes(value: bytes, shard: Shard) -> int:
    """About what is held by a value and what it was decoded to: digests are in both."""
    return _ENTRY_MEMORY_BYTES + 2 * len(value) + _PIECE_MEMORY_BYTES * len(shard.pieces)
