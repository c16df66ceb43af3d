"""Mistakes in chunks, frames and the cache: bytes in, locator out, verified bytes out.

Role: one part of the catalog; each mutant is as in canary.py.

Not here: extents and writes below (extents.py), the tree above (tree.py).
"""

from __future__ import annotations

from typing import Final

from shardfs.checking.canaries.canary import Canary
from shardfs.checking.canaries.planting import Edit
from shardfs.engine import opening, pieces, recovery
from shardfs.engine.chunks import ChunkStore
from shardfs.engine.lsm import segment
from shardfs.engine.shards import ShardData

CANARIES: Final = (
    Canary(
        "cache-outlives-a-reset",
        "Cached blocks are found by extent and offset, whatever the epoch: after a reset the block "
        "that lay there before is read.",
        (
            Edit(
                segment._cache_key,
                "(locator.extent, locator.epoch, locator.offset)",
                "(locator.extent, 0, locator.offset)",
            ),
        ),
        ("store",),
        issue=2,
    ),
    Canary(
        "rider-not-verified",
        "Recovery takes the last delta without looking whether its data is whole.",
        (Edit(recovery._riders_whole, "for part in parts:", "for part in ():"),),
        ("store",),
    ),
    Canary(
        "rider-verified-by-its-head",
        "A crash tears the end of a chunk, and recovery takes it for whole by its head. (Chunks "
        "have no UUID at their end to be torn; checksums stand in for it.)",
        (
            Edit(
                ChunkStore.is_whole,
                'verify_granules(payload, frame.checksums, 0, "rider")',
                "del payload",
            ),
        ),
        ("store",),
        issue=10,
    ),
    Canary(
        "checksum-not-verified",
        "Bytes are returned as the device gives them.",
        (Edit(ChunkStore.get, "verify_granules(data, locator.checksums, first, where)\n", ""),),
        ("store",),
    ),
    Canary(
        "granule-end-off-by-one",
        "A read that ends one byte into a granule leaves that granule out.",
        (
            Edit(
                ChunkStore.get,
                "-(-(start + length) // granule) * granule",
                "-(-(start + length - 1) // granule) * granule",
            ),
        ),
        ("store", "files"),
    ),
    Canary(
        "sequence-numbers-again",
        "The numbers that tell chunks apart begin anew at the next opening.",
        (
            Edit(
                opening.open_parts,
                "incarnation = found.record.incarnation + 1",
                "incarnation = found.record.incarnation",
            ),
        ),
        ("store",),
    ),
    Canary(
        "rest-of-a-piece-from-its-start",
        "What an overwrite leaves of the piece behind it is read from the chunk's first bytes.",
        (Edit(pieces.punch, "piece.skip + cut", "piece.skip"),),
        ("files", "store"),
    ),
    Canary(
        "hole-shifted",
        "Reading a shard that begins with a hole leaves the hole out and appends it.",
        (Edit(ShardData.read, "if first > at:\n    parts.append(bytes(first - at))\n", ""),),
        ("store", "files"),
    ),
)
