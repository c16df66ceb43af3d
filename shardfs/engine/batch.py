"""A batch: changes that count together or not at all.

Role: gathers encoded values by key, which chunks they begin to refer to, and by how much that
changes what is live in each extent.

Invariants:
    I1. A key appears in a batch at most once as a shard; a later record change of the same key
        replaces an earlier one.

Not here: applying it (applying.py).
"""

from __future__ import annotations

from shardfs import limits
from shardfs.engine.framing import frame_bytes
from shardfs.engine.liveness import ExtentLife, live_changes
from shardfs.engine.lsm.entry import RECORD, TOMBSTONE, encode_shard
from shardfs.engine.pieces import Locator, Piece, Shard, locators
from shardfs.errors import LimitError


def check_key(key: bytes) -> None:
    """Raises:
    LimitError: the key is empty or longer than the format allows.
    """
    if not 0 < len(key) <= limits.KEY_BYTES_MAX:
        raise LimitError(f"a key has 1 to {limits.KEY_BYTES_MAX} bytes, this one has {len(key)}")


class Batch:
    """Changes to apply together. Made by Store.batch; an abandoned one needs nothing.

    Args:
        record_bytes_max: of the store.
        essential: the batch frees space or finishes what was promised: it may use the reserve.
        answered: its records, and it has no shards, were told to others as changed: a store that
            has turned read-only meanwhile takes it too. It is seen there, and never durable.
    """

    __slots__ = (
        *("_record_bytes_max", "added", "answered", "bases", "changes", "essential"),
        *("live_changes", "piece_counts"),
    )

    def __init__(self, record_bytes_max: int, *, essential: bool, answered: bool = False) -> None:
        self._record_bytes_max = record_bytes_max
        self.essential = essential
        self.answered = answered
        self.changes: dict[bytes, bytes] = {}
        self.bases: list[tuple[bytes, Shard | None]] = []
        self.added: dict[int, Locator] = {}
        """Chunks that were not referred to before, by sequence number."""
        self.live_changes: dict[ExtentLife, int] = {}
        """By how much the live bytes of extents change."""
        self.piece_counts: dict[bytes, int] = {}
        """Pieces of each shard that changes; 0 for one that goes."""

    def __len__(self) -> int:
        return len(self.changes)

    def put(self, key: bytes, record: bytes) -> None:
        """Set a record.

        Raises:
            LimitError: the key or the record is too long.
        """
        if not 0 < len(key) <= limits.KEY_BYTES_MAX:
            check_key(key)
        if len(record) > self._record_bytes_max:
            raise LimitError(
                f"a record of {len(record)} bytes is longer than {self._record_bytes_max}"
            )
        self.changes[key] = RECORD + record

    def delete(self, key: bytes) -> None:
        """Remove a record; nothing happens if there is none."""
        check_key(key)
        self.changes[key] = TOMBSTONE

    def put_shard(self, key: bytes, pieces: tuple[Piece, ...], base: Shard | None) -> None:
        """Set a shard.

        Args:
            key: of the shard.
            pieces: its whole new content; an empty tuple is a shard of holes.
            base: what get_shard or scan gave; None only if there is no entry for the key.

        Raises:
            LimitError: the key is too long, or the shard has too many pieces.
        """
        value = encode_shard(pieces)
        if len(value) > self._record_bytes_max:
            raise LimitError(f"a shard of {len(pieces)} pieces is too fragmented")
        self._rebase(key, pieces, base)
        self.piece_counts[key] = len(pieces)
        self.changes[key] = value

    def delete_shard(self, key: bytes, base: Shard) -> None:
        """Remove a shard and drop its chunks."""
        self._rebase(key, (), base)
        self.piece_counts[key] = 0
        self.changes[key] = TOMBSTONE

    def refer(self, old: tuple[Piece, ...], new: tuple[Piece, ...]) -> None:
        """One of the keys refers to the new pieces in place of the old ones."""
        if not old and len(new) == 1 and not new[0].is_damaged:  # as most are
            piece = new[0]
            locator = piece.locator
            self.added[locator.sequence] = locator
            life = locator.extent, locator.epoch
            grown = frame_bytes(locator.key_bytes, piece.length)  # as liveness.piece_bytes
            self.live_changes[life] = self.live_changes.get(life, 0) + grown
            return
        known = locators(old) if old else ()
        for number, locator in locators(new).items():
            if number not in known:
                self.added[number] = locator
        for life, change in live_changes(old, new):
            self.live_changes[life] = self.live_changes.get(life, 0) + change

    def _rebase(self, key: bytes, new: tuple[Piece, ...], base: Shard | None) -> None:
        check_key(key)
        assert key not in self.changes, "a shard changes once in a batch"
        self.refer(base.pieces if base is not None else (), new)
        self.bases.append((key, base))
