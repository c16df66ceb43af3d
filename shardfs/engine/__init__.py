"""A storage engine as a library: a key-value store on a raw device.

    device = open_device("/dev/sdX")
    async with Store.open(device) as store:
        await store.sync(await store.put(b"key", b"value"))

It knows nothing of files, FUSE or the command line.
"""

from shardfs.engine.batch import Batch
from shardfs.engine.block_device import open_device
from shardfs.engine.dependency import Dependency
from shardfs.engine.device import Device
from shardfs.engine.health import Health, HealthState
from shardfs.engine.images import create_image
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.pieces import Locator, Piece, Shard
from shardfs.engine.stats import Space, StoreStatistics
from shardfs.engine.store import Store
from shardfs.engine.superblock_record import Identity

__all__ = [
    "Batch",
    "Dependency",
    "Device",
    "Health",
    "HealthState",
    "Identity",
    "Locator",
    "Piece",
    "Shard",
    "Space",
    "Store",
    "StoreOptions",
    "StoreStatistics",
    "create_image",
    "format_device",
    "open_device",
    "plan",
]
