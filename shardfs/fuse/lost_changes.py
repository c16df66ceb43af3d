"""Names the files whose last changes are lost, after damage to the delta log.

Role: recovery ends the log where a delta cannot be read. The deltas behind it are whole, and tell
whose changes were not taken; the damaged one tells as much as its bytes still do, whatever their
checksum says; and data that is newer than the last good delta tells for whom it was written.

Invariants:
    I1. Nothing is written, and nothing of this is believed but for naming files. Memory is bounded
        by FILES_MAX, one delta and one extent's window.
    I2. What cannot be known is said.

Not here: finding the damage (engine/recovery.py), lost parts of runs (lost_names.py).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from shardfs.engine.careful_scan import LostRange
from shardfs.engine.extent import Extent
from shardfs.engine.findings import Finding, Report
from shardfs.engine.frame_walk import FrameWalk, Span, SpanKind
from shardfs.engine.framing import verify_granules
from shardfs.engine.layout import Kind, Stream
from shardfs.engine.lsm.delta import DeltaPart, decode_delta
from shardfs.engine.store import Store
from shardfs.errors import UNREADABLE, CorruptionError
from shardfs.fuse.frame_index import FrameIndex
from shardfs.fuse.keys import ENTRY_PREFIX, decode_entry_key, decode_file_key
from shardfs.fuse.lost_names import FILES_MAX, paths_of
from shardfs.fuse.paths import find_paths

_WHERE: Final = "delta log"


@dataclass
class _Changes:
    """What deltas are about: inodes, and names in directories. `numbers`: of the deltas."""

    numbers: set[int] = field(default_factory=set)
    inos: set[int] = field(default_factory=set)
    names: set[tuple[int, bytes]] = field(default_factory=set)

    def add(self, part: DeltaPart) -> None:
        """Take in a part of a delta."""
        self.numbers.add(part.number)
        for key in part.block.keys:
            if len(self.inos) + len(self.names) >= 2 * FILES_MAX:
                return
            try:
                if key[:1] == ENTRY_PREFIX:
                    parent, _, name = decode_entry_key(key)
                    self.names.add((parent, name))
                else:
                    self.inos.add(decode_file_key(key).ino)
            except CorruptionError:
                continue  # no file's


async def name_lost_changes(store: Store, report: Report, index: FrameIndex | None) -> None:
    """Add findings that say whose changes are lost.

    Args:
        store: its log is damaged (Store.damage).
        index: of all frames on the device, if somebody has looked for them.
    """
    last = store._committer.durable_number
    whole, guessed = _Changes(), _Changes()
    manifest = store._committer.root.manifest
    good_sequence = manifest.sequence if manifest is not None else 0
    unread = 0
    for extent in store._extents.all:
        if extent.stream is not Stream.META:
            continue
        async for span, part, is_whole in _deltas(store, extent):
            if part is None:
                unread += 1
            elif part.number > last:
                (whole if is_whole else guessed).add(part)
            elif is_whole and span.frame is not None:
                good_sequence = max(good_sequence, span.frame.sequence)
    for changes, text in (
        (whole, "whole, but not taken, changed"),
        (guessed, "damaged, changed as far as the bytes can still be read"),
    ):
        if changes.numbers:
            names = ", ".join(await _names(store, changes, index)) or "no file"
            report.add(Finding("E5", f"{_numbers(changes)}, {text}: {names}", _WHERE))
    if unread or not whole.numbers | guessed.numbers:
        report.add(Finding("E5", "what else was changed last cannot be known", _WHERE))
    if index is not None:
        newer = [each for each in index.inos_with_data() if index.newest_data(each) > good_sequence]
        changes = _Changes(inos={*newer[: 2 * FILES_MAX]})
        if some := await _names(store, changes, index):
            text = f"data was written last for {', '.join(some)}: it may be lost"
            report.add(Finding("E5", text, _WHERE))


async def _deltas(
    store: Store, extent: Extent
) -> AsyncIterator[tuple[Span, DeltaPart | None, bool]]:
    """Each frame of an extent of the log: what it says (None: nothing), whether it is whole."""

    async def read(offset: int, length: int) -> bytes | memoryview:
        return await store._extents.read(extent.index, offset, length)

    size, identity = store._extents.extent_bytes, store.identity
    walk = FrameWalk(read, size, store_id=identity.store_id, epoch=extent.epoch)
    async for span in walk.spans():
        if span.kind in (SpanKind.BYTES, SpanKind.UNREADABLE):
            yield span, None, False
        if span.kind is not SpanKind.FRAME or span.frame is None:
            continue
        if span.frame.kind is not Kind.DELTA:
            continue
        is_whole = True
        try:
            payload = bytes(await read(span.payload_start, span.frame.payload_bytes))
            try:
                verify_granules(payload, span.frame.checksums, 0, "delta")
            except CorruptionError:
                is_whole = False
            part = decode_delta(payload)
        except UNREADABLE:
            yield span, None, False
            continue
        yield span, part, is_whole


def _numbers(changes: _Changes) -> str:
    first, last = min(changes.numbers), max(changes.numbers)
    return f"delta {first}" if first == last else f"deltas {first} to {last}"


async def _names(store: Store, changes: _Changes, index: FrameIndex | None) -> list[str]:
    """Paths of what was changed; inode numbers where no path is known."""
    lost: list[LostRange] = []
    wanted = changes.inos | {parent for parent, _ in changes.names}
    paths = await find_paths(store, wanted, lost=lost)
    found: dict[str, None] = {}
    for parent, name in sorted(changes.names):
        above = paths.get(parent) or (paths_of(index, parent) if index is not None else [])
        start = above[0].rstrip("/") if above else f"inode {parent}"
        found[f"{start}/{os.fsdecode(name)}"] = None
    for ino in sorted(changes.inos):
        names = paths.get(ino) or (paths_of(index, ino) if index is not None else [])
        if names:
            found[names[0]] = None
        elif not changes.names:
            found[f"inode {ino}"] = None
    return [*found][:FILES_MAX]
