"""Pages of the manual, made from the commands themselves.

Role: what --help says of a command, as the text of a man(7) page; one page a command.

Not here: the texts (the commands), where pages are put (cli/install.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Final

import click

from shardfs import __version__
from shardfs.cli.examples import examples_of, remarks_of

MARK: Final = "Made by `shardfs install`."
"""In everything that `shardfs install` writes, so that it knows its own."""
_STATUSES: Final = (
    ("0", "success"),
    ("1", "something is damaged or has failed: a finding"),
    ("2", "the request was wrong, or cannot be done as asked"),
    ("130", "interrupted"),
)
_HELPER_STATUSES: Final = (
    ("0", "success"),
    ("1", "wrong call, or no permission"),
    ("2", "the system lacks something"),
    ("4", "a bug"),
    ("8", "interrupted"),
    ("32", "the mount, or its end, failed"),
)


def walk(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """The command and all below it, each with its whole name."""
    yield name, command
    for word, below in sorted(getattr(command, "commands", {}).items()):
        yield from walk(below, f"{name} {word}")


def manual(group: click.Command, helpers: Sequence[tuple[str, click.Command]]) -> dict[str, str]:
    """The pages by their file names, such as "shardfs-mkfs.1".

    Args:
        group: the shardfs command.
        helpers: names and commands of what mount(8) calls, for section 8.
    """
    pages = {
        f"{name.replace(' ', '-')}.1": page(command, name, 1)
        for name, command in walk(group, "shardfs")
    }
    return pages | {f"{name}.8": page(command, name, 8) for name, command in helpers}


def page(command: click.Command, name: str, section: int) -> str:
    """The page of one command."""
    context = click.Context(command, info_name=name, help_option_names=["-h", "--help"])
    title = name.replace(" ", "-")
    first, *others = _paragraphs(command.help or "")
    lines = [
        f'.\\" {MARK}',
        f'.TH {_plain(title.upper())} {section} "" "shardfs {__version__}" "shardfs"',
        ".SH NAME",
        f"{_plain(title)} \\- {_plain(_without_stop(first))}",
        ".SH SYNOPSIS",
        f".B {_plain(name)}",
        _plain(" ".join(command.collect_usage_pieces(context))),
        ".SH DESCRIPTION",
        _plain(first),
    ]
    remarks = remarks_of(command)
    for paragraph in [*others, *([remarks] if remarks else [])]:
        lines += [".PP", _plain(paragraph)]
    options = [
        record
        for each in command.get_params(context)
        if isinstance(each, click.Option) and (record := each.get_help_record(context))
    ]
    if options:
        lines.append(".SH OPTIONS")
        for flags, text in options:
            lines += [".TP", f"\\fB{_plain(flags)}\\fR", _plain(text)]
    below = sorted(getattr(command, "commands", {}).items())
    if below:
        lines.append(".SH COMMANDS")
        for word, each in below:
            text = _without_stop(_paragraphs(each.help or "")[0])
            lines += [".TP", f"\\fB{_plain(title)}\\-{_plain(word)}\\fR(1)", _plain(text)]
    shown = examples_of(command)
    if shown:
        lines += [".SH EXAMPLES", ".nf", *map(_plain, shown), ".fi"]
    lines.append(".SH EXIT STATUS")
    for status, text in _STATUSES if section == 1 else _HELPER_STATUSES:
        lines += [".TP", f"\\fB{status}\\fR", _plain(text)]
    lines += [".SH SEE ALSO", _see_also(name, section)]
    return "\n".join(lines) + "\n"


def _see_also(name: str, section: int) -> str:
    if section == 8:
        return "\\fBshardfs\\-mount\\fR(1), \\fBshardfs\\-install\\fR(1), \\fBmount\\fR(8)"
    above = name.rpartition(" ")[0].replace(" ", "-")
    return f"\\fB{_plain(above)}\\fR(1)" if above else "\\fBmount.shardfs\\fR(8)"


def _paragraphs(text: str) -> list[str]:
    """The paragraphs of a help text, each on one line."""
    cleaned = inspect.cleandoc(text).replace("\b", "")
    return [" ".join(each.split()) for each in cleaned.split("\n\n") if each.strip()] or [""]


def _without_stop(text: str) -> str:
    """The first sentence, as a name's explanation."""
    return text.partition(". ")[0].rstrip(".:")


def _plain(text: str) -> str:
    """A text that troff prints as it is."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
