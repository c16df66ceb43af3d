"""What must hold of an open store beside the answers it gives.

Role: reads whole contents, and checks the account of live bytes and what fsck finds.

Not here: what the content should be (models/key_value_model.py), when to look (store_system.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import aclosing

from shardfs.checking.models.key_value_model import State
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.chunks import locator_bytes
from shardfs.engine.fsck import check_store
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.liveness import live_bytes
from shardfs.engine.pieces import Locator, Shard
from shardfs.engine.space import DATA_STREAMS
from shardfs.engine.store import Store

_FIRST_KEY = b"\0"
_LAST_KEY = b"\xff" * 1025
_FINDINGS_NAMED_MAX = 3

Entries = list[tuple[bytes, bytes | Shard]]


async def read_entries(store: Store) -> Entries:
    """Every key with its record or shard; keys rise."""
    entries = [entry async for entry in store.scan(_FIRST_KEY, _LAST_KEY)]
    keys = [key for key, _ in entries]
    assert all(a < b for a, b in itertools.pairwise(keys)), "a scan's keys do not rise"
    return entries


async def read_content(store: Store) -> tuple[Entries, State]:
    """Every key with its record or shard, and with its bytes; keys rise."""
    entries = []
    content: State = {}
    async with aclosing(store.scan(_FIRST_KEY, _LAST_KEY)) as scanned:
        async for key, value in scanned:
            entries.append((key, value))
            # Here and now: behind the next entry, reclamation may have moved it.
            if isinstance(value, Shard):
                content[key] = await store.read_shard(value, 0, value.length)
            else:
                content[key] = value
    assert all(a < b for (a, _), (b, _) in itertools.pairwise(entries)), "a scan's keys do not rise"
    return entries, content


def check_account(store: Store, entries: Entries) -> None:
    """The live bytes of each extent are those that the entries, the runs and the manifest refer to.

    Requires: nothing was applied since the entries were read. Extents of runs are looked at only
    while no checkpoint or merge is under way.
    """
    live: dict[int, int] = {}
    checkpointer = store._checkpointer
    checkpointing = checkpointer._lock.locked() or checkpointer._merging.locked()
    for _, value in entries:
        if isinstance(value, Shard):
            for (extent_number, _), length in live_bytes(value.pieces).items():
                live[extent_number] = live.get(extent_number, 0) + length
    for locator in _of_the_tree(store):
        live[locator.extent] = live.get(locator.extent, 0) + locator_bytes(locator)
    for extent in store._extents.all:
        if extent.stream is Stream.RUNS and checkpointing:
            live.pop(extent.index, None)
        elif extent.stream in (*DATA_STREAMS, Stream.RUNS):
            expected = live.pop(extent.index, 0)
            assert extent.live_bytes == expected, (
                f"extent {extent.index} counts {extent.live_bytes} live bytes, "
                f"but {expected} are referred to"
            )
        elif extent.state is ExtentState.FREE:
            assert not extent.live_bytes, f"extent {extent.index} is free and has live bytes"
    assert not live, f"extents {sorted(live)} are referred to, and hold no data"


def applied_mark(store: Store) -> tuple[int, int, int]:
    """Another value whenever something was applied or the runs were replaced."""
    committer = store._committer
    return committer.next_number, committer.pending_bytes, store._tree.generation


def _of_the_tree(store: Store) -> Iterator[Locator]:
    for run in store._tree.runs:
        for segment in run.segments:
            yield from segment.locators
    manifest = store._committer.root.manifest
    if manifest is not None:
        yield manifest


async def check_clean(store: Store, device: SimulatedDevice) -> None:
    """fsck finds nothing, data included; unless it meets a fault itself."""
    report = await check_store(store, data=True)
    if device.faults.struck:
        return
    words = "; ".join(map(str, report.findings[:_FINDINGS_NAMED_MAX]))
    assert report.is_clean, f"fsck finds {report.finding_count} things: {words}"
