"""The `shardfs doctor` command: is this machine ready, and this device.

Role: runs the checks, prints what they find and what to do.

Not here: the checks (cli/machine.py).
"""

from __future__ import annotations

from dataclasses import asdict

import click

from shardfs.cli import machine
from shardfs.cli.errors import FINDING, SUCCESS
from shardfs.cli.examples import examples
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_json, print_row

_WIDTHS = (8, 12)


@examples(
    {
        "shardfs doctor": "can file systems be mounted here",
        "shardfs doctor /dev/sdb1": "and can this device be used",
    }
)
@click.command()
@click.argument("device", type=PATH, required=False)
@json_option
def doctor(device: str | None, as_json: bool) -> int:
    """Check whether this machine can mount, and whether DEVICE can be formatted and mounted.

    Nothing is changed. Exit status 1 if something will not work; each such finding says what to
    do. Notes are worth knowing, no more.
    """
    checks = machine.machine_checks() + (machine.device_checks(device) if device else [])
    results = []
    for result in machine.run(checks):
        results.append(result)
        if not as_json:
            print_row((result.state, result.check, result.found), _WIDTHS)
            if result.advice:
                print_row(("", "", result.advice), _WIDTHS)
    is_ready = all(result.state != machine.FINDING for result in results)
    if as_json:
        print_json({"ready": is_ready, "checks": [asdict(result) for result in results]})
    return SUCCESS if is_ready else FINDING
