"""The `shardfs install` command: lets mount(8), fstab and systemd find shardfs.

Role: puts links to the helpers where mount(8) and umount(8) look, and the unit where systemd
looks; takes them away again.

Invariants:
    I1. Nothing that was not put there by this command is changed or removed.

Not here: the helpers (cli/mount_helper.py).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import click

from shardfs.cli.examples import examples
from shardfs.cli.options import PATH
from shardfs.errors import UsageError

LINKS: Final = {
    "sbin/mount.shardfs": "mount.shardfs",
    "sbin/mount.fuse.shardfs": "mount.shardfs",
    "sbin/umount.fuse.shardfs": "umount.shardfs",
}
"""Where a link goes, and the script it leads to. The kernel calls the type fuse.shardfs."""
UNIT: Final = "etc/systemd/system/shardfs@.service"
_TEMPLATE: Final = Path(__file__).with_name("shardfs@.service")
_MARK: Final = "# Made by `shardfs install`."


@examples(
    {
        "sudo .venv/bin/shardfs install": "helpers, unit, completion, manual",
        "sudo shardfs install --remove": "take them away again",
    }
)
@click.command()
@click.option("--remove", is_flag=True, help="Take away what this command has put there.")
@click.option("--root", default="/", type=PATH, help="Directory that stands for /.")
def install(remove: bool, root: str) -> None:
    """Let mount(8), /etc/fstab and systemd find shardfs: links in /sbin, and a unit.

    Afterwards `mount -t shardfs DEVICE DIRECTORY` works, lines of the type shardfs in /etc/fstab
    do, and `systemctl start shardfs@NAME` mounts what /etc/shardfs/NAME.conf describes.
    """
    scripts = Path(sys.argv[0]).absolute().parent
    links = {Path(root, place): scripts / name for place, name in LINKS.items()}
    unit = Path(root, UNIT)
    for place in links:
        _require_own_link(place)
    _require_own_unit(unit)
    try:
        if remove:
            for place in (*links, unit):
                place.unlink(missing_ok=True)
            return
        for place, script in links.items():
            _link(place, script)
        _write_unit(unit, scripts / "shardfs")
    except PermissionError as error:
        raise UsageError(f"cannot write {error.filename}: run this as root") from error


def _require_own_link(place: Path) -> None:
    if not os.path.lexists(place):
        return
    if not place.is_symlink() or place.readlink().name not in LINKS.values():
        raise UsageError(f"{place} is there already and not ours; take it away first")


def _require_own_unit(place: Path) -> None:
    if place.exists() and not place.read_text(errors="replace").startswith(_MARK):
        raise UsageError(f"{place} is there already and not ours; take it away first")


def _link(place: Path, script: Path) -> None:
    if not os.access(script, os.X_OK):
        raise UsageError(f"there is no {script}: install shardfs with pip, then run this again")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(script)
    click.echo(f"{place} -> {script}")


def _write_unit(place: Path, command: Path) -> None:
    text = _TEMPLATE.read_text(encoding="utf-8").replace("@SHARDFS@", str(command))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding="utf-8")
    click.echo(str(place))
