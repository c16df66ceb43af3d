"""Requests that map bytes of files to bytes of the device, and back.

Role: a part of what inspection.py answers, with these requests:

    map-begin      path | ino     starts a list of where the bytes of a file lie; {"ino", "size",
                                  "paths"}
    map-more                      the next page of it: {"ranges": [...], "end": bool}; holes are
                                  not in it; {"start", "length", "lost": "..."} stands for what
                                  cannot be read
    whereis        offset         what the byte of the device is: {"start", "end", "kind", ...},
                                  the place around it, and of which file

Invariants:
    I1. Of each other the inverse: byte b of a file lies at address a exactly if the place of a
        says that it is byte b of that file.
    I2. In a mount everything is made durable first, so that the device has what is asked about.

Not here: what the bytes of the device are (engine/places.py).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import trio

from shardfs import limits
from shardfs.engine.careful_scan import LostRange, careful_scan
from shardfs.engine.chunks import payload_offset
from shardfs.engine.pieces import Shard
from shardfs.engine.places import Place, PlaceKind, Places
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError
from shardfs.fuse.key_texts import key_text
from shardfs.fuse.keys import NAME_PAGE_PREFIX, decode_file_key, shard_key, shards_end
from shardfs.fuse.paths import find_paths
from shardfs.fuse.requests import Answer, Handlers, Pages, number_of
from shardfs.fuse.resolving import MountedFiles, Resolver
from shardfs.fuse.tree_requests import lost_piece


class MapRequests:
    """Addresses in one open store, in one conversation.

    Args:
        store: open, for reading at least.
        resolver: finds files in it.
        pages: of the conversation.
        mount: the mount that serves it, if one does.

    handlers: what answers each request.
    """

    def __init__(
        self, store: Store, resolver: Resolver, pages: Pages, mount: MountedFiles | None
    ) -> None:
        self._store = store
        self._resolver = resolver
        self._pages = pages
        self._mount = mount
        self._places = Places(store)
        self._paths: tuple[int, list[str]] | None = None
        self.handlers: Handlers = {
            "map-begin": self._begin,
            "map-more": self._more,
            "whereis": self._whereis,
        }

    async def aclose(self) -> None:
        """The conversation has ended."""
        await self._places.aclose()

    async def _begin(self, request: Answer) -> Answer:
        await self._pages.aclose()
        ino, inode = await self._resolver.asked_for(request)
        await self._make_durable()
        inode = await self._resolver.inode(ino) or inode
        await self._pages.begin("ranges", self._ranges(ino))
        paths = (await find_paths(self._store, {ino})).get(ino, []) if "ino" in request else []
        return {"ino": ino, "size": inode.size if inode.is_regular else 0, "paths": paths}

    async def _more(self, _request: Answer) -> Answer:
        return await self._pages.more("ranges")

    async def _ranges(self, ino: int) -> AsyncGenerator[Answer, None]:
        identity = self._store.identity
        lost: list[LostRange] = []
        async for key, value in careful_scan(self._store, shard_key(ino, 0), shards_end(ino), lost):
            while lost and lost[0].start < key:
                yield lost_piece(lost.pop(0))
            index = decode_file_key(key).shard
            if not isinstance(value, Shard) or index is None:
                raise CorruptionError("a record stands where a shard should", f"key {key.hex()}")
            for piece in value.pieces:
                locator = piece.locator
                base = identity.extent_offset(locator.extent)
                yield {
                    "start": index * limits.SHARD_BYTES + piece.start,
                    "length": piece.length,
                    "address": base + payload_offset(locator) + piece.skip,
                    "shard": f"{ino}.{index}",
                    "extent": locator.extent,
                    "frame": base + locator.offset,
                    "skip": piece.skip,
                    "sequence": locator.sequence,
                }
            await trio.lowlevel.checkpoint()
        for each in lost:
            yield lost_piece(each)

    async def _whereis(self, request: Answer) -> Answer:
        offset = number_of(request, "offset")
        await self._make_durable()
        place = await self._places.at(offset)
        answer: Answer = {
            "start": place.start,
            "end": place.end,
            "kind": str(place.kind),
            "text": place.text,
            "extent": place.extent,
            "frame": place.frame,
            "key": None if place.key is None else place.key.hex(),
            "ino": None,
            "paths": [],
            "file_start": None,
        }
        if place.kind is PlaceKind.DATA and (place.key or b"").startswith(NAME_PAGE_PREFIX):
            return answer | {"kind": "names", "text": key_text(place.key or b"")}
        return answer | await self._owner(place)

    async def _owner(self, place: Place) -> Answer:
        """The file that a place belongs, or belonged, to."""
        try:
            about = decode_file_key(place.key or b"")
        except CorruptionError:
            return {}
        if about.shard is None:
            return {}
        if self._paths is None or self._paths[0] != about.ino:
            try:
                paths = await find_paths(self._store, {about.ino})
            except CorruptionError:
                paths = {}  # some names are lost; the inode's number is told
            self._paths = (about.ino, paths.get(about.ino, []))
        answer: Answer = {"ino": about.ino, "paths": self._paths[1]}
        if place.shard_start is not None:
            answer["file_start"] = about.shard * limits.SHARD_BYTES + place.shard_start
        return answer

    async def _make_durable(self) -> None:
        if self._mount is not None and not self._store.health.reason:
            await self._mount.sync()
