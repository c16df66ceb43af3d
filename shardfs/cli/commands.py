"""The commands, by name: what each is for, in a line, and which module has it.

Role: the group loads a command when it is run or asked for, since all of them together load the
whole file system. `shardfs --help`, its version, and what a shell completes need none.

Invariants:
    I1. A name's line fits a terminal of 80 columns, behind the longest name.

Not here: the group's own options (cli/main.py), what the commands do, one module each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

SECTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "Disks and mounts": {
        "mkfs": "Make an empty store on a device or in an image file.",
        "mount": "Mount a device as a directory.",
        "umount": "Unmount; returns when everything is durable.",
        "install": "Let mount(8), fstab, systemd, man and shells find shardfs.",
        "doctor": "Check whether this machine and a device are ready.",
        "grow": "Let a store use more of its device.",
        "shrink": "Make a store smaller, moving what is behind its new end.",
        "trim": "Tell a device which of its space is free.",
    },
    "What is on a disk": {
        "info": "Identity, size, health and options of a store.",
        "df": "Where the bytes are: live, garbage, free, metadata, reserved.",
        "tree": "The tree of files, without mounting.",
        "cp-out": "Copy files out of a device, without mounting.",
        "shards": "List, explain, print and verify shards.",
        "extents": "A map of the disk: kinds, live and garbage shares.",
        "map": "From a file to its shards, chunks and device bytes.",
        "whereis": "From a device byte or sector to its file.",
        "why": "Why an extent is not free, and which files are in it.",
        "lsm": "The tree of metadata: levels, runs, debt, amplification.",
        "inspect": "Structures of the device as fields.",
    },
    "Safe on the disk": {
        "pending": "Which files a power cut would set back now.",
        "sync": "Make everything durable, or wait for a file.",
    },
    "A mount at work": {
        "top": "Watch requests, latencies, caches, flushes, debts.",
        "stat": "Counters of a mount, also for Prometheus.",
        "trace": "Every request of the kernel as it is answered.",
        "gc": "What collecting garbage would give back; and do it.",
    },
    "Damage": {
        "fsck": "Verify an unmounted store; --repair mends it.",
        "scrub": "Verify a mount in the background.",
        "undelete": "Deleted files that are still on a device.",
        "salvage": "Rebuild files from a device that has lost its tree.",
    },
    "Shardfs itself": {
        "check": "Check this build against its specification.",
        "completion": "Print what lets a shell complete shardfs.",
    },
}
"""What --help shows, in this order."""
VARIABLE: Final = "_SHARDFS_COMPLETE"
"""In the environment of a shardfs that a shell asks what could follow."""
_PLACES: Final = {"map": "map.map_file"}
"""Module and name, where they are not both the command's."""


class Commands(MutableMapping[str, click.Command]):
    """Every command by its name; loads one when it is asked for."""

    def __init__(self) -> None:
        self.lines = {name: line for each in SECTIONS.values() for name, line in each.items()}
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded and name in self.lines:
            own = name.replace("-", "_")
            module, _, attribute = _PLACES.get(name, f"{own}.{own}").partition(".")
            command: click.Command = getattr(import_module(f"shardfs.cli.{module}"), attribute)
            command.short_help = self.lines[name]
            self._loaded[name] = command
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command
        self.lines.setdefault(name, command.get_short_help_str())

    def __delitem__(self, name: str) -> None:
        del self.lines[name]
        self._loaded.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self.lines  # the inherited one would load it

    def __iter__(self) -> Iterator[str]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)


class LazyGroup(click.Group):
    """The group of all commands. Shows and completes their names without loading them."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._all = Commands()
        self.commands = self._all

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands for --help, section by section."""
        width = max(map(len, self._all))
        for title, lines in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), line) for name, line in lines.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """What could follow on a command line."""
        names = [
            CompletionItem(name, help=line)
            for name, line in sorted(self._all.lines.items())
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)
