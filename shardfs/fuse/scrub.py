"""Reads all of a mounted store again and again, as its user wishes, and names what has rotted.

Role: a task of the mount. Goes through the tree and its log, then through the shards in key order,
verifies each chunk, no faster than its rate, and hardly at all while the mount is busy. Requests:

    scrub-start    rate           begin a pass, or go on with one that is paused; bytes/s or null
    scrub-pause                   stop for now; the pass goes on when it is started again
    scrub-status                  how far it is, and what it has found

Invariants:
    I1. How far a pass has come is kept in the store (SCRUB_KEY): it survives the end of the mount
        and a crash, by SAVED_EVERY_S at most.
    I2. Nothing is changed but that; what is damaged is for `shardfs fsck --repair`.
    I3. A busy mount is given way to: at most one chunk a second is read.
    I4. What is found is bounded; the rest is counted.
    I5. A pass that is stopped in the tree begins with the tree again, of which it had found nothing
        then.

The operating system's cache may answer in the place of the device, for what was read lately.

Not here: unmounted devices (`shardfs fsck --data`), the superblock (read at the next mount).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import trio

from shardfs import clock, limits
from shardfs.engine.careful_scan import LostRange, scan_around
from shardfs.engine.health import HealthState
from shardfs.engine.pieces import Locator, Shard, granule_bytes, locators
from shardfs.engine.store import Store
from shardfs.engine.tree_scrub import verify_tree
from shardfs.errors import UNREADABLE, ShardfsError, UsageError
from shardfs.fuse.door import behind
from shardfs.fuse.keys import INODE_PREFIX, SCRUB_KEY, decode_file_key
from shardfs.fuse.lost_names import files_of_keys, range_text
from shardfs.fuse.paths import find_paths
from shardfs.fuse.requests import Answer, Handlers, number_of

_log = logging.getLogger(__name__)

RATE_DEFAULT: Final = 64 * limits.MIB
SAVED_EVERY_S: Final = 10.0
FOUND_MAX: Final = 200
_TEXT_MAX: Final = 300
_BUSY_PAUSE_S: Final = 1.0
_KEY_BYTES_MAX: Final = 18
_END: Final = behind(INODE_PREFIX)


@dataclass
class ScrubState:
    """How far a pass is.

    state: "idle" (never begun), "running", "paused" or "done".
    rate: bytes/s.
    cursor: the last key that was verified, hexadecimal.
    found: [inode, first byte, length] of damaged ranges of files, the first FOUND_MAX.
    tree_verified: the tree and its log have been read, `tree_bytes` of them.
    tree_damaged: parts of them that have rotted.
    tree_found: [what, extent, byte of the extent, whose, error] of these, the first FOUND_MAX.
    """

    state: str = "idle"
    rate: int = RATE_DEFAULT
    cursor: str = ""
    started_ns: int = 0
    ended_ns: int = 0
    verified_bytes: int = 0
    damaged_bytes: int = 0
    found: list[list[int]] = field(default_factory=list)
    tree_verified: bool = False
    tree_bytes: int = 0
    tree_damaged: int = 0
    tree_found: list[list[Any]] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Nothing has been found so far."""
        return not self.damaged_bytes and not self.tree_damaged


