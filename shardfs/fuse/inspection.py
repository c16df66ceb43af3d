"""What can be asked about a store with files on it, mounted or not.

Role: answers requests as plain values that turn into JSON. A mount answers them over its control
socket, a command on an unmounted device by itself. The requests, with their arguments:

    info                          identity, geometry, space, health
    stat                          counts since the store was opened
    sync                          returns when all that was written before is durable
    shards-begin   path           starts a list of the shards of a file, a directory and all below
                                  it, or ("") everything, nameless files included
    shards-more                   the next page of that list: {"shards": [...], "end": bool}
    shard          id | ino, index    one shard: its pieces, and where each of them lies
    file           path           {"ino", "size", "shard_bytes"} of a file
    read           ino, index, start, length   bytes of a shard, base64, at most READ_BYTES_MAX
    extent         extent         what an extent is, and why it is not free
    extent-files-begin  extent    starts a list of the files whose bytes live in an extent
    extent-files-more             the next page of it: {"files": [...], "end": bool}
    path           path | ino     where a file lies, or all below a directory

More requests, about space as a whole: space_requests.py; about the size of the store: sizing.py.

Invariants:
    I1. Nothing is changed. (In a mount, whatever is about shards first hands what
        is buffered to the store, so that it speaks of the newest content.)
    I2. An answer is bounded, and memory does not grow with the number of files.

Not here: how requests travel (control.py), verifying (fsck.py).
"""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any, Final

import trio

from shardfs import limits
from shardfs.engine.pieces import DIGEST_BYTES, Piece, Shard
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, UsageError
from shardfs.fuse.explanations import Explanations
from shardfs.fuse.records import (
    ORPHAN_PREFIX,
    ROOT_INO,
    Entry,
    Inode,
    decode_entry,
    decode_entry_key,
    decode_file_key,
    decode_inode,
    decode_marker_key,
    entries_start,
    entry_key,
    inode_key,
    is_name,
    shard_key,
    shards_end,
)
from shardfs.fuse.sizing import Sizing
from shardfs.fuse.space_requests import MountedFiles, SpaceRequests

READ_BYTES_MAX: Final = 512 * limits.KIB
_PAGE_BYTES_TARGET: Final = 128 * limits.KIB
_ENTRY_BYTES_ASSUMED: Final = 120
_RANGE_BYTES_ASSUMED: Final = 24
_SHARD_ID: Final = re.compile(r"(\d{1,19})\.(\d{1,19})")

Answer = dict[str, Any]


def parse_shard_id(text: str) -> tuple[int, int] | None:
    """(inode, index) of a shard's name such as 12.0; None if it is none."""
    match = _SHARD_ID.fullmatch(text)
    return (int(match[1]), int(match[2])) if match is not None else None


