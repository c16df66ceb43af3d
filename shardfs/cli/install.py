"""The `shardfs install` command: lets mount(8), fstab and systemd find shardfs.

Role: puts links to the helpers where mount(8) and umount(8) look, the unit where systemd looks,
pages where man(1) looks and completions where shells look; takes them away again.

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

from shardfs.cli.completion_scripts import completion_script
from shardfs.cli.examples import examples
from shardfs.cli.manual import MARK, manual
from shardfs.cli.mount_helper import mount_device, unmount_mountpoint
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
SHARE: Final = "usr/local/share"
COMPLETIONS: Final = {
    "bash": f"{SHARE}/bash-completion/completions/shardfs",
    "zsh": f"{SHARE}/zsh/site-functions/_shardfs",
    "fish": f"{SHARE}/fish/vendor_completions.d/shardfs.fish",
}
_MARK_WITHIN: Final = 200


@examples(
    {
        "sudo .venv/bin/shardfs install": "helpers, unit, completion, manual",
        "sudo shardfs install --remove": "take them away again",
    }
)
@click.command()
@click.option("--remove", is_flag=True, help="Take away what this command has put there.")
@click.option("--root", default="/", type=PATH, help="Directory that stands for /.")
@click.pass_context
def install(context: click.Context, remove: bool, root: str) -> None:
    """Let mount(8), /etc/fstab, systemd, man(1) and shells find shardfs.

    Afterwards `mount -t shardfs DEVICE DIRECTORY` works, lines of the type shardfs in /etc/fstab
    do, `systemctl start shardfs@NAME` mounts what /etc/shardfs/NAME.conf describes, `man shardfs`
    explains, and bash, zsh and fish complete commands.
    """
    scripts = Path(sys.argv[0]).absolute().parent
    links = {Path(root, place): scripts / name for place, name in LINKS.items()}
    texts = {
        Path(root, place): text
        for place, text in _texts(context.find_root().command, scripts / "shardfs").items()
    }
    for place in links:
        _require_own_link(place)
    for place in texts:
        _require_own_text(place)
    try:
        if remove:
            for place in (*links, *texts):
                place.unlink(missing_ok=True)
            return
        for place, script in links.items():
            _link(place, script)
        for place, text in texts.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        click.echo(str(Path(root, UNIT)))
        pages = len(texts) - len(COMPLETIONS) - 1
        click.echo(f"{pages} pages of the manual, and completion for {', '.join(COMPLETIONS)}")
    except PermissionError as error:
        raise UsageError(f"cannot write {error.filename}: run this as root") from error


def _texts(group: click.Command, command: Path) -> dict[str, str]:
    """The files to be written, by their place."""
    unit = _TEMPLATE.read_text(encoding="utf-8").replace("@SHARDFS@", str(command))
    helpers = (("mount.shardfs", mount_device), ("umount.shardfs", unmount_mountpoint))
    pages = {
        f"{SHARE}/man/man{name[-1]}/{name}": text for name, text in manual(group, helpers).items()
    }
    scripts = {place: completion_script(group, shell) for shell, place in COMPLETIONS.items()}
    return {UNIT: unit, **pages, **scripts}


def _require_own_link(place: Path) -> None:
    if not os.path.lexists(place):
        return
    if not place.is_symlink() or place.readlink().name not in LINKS.values():
        raise UsageError(f"{place} is there already and not ours; take it away first")


def _require_own_text(place: Path) -> None:
    if place.exists() and MARK not in place.read_text(errors="replace")[:_MARK_WITHIN]:
        raise UsageError(f"{place} is there already and not ours; take it away first")


def _link(place: Path, script: Path) -> None:
    if not os.access(script, os.X_OK):
        raise UsageError(f"there is no {script}: install shardfs with pip, then run this again")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(script)
    click.echo(f"{place} -> {script}")
