"""Requests about the space of a whole store: where its bytes are, and collecting garbage.

Role: a part of what inspection.py answers, with these requests:

    space        where the bytes of the device are: parts that add up to its size
    gc-plan      what collecting garbage would give and take
    gc-begin     starts to collect garbage
    gc-step      does some more of it, and says what has been done so far

Invariants:
    I1. Only gc-step changes anything, and only where the bytes are. Who has begun need not go on:
        each step stands by itself, and no step is taken that nobody asked for.

Not here: the figures (engine/figures.py), what a step does (engine/collection.py).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import trio

from shardfs.engine.collection import Collection, collection_plan
from shardfs.engine.store import Store
from shardfs.errors import UsageError
from shardfs.fuse.requests import Answer, Handlers
from shardfs.fuse.resolving import MountedFiles

_FREEING_S_PER_STEP: Final = 1.0


class SpaceRequests:
    """The space of one open store, in one conversation.

    Args:
        store: open; for gc-begin and gc-step, writable.
        device: its path, for people.
        mount: the mount that serves it, if one does.
    """

    def __init__(self, store: Store, device: str, mount: MountedFiles | None) -> None:
        self._store = store
        self._device = device
        self._mount = mount
        self._collection: Collection | None = None
        self.handlers: Handlers = {
            "space": self._space,
            "gc-plan": self._plan,
            "gc-begin": self._begin,
            "gc-step": self._step,
        }

    async def _space(self, _request: Answer) -> Answer:
        await trio.lowlevel.checkpoint()
        parts, identity = self._store.space_parts(), self._store.identity
        return {
            "uuid": str(identity.uuid),
            "label": identity.label,
            "device": self._device,
            "mountpoint": self._mount.mountpoint if self._mount is not None else None,
            "extent_bytes": identity.extent_bytes,
            "device_bytes": parts.total_bytes,
            "available_bytes": parts.available_bytes,
            "parts": asdict(parts),
        }

    async def _plan(self, _request: Answer) -> Answer:
        await trio.lowlevel.checkpoint()
        return asdict(await collection_plan(self._store))

    async def _begin(self, _request: Answer) -> Answer:
        await trio.lowlevel.checkpoint()
        self._collection = Collection(self._store)
        return asdict(self._collection.progress())

    async def _step(self, _request: Answer) -> Answer:
        if self._collection is None:
            raise UsageError("no collection has been begun")
        if self._mount is not None:
            # Files that were removed are garbage only when they are freed.
            with trio.move_on_after(_FREEING_S_PER_STEP) as patience:
                await self._mount.file_system.orphans.drained()
            if patience.cancelled_caught:
                return asdict(self._collection.progress()) | {"stage": "freeing"}
        return asdict(await self._collection.step())
