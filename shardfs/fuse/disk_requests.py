"""Requests about the device as a whole: its extents, the shape of its tree, its bytes.

Role: a part of what inspection.py answers, with these requests:

    extents-begin                 starts a list of all extents; {"extent_bytes", "extent_count",
                                  "device_bytes"}
    extents-more                  the next page of it: {"extents": [...], "end": bool}
    lsm                           levels and runs of the tree, and what they cost
    bytes          offset, length   bytes of the device as they are, base64, at most READ_BYTES_MAX

Invariants:
    I1. Nothing is changed, but that "bytes" brings what a mount has in memory to the device first.

Not here: what bytes mean (engine/places.py, engine/dissection.py).
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Final

from shardfs.engine.inventory import all_extents, tree_figures
from shardfs.engine.store import Store
from shardfs.errors import UsageError
from shardfs.fuse.key_texts import key_text
from shardfs.fuse.requests import Answer, Handlers, Pages, number_of
from shardfs.fuse.resolving import MountedFiles
from shardfs.fuse.shard_requests import READ_BYTES_MAX

_DEVICE_FACTS: Final = ("device_bytes", "extent_bytes", "extent_count")
_EXTENT_FACTS: Final = (
    *("extent", "state", "stream", "epoch", "write_pointer", "live_bytes"),
    *("garbage_bytes", "order"),
)


class DiskRequests:
    """The device of one open store, in one conversation.

    Args:
        store: open, for reading at least.
        pages: of the conversation.
        mount: the mount that serves it, if one does.

    handlers: what answers each request.
    """

    def __init__(self, store: Store, pages: Pages, mount: MountedFiles | None) -> None:
        self._store = store
        self._pages = pages
        self._mount = mount
        self.handlers: Handlers = {
            "extents-begin": self._begin,
            "extents-more": self._more,
            "lsm": self._lsm,
            "bytes": self._bytes,
        }

    async def _begin(self, _request: Answer) -> Answer:
        await self._pages.begin("extents", self._extents())
        return {name: getattr(self._store.identity, name) for name in _DEVICE_FACTS}

    async def _more(self, _request: Answer) -> Answer:
        return await self._pages.more("extents")

    async def _extents(self) -> AsyncGenerator[Answer, None]:
        async for extent in all_extents(self._store):
            yield {name: getattr(extent, name) for name in _EXTENT_FACTS}

    async def _lsm(self, _request: Answer) -> Answer:
        figures = await tree_figures(self._store)
        answer = asdict(figures)
        for run in answer["runs"]:
            for name in ("first_key", "last_key"):
                key = run[name]
                run[name] = {"key": key.hex(), "text": key_text(key)}
        written = figures.stream_bytes
        live_bytes = figures.tree_bytes - figures.garbage_bytes
        answer["amplification"] = {
            "read": len(figures.runs),
            "space": round(figures.tree_bytes / live_bytes, 3) if live_bytes > 0 else None,
            "write": round(written["runs"] / written["meta"], 3) if written["meta"] else None,
        }
        return answer

    async def _bytes(self, request: Answer) -> Answer:
        offset, length = number_of(request, "offset"), number_of(request, "length")
        device = self._store._parts.device
        if offset + length > device.size_bytes or length > READ_BYTES_MAX:
            raise UsageError(f"there are no {length} bytes at {offset} to be read at once")
        if self._mount is not None and not self._store.health.reason:
            await self._mount.sync()
        data = await device.read(offset, length)
        return {"data": base64.b64encode(data).decode("ascii"), "device_bytes": device.size_bytes}
