"""The `shardfs salvage` command: brings files back from a device that can not be opened any more.

Role: scans the whole device, read-only, and writes what it finds into a directory elsewhere.

Not here: what is found and what counts (engine/salvage.py, fuse/frame_index.py, fuse/salvage.py).
"""

from __future__ import annotations

import os
import uuid
from dataclasses import asdict
from functools import partial
from typing import Any

import click
import trio

from shardfs.cli.errors import FINDING, SUCCESS
from shardfs.cli.examples import examples
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_json, printable, size_text
from shardfs.cli.progress import progress
from shardfs.cli.unmounted import unmounted_device
from shardfs.engine.block_device import open_device
from shardfs.engine.device import Device
from shardfs.engine.recovery import read_superblock
from shardfs.engine.salvage import scan_device
from shardfs.errors import ShardfsError, UsageError
from shardfs.fuse.frame_index import FrameIndex
from shardfs.fuse.salvage import DamagedFile, Salvager, SalvageReport


@examples(
    {
        "shardfs salvage /dev/sdb1 /mnt/other/rescued": "everything that frames still tell",
        "shardfs salvage broken.img rescued --deleted": "and what had been deleted",
    }
)
@click.command()
@click.argument("device", type=PATH)
@click.argument("outdir", type=PATH)
@click.option(
    "--store", "store_uuid", type=click.UUID, help="Take the frames of this store (its UUID)."
)
@click.option("--deleted", is_flag=True, help="Bring back what had been deleted, too.")
@json_option
def salvage(
    device: str, outdir: str, store_uuid: uuid.UUID | None, deleted: bool, as_json: bool
) -> int:
    """Rebuild files from the frames on DEVICE into OUTDIR, a new or empty directory.

    Needs neither superblock nor tree: every byte of the device is looked at. Changes nothing on
    it. Files without a name go to OUTDIR/lost+found. Bytes that do not match their checksums
    become zeros and are listed.

    Exit status 1 if a file is damaged, incomplete or without its name.
    """
    path = unmounted_device(device)
    _prepare(outdir)
    wanted = int.from_bytes(store_uuid.bytes[:8], "little") if store_uuid is not None else None
    report = trio.run(partial(_salvage, path, outdir, wanted, deleted))
    if as_json:
        print_json(_as_json(report))
    else:
        _print(device, outdir, report)
    return SUCCESS if report.is_whole and report.frames else FINDING


def _prepare(outdir: str) -> None:
    try:
        os.makedirs(outdir, exist_ok=True)
        with os.scandir(outdir) as entries:
            is_empty = next(entries, None) is None
    except OSError as error:
        raise UsageError(f"cannot write to {outdir}: {error.strerror}") from error
    if not is_empty:
        raise UsageError(f"{outdir} is not empty; name a new directory")


async def _salvage(path: str, outdir: str, wanted: int | None, deleted: bool) -> SalvageReport:
    device = open_device(path, read_only=True)
    try:
        if wanted is None:
            wanted = await _store_of(device)
        with FrameIndex(outdir) as index:
            with progress("looking for frames") as bar:
                async for found in scan_device(device, bar.show):
                    index.add(found)
            index.finish(wanted)
            with progress("writing files") as bar:
                return await Salvager(device, index, outdir, with_deleted=deleted).run(bar.show)
    finally:
        device.close()


async def _store_of(device: Device) -> int | None:
    """The store that the superblock names, if there still is one."""
    try:
        return (await read_superblock(device)).identity.store_id
    except ShardfsError:
        return None


def _print(device: str, outdir: str, report: SalvageReport) -> None:
    for file in report.damaged:
        click.echo(printable(_line(file)))
    if report.damaged_count > len(report.damaged):
        click.echo(f"and {report.damaged_count - len(report.damaged)} more")
    if report.unnamed:
        click.echo(f"{report.unnamed} without a name, in {outdir}/lost+found")
    if report.inexact:
        click.echo(
            f"{report.inexact} files had changed after their names were last written beside the "
            "data; their sizes may be off"
        )
    if report.deleted:
        click.echo(f"{report.deleted} deleted files left out (--deleted brings them back)")
    if not report.frames:
        click.echo(f"{device}: no frame of a shardfs is on it")
        return
    click.echo(
        f"{device}: {report.files} files ({size_text(report.bytes)}), {report.directories} "
        f"directories, {report.others} others in {outdir}; {report.damaged_count} damaged"
    )


def _line(file: DamagedFile) -> str:
    parts = [f"bytes {start} to {end - 1} are damaged" for start, end in file.ranges[:8]]
    if len(file.ranges) > len(parts):
        parts.append(f"{len(file.ranges) - len(parts)} more ranges")
    if file.missing_bytes:
        parts.append(f"{file.missing_bytes} bytes were not found")
    if file.error:
        parts.append(file.error)
    return f"{file.path}: {', '.join(parts)}"


def _as_json(report: SalvageReport) -> dict[str, Any]:
    return {**asdict(report), "whole": report.is_whole}
