"""Scripts that let shells complete what belongs to shardfs.

Role: the script of each shell, which asks the shardfs command itself what could follow.

Not here: answering that (click, cli/main.py).
"""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import ShellComplete, get_completion_class

from shardfs.cli.commands import VARIABLE
from shardfs.cli.manual import MARK

SHELLS: Final = ("bash", "zsh", "fish")


def completion_script(group: click.Command, shell: str) -> str:
    """The script for a shell."""
    kind = get_completion_class(shell)
    assert kind is not None, f"click knows {shell}"
    # Not the class's own: that of bash runs bash to look at its version.
    script = ShellComplete.source(kind(group, {}, "shardfs", VARIABLE)).strip("\n")
    first, _, rest = script.partition("\n")
    # zsh wants its first line where it is.
    lines = [first, f"# {MARK}", rest, ""] if shell == "zsh" else [f"# {MARK}", script, ""]
    return "\n".join(lines)
