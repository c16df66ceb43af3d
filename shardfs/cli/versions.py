"""The option that prints the version.

Role: looks the version up when it is asked for; that takes longer than everything else that a
command needs to say something.

Not here: the version (shardfs/__init__.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def version_option(*names: str) -> Callable[[_Command], _Command]:
    """The option, by these names."""
    return click.option(
        *names,
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show,
        help="Show the version and exit.",
    )


def _show(context: click.Context, _option: click.Parameter, is_wished: bool) -> None:
    if is_wished and not context.resilient_parsing:
        from shardfs import __version__

        click.echo(f"shardfs {__version__}")
        context.exit()
