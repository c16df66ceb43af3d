"""The `shardfs fsck` command: verifies every structure of a store and of the files in it.

Role: opens a device read-only, checks, prints; repairs when asked to. Never needed for mounting.

Not here: what is checked (engine/fsck.py and fuse/fsck.py list it by number), how it is repaired
(fuse/repair.py).
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from itertools import groupby
from typing import Any

import click
import trio

from shardfs.cli.errors import FINDING, SUCCESS
from shardfs.cli.examples import examples
from shardfs.cli.interrupting import run_until_interrupted
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_json, print_line, printable, size_text
from shardfs.cli.progress import progress, waiting
from shardfs.cli.unmounted import unmounted_device
from shardfs.engine.block_device import open_device
from shardfs.engine.findings import Finding, Report
from shardfs.errors import UsageError
from shardfs.fuse.repair import (
    check_device,
    needs_salvage,
    remedy,
    repair_device,
)
from shardfs.fuse.repair_report import Action, LostRange, RepairReport

_ALIKE_MAX = 3


@examples(
    {
        "shardfs fsck /dev/sdb1": "every structure",
        "shardfs fsck disk.img --data": "every byte as well",
        "shardfs fsck disk.img --repair": "mend what is found",
    }
)
@click.command()
@click.argument("device", type=PATH)
@click.option("--data", is_flag=True, help="Verify every checksum too; reads all data.")
@click.option("--repair", is_flag=True, help="Mend what is found; verifies all data.")
@click.option(
    "--delete-damaged", is_flag=True, help="With --repair: delete the files that have lost data."
)
@json_option
def fsck(device: str, data: bool, repair: bool, delete_damaged: bool, as_json: bool) -> int:
    """Verify the store on DEVICE, which must not be mounted. Without --repair it changes nothing.

    A crash is no finding: what it left is recovered in memory and then verified.

    --repair may be interrupted at any time and begun again. Data that cannot be read any more is
    recorded as lost: reading it is an error, never zeros. Files without a name go to /lost+found.

    Exit status 1 if anything is found; with --repair, if anything is left or was lost.
    """
    if delete_damaged and not repair:
        raise UsageError("--delete-damaged goes with --repair")
    path = unmounted_device(device)
    if repair:
        report = run_until_interrupted(partial(_repair, path, delete_damaged))
        if as_json:
            print_json(_repaired_as_json(report))
        else:
            _print_repaired(device, report)
        return SUCCESS if report.is_whole else FINDING
    found = trio.run(partial(_check, path, data))
    if as_json:
        print_json(_as_json(found))
    else:
        _print(device, found, data)
    return SUCCESS if found.is_clean else FINDING


async def _check(path: str, data: bool) -> Report:
    device = open_device(path, read_only=True)
    try:
        async with waiting("verifying"):
            report, notes = await check_device(device, data=data)
        report.notes[:0] = [note for note in notes if note not in report.notes]
        return report
    finally:
        device.close()


async def _repair(path: str, delete_damaged: bool) -> RepairReport:
    device = open_device(path, read_only=False)
    try:
        with progress("checking") as bar:

            def show(text: str, done: int, total: int) -> None:
                bar.show(done, total or None, text)

            return await repair_device(device, delete_damaged=delete_damaged, show=show)
    finally:
        device.close()


# --- for people -----------------------------------------------------------------------------------


def _print(device: str, report: Report, data: bool) -> None:
    for what_helps, findings in groupby(report.findings, remedy):
        for finding in findings:
            print_line(printable(str(finding)))
        print_line(f"    repair would {what_helps}")
    if report.finding_count > len(report.findings):
        print_line(f"and {report.finding_count - len(report.findings)} more")
    _print_verdict(device, report, data)
    if needs_salvage(report):
        print_line(f"bring the files elsewhere with: shardfs salvage {device} DIRECTORY")
    elif not report.is_clean:
        print_line(f"mend it with: shardfs fsck --repair {device}")


def _print_verdict(device: str, report: Report, data: bool) -> None:
    for note in report.notes:
        print_line(f"note: {printable(note)}")
    counts = report.counts
    looked_at = (
        f"{counts.get('inodes', 0)} inodes, {counts.get('names', 0)} names, "
        f"{counts.get('shards', 0)} shards, {counts.get('chunks', 0)} chunks"
    )
    if data:
        looked_at += f", {size_text(counts.get('data_bytes', 0))} of data"
    if counts.get("lost_bytes"):
        looked_at += f"; {size_text(counts['lost_bytes'])} recorded as lost"
    verdict = "clean" if report.is_clean else _findings(report.finding_count)
    print_line(f"{device}: {verdict} ({looked_at})")


def _print_repaired(device: str, report: RepairReport) -> None:
    for finding in report.before.findings:
        print_line(printable(str(finding)))
    if report.before.finding_count > len(report.before.findings):
        print_line(f"and {report.before.finding_count - len(report.before.findings)} more")
    if report.is_rebuilt:
        print_line("a new tree was written")
    _print_actions(report)
    for lost in report.lost:
        print_line(printable(f"LOST: {_name(lost)} bytes {lost.start} to {lost.end - 1}"))
    for path in report.deleted:
        print_line(printable(f"DELETED: {path}"))
    for finding in report.after.findings:
        print_line(printable(f"LEFT: {finding}"))
    _print_verdict(device, report.after, True)


def _print_actions(report: RepairReport) -> None:
    """What was done; of what was done to many, a few and their number."""
    groups: dict[str, list[Action]] = {}
    for action in report.actions:
        groups.setdefault(action.what, []).append(action)
    for what, actions in groups.items():
        few = actions if len(actions) <= 2 * _ALIKE_MAX else actions[:_ALIKE_MAX]
        for action in few:
            who = f"{action.path or f'inode {action.ino}'}: " if action.ino is not None else ""
            print_line(printable(f"{who}{what}"))
        if len(few) < len(actions):
            print_line(f"and {len(actions) - len(few)} more: {what}")
    if report.action_count > len(report.actions):
        print_line(f"and {report.action_count - len(report.actions)} other things")


def _name(lost: LostRange) -> str:
    return lost.path if lost.path is not None else f"inode {lost.ino}"


# --- for programs ---------------------------------------------------------------------------------


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "clean": report.is_clean,
        "finding_count": report.finding_count,
        "findings": list(map(_finding_as_json, report.findings)),
        "notes": report.notes,
        "counts": report.counts,
    }


def _findings(count: int) -> str:
    return "1 finding" if count == 1 else f"{count} findings"


def _finding_as_json(finding: Finding) -> dict[str, Any]:
    values = asdict(finding)
    values["key"] = finding.key.hex() if finding.key is not None else None
    values["repair"] = remedy(finding)
    return values


def _repaired_as_json(report: RepairReport) -> dict[str, Any]:
    return {
        **_as_json(report.after),
        "repair": {
            "whole": report.is_whole,
            "rebuilt": report.is_rebuilt,
            "finding_count": report.before.finding_count,
            "findings": list(map(_finding_as_json, report.before.findings)),
            "action_count": report.action_count,
            "actions": list(map(asdict, report.actions)),
            "lost_bytes": report.lost_bytes,
            "lost": list(map(asdict, report.lost)),
            "deleted": report.deleted,
        },
    }