class Scrub:
    """The scrub of one mount.

    Args:
        store: open.
        request_count: gives how many requests the mount has answered so far.

    handlers: what answers each request.
    """

    def __init__(self, store: Store, request_count: Callable[[], int]) -> None:
        self._store = store
        self._request_count = request_count
        self._state = ScrubState()
        self._is_loaded = False
        self._wake = trio.Event()
        self._saved_at = 0.0
        self.handlers: Handlers = {
            "scrub-start": self._start,
            "scrub-pause": self._pause,
            "scrub-status": self._status,
        }

    # --- requests

    async def _start(self, request: Answer) -> Answer:
        rate = number_of(request, "rate") if request.get("rate") is not None else None
        if rate == 0:
            raise UsageError("a rate is at least one byte a second")
        self._store.health.require_writable()
        await self._load()
        if self._state.state not in ("running", "paused"):
            self._state = ScrubState(rate=self._state.rate, started_ns=clock.now_ns())
        if rate is not None:
            self._state.rate = rate
        self._state.state = "running"
        self._save()
        self._wake.set()
        return await self._status({})

    async def _pause(self, _request: Answer) -> Answer:
        await self._load()
        if self._state.state == "running":
            self._state.state = "paused"
            self._save()
        return await self._status({})

    async def _status(self, _request: Answer) -> Answer:
        await self._load()
        state = self._state
        paths = await find_paths(self._store, {ino for ino, _, _ in state.found})
        answer: dict[str, Any] = asdict(state) | self.figures()
        del answer["cursor"], answer["tree_verified"]
        left = answer["total_bytes"] - state.verified_bytes
        answer["left_s"] = round(left / state.rate, 1) if state.state == "running" else None
        answer["tree_found"] = [
            dict(zip(("what", "extent", "offset", "files", "error"), each, strict=True))
            for each in state.tree_found
        ]
        answer["found"] = [
            {"ino": ino, "path": paths.get(ino, [None])[0], "start": start, "length": length}
            for ino, start, length in state.found
        ]
        return answer

    def figures(self) -> Answer:
        """How far it is, in numbers; idle until what the store keeps of it has been read."""
        state = self._state
        # Live bytes are those of frames, heads and padding included.
        total = 0 if state.state == "done" else self._store.space_parts().live_bytes
        return {
            "state": state.state,
            "verified_bytes": state.verified_bytes,
            "total_bytes": max(total, state.verified_bytes),
            "damaged_bytes": state.damaged_bytes,
            "tree_bytes": state.tree_bytes,
            "tree_damaged": state.tree_damaged,
        }

    # --- the task

    async def run(self) -> None:
        """Work while a pass is wished; until cancelled."""
        await self._load()
        try:
            while self._store.health.state is HealthState.HEALTHY:
                if self._state.state != "running":
                    await self._wake.wait()
                    self._wake = trio.Event()
                    continue
                await self._pass()
        finally:
            if self._state.state == "running":
                self._save()

    async def _pass(self) -> None:
        """Go on from where it stopped, to the end or until somebody stops it."""
        lost: list[LostRange] = []
        try:
            if not self._state.tree_verified:
                await self._tree()
            if self._state.state != "running":
                return
            last = bytes.fromhex(self._state.cursor)
            start = last + b"\0" if last else INODE_PREFIX
            async with aclosing(scan_around(self._store, start, _END, lost)) as items:
                async for key, value in items:
                    if isinstance(value, Shard):
                        await self._shard(key, locators(value.pieces))
                    if self._state.state != "running":
                        return
                    self._state.cursor = key.hex()
        except UNREADABLE as error:
            _log.error("scrubbing ends early: %s; see: shardfs fsck", error)
            self._state.damaged_bytes += 1
        # The tree has named them, unless they have rotted since.
        self._state.tree_damaged = max(self._state.tree_damaged, len(lost))
        self._state.state = "done"
        self._state.ended_ns = clock.now_ns()
        self._save()
        _log.info(
            "scrubbed %d bytes of data, %d of the tree",
            self._state.verified_bytes,
            self._state.tree_bytes,
        )

    async def _tree(self) -> None:
        """The tree and its log (I5)."""
        state = self._state
        state.tree_bytes, state.tree_damaged, state.tree_found = 0, 0, []

        async def paced(length: int) -> bool:
            await self._give_way(length)
            if self._state is not state or state.state != "running":
                return False
            state.tree_bytes += length
            return True

        async for each in verify_tree(self._store, paced):
            files = "; ".join(range_text(*part) for part in files_of_keys(each.start, each.end))
            files = files if each.end else "not known"
            _log.error(
                "scrub: %s at extent %d byte %d is damaged (%s): %s", *each[:3], files, each[5]
            )
            state.tree_damaged += 1
            if len(state.tree_found) < FOUND_MAX:
                row = [
                    each.what,
                    each.extent,
                    each.offset,
                    files[:_TEXT_MAX],
                    each.trouble[:_TEXT_MAX],
                ]
                state.tree_found.append(row)
        state.tree_verified = self._state is state and state.state == "running"

    async def _shard(self, key: bytes, chunks: dict[int, Locator]) -> None:
        for number, locator in chunks.items():
            await self._give_way(locator.length)
            if self._state.state != "running":
                return
            # Nothing is pinned while it rests: reclamation does not wait for a scrub.
            shard = await self._store.get_shard(key)
            if shard is None or number not in locators(shard.pieces):
                continue
            with self._store.pinned(shard.pieces):
                await self._chunk(key, shard, locator)

    async def _give_way(self, length: int) -> None:
        """As fast as the rate; hardly at all while the mount has something else to do (I3)."""
        before = self._request_count()
        await trio.sleep(length / self._state.rate)
        if self._request_count() != before:
            await trio.sleep(_BUSY_PAUSE_S)

    async def _chunk(self, key: bytes, shard: Shard, locator: Locator) -> None:
        self._state.verified_bytes += locator.length
        try:
            await self._store.read_chunk(locator, 0, locator.length)
        except UNREADABLE:
            await self._granules(key, shard, locator)
        if trio.current_time() >= self._saved_at + SAVED_EVERY_S:
            self._save()

    async def _granules(self, key: bytes, shard: Shard, locator: Locator) -> None:
        ino, index, _ = decode_file_key(key)
        granule = granule_bytes(locator.length)
        for at in range(0, locator.length, granule):
            end = min(at + granule, locator.length)
            try:
                await self._store.read_chunk(locator, at, end - at)
            except UNREADABLE as error:
                for piece in shard.pieces:
                    first = max(at, piece.skip)
                    last = min(end, piece.skip + piece.length)
                    if piece.locator.sequence != locator.sequence or first >= last:
                        continue
                    start = (index or 0) * limits.SHARD_BYTES + piece.start + first - piece.skip
                    self._find(ino, start, last - first, error)

    def _find(self, ino: int, start: int, length: int, error: ShardfsError) -> None:
        self._state.damaged_bytes += length
        if len(self._state.found) < FOUND_MAX:
            self._state.found.append([ino, start, length])
        last = start + length - 1
        _log.error("scrub: inode %d bytes %d to %d are damaged: %s", ino, start, last, error)

    # --- keeping it

    async def _load(self) -> None:
        if self._is_loaded:
            return
        record = await self._store.get_record(SCRUB_KEY)
        if not self._is_loaded:
            self._is_loaded = True
            self._state = state_of(record) if record is not None else ScrubState()

    def _save(self) -> None:
        self._saved_at = trio.current_time()
        batch = self._store.batch()
        batch.put(SCRUB_KEY, json.dumps(asdict(self._state)).encode())
        try:
            self._store.apply(batch)
        except ShardfsError as error:
            _log.info("how far scrubbing is cannot be kept: %s", error)


def state_of(record: bytes) -> ScrubState:
    """The state that a record keeps; a fresh one in place of what is none."""
    try:
        values = json.loads(record)
        state = ScrubState(**values)
        times = (state.started_ns, state.ended_ns)
        sizes = (state.verified_bytes, state.damaged_bytes, state.tree_bytes, state.tree_damaged)
        numbers = (state.rate, *times, *sizes)
        kinds = (str, int, int, str, str)
        is_good = (
            state.state in ("idle", "running", "paused", "done")
            and all(isinstance(each, int) and each >= 0 for each in numbers)
            and state.rate > 0
            and len(bytes.fromhex(state.cursor)) <= _KEY_BYTES_MAX
            and len(state.found) <= FOUND_MAX
            and all(len(each) == 3 and all(type(n) is int for n in each) for each in state.found)
            and type(state.tree_verified) is bool
            and len(state.tree_found) <= FOUND_MAX
            and all(tuple(map(type, each)) == kinds for each in state.tree_found)
        )
    except (ValueError, TypeError, RecursionError):
        return ScrubState()
    return state if is_good else ScrubState()
