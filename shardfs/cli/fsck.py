"""The `shardfs fsck` command: verifies every structure of a store and of the files in it.

Role: opens a device read-only, checks, prints. Never needed for mounting, never repairs.

Not here: what is checked (engine/fsck.py and fuse/fsck.py list it by number).
"""

from __future__ import annotations

import os
from dataclasses import asdict
from functools import partial
from typing import Any

import click
import trio

from shardfs.cli.errors import FINDING, SUCCESS
from shardfs.cli.examples import examples
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_json, printable, size_text
from shardfs.cli.progress import waiting
from shardfs.engine.block_device import open_device
from shardfs.engine.findings import Finding, Report
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, DeviceBusyError, UsageError
from shardfs.fuse.fsck import check_all
from shardfs.fuse.mounts import mounts_of


@examples(
    {
        "shardfs fsck /dev/sdb1": "every structure",
        "shardfs fsck disk.img --data": "every byte as well",
    }
)
@click.command()
@click.argument("device", type=PATH)
@click.option("--data", is_flag=True, help="Verify every checksum too; reads all data.")
@json_option
def fsck(device: str, data: bool, as_json: bool) -> int:
    """Verify the store on DEVICE, which must not be mounted. Changes nothing.

    Exit status 1 if anything is found. A crash is no finding: what it left is recovered in memory
    and then verified.
    """
    if not os.path.lexists(device):
        raise UsageError(f"there is no {device}")
    mounted = mounts_of(device)
    if mounted:
        raise DeviceBusyError(
            f"{device} is mounted at {mounted[0].mountpoint}; unmount it first: "
            f"shardfs umount {mounted[0].mountpoint}"
        )
    report = trio.run(partial(_check, os.path.realpath(device), data))
    if as_json:
        print_json(_as_json(report))
    else:
        _print(device, report, data)
    return SUCCESS if report.is_clean else FINDING


async def _check(path: str, data: bool) -> Report:
    device = open_device(path, read_only=True)
    try:
        options = StoreOptions(read_only=True, background=False)
        async with Store.open(device, options=options) as store:
            async with waiting("verifying"):
                report = await check_all(store, data=data)
            report.notes[:0] = [note for note in store.notes if note not in report.notes]
            return report
    except CorruptionError as error:
        report = Report()
        report.add(Finding("E0", f"it cannot be opened: {error}"))
        return report
    finally:
        device.close()


def _print(device: str, report: Report, data: bool) -> None:
    for finding in report.findings:
        click.echo(printable(str(finding)))
    if report.finding_count > len(report.findings):
        click.echo(f"and {report.finding_count - len(report.findings)} more")
    for note in report.notes:
        click.echo(f"note: {printable(note)}")
    counts = report.counts
    looked_at = (
        f"{counts.get('inodes', 0)} inodes, {counts.get('names', 0)} names, "
        f"{counts.get('shards', 0)} shards, {counts.get('chunks', 0)} chunks"
    )
    if data:
        looked_at += f", {size_text(counts.get('data_bytes', 0))} of data"
    verdict = "clean" if report.is_clean else f"{report.finding_count} findings"
    click.echo(f"{device}: {verdict} ({looked_at})")


def _as_json(report: Report) -> dict[str, Any]:
    findings = []
    for finding in report.findings:
        values = asdict(finding)
        values["key"] = finding.key.hex() if finding.key is not None else None
        findings.append(values)
    return {
        "clean": report.is_clean,
        "finding_count": report.finding_count,
        "findings": findings,
        "notes": report.notes,
        "counts": report.counts,
    }
