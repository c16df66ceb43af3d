"""Every command helps: --help shows an example that its own options understand.

Role: walks the tree of commands, so that a new one cannot be forgotten.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator

import click
import pytest

from shardfs.cli.examples import examples, examples_of
from shardfs.cli.main import group
from shardfs.cli.manual import MARK, manual, page, walk
from shardfs.cli.mount_helper import mount_device, unmount_mountpoint

COMMANDS = dict(walk(group, "shardfs"))


def example_calls(lines: list[str]) -> Iterator[list[str]]:
    """The calls of shardfs in examples, as words; what follows ">" is the shell's."""
    for line in lines:
        for part in line.partition("  # ")[0].replace("&&", "|").split("|"):
            words = shlex.split(part.partition(">")[0])
            while words and words[0] == "sudo":
                words.pop(0)
            if words and words[0].rpartition("/")[2] == "shardfs":
                yield words[1:]


def wrong_examples(name: str, command: click.Command) -> list[str]:
    """What is wrong with the examples of a command."""
    lines = examples_of(command)
    if not lines:
        return [f"{name}: no example; put @examples({{...}}) of cli/examples.py above it"]
    findings = [f"{name}: longer than 90 columns: {line}" for line in lines if len(line) > 90]
    found = False
    for words in example_calls(lines):
        try:
            at: click.Command = group
            path, rest = ["shardfs"], list(words)
            context = click.Context(group, info_name="shardfs")
            while isinstance(at, click.Group) and rest and rest[0] in at.commands:
                path.append(rest[0])
                at = at.commands[rest.pop(0)]
            at.make_context(at.name, rest, parent=context)
            found = found or " ".join(path).startswith(name)
        except click.ClickException as error:
            findings.append(f"{name}: {shlex.join(words)}: {error.format_message()}")
    return findings if found else [*findings, f"{name}: no example calls it"]


@pytest.mark.parametrize("name", COMMANDS)
def test_examples(name: str) -> None:
    assert wrong_examples(name, COMMANDS[name]) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_it_does(name: str) -> None:
    command = COMMANDS[name]
    assert command.help and command.help.splitlines()[0].rstrip().endswith((".", ":", ";")), name
    nameless = [
        each.opts for each in command.params if isinstance(each, click.Option) and not each.help
    ]
    assert nameless == [], f"{name}: options without help"


@pytest.mark.parametrize(
    ("lines", "is_good"),
    [
        ({"shardfs df": "one", "ls | sudo shardfs df --json >file": "another"}, True),
        ({}, False),
        ({"shardfs df": "one", "shardfs df --bogus": "an option that there is not"}, False),
        ({"shardfs info disk.img": "another command"}, False),
        ({"ls": "no shardfs at all"}, False),
        ({"shardfs df " + "x" * 90: "too long"}, False),
    ],
)
def test_a_bad_example_is_found(lines: dict[str, str], is_good: bool) -> None:
    command = click.Command("df", params=list(COMMANDS["shardfs df"].params))
    if lines:
        command = examples(lines)(command)
    assert (wrong_examples("shardfs df", command) == []) is is_good


HELPERS = (("mount.shardfs", mount_device), ("umount.shardfs", unmount_mountpoint))


def test_every_command_has_a_page() -> None:
    pages = manual(group, HELPERS)
    names = {f"{name.replace(' ', '-')}.1" for name in COMMANDS}
    assert set(pages) == names | {"mount.shardfs.8", "umount.shardfs.8"}
    for name, text in pages.items():
        assert MARK in text.splitlines()[0]
        headings = [line.removeprefix(".SH ") for line in text.splitlines() if line[:4] == ".SH "]
        wanted = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"]
        assert [each for each in headings if each in wanted] == wanted, name
        assert ("EXAMPLES" in headings) == name.endswith(".1"), name


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff here")
def test_pages_are_what_troff_reads() -> None:
    for name, text in manual(group, HELPERS).items():
        command = ["groff", "-man", "-Tutf8", "-ww", "-P-cbou"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        assert done.stderr == "", name
        assert "SYNOPSIS" in done.stdout


def test_nothing_in_a_text_is_a_command_of_troff() -> None:
    command = click.Command("odd", help=".so /etc/passwd\n\n'quoted' \\fB a-b.\n\nMore.")
    lines = page(command, "odd", 1).splitlines()
    assert "\\&.so /etc/passwd" in lines and "\\&'quoted' \\efB a\\-b." in lines
