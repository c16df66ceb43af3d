"""Mistakes in reclamation that moves, and in the account of space.

Role: one part of the catalog; each mutant is as in canary.py.

Not here: freeing what is wholly dead (extents.py), the tree's other work (tree.py).
"""

from __future__ import annotations

from typing import Final

from shardfs.checking.canaries.canary import Canary
from shardfs.checking.canaries.planting import Edit
from shardfs.engine import figures, liveness
from shardfs.engine.admission import Admission
from shardfs.engine.applying import Applier
from shardfs.engine.checkpoint import Checkpointer
from shardfs.engine.evacuation import Evacuator, _HeadScan
from shardfs.engine.extents import Extents
from shardfs.engine.lsm import compaction
from shardfs.engine.reclamation import Reclamation
from shardfs.engine.shards import ShardData
from shardfs.engine.space import SpaceAccount

_READING = "data = await self._chunks.get(piece.locator, piece.skip, piece.length)"
_LEFT = "if extent.live_bytes:\n    self._extents.set_stuck(extent)"

MOVING: Final = (
    Canary(
        "chunk-ending-with-its-page-passed-over",
        "The scan of an extent takes a chunk that leaves less than a head of its last page for "
        "one that fills it, and goes on in the middle of the next one: that is not moved.",
        (
            Edit(
                _HeadScan.next,
                "self._offset = await self._behind(frame)\n",
                "self._offset = await self._behind(frame)\n"
                "left = -self._offset % limits.BLOCK_BYTES\n"
                "self._offset += left if left <= frame.payload_offset else 0\n",
            ),
        ),
        ("store", "concurrent"),
        issue=1,
    ),
    Canary(
        "chunk-dropped-after-a-read-error",
        "A chunk that cannot be read at the moment is taken for gone: its shard is written without "
        "it, and its extent is freed.",
        (
            Edit(
                Evacuator._read,
                _READING,
                "try:\n"
                "    data = await self._chunks.get(piece.locator, piece.skip, piece.length)\n"
                "except DeviceError:\n"
                "    data = b''",
            ),
        ),
        ("store", "concurrent"),
        issue=5,
    ),
    Canary(
        "neighbours-of-rot-given-up",
        "An extent in which something is damaged is given up as a whole: what is rotten, and what "
        "lies beside it.",
        (
            Edit(
                Evacuator._read,
                "_log.warning(",
                "self._extents.debit(extent.index, extent.epoch, extent.live_bytes)\n_log.warning(",
            ),
        ),
        ("store",),
    ),
    Canary(
        "freed-before-the-repointing-is-durable",
        "An extent is freed as soon as what lived in it is copied; the delta that refers to the "
        "copies may still be lost.",
        (
            Edit(Evacuator.evacuate, _LEFT, f"extent.last_delta = 0\n{_LEFT}"),
            Edit(Reclamation._commit_and_reclaim, "await self._committer.commit()\n", ""),
        ),
        ("store", "concurrent"),
    ),
    Canary(
        "repointed-from-a-stale-shard",
        "A shard that was overwritten while it was copied is repointed to the copy of what it was.",
        (
            Edit(
                Evacuator._place_now,
                "if not self._tree.is_current(move.key, move.shard, move.shard.generation):",
                "if not self._tree:",
            ),
            Edit(
                Evacuator._place_now,
                "if len(batch):\n    try:",
                "batch.bases.clear()\nif len(batch):\n    try:",
            ),
        ),
        ("concurrent",),
    ),
    Canary(
        "survivors-not-verified",
        "What is moved is copied as the device gives it: rot gets a checksum that fits it.",
        (
            Edit(
                Evacuator._read,
                _READING,
                "head = head_bytes(piece.locator.key_bytes, piece.locator.length)\n"
                "at = piece.locator.offset + head + piece.skip\n"
                "data = await self._extents.read(extent.index, at, piece.length)",
            ),
        ),
        ("store",),
    ),
    Canary(
        "part-of-a-chunk-copied-from-its-start",
        "Of a chunk that is live in part its first bytes are copied, wherever the live part is.",
        (Edit(Evacuator._read, "piece.skip, piece.length", "0, piece.length"),),
        ("store", "files"),
    ),
    Canary(
        "one-piece-of-a-shard-moved",
        "Of a shard with several pieces in an extent one is moved; the others are taken for moved.",
        (
            Edit(
                Evacuator._read,
                "is_all = len(copies) == len(wanted)",
                "copies, is_all = dict(list(copies.items())[:1]), True",
            ),
        ),
        ("store",),
    ),
    Canary(
        "moving-needs-the-reserve-it-makes",
        "Reclamation may not take the last extents, as little as users: on a full device there is "
        "nowhere to move things to.",
        (
            Edit(
                ShardData._floor,
                "return 0 if stream is Stream.SURVIVORS else self._extents.reserve // 2",
                "return self._extents.reserve",
            ),
        ),
        ("store",),
    ),
    Canary(
        "emptied-run-not-installed",
        "What the tree has in an extent is written again, and the tree goes on with the old.",
        (
            Edit(
                Checkpointer.empty,
                "_replaced(self._tree.runs, run, doomed, writer), writer, None",
                "self._tree.runs, writer, None",
            ),
        ),
        ("store", "concurrent"),
    ),
)