class Inspection:
    """One conversation about one open store.

    Args:
        store: open, for reading at least.
        device: its path, for people.
        mount: the mount that serves it, if one does.
        facts: more to say in `info`.
    """

    def __init__(
        self,
        store: Store,
        device: str,
        *,
        mount: MountedFiles | None = None,
        facts: Answer | None = None,
    ) -> None:
        self._store = store
        self._device = device
        self._mount = mount
        self._facts = facts or {}
        self._listing: AsyncGenerator[Answer, None] | None = None
        self._listed = ""
        self._explanations = Explanations(store, mount.file_system if mount is not None else None)
        self._sizing = Sizing(store)
        self._requests: dict[str, Callable[[Answer], Awaitable[Answer]]] = {
            "info": self._info,
            "stat": self._stat,
            "sync": self._sync,
            "shards-begin": self._begin,
            "shards-more": self._more,
            "shard": self._shard,
            "file": self._file,
            "read": self._read,
            "extent": self._extent,
            "extent-files-begin": self._begin_files,
            "extent-files-more": self._more_files,
            "path": self._path,
            **SpaceRequests(store, device, mount).handlers,
            **self._sizing.handlers,
        }

    async def answer(self, request: Answer) -> Answer:
        """The result of one request.

        Raises:
            UsageError: it makes no sense, or names what is not there.
            CorruptionError, DeviceError: what it is about cannot be read.
        """
        handler = self._requests.get(str(request.get("request")))
        if handler is None:
            raise UsageError(f"unknown request {request.get('request')!r}")
        return await handler(request)

    async def aclose(self) -> None:
        """Ends a list, or a shrink, that is under way."""
        await self._sizing.aclose()
        await self._end_listing()

    async def _end_listing(self) -> None:
        if self._listing is not None:
            listing, self._listing = self._listing, None
            await listing.aclose()

    # --- the store ----------------------------------------------------------------------------

    async def _info(self, _request: Answer) -> Answer:
        await trio.lowlevel.checkpoint()
        identity, space = self._store.identity, self._store.space()
        parts = self._store.space_parts()
        answer = {
            "uuid": str(identity.uuid),
            "label": identity.label,
            "device": self._device,
            "mountpoint": self._mount.mountpoint if self._mount is not None else None,
            "format_version": identity.format_version,
            "features": {
                "compatible": identity.compatible,
                "read_only_compatible": identity.read_only_compatible,
                "incompatible": identity.incompatible,
            },
            "created_ns": identity.created_ns,
            "device_bytes": identity.device_bytes,
            "sector_bytes": identity.sector_bytes,
            "extent_bytes": identity.extent_bytes,
            "extent_count": identity.extent_count,
            "chunk_bytes_max": identity.chunk_bytes_max,
            "space": asdict(space)
            | {"live_bytes": parts.live_bytes, "garbage_bytes": parts.garbage_bytes},
            "health": str(self._store.health.state),
            "reason": self._store.health.reason,
            "clean": None,
            "notes": list(self._store.notes),
        }
        return answer | self._facts

    async def _stat(self, _request: Answer) -> Answer:
        await trio.lowlevel.checkpoint()
        answer = asdict(self._store.statistics())
        if self._mount is not None:
            writeback = self._mount.file_system.writeback
            answer["dirty_bytes"] = writeback.dirty_bytes
            answer["dirty_files"] = writeback.dirty_count
            answer["removed_files_waiting"] = self._mount.file_system.orphans.queue_length
            answer |= self._mount.request_figures()
        return answer

    async def _sync(self, _request: Answer) -> Answer:
        if self._mount is None:
            raise UsageError("only a mount can be synced")
        await self._mount.sync()
        return {}

    # --- why space is taken -------------------------------------------------------------------

    async def _extent(self, request: Answer) -> Answer:
        return await self._explanations.extent(_number(request, "extent"))

    async def _begin_files(self, request: Answer) -> Answer:
        await self.aclose()
        number = _number(request, "extent")
        await self._explanations.extent(number)
        if self._mount is not None and not self._store.health.reason:
            await self._mount.sync()  # what is only in memory cannot be scanned for
        self._listing, self._listed = self._explanations.files_in(number), "files"
        return {}

    async def _more_files(self, _request: Answer) -> Answer:
        return await self._page("files")

    async def _path(self, request: Answer) -> Answer:
        if "ino" in request:
            ino, path = _number(request, "ino"), None
            inode = await self._inode(ino)
            if inode is None:
                raise UsageError(f"there is no inode {ino}")
        else:
            path = _text(request, "path")
            ino, inode = await self._resolve(path)
        if inode.is_directory and self._mount is not None:
            await self._mount.file_system.writeback.flush_all()
        elif inode.is_regular:
            await self._hand_over(ino)
            inode = await self._inode(ino) or inode
        return {"path": path} | await self._explanations.path(ino, inode)

    # --- shards -------------------------------------------------------------------------------

    async def _begin(self, request: Answer) -> Answer:
        await self._end_listing()
        path = _text(request, "path")
        if self._mount is not None:
            await self._mount.file_system.writeback.flush_all()
        ino, inode = await self._resolve(path)
        clean_path = str(PurePosixPath("/", path)).lstrip("/")
        self._listing, self._listed = self._list(ino, inode, clean_path), "shards"
        return {}

    async def _more(self, _request: Answer) -> Answer:
        return await self._page("shards")

    async def _page(self, name: str) -> Answer:
        """As many more items of the list of this name as fit into one answer."""
        if self._listing is None or self._listed != name:
            raise UsageError("no list has been begun")
        items: list[Answer] = []
        size = 0
        async for item in self._listing:
            items.append(item)
            paths = (item.get("path") or "", *item.get("paths", ()))
            size += _ENTRY_BYTES_ASSUMED + sum(map(len, paths))
            size += _RANGE_BYTES_ASSUMED * len(item.get("ranges", ()))
            if size >= _PAGE_BYTES_TARGET:
                return {name: items, "end": False}
        self._listing = None
        return {name: items, "end": True}

    async def _list(self, ino: int, inode: Inode, path: str) -> AsyncGenerator[Answer, None]:
        """The shards of an inode and, for a directory, of all below it, then nameless files."""
        linked: set[int] = set()
        if not inode.is_directory:
            async for shard in self._shards_of(ino, path):
                yield shard
            return
        waiting = [(ino, path)]
        while waiting:
            directory, above = waiting.pop()
            start, end = entries_start(directory), entries_start(directory + 1)
            async for key, value in self._store.scan(start, end):
                await trio.lowlevel.checkpoint()
                name = os.fsdecode(decode_entry_key(key)[2])
                entry = decode_entry(_record(value, key))
                below = f"{above}/{name}" if above else name
                if entry.is_directory:
                    waiting.append((entry.ino, below))
                elif entry.type == stat.S_IFREG >> 12 and entry.ino not in linked:
                    async for shard in self._shards_of(entry.ino, below, linked):
                        yield shard
        if ino == ROOT_INO:
            async for key, _ in self._store.scan(ORPHAN_PREFIX, _behind(ORPHAN_PREFIX)):
                async for shard in self._shards_of(decode_marker_key(key), None):
                    yield shard

    async def _shards_of(
        self, ino: int, path: str | None, linked: set[int] | None = None
    ) -> AsyncGenerator[Answer, None]:
        if linked is not None:
            inode = await self._inode(ino)
            if inode is not None and inode.nlink > 1:
                linked.add(ino)
        async for key, value in self._store.scan(shard_key(ino, 0), shards_end(ino)):
            await trio.lowlevel.checkpoint()
            index = decode_file_key(key).shard
            if isinstance(value, Shard) and index is not None:
                yield self._describe(key, ino, index, value) | {"path": path}

    def _describe(self, key: bytes, ino: int, index: int, shard: Shard) -> Answer:
        return {
            "id": f"{ino}.{index}",
            "ino": ino,
            "index": index,
            "bytes": sum(piece.length for piece in shard.pieces),
            "pieces": len(shard.pieces),
            "persistent": self._store.is_durable(key),
        }

    async def _shard(self, request: Answer) -> Answer:
        ino, index = _number(request, "ino"), _number(request, "index")
        await self._hand_over(ino)
        key = shard_key(ino, index)
        shard = await self._store.get_shard(key)
        if shard is None:
            raise UsageError(f"there is no shard {ino}.{index}; see: shardfs shards ls")
        answer = self._describe(key, ino, index, shard)
        answer["start"] = index * limits.SHARD_BYTES
        answer["shard_bytes"] = limits.SHARD_BYTES
        answer["pieces"] = [_describe_piece(piece) for piece in shard.pieces]
        return answer

    async def _file(self, request: Answer) -> Answer:
        path = _text(request, "path")
        ino, inode = await self._resolve(path)
        if inode.is_directory:
            raise UsageError(f"/{path} is a directory; name a file")
        await self._hand_over(ino)
        size = inode.size if (current := await self._inode(ino)) is None else current.size
        if not inode.is_regular:
            size = 0
        return {"ino": ino, "size": size, "shard_bytes": limits.SHARD_BYTES}

    async def _read(self, request: Answer) -> Answer:
        ino, index = _number(request, "ino"), _number(request, "index")
        start, length = _number(request, "start"), _number(request, "length")
        if start + length > limits.SHARD_BYTES:
            raise UsageError(f"a shard has {limits.SHARD_BYTES} bytes")
        inode = await self._inode(ino)
        shard = await self._store.get_shard(shard_key(ino, index))
        if inode is None:
            raise UsageError(f"there is no inode {ino}")
        end = min(start + min(length, READ_BYTES_MAX), inode.size - index * limits.SHARD_BYTES)
        if end <= start:
            return {"data": ""}
        try:
            data = await self._store.read_shard(shard or Shard(()), start, end - start)
        except CorruptionError as error:
            raise CorruptionError(str(error), f"shard {ino}.{index}") from error
        return {"data": base64.b64encode(data).decode("ascii")}

    # --- files --------------------------------------------------------------------------------

    async def _resolve(self, path: str) -> tuple[int, Inode]:
        """The inode at a path, without following symbolic links.

        Raises:
            UsageError: there is none.
        """
        ino = ROOT_INO
        for part in PurePosixPath("/", path).parts[1:]:
            name = os.fsencode(part)
            entry = await self._entry(ino, name) if is_name(name) else None
            if entry is None:
                raise UsageError(f"there is no /{path.lstrip('/')} in the file system")
            ino = entry.ino
        inode = await self._inode(ino)
        if inode is None and ino == ROOT_INO:
            return ino, Inode(stat.S_IFDIR | 0o755, parent=ROOT_INO)  # formatted, never mounted
        if inode is None:
            raise CorruptionError(f"/{path} names inode {ino}, which does not exist")
        return ino, inode

    async def _entry(self, parent: int, name: bytes) -> Entry | None:
        record = await self._store.get_record(entry_key(parent, name))
        return None if record is None else decode_entry(record)

    async def _inode(self, ino: int) -> Inode | None:
        record = await self._store.get_record(inode_key(ino))
        return None if record is None else decode_inode(record)

    async def _hand_over(self, ino: int) -> None:
        """What the mount holds of a file goes to the store (I1)."""
        if self._mount is not None:
            await self._mount.file_system.writeback.flush(ino)


def _describe_piece(piece: Piece) -> Answer:
    locator = piece.locator
    digests = locator.checksums
    return {
        "start": piece.start,
        "length": piece.length,
        "skip": piece.skip,
        "chunk": {
            "extent": locator.extent,
            "epoch": locator.epoch,
            "offset": locator.offset,
            "length": locator.length,
            "sequence": locator.sequence,
            "checksums": [
                digests[at : at + DIGEST_BYTES].hex() for at in range(0, len(digests), DIGEST_BYTES)
            ],
        },
    }


def _record(value: bytes | Shard, key: bytes) -> bytes:
    if isinstance(value, Shard):
        raise CorruptionError("a shard stands where a record should", f"key {key.hex()}")
    return value


def _behind(prefix: bytes) -> bytes:
    return bytes([prefix[0] + 1])


def _text(request: Answer, name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str):
        raise UsageError(f"the request needs a text {name!r}")
    return value


def _number(request: Answer, name: str) -> int:
    value = request.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise UsageError(f"the request needs a number {name!r}")
    return value
