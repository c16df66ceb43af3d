"""Verifies the two copies of the superblock log.

Role: E1 of fsck.py. Both copies are whole, of one store, and end with the same record; where a
crash explains that one is not, that is a note and no finding.

Invariants:
    I1. Nothing is written, and a copy that cannot be read is a finding, not an error.

Not here: what recovery makes of the copies (recovery.py), the rest of the store (fsck.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from shardfs import limits
from shardfs.engine.device import Device
from shardfs.engine.findings import Finding, Report
from shardfs.engine.superblock import CopyState, is_headed, read_copy
from shardfs.engine.superblock_record import Identity, Record
from shardfs.errors import UNREADABLE, DeviceError, IncompatibleError

_RECORDS_UNFLUSHED_MAX: Final = 2
"""Superblock records that may be on their way at a crash; one copy may lack them."""


async def check_superblock(device: Device, identity: Identity, report: Report) -> None:
    """Read both copies of the superblock log, and add what does not hold to a report.

    Args:
        identity: of the store that the device should hold.
    """

    def find(number: int, message: str) -> None:
        report.add(Finding("E1", message, _copy_name(number)))

    copies = []
    for number, start in enumerate((0, identity.extent_bytes)):
        try:
            copies.append(await read_copy(device, start))
        except (*UNREADABLE, IncompatibleError) as error:
            copies.append(CopyState(start, trouble=str(error)))
        described = copies[-1].identity
        if described is not None and not _are_of_one_store(described, identity):
            find(number, "it describes another store")
    newest = max(copies, key=lambda copy: copy.last.number if copy.last is not None else -1)
    last = newest.last
    for number, copy in enumerate(copies):
        if last is None or copy is newest:
            continue
        name = _copy_name(number)
        if copy.last is None:
            if await _was_being_written(copy, last, device):
                report.notes.append(f"{name} was cut off by a crash")
            else:
                find(number, f"it is damaged: {copy.trouble}")
        elif last.number - copy.last.number > _RECORDS_UNFLUSHED_MAX:
            find(number, f"it ends {last.number - copy.last.number} records early")
        elif last.clean and copy.last.number != last.number:
            report.notes.append(f"{name} was cut off by a crash")


async def _was_being_written(copy: CopyState, newest: Record, device: Device) -> bool:
    """Whether a crash explains that a copy is not whole: its log was being started afresh.

    Then it says so (superblock.I4), or its own first record, of which the head may be torn, is the
    next one. A log that begins with a number older than what the other ends with has not been
    touched: it is damaged.
    """
    if copy.given_up or device.write_pointer(copy.start) == 0:
        return True
    try:
        data = await device.read(copy.start, limits.BLOCK_BYTES)
    except DeviceError:
        return False
    return is_headed(data, newest.number + 1)


def _are_of_one_store(copy: Identity, identity: Identity) -> bool:
    """Whether both may stand in copies of one superblock: a crash may leave two sizes."""
    size_bytes, extent_count = identity.device_bytes, identity.extent_count
    return replace(copy, device_bytes=size_bytes, extent_count=extent_count) == identity


def _copy_name(number: int) -> str:
    return f"the {('first', 'second')[number]} superblock copy"
