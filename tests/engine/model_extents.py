"""Extents without a device: the model of extents, with the engine's interface to it.

For unit tests of what is built on extents (chunks, shards, runs): no scheduler, no superblock, no
device; whatever is appended is persistent at once.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import trio

from shardfs import limits
from shardfs.checking.models.extents_model import ExtentsModel, Position
from shardfs.engine.cache import Cache
from shardfs.engine.chunks import ChunkStore
from shardfs.engine.dependency import PERSISTENT, Dependency
from shardfs.engine.device import Buffer
from shardfs.engine.extent import Extent
from shardfs.engine.extents import Extents
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.mkfs import plan
from shardfs.engine.shards import ShardData
from shardfs.engine.space import SpaceAccount

EXTENT_BYTES = 64 * limits.KIB


class ModelExtents:
    """What engine/chunks.py, shards.py and lsm/segment.py need of Extents, done by the model."""

    def __init__(self, extent_count: int = 512) -> None:
        size_bytes = extent_count * EXTENT_BYTES
        self.identity = plan(
            size_bytes, 512, extent_bytes=EXTENT_BYTES, store_uuid=uuid.UUID(int=1)
        )
        self.extent_bytes = EXTENT_BYTES
        self._extent_count = extent_count
        self.reserve = 2
        self.space = SpaceAccount(extent_count, EXTENT_BYTES, self.reserve)
        self.model = ExtentsModel(EXTENT_BYTES, limits.BLOCK_BYTES)
        self._positions: dict[int, list[Position]] = {}
        self._current: dict[Stream, int] = {}
        self._live: dict[int, int] = {}

    @property
    def free_count(self) -> int:
        """Extents that nothing has been appended to."""
        return self._extent_count - len(self._positions)

    def place(
        self, stream: Stream, length: int, before: Dependency = PERSISTENT, *, floor: int = 0
    ) -> Extent:
        """The stream's extent, or a new one when it has no room."""
        del before, floor
        if self.room(stream) < length:
            self._current[stream] = len(self._positions)
            self._positions[self._current[stream]] = []
        return self.at(self._current[stream])

    def append(
        self,
        extent: Extent,
        head: bytes,
        payload: Sequence[Buffer],
        length: int,
        before: Dependency = PERSISTENT,
    ) -> tuple[int, Dependency]:
        """Append a frame to the model."""
        del before
        position = self.model.append(extent.index, b"".join((head, *payload)), length)
        self._positions[extent.index].append(position)
        return position.offset, PERSISTENT

    def room(self, stream: Stream) -> int:
        """Bytes left behind the write pointer of the stream's extent."""
        if stream not in self._current:
            return 0
        return EXTENT_BYTES - self.model.write_pointer(self._current[stream])

    def at(self, number: int) -> Extent:
        """The extent as the model has it."""
        pointer = self.model.write_pointer(number)
        return Extent(
            number, ExtentState.OPEN, epoch=self.model.epoch(number), write_pointer=pointer
        )

    def unwritten(self, extent: int, offset: int) -> None:
        """Nothing waits to be written."""
        del extent, offset

    @contextmanager
    def pinned(self, extent: int) -> Iterator[None]:
        """Nobody resets an extent but the test."""
        del extent
        yield

    async def read(self, extent: int, offset: int, length: int) -> bytes:
        """Bytes of the frames that the model lets be read; zeros between and behind them."""
        await trio.lowlevel.checkpoint()
        end = offset + length
        found = bytearray(length)
        for position in self._positions[extent]:
            first, last = max(offset, position.offset), min(end, position.end)
            if first < last:
                data = self.model.read(position).ljust(position.length, b"\0")
                found[first - offset : last - offset] = data[
                    first - position.offset : last - position.offset
                ]
        return bytes(found)

    def credit(self, extent: int, length: int) -> None:
        """Counted, for the test to look at."""
        self._live[extent] = self._live.get(extent, 0) + length

    def live_bytes(self) -> int:
        """All that was credited."""
        return sum(self._live.values())

    def reset(self, extent: int) -> None:
        """Give up what the extent holds."""
        self.model.reset(extent)
        self._positions[extent] = []


class ModelBench:
    """What lies on extents, over the model."""

    def __init__(self) -> None:
        self.model_extents = ModelExtents()
        self.extents = cast(Extents, self.model_extents)
        self.chunks = ChunkStore(self.extents, itertools.count(1 << 40))
        self.shards = ShardData(self.chunks, self.extents)
        self.cache = Cache(64 * limits.KIB)
