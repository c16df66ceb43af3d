"""Repairs a device: finds what is wrong, mends it, and shows that nothing is wrong any more.

Role: `shardfs fsck --repair`, from a device to a report. Three kinds of damage, mended in order:

    the tree    a run, the manifest or the delta log cannot be read, or accounts are wrong: a new
                tree is written beside the old one, and checked, and takes its place by one change
                of the superblock (engine/rebuilding.py, reconstruction.py);
    files       names, inodes, counts: ordinary batches (files_repair.py);
    data        what does not match its checksum is recorded as lost: reading it is an error
                (data_repair.py); or, on request, the files that it hits are deleted.

Invariants:
    I1. Nothing gets worse: a new tree counts only when a full check of it has found nothing, and
        any other change is a batch that is right by itself.
    I2. It may end anywhere, and be begun again.
    I3. What the user loses is said, by path and range of bytes.

Not here: files when the superblock is gone altogether (salvage.py), printing (cli/fsck.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import trio

from shardfs import limits
from shardfs.engine.device import Device
from shardfs.engine.findings import Finding, Report
from shardfs.engine.options import StoreOptions
from shardfs.engine.rebuilding import SwitchDevice, sealed_record
from shardfs.engine.recovery import LOG_ENDS_EARLY, read_superblock
from shardfs.engine.salvage import scan_device
from shardfs.engine.store import Store
from shardfs.engine.superblock_record import ExtentEntry, Identity, Record
from shardfs.errors import CorruptionError, DeviceError, NotShardfsError, ShardfsError
from shardfs.fuse.data_repair import delete_damaged_files, give_up_damaged_data
from shardfs.fuse.files_repair import repair_files
from shardfs.fuse.frame_index import FrameIndex
from shardfs.fuse.fsck import check_all
from shardfs.fuse.keys import FACT_KEY, NAMES_KEY
from shardfs.fuse.lost_changes import name_lost_changes
from shardfs.fuse.lost_names import holds_frames, lost_keys, name_lost, read_names
from shardfs.fuse.name_pages import NamePages
from shardfs.fuse.paths import find_paths
from shardfs.fuse.reconstruction import Reconstruction
from shardfs.fuse.records import NamedInode
from shardfs.fuse.repair_report import RepairReport
from shardfs.fuse.tables import Tables
from shardfs.fuse.tree_remains import TreeRemains

_LOOKING: Final = StoreOptions(read_only=True, background=False)
_MENDING: Final = StoreOptions(background=False)
_OF_THE_TREE: Final = frozenset({"E0", "E2", "E3", "E4", "E5", "E6", "E7", "E8", "E9", "E12"})
_REMEDIES: Final = {
    "E1": "write both copies afresh",
    "E10": "copy the data elsewhere",
    "E11": "copy what is left of the chunk, and record the rest as lost",
    "F1": "drop the name, or correct its type",
    "F2": "count anew",
    "F3": "put it into /lost+found",
    "F4": "cut it loose, and put it into /lost+found",
    "F5": "count anew",
    "F6": "make size and count fit the data",
    "F7": "count anew",
    "F8": "count anew",
    "F9": "drop what says nothing, restore what frames know",
    "F10": "drop the list",
    "F11": "write the page anew",
}
_NO_SUPERBLOCK: Final = (
    "it is gone, both copies; files are there: bring them elsewhere with: shardfs salvage"
)
Show = Callable[[str, int, int], None]


def _quietly(_text: str, _done: int, _total: int) -> None:
    """Shows nothing."""


async def check_device(device: Device, *, data: bool) -> tuple[Report, tuple[str, ...]]:
    """Verify what is on a device; and recovery's notes. A store that cannot be opened is finding
    E0. Files of which the tree is lost are named as far as frames know them; with `data`, frames
    anywhere on the device.

    Raises:
        NotShardfsError, IncompatibleError, DeviceError: there is nothing to verify.
    """
    report = Report()
    notes: tuple[str, ...] = ()
    try:
        async with Store.open(device, options=_LOOKING) as store:
            report, notes = await check_all(store, data=data), store.notes
            if store.damage.startswith(LOG_ENDS_EARLY):
                with FrameIndex() as index:
                    if data:
                        await read_names(device, index)
                    await name_lost_changes(store, report, index if data else None)
    except CorruptionError as error:
        report.add(Finding("E0", f"it cannot be opened: {error}"))
        report.lost_keys += await lost_keys(device)
    except NotShardfsError:
        if not await holds_frames(device):
            raise
        report.add(Finding("E0", _NO_SUPERBLOCK, "superblock"))
        report.lost_keys += await lost_keys(device)
    await name_lost(device, report, data=data)
    return report, notes


async def repair_device(
    device: Device, *, delete_damaged: bool = False, show: Show = _quietly
) -> RepairReport:
    """Repair the store on a device, which is not mounted.

    Args:
        device: writable.
        delete_damaged: delete the files that have lost data.
        show: is told what is going on, and how far it is.

    Durable when: returned.

    Raises:
        NotShardfsError, IncompatibleError: it is no store, or too new.
        CorruptionError: too much is lost for a repair in place; nothing was changed.
        NoSpaceError: there is no room for a new tree; nothing was changed.
        DeviceError: the device fails.
    """
    show("checking", 0, 0)
    before, _ = await check_device(device, data=True)
    report = RepairReport(before)
    if needs_new_tree(before):
        await _rebuild(device, report, delete_damaged, show)
        report.is_rebuilt = True
    elif not before.is_clean or delete_damaged:
        async with Store.open(device, options=_MENDING) as store:
            if store.health.reason:
                raise CorruptionError(f"it cannot be written: {store.health.reason}")
            show("mending files", 0, 0)
            await _mend(store, report, delete_damaged, _nobody)
    show("checking again", 0, 0)
    report.after, _ = await check_device(device, data=True)
    if needs_new_tree(report.after) and not report.is_rebuilt:
        # Among very many findings the ones about the tree were not kept.
        await _rebuild(device, report, delete_damaged, show)
        report.is_rebuilt = True
        report.after, _ = await check_device(device, data=True)
    return report


def remedy(finding: Finding) -> str:
    """What a repair would do about a finding."""
    if finding.message == _NO_SUPERBLOCK:
        return "look for records of the superblock elsewhere, and change nothing without one"
    if _is_about_the_tree(finding):
        return "write a new tree from what is left of this one, and from what frames tell"
    return _REMEDIES[finding.invariant]


def needs_salvage(report: Report) -> bool:
    """Whether nothing can be mended in place: the superblock is gone altogether."""
    return any(finding.message == _NO_SUPERBLOCK for finding in report.findings)


def needs_new_tree(report: Report) -> bool:
    """Whether a finding is about the tree or its accounts."""
    return any(_is_about_the_tree(finding) for finding in report.findings)


def _is_about_the_tree(finding: Finding) -> bool:
    number = finding.invariant
    return number in _OF_THE_TREE or (number == "E10" and finding.key is None)


def _nobody(_: int) -> NamedInode | None:
    return None


async def _mend(
    store: Store,
    report: RepairReport,
    delete_damaged: bool,
    recall: Callable[[int], NamedInode | None],
) -> None:
    """Files, data, and the name pages of an open store."""
    await give_up_damaged_data(store, report)
    await repair_files(store, report.tell, recall)
    if delete_damaged:
        await delete_damaged_files(store, report)
        await repair_files(store, report.tell)
    await _name(store, report)
    if await store.get_record(NAMES_KEY) is None and await store.get_record(FACT_KEY) is not None:
        pages = await NamePages.open(store, await Tables.open(store))
        await pages.rebuild()
        await pages.finish()
    await store.sync()


async def _name(store: Store, report: RepairReport) -> None:
    """Paths for what was done and lost (I3)."""
    wanted = {each.ino for each in report.actions if each.ino is not None}
    wanted |= {each.ino for each in report.lost}
    try:
        paths = {ino: names[0] for ino, names in (await find_paths(store, wanted)).items()}
    except ShardfsError:
        return
    report.actions = [
        replace(each, path=paths.get(each.ino)) if each.ino is not None else each
        for each in report.actions
    ]
    report.lost = [replace(each, path=paths.get(each.ino)) for each in report.lost]


# --- the tree -----------------------------------------------------------------------------------


async def _rebuild(device: Device, report: RepairReport, delete_damaged: bool, show: Show) -> None:
    """A new tree beside the old one (I1)."""
    with FrameIndex() as index, TreeRemains() as remains:
        async for found in scan_device(device, lambda done, total: show("scanning", done, total)):
            index.add(found)
        identity, record, known, worse = await _superblock(device, index)
        index.finish(identity.store_id)
        show("reading what is left of the tree", 0, 0)
        await remains.read(device, identity, record, known, index)
        for loss in remains.losses:
            report.tell(f"lost: {loss}")
        identity = _fitting(identity, device)
        known = {number: each for number, each in known.items() if number < identity.extent_count}
        sequence, delta = index.highest()
        frames = (
            each
            for each in index.places()
            if each[1] <= identity.extent_count * identity.extent_bytes
        )
        first = sealed_record(identity, record, known, frames, sequence, delta)
        switch = SwitchDevice(device, identity, first)
        show("writing a new tree", 0, 0)
        async with Store.open(switch, options=_MENDING) as store:
            parts = (store, device, first.entries, remains, index)
            await Reconstruction(*parts, report.tell).run()
            await _mend(store, report, delete_damaged, _recall(index))
            await store.checkpoint()
        show("checking the new tree", 0, 0)
        after, _ = await check_device(switch, data=True)
        if not after.is_clean:
            raise CorruptionError(
                f"the new tree would not be in order ({after.findings[0]}); nothing was changed; "
                "bring the files elsewhere with: shardfs salvage",
                device.path,
            )
        await switch.switch(worse)


def _recall(index: FrameIndex) -> Callable[[int], NamedInode | None]:
    def recall(ino: int) -> NamedInode | None:
        return None if index.is_deleted(ino) else index.named(ino)

    return recall


async def _superblock(
    device: Device, index: FrameIndex
) -> tuple[Identity, Record, dict[int, ExtentEntry], int]:
    """Identity, newest record, extents, and which copy is worse.

    Raises:
        CorruptionError: no record is left at all.
    """
    try:
        state = await read_superblock(device)
    except (CorruptionError, DeviceError, NotShardfsError):
        await trio.lowlevel.checkpoint()
        index.choose_by_superblock()
        remains = index.superblock
        if remains is None:
            raise CorruptionError(
                "nothing is left of its superblock; bring the files elsewhere with: "
                "shardfs salvage",
                device.path,
            ) from None
        entries = {number: entry for number, (_, entry) in remains.entries.items()}
        return remains.identity, remains.record, entries, 0
    return state.identity, state.record, dict(state.entries), state.worse_copy


def _fitting(identity: Identity, device: Device) -> Identity:
    """The identity for what is left of a device that has been cut off.

    Raises:
        CorruptionError: too little is left.
    """
    size = identity.extent_count * identity.extent_bytes
    if device.size_bytes >= size:
        return identity
    count = device.size_bytes // identity.extent_bytes
    if count < limits.EXTENT_COUNT_MIN:
        raise CorruptionError(
            f"of {identity.extent_count} extents {count} are left, too few for a store; bring the "
            "files elsewhere with: shardfs salvage",
            device.path,
        )
    return replace(identity, device_bytes=device.size_bytes, extent_count=count)
