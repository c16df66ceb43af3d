"""The `shardfs shrink` command: a store gives up the end of its device.

Role: asks for one step after the other, shows how far it has come, prints the result.

Invariants:
    I1. Interrupting it, or killing it, leaves the store at its old size or at the new one.

Not here: what it does (engine/resizing.py).
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any, Final

import click
import trio

from shardfs.cli.options import PATH, SIZE, json_option
from shardfs.cli.output import print_resized, size_text
from shardfs.fuse.targets import open_target

_PLAIN_PROGRESS_SECONDS: Final = 10.0


@click.command()
@click.argument("target", type=PATH)
@click.option("--size", type=SIZE, required=True, help="The new size.")
@json_option
def shrink(target: str, size: int, as_json: bool) -> None:
    """Make the store on TARGET --size bytes large, moving what lies behind that.

    TARGET is a block device or image file, or the mount point of a mount, which goes on meanwhile.
    An image file is cut off at its new end; a block device can be made smaller afterwards. Nothing
    is changed if what is stored would not fit. When it is interrupted, the store keeps its size.
    """
    print_resized(target, trio.run(partial(_shrink, target, size)), as_json=as_json)


async def _shrink(target: str, size: int) -> dict[str, Any]:
    async with open_target(target, change=True) as opened:
        begun = await opened.conversation.answer({"request": "shrink-begin", "size": size})
        line = _ProgressLine(begun["total_bytes"])
        while True:
            answer = await opened.conversation.answer({"request": "shrink-more"})
            line.show(answer["left_bytes"])
            if answer["result"] is not None:
                line.end()
                return {**answer["result"], "moved_bytes": answer["total_bytes"]}


class _ProgressLine:
    """One line on standard error that is kept current; without a terminal, one now and then."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._shown_at = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def show(self, left_bytes: int) -> None:
        """So much is still to be moved."""
        text = f"moving {size_text(self._total_bytes)}: {size_text(left_bytes)} left"
        if self._is_terminal:
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)
        elif time.monotonic() >= self._shown_at + _PLAIN_PROGRESS_SECONDS:
            self._shown_at = time.monotonic()
            click.echo(text, err=True)

    def end(self) -> None:
        """Leave a clean line."""
        if self._is_terminal:
            click.echo("\r\x1b[K", err=True, nl=False)
