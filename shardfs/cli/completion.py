"""The `shardfs completion` command: lets a shell complete commands, options and paths.

Role: prints the script for a shell, which asks the shardfs command itself what could follow.

Not here: the scripts (cli/completion_scripts.py), putting them where shells look (cli/install.py).
"""

from __future__ import annotations

import click

from shardfs.cli.completion_scripts import SHELLS, completion_script
from shardfs.cli.examples import examples


@examples(
    {
        'eval "$(shardfs completion bash)"': "in this shell",
        "shardfs completion fish >~/.config/fish/completions/shardfs.fish": "for ever",
    }
)
@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that lets SHELL complete what belongs to shardfs.

    `shardfs install` puts it where every user's shell finds it.
    """
    click.echo(completion_script(context.find_root().command, shell), nl=False)