ACCOUNT: Final = (
    Canary(
        "overwritten-parts-stay-live",
        "A chunk counts as live as a whole as long as a piece of it is referred to: overwriting "
        "in place takes space.",
        (
            Edit(
                liveness.piece_bytes,
                "frame_bytes(piece.locator.key_bytes, piece.length)",
                "frame_bytes(piece.locator.key_bytes, piece.locator.length)",
            ),
        ),
        ("store", "files"),
    ),
    Canary(
        "shortened-piece-taken-for-the-same",
        "A piece of which the end is overwritten counts as before.",
        (
            Edit(
                liveness._alike,
                "old[start] is new[start]",
                "old[start].start == new[start].start",
            ),
        ),
        ("store", "files"),
    ),
    Canary(
        "space-not-debited",
        "What is no longer referred to stays in the account of space.",
        (
            Edit(
                Extents._live_changed,
                "self.space.live_changed(extent.stream, change_bytes)",
                "self.space.live_changed(extent.stream, max(0, change_bytes))",
            ),
        ),
        ("store", "files"),
    ),
    Canary(
        "garbage-counted-as-used",
        "Free is what the extents held by data leave: garbage counts as used as long as it is "
        "there.",
        (
            Edit(
                SpaceAccount._room_with,
                "room * self._data_bytes_per_extent // self._extent_bytes",
                "(room - self._extent_bytes * sum(self._held[each] for each in DATA_STREAMS))"
                " * self._data_bytes_per_extent // self._extent_bytes",
            ),
            Edit(
                SpaceAccount.user_bytes,
                "self._room_bytes - self._live_bytes - self.stuck_bytes",
                "self._room_with(self._extent_count, self._reserve)",
            ),
        ),
        ("store", "files"),
    ),
    Canary(
        "garbage-beside-the-unreadable-counted-as-free",
        "What is deleted in an extent that cannot be emptied is told as free.",
        (
            Edit(
                SpaceAccount.user_bytes,
                "self._room_bytes - self._live_bytes - self.stuck_bytes",
                "self._room_bytes - self._live_bytes",
            ),
        ),
        ("store",),
    ),
    Canary(
        "reserve-counted-as-free",
        "What a user can write, as told, includes the extents that are kept for reclamation.",
        (
            Edit(
                SpaceAccount._unreserved_with,
                "limits.SUPERBLOCK_EXTENTS - reserve",
                "limits.SUPERBLOCK_EXTENTS",
            ),
        ),
        ("store",),
    ),
    Canary(
        "promised-space-counted-as-free",
        "Space that was set aside for buffered data is still told as free.",
        (
            Edit(
                figures.space_figures,
                "extents.space.user_bytes() - reserved_bytes",
                "extents.space.user_bytes()",
            ),
        ),
        ("store",),
    ),
    Canary(
        "refused-while-there-is-garbage",
        "Data that would fit once garbage is reclaimed are refused at the door.",
        (
            Edit(
                Applier.require_room,
                "if length > space.user_bytes() - space.reserved_bytes:",
                "if length > self._extents.ready_user_bytes() - space.reserved_bytes:",
            ),
            Edit(
                Admission._wait_until_ready,
                "if not await self._reclamation.wait_for_space():",
                "if True:",
            ),
        ),
        ("store",),
    ),
    Canary(
        "tombstones-kept-for-ever",
        "Merging all runs keeps the removals: an emptied store never has its space back.",
        (
            Edit(
                compaction.merge_step,
                "if (value := merged[key]) != TOMBSTONE or below.may_hold(key)",
                "if (value := merged[key]) is not None",
            ),
        ),
        ("store",),
    ),
)

CANARIES: Final = (*MOVING, *ACCOUNT)
