"""Examples of how a command is used, for its --help and its page in the manual.

Role: one way to write them, so that all look alike: `@examples` above `@click.command()`.

Not here: the manual's pages (cli/manual.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import click

C = TypeVar("C", bound=click.Command)

_HEADING: Final = "Examples:"
_WIDTH_MAX: Final = 46


def examples(lines: Mapping[str, str]) -> Callable[[C], C]:
    """Show these examples behind a command's help.

    Args:
        lines: command lines, and what each does in a few words.
    """
    width = min(_WIDTH_MAX, max(map(len, lines)))
    shown = [f"  {line:<{width}}  # {meaning}" for line, meaning in lines.items()]
    text = "\n".join(["\b", _HEADING, *shown])

    def decorate(command: C) -> C:
        command.epilog = f"{command.epilog}\n\n{text}" if command.epilog else text
        return command

    return decorate


def examples_of(command: click.Command) -> list[str]:
    """The lines that `examples` has given a command, as they are shown."""
    _, found, text = (command.epilog or "").partition(f"\b\n{_HEADING}\n")
    return [line.strip() for line in text.splitlines()] if found else []


def remarks_of(command: click.Command) -> str:
    """What else stands behind a command's help."""
    return (command.epilog or "").partition(f"\b\n{_HEADING}")[0].strip()
