"""Requests about the tree of names: what a directory holds, and all that is known of an inode.

Role: a part of what inspection.py answers, for looking at files without mounting:

    inode          path | ino     attributes, target of a symbolic link, extended attributes
    list-begin     ino            starts a list of a directory's entries, with their attributes
    list-more                     the next page of it: {"entries": [...], "end": bool}
    pieces-begin   ino            starts a list of where a file has data, holes left out
    pieces-more                   the next page of it: {"pieces": [...], "end": bool}

Items {"lost": "..."} stand for what cannot be read.

Invariants:
    I1. What cannot be read is said, and the rest is given all the same; nothing older takes its
        place.
    I2. In a mount, what is buffered is handed to the store first.

Not here: the bytes of files (shard_requests.py), copying them out (cli/cp_out.py).
"""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncGenerator

import trio

from shardfs import limits
from shardfs.engine.careful_scan import LostRange, careful_scan
from shardfs.engine.pieces import Shard
from shardfs.engine.store import Store
from shardfs.errors import UNREADABLE, CorruptionError, UsageError
from shardfs.fuse.keys import (
    decode_entry_key,
    decode_file_key,
    entries_start,
    shard_key,
    shards_end,
    xattr_key,
    xattrs_end,
)
from shardfs.fuse.records import Inode, decode_entry
from shardfs.fuse.requests import Answer, Handlers, Pages
from shardfs.fuse.resolving import Resolver


class TreeRequests:
    """The tree of names of one open store, in one conversation.

    Args:
        store: open, for reading at least.
        resolver: finds files in it.
        pages: of the conversation.

    handlers: what answers each request.
    """

    def __init__(self, store: Store, resolver: Resolver, pages: Pages) -> None:
        self._store = store
        self._resolver = resolver
        self._pages = pages
        self.handlers: Handlers = {
            "inode": self._inode,
            "list-begin": self._begin_list,
            "list-more": self._more_entries,
            "pieces-begin": self._begin_pieces,
            "pieces-more": self._more_pieces,
        }

    async def _inode(self, request: Answer) -> Answer:
        ino, inode = await self._resolver.asked_for(request)
        if inode.is_regular:
            await self._resolver.hand_over(ino)
            inode = await self._resolver.inode(ino) or inode
        lost: list[LostRange] = []
        xattrs = {}
        if inode.xattrs:
            scan = careful_scan(self._store, xattr_key(ino, b""), xattrs_end(ino), lost)
            async for key, value in scan:
                name = decode_file_key(key).xattr
                if name is not None and isinstance(value, bytes):
                    xattrs[os.fsdecode(name)] = base64.b64encode(value).decode("ascii")
        answer = _attributes(ino, inode) | {"xattrs": xattrs}
        return answer | {"xattrs_lost": [each.trouble for each in lost]}

    async def _begin_list(self, request: Answer) -> Answer:
        await self._pages.aclose()
        ino, inode = await self._resolver.asked_for(request)
        if not inode.is_directory:
            raise UsageError(f"inode {ino} is no directory")
        await self._resolver.hand_over_all()
        return await self._pages.begin("entries", self._entries(ino))

    async def _more_entries(self, _request: Answer) -> Answer:
        return await self._pages.more("entries")

    async def _entries(self, ino: int) -> AsyncGenerator[Answer, None]:
        lost: list[LostRange] = []
        scan = careful_scan(self._store, entries_start(ino), entries_start(ino + 1), lost)
        async for key, value in scan:
            await trio.lowlevel.checkpoint()
            name = ""
            try:
                name = os.fsdecode(decode_entry_key(key)[2])
                entry = decode_entry(value if isinstance(value, bytes) else b"")
                inode = await self._resolver.inode(entry.ino)
                if inode is None:
                    raise CorruptionError(f"inode {entry.ino} does not exist")
            except UNREADABLE as error:
                yield {"name": name, "lost": str(error)}
                continue
            yield {"name": name, **_attributes(entry.ino, inode)}
        for each in lost:
            yield {"name": "", "lost": f"some names cannot be read: {each.trouble}"}

    async def _begin_pieces(self, request: Answer) -> Answer:
        await self._pages.aclose()
        ino, inode = await self._resolver.asked_for(request)
        await self._resolver.hand_over(ino)
        inode = await self._resolver.inode(ino) or inode
        await self._pages.begin("pieces", self._pieces(ino))
        return {"size": inode.size}

    async def _more_pieces(self, _request: Answer) -> Answer:
        return await self._pages.more("pieces")

    async def _pieces(self, ino: int) -> AsyncGenerator[Answer, None]:
        lost: list[LostRange] = []
        scan = careful_scan(self._store, shard_key(ino, 0), shards_end(ino), lost)
        held: list[int] | None = None
        async for key, value in scan:
            await trio.lowlevel.checkpoint()
            index = decode_file_key(key).shard
            assert index is not None, "the scan is over keys of shards"
            if not isinstance(value, Shard):
                yield _lost_piece(index, index + 1, "a record stands where a shard should")
                continue
            base = index * limits.SHARD_BYTES
            for piece in value.pieces:
                if held is not None and held[1] == base + piece.start:
                    held[1] = base + piece.end
                    continue
                if held is not None:
                    yield {"start": held[0], "length": held[1] - held[0]}
                held = [base + piece.start, base + piece.end]
        if held is not None:
            yield {"start": held[0], "length": held[1] - held[0]}
        for each in lost:
            yield lost_piece(each)


def lost_piece(lost: LostRange) -> Answer:
    """The bytes of a file whose place cannot be read; it may end behind the file."""
    first, end = _index_of(lost.start), _index_of(lost.end, up=True)
    return _lost_piece(first, end, lost.trouble)


def _index_of(key: bytes, *, up: bool = False) -> int:
    """The shard's index that a bound of a range stands for, as a key may be cut anywhere."""
    digits = key[10:18]
    number = int.from_bytes(digits.ljust(8, b"\0"), "big") if key[9:10] == b"\x01" else 1 << 62
    exact = len(key) <= 18
    return number if exact or not up else number + 1


def _lost_piece(first: int, end: int, trouble: str) -> Answer:
    start = first * limits.SHARD_BYTES
    return {"start": start, "length": (end - first) * limits.SHARD_BYTES, "lost": trouble}


def _attributes(ino: int, inode: Inode) -> Answer:
    return {
        "ino": ino,
        "mode": inode.mode,
        "nlink": inode.nlink,
        "uid": inode.uid,
        "gid": inode.gid,
        "rdev": inode.rdev,
        "size": inode.size,
        "used": inode.used,
        "atime_ns": inode.atime_ns,
        "mtime_ns": inode.mtime_ns,
        "ctime_ns": inode.ctime_ns,
        "target": os.fsdecode(inode.target),
    }
