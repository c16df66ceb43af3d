"""What can be asked about a store with files on it, mounted or not.

Role: answers requests as plain values that turn into JSON. A mount answers them over its control
socket, a command on an unmounted device by itself. The requests, with their arguments:

    info                          identity, geometry, space, health
    stat                          counts since the store was opened
    sync                          returns when all that was written before is durable
    extent         extent         what an extent is, and why it is not free
    extent-files-begin  extent    starts a list of the files whose bytes live in an extent
    extent-files-more             the next page of it: {"files": [...], "end": bool}
    path           path | ino     where a file lies, or all below a directory

More requests: about shards shard_requests.py, about addresses map_requests.py, about the device and
the tree disk_requests.py, about the tree of names tree_requests.py, about durability
durability_requests.py, about space as a whole space_requests.py, about the size of the store
sizing.py.

Invariants:
    I1. Nothing is changed. (In a mount, whatever is about shards first hands what
        is buffered to the store, so that it speaks of the newest content.)
    I2. An answer is bounded, and memory does not grow with the number of files.

Not here: how requests travel (control.py), verifying (fsck.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import trio

from shardfs.engine.store import Store
from shardfs.errors import UsageError
from shardfs.fuse.disk_requests import DiskRequests
from shardfs.fuse.durability_requests import DurabilityRequests
from shardfs.fuse.explanations import Explanations
from shardfs.fuse.map_requests import MapRequests
from shardfs.fuse.requests import Answer, Handlers, Pages, number_of
from shardfs.fuse.resolving import MountedFiles, Resolver
from shardfs.fuse.shard_requests import ShardRequests
from shardfs.fuse.sizing import Sizing
from shardfs.fuse.space_requests import SpaceRequests
from shardfs.fuse.tree_requests import TreeRequests


class Inspection:
    """One conversation about one open store.

    Args:
        store: open, for reading at least.
        device: its path, for people.
        mount: the mount that serves it, if one does.
        facts: more to say in `info`.
        more: what answers further requests.
        scrub: tells how far the mount's scrub is.
    """

    def __init__(
        self,
        store: Store,
        device: str,
        *,
        mount: MountedFiles | None = None,
        facts: Answer | None = None,
        more: Handlers | None = None,
        scrub: Callable[[], Answer] | None = None,
    ) -> None:
        self._store = store
        self._device = device
        self._mount = mount
        self._facts = facts or {}
        self._scrub = scrub
        self._pages = Pages()
        self._resolver = Resolver(store, mount)
        self._explanations = Explanations(store, mount.file_system if mount is not None else None)
        self._maps = MapRequests(store, self._resolver, self._pages, mount)
        self._sizing = Sizing(store)
        self._requests: Handlers = {
            "info": self._info,
            "stat": self._stat,
            "sync": self._sync,
            "extent": self._extent,
            "extent-files-begin": self._begin_files,
            "extent-files-more": self._more_files,
            "path": self._path,
            **ShardRequests(store, self._resolver, self._pages).handlers,
            **self._maps.handlers,
            **DurabilityRequests(store, self._resolver, self._pages, mount).handlers,
            **TreeRequests(store, self._resolver, self._pages).handlers,
            **DiskRequests(store, self._pages, mount).handlers,
            **SpaceRequests(store, device, mount).handlers,
            **self._sizing.handlers,
            **(more or {}),
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
        if self._mount is not None:
            self._mount.file_system.tables.settle()  # the store says what the mount has answered
        return await handler(request)

    async def aclose(self) -> None:
        """Ends a list, or a shrink, that is under way."""
        await self._sizing.aclose()
        await self._pages.aclose()
        await self._maps.aclose()

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
            memory = self._mount.file_system.memory
            answer["memory_bound_bytes"] = memory.bytes_max
            answer["memory_use_bytes"] = memory.use()
            answer["caches_bytes"] = memory.caches_bytes
            answer["caches_bound_bytes"] = memory.caches_bytes_max
            answer["removed_files_waiting"] = self._mount.file_system.orphans.queue_length
            answer |= self._mount.request_figures()
        if self._scrub is not None:
            answer["scrub"] = self._scrub()
        return answer

    async def _sync(self, _request: Answer) -> Answer:
        if self._mount is None:
            raise UsageError("only a mount can be synced")
        await self._mount.sync()
        return {}

    # --- why space is taken -------------------------------------------------------------------

    async def _extent(self, request: Answer) -> Answer:
        return await self._explanations.extent(number_of(request, "extent"))

    async def _begin_files(self, request: Answer) -> Answer:
        await self._pages.aclose()
        number = number_of(request, "extent")
        await self._explanations.extent(number)
        if self._mount is not None and not self._store.health.reason:
            await self._mount.sync()  # what is only in memory cannot be scanned for
        return await self._pages.begin("files", self._explanations.files_in(number))

    async def _more_files(self, _request: Answer) -> Answer:
        return await self._pages.more("files")

    async def _path(self, request: Answer) -> Answer:
        ino, inode = await self._resolver.asked_for(request)
        if inode.is_directory:
            await self._resolver.hand_over_all()
        elif inode.is_regular:
            await self._resolver.hand_over(ino)
            inode = await self._resolver.inode(ino) or inode
        path = request["path"] if "ino" not in request else None
        return {"path": path} | await self._explanations.path(ino, inode)
