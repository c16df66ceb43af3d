"""Says of one extent what it is, what lives in it, and why it is not free.

Role: puts the state that reclamation goes by (`Extents.dead`, `Evacuator.candidates`) into words,
and finds the keys whose chunks lie in an extent. A friend of the store: it looks at its parts.

Invariants:
    I1. An extent has no holds exactly if it is free. "due" is the only hold of an extent that
        `Extents.dead` names.
    I2. References are looked up in the tree: a frame that nothing refers to is not one.

Not here: files and their paths (fuse/explanations.py), changing any of it (evacuation.py,
reclaim.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from shardfs import limits
from shardfs.engine.careful_scan import LostRange, scan_around
from shardfs.engine.chunks import locator_bytes
from shardfs.engine.extent import Extent
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.liveness import piece_bytes
from shardfs.engine.pieces import Piece, Shard
from shardfs.engine.stats import ExtentFigures, Hold
from shardfs.engine.store import Store
from shardfs.errors import UNREADABLE, UsageError

_KEY_END = b"\xff" * (limits.KEY_BYTES_MAX + 1)


def extent_figures(store: Store, number: int, *, with_holds: bool = True) -> ExtentFigures:
    """What there is to say of an extent; finding its holds takes longer than the rest.

    Raises:
        UsageError: there is no such extent.
    """
    extents = store._extents
    if not 0 <= number < len(extents.all):
        raise UsageError(f"there is no extent {number}: they go from 0 to {len(extents.all) - 1}")
    extent = extents.all[number]
    used = extent.write_pointer
    if extent.state in (ExtentState.SEALED, ExtentState.SUPERBLOCK):
        used = extents.extent_bytes
    live = used if extent.state is ExtentState.SUPERBLOCK else extent.live_bytes
    if extent.stream is Stream.META and _log_holds(store, extent):
        live = used
    return ExtentFigures(
        extent=number,
        offset=extents.identity.extent_offset(number),
        size_bytes=extents.extent_bytes,
        state=extent.state.name.lower(),
        stream=extent.stream.name.lower() if extent.stream is not Stream.NONE else "",
        epoch=extent.epoch,
        write_pointer=extent.write_pointer,
        live_bytes=live,
        garbage_bytes=max(0, used - live),
        order=extent.order,
        last_delta=extent.last_delta,
        holds=tuple(_holds(store, extent)) if with_holds else (),
    )


def _holds(store: Store, extent: Extent) -> Iterator[Hold]:
    if extent.state is ExtentState.FREE:
        return
    if extent.state is ExtentState.SUPERBLOCK:
        yield Hold("superblock", "it holds one of the two copies of the superblock, always")
        return
    held = False
    for hold in (*_state_holds(store, extent), *_log_holds(store, extent)):
        held = True
        yield hold
    if not held:
        yield Hold("due", "nothing holds it: the next reclamation gives it back")


def _state_holds(store: Store, extent: Extent) -> Iterator[Hold]:
    if extent.state is ExtentState.OPEN:
        if extent.stream is Stream.META and not extent.write_pointer:
            yield Hold("spare", "it is set aside for the delta log, so that commits need not wait")
        else:
            yield Hold("open", "data is being appended to it")
    if extent.live_bytes:
        yield Hold("live", _live_text(store, extent))
    if extent.live_bytes and extent.is_stuck:
        yield Hold(
            "stuck",
            "something in it could not be read or moved, and stays; it is tried again after the "
            "next mount (shardfs fsck --data names what is damaged)",
        )
    if extent.pins:
        yield Hold("pinned", f"it is being read from ({extent.pins} readers)")
    if extent.writes_pending:
        yield Hold("writing", "what was appended to it is still on its way to the device")
    durable = store._committer.durable_number
    if extent.stream is not Stream.META and extent.last_delta > durable:
        yield Hold(
            "delta",
            f"delta {extent.last_delta}, which gives up something in it, is not durable yet "
            "(shardfs sync makes it so)",
        )


def _live_text(store: Store, extent: Extent) -> str:
    share = 100 * extent.live_bytes / store._extents.extent_bytes
    text = f"{extent.live_bytes} bytes of it are live ({share:.1f} %)"
    if extent.state is not ExtentState.SEALED or extent.is_stuck:
        return text
    if extent.stream is Stream.RUNS:
        return f"{text}; merging the tree, or emptying it, moves them"
    if any(each is extent for each in store._evacuator.candidates()):
        return f"{text}; it is emptied when space is wanted, or by: shardfs gc --now"
    return f"{text}; too little of it is garbage to be worth emptying it"


def _log_holds(store: Store, extent: Extent) -> tuple[Hold, ...]:
    """Why an extent of the delta log is needed."""
    committer = store._committer
    if extent.stream is not Stream.META:
        return ()
    if extent.index == committer.root.log_extent:
        return (Hold("log", "reading the delta log starts in it"),)
    if extent.last_delta > committer.persistent_checkpoint:
        return (
            Hold(
                "log",
                f"it holds deltas up to {extent.last_delta}, and runs hold what was changed up "
                f"to {committer.persistent_checkpoint}: the next checkpoint lets it go",
            ),
        )
    return ()


def tree_contents(store: Store, number: int) -> list[tuple[str, int]]:
    """What the tree has in an extent: names, and bytes on the device."""
    found = []
    for run in store._tree.runs:
        size = sum(
            locator_bytes(locator)
            for segment in run.segments
            for locator in segment.locators
            if locator.extent == number
        )
        if size:
            found.append((f"run {run.run_id} of level {run.level}", size))
    manifest = store._committer.root.manifest
    if manifest is not None and manifest.extent == number:
        found.append(("the manifest", locator_bytes(manifest)))
    return found


async def references(
    store: Store, number: int, lost: list[LostRange]
) -> AsyncIterator[tuple[bytes, list[Piece], int]]:
    """Keys with pieces in an extent: the key, those pieces, and the bytes of their frames.

    The extent's frames say which keys they were written for. If frames that cannot be read hide
    some, all keys of the store are looked through.

    Args:
        lost: what of the tree cannot be read is added, and gone round.

    Whoever asks may rest between them: nothing is held back, and it ends when the extent is reset.
    """
    extent = store._extents.all[number]
    epoch, missing = extent.epoch, extent.live_bytes
    seen: set[bytes] = set()
    with store._extents.pinned(number):
        owners = await store._evacuator.owners(extent)
    for key in owners:
        seen.add(key)
        try:
            found = _lying_in(await store._load(key), extent)
        except UNREADABLE as error:
            lost.append(LostRange.at(key, error))
            continue
        if extent.epoch != epoch:
            return
        if found:
            missing -= found[1]
            yield key, *found
    if missing > 0:
        async for key, value in scan_around(store, b"", _KEY_END, lost):
            if extent.epoch != epoch:
                return
            found = _lying_in(value, extent) if key not in seen else None
            if found:
                yield key, *found


def _lying_in(value: bytes | Shard | None, extent: Extent) -> tuple[list[Piece], int] | None:
    if not isinstance(value, Shard):
        return None
    pieces = [
        piece
        for piece in value.pieces
        if (piece.locator.extent, piece.locator.epoch) == (extent.index, extent.epoch)
    ]
    if not pieces:
        return None
    return pieces, sum(map(piece_bytes, pieces))
