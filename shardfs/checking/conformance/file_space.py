"""What df(1) and du(1) tell of a file system on an engine, beside the specification of space.

Role: looks at the store below after every step, at what all files hold now and then, and at the
emptied file system; counts what reclamation goes through meanwhile.

What is checked:
    D1. After every step, what is free is what a fresh store of this size has, less the live data,
        what is set aside for buffered data, and the tree's share (space_model.I1, I3, I8).
    D2. The live data are what the shards of all files refer to, with the heads of their chunks;
        and what inodes say they take is what their shards have (`check_held`).
    D3. When everything was removed and the file system is idle, df is within 1 % of a fresh one
        (space_model.I6).

Not here: du(1) of a single file (file_client.py, file_trees.py), when to look (file_run.py).
"""

from __future__ import annotations

from typing import Final

from shardfs import limits
from shardfs.checking.conformance.store_space import figures_of
from shardfs.checking.models.space_model import SpaceModel
from shardfs.engine.liveness import live_bytes
from shardfs.engine.pieces import Shard
from shardfs.engine.reserve import reserve_extents
from shardfs.engine.store import Store
from shardfs.fuse.keys import INODE_PREFIX, decode_file_key
from shardfs.fuse.records import decode_inode

_KEYS_END: Final = b"\xff" * limits.KEY_BYTES_MAX


class FileSpace:
    """The space of one sequence's file systems.

    Args:
        extent_count, extent_bytes: of the device.
    """

    def __init__(self, extent_count: int, extent_bytes: int) -> None:
        reserve = reserve_extents(extent_count)
        self._model = SpaceModel(extent_count, extent_bytes, reserve, lambda *_: False)

    def resized(self, extent_count: int, fresh_bytes: int) -> None:
        """The store tells its space as one of this size from now on."""
        self._model.resize(extent_count, reserve_extents(extent_count), fresh_bytes)

    def check(self, store: Store) -> None:
        """D1, while nothing is being changed."""
        self._model.check_free(figures_of(store))

    async def check_held(self, store: Store) -> None:
        """D2. Requires: nothing is changed meanwhile."""
        live = 0
        held: dict[int, int] = {}
        told: dict[int, int] = {}
        async for key, value in store.scan(b"\0", _KEYS_END):
            if isinstance(value, Shard):
                live += sum(live_bytes(value.pieces).values())
                if key.startswith(INODE_PREFIX):  # pages of names are data as well, and no file's
                    ino = decode_file_key(key).ino
                    held[ino] = held.get(ino, 0) + sum(piece.length for piece in value.pieces)
            elif key.startswith(INODE_PREFIX):
                place = decode_file_key(key)
                if place.xattr is None:
                    told[place.ino] = decode_inode(value).used
        figures = figures_of(store)
        assert figures.data == live, f"{figures.data} bytes of data are live, files hold {live}"
        told = {ino: used for ino, used in told.items() if used}
        held = {ino: used for ino, used in held.items() if used}
        assert told == held, f"inodes tell that they take {told}, their shards have {held}"

    def check_emptied(self, store: Store) -> None:
        """D3."""
        self._model.emptied(figures_of(store), merged=False)
