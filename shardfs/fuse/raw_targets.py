"""Opens what the user named for looking at its bytes, however damaged it is.

Role: the same TARGETs as in targets.py; an unmounted device is not opened as a store, only read,
and a mount is asked for the bytes of its device.

Invariants:
    I1. Nothing is written. A device without any superblock can be looked at.

Not here: what bytes mean (engine/raw_store.py), looking at a store in order (targets.py).
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from shardfs.engine.block_device import open_device
from shardfs.engine.device import Readable
from shardfs.fuse.control import connect
from shardfs.fuse.shard_requests import READ_BYTES_MAX
from shardfs.fuse.targets import Questions, find_target


class MountedDevice:
    """The device of a mount, as its server reads it. Made by `open_raw`.

    Args:
        conversation: with the mount.
        path: of the device.
        size_bytes: of the device.
    """

    def __init__(self, conversation: Questions, path: str, size_bytes: int) -> None:
        self._conversation = conversation
        self.path = path
        self.size_bytes = size_bytes

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """Exactly `length` bytes.

        Raises:
            RemoteError: the mount cannot read them.
        """
        data = b""
        while len(data) < length:
            part = min(READ_BYTES_MAX, length - len(data))
            request = {"request": "bytes", "offset": offset + len(data), "length": part}
            answer = await self._conversation.answer(request)
            data += base64.b64decode(answer["data"])
        return data


@asynccontextmanager
async def open_raw(name: str) -> AsyncIterator[Readable]:
    """The device that the user named.

    Raises:
        UsageError, DeviceBusyError: there is none, or somebody else has it.
    """
    entry, _ = find_target(name)
    if entry is not None:
        async with connect(entry) as client:
            info = await client.answer({"request": "bytes", "offset": 0, "length": 0})
            yield MountedDevice(client, entry.source, info["device_bytes"])
        return
    device = open_device(await trio.Path(name).resolve(), read_only=True)
    try:
        yield device
    finally:
        device.close()
