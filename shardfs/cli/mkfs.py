"""The `shardfs mkfs` command: makes an empty store, after asking whose the device is.

Role: every reason not to overwrite something, before the first byte is written.

Invariants:
    I1. A device that is mounted, held, or open elsewhere is never written, --force or not.
    I2. A device that carries anything known, and a file that is not empty, is written only
        with --force.
    I3. When it is refused nothing has been touched; an image file that could not be formatted
        is not left behind.

Not here: the geometry and the writing (engine/mkfs.py), the signatures (engine/probe.py).
"""

from __future__ import annotations

import os
import stat
from functools import partial

import click
import trio

from shardfs import limits
from shardfs.cli.examples import examples
from shardfs.cli.options import PATH, SIZE, json_option
from shardfs.cli.output import print_json, size_text
from shardfs.cli.progress import waiting
from shardfs.engine.block_device import BlockDevice, open_device
from shardfs.engine.images import create_image
from shardfs.engine.layout import FRAME_MAGIC, Kind
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.probe import Magic, probe, users_of
from shardfs.engine.superblock_record import Identity
from shardfs.errors import DeviceBusyError, UsageError
from shardfs.limits import EXTENT_BYTES_MAX, EXTENT_BYTES_MIN, MIB

_SUPERBLOCK_START = FRAME_MAGIC + bytes([Kind.SUPERBLOCK])
_CONTENT_BYTES_LOOKED_AT = 1 * MIB


@examples(
    {
        "shardfs mkfs /dev/sdb1 --label backup": "a whole disk or a partition",
        "shardfs mkfs disk.img --size 4G": "a new image file",
    }
)
@click.command()
@click.argument("device", type=PATH)
@click.option("--size", type=SIZE, help="Make a new image file of this size, like 512M or 4G.")
@click.option("--label", default="", help="A name of up to 64 bytes.")
@click.option(
    "--extent-size", type=SIZE, help="A power of two; chosen to suit the device if absent."
)
@click.option("--force", is_flag=True, help="Overwrite what the device carries.")
@json_option
def mkfs(
    device: str,
    size: int | None,
    label: str,
    extent_size: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Make an empty shardfs on DEVICE, a block device or an image file.

    Refuses a device that is mounted or in use; refuses one that carries something already unless
    --force is given.
    """
    if extent_size is not None and extent_size < limits.MOUNT_EXTENT_BYTES_MIN:
        raise UsageError(
            f"extents of {size_text(extent_size)} are too small for files; "
            f"take {size_text(limits.MOUNT_EXTENT_BYTES_MIN)} or more"
        )
    if os.path.lexists(device):
        if size is not None:
            raise UsageError(f"{device} exists already; --size is for a new image file")
        identity = _format_existing(device, label, extent_size, force)
    else:
        if size is None:
            raise UsageError(
                f"there is no {device}; to make a new image file, say how large: --size 1G"
            )
        identity = _format_new(device, size, label, extent_size)
    facts = {
        "device": os.path.realpath(device),
        "uuid": str(identity.uuid),
        "label": identity.label,
        "device_bytes": identity.device_bytes,
        "sector_bytes": identity.sector_bytes,
        "extent_bytes": identity.extent_bytes,
        "extent_count": identity.extent_count,
    }
    if as_json:
        print_json(facts)
    else:
        click.echo(
            f"{device}: shardfs {identity.uuid}, {size_text(identity.device_bytes)} in "
            f"{identity.extent_count} extents of {size_text(identity.extent_bytes)}"
        )


def _format_new(path: str, size: int, label: str, extent_size: int | None) -> Identity:
    plan(size, 512, label=label, extent_bytes=extent_size)  # raises before the file exists
    create_image(path, size)
    try:
        device = open_device(path)
        try:
            return _format(device, label, extent_size)
        finally:
            device.close()
    except BaseException:  # interrupted too: the file was made for this alone
        os.unlink(path)
        raise


def _format_existing(path: str, label: str, extent_size: int | None, force: bool) -> Identity:
    users = users_of(path)
    if users:
        raise DeviceBusyError(f"{path} is in use: {users[0]}; free it first (--force does not)")
    device = open_device(path)
    try:
        if device.read_only:
            raise UsageError(f"{path} is write-protected; nothing can be made on it")
        plan(device.size_bytes, device.sector_bytes, label=label, extent_bytes=extent_size)
        if not force:
            _require_unused(device)
        return _format(device, label, extent_size)
    finally:
        device.close()


def _format(device: BlockDevice, label: str, extent_size: int | None) -> Identity:
    identity = plan(device.size_bytes, device.sector_bytes, label=label, extent_bytes=extent_size)
    trio.run(partial(_write, device, identity))
    return identity


async def _write(device: BlockDevice, identity: Identity) -> None:
    async with waiting("formatting"):
        await format_device(device, identity)


def _require_unused(device: BlockDevice) -> None:
    found = probe(device.read_blocking, device.size_bytes, _own_magics())
    if found:
        names = ", ".join(dict.fromkeys(signature.name for signature in found))
        raise UsageError(
            f"{device.path} carries {names} (at byte {found[0].offset}); "
            "to lose what is on it for good, use --force"
        )
    if stat.S_ISREG(os.stat(device.path).st_mode):
        length = min(_CONTENT_BYTES_LOOKED_AT, device.size_bytes)
        for offset in (0, device.size_bytes - length):
            if any(device.read_blocking(offset, length)):
                raise UsageError(
                    f"{device.path} is a file with content; to overwrite it, use --force"
                )


def _own_magics() -> list[Magic]:
    """Both superblock copies: the second stands at the first extent's end, wherever that is."""
    magics = [Magic("shardfs", 0, _SUPERBLOCK_START)]
    size = EXTENT_BYTES_MIN
    while size <= EXTENT_BYTES_MAX:
        magics.append(Magic("shardfs", size, _SUPERBLOCK_START))
        size *= 2
    return magics
