"""Opens what the user wants to look at, whether it is whole or not.

Role: a target whose device may have lost parts of its tree or its end; what is lost is said on
standard error.

Not here: what can be opened (fuse/targets.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import click

from shardfs.cli.output import printable
from shardfs.fuse.targets import Target, open_target


@asynccontextmanager
async def look_at(name: str) -> AsyncIterator[Target]:
    """Open what the user named, for reading.

    Raises:
        ShardfsError: see open_target.
    """
    async with open_target(name, tolerant=True) as target:
        for note in target.notes:
            click.echo(f"shardfs: note: {printable(note)}", err=True)
        yield target
