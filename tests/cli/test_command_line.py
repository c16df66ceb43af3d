"""The command's small parts: sizes, options, what is printed, and what errors become."""

from __future__ import annotations

import errno
import json
import logging
import os

import click
import pytest

from shardfs.cli import main
from shardfs.cli.errors import describe, exit_status, report
from shardfs.cli.options import SIZE
from shardfs.cli.output import (
    print_facts,
    print_json,
    print_row,
    printable,
    size_text,
    time_text,
)
from shardfs.cli.stat import figure_text
from shardfs.errors import (
    CorruptionError,
    DeviceBusyError,
    DeviceError,
    NotShardfsError,
    RemoteError,
    UsageError,
)
from shardfs.fuse.control import answer_line
from shardfs.fuse.shard_requests import parse_shard_id


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("4k", 4096),
        ("1M", 1 << 20),
        ("512MiB", 512 << 20),
        ("3 G", 3 << 30),
        ("2TB", 2 << 40),
        ("1p", 1 << 50),
    ],
)
def test_sizes(text: str, length: int) -> None:
    assert SIZE.convert(text, None, None) == length


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-1", "1Q", "0x10", "1 M M", "١M x"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size"):
        SIZE.convert(text, None, None)


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (1 << 30, "1 GiB"),
        (5 << 60, "5 EiB"),
        (1 << 71, "2048 EiB"),
    ],
)
def test_size_text(length: int, text: str) -> None:
    assert size_text(length) == text


def test_times_are_utc() -> None:
    assert time_text(86_400 * 10**9) == "1970-01-02 00:00:00 UTC"


def test_nothing_printed_controls_a_terminal() -> None:
    assert printable("plain ä") == "plain ä"
    assert printable("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert printable(b"\xff".decode("utf-8", "surrogateescape")) == "\\xff"


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("a", "1"), ("longer", "2"), ("empty", "")])
    print_row(("x", "7", "rest of it"), (3, -4))
    print_json({"name": "ä\udcff"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["a       1", "longer  2", "empty", "x       7  rest of it"]
    assert json.loads("\n".join(lines[4:])) == {"name": "ä\udcff"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("x"), 2),
        (NotShardfsError("x"), 2),
        (DeviceBusyError("x"), 2),
        (click.UsageError("x"), 2),
        (CorruptionError("x"), 1),
        (DeviceError("read", 0, 1, 5), 1),
        (OSError(2, "No such file", "name"), 1),
        (KeyError("x"), 1),
        (KeyboardInterrupt(), 130),
        (RemoteError("x", "CorruptionError"), 1),
        (RemoteError("x", "UsageError"), 2),
        (RemoteError("x", ""), 1),
        (ExceptionGroup("g", [ExceptionGroup("g", [UsageError("x")])]), 2),
        (ExceptionGroup("g", [UsageError("x"), CorruptionError("y")]), 1),
        (ExceptionGroup("g", [UsageError("x"), KeyError("y")]), 1),
    ],
    ids=repr,
)
def test_exit_status(error: BaseException, status: int) -> None:
    assert exit_status(error) == status


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(CorruptionError("two\nlines", "extent 7"), verbose=False) == 1
    assert capsys.readouterr().err == "shardfs: extent 7: two lines\n"
    assert describe(OSError(2, "No such file", "name")) == "name: No such file"


def test_the_unexpected_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHARDFS_DEBUG", raising=False)
    error = KeyError("a bug")
    assert report(error, verbose=False) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "unexpected KeyError: 'a bug'" in text
    for verbose in (True, False):
        monkeypatch.setenv("SHARDFS_DEBUG", "1")
        report(error, verbose=verbose)
        text = capsys.readouterr().err
        assert text.splitlines()[-1].startswith("shardfs: ") and "KeyError: 'a bug'" in text
        assert text.count("\n") > 1


def test_a_bug_in_a_command_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(name: str) -> None:
        raise RuntimeError("planted")

    monkeypatch.delenv("SHARDFS_DEBUG", raising=False)
    monkeypatch.setattr("shardfs.cli.info._ask", broken)
    handlers = list(logging.getLogger().handlers)
    assert main.run(["info", "anything"]) == 1
    logging.getLogger().handlers[:] = handlers
    assert capsys.readouterr().err.count("\n") == 1


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"], ["--version"], ["mkfs", "--help"], ["shards", "-h"]):
        assert main.run(arguments) == 0
    assert "shardfs" in capsys.readouterr().out


def test_shard_ids() -> None:
    assert parse_shard_id("12.0") == (12, 0)
    for text in ("12", "12.", ".1", "a.b", "/12.0", "12.0 ", "-1.0", "1" * 30 + ".0"):
        assert parse_shard_id(text) is None


class Broken:
    """A conversation with a bug."""

    async def answer(self, request: dict[str, object]) -> dict[str, object]:
        raise ZeroDivisionError

    async def aclose(self) -> None:
        """Nothing to do."""


@pytest.mark.expected_warnings("a control request met a bug")
async def test_a_bug_in_a_request_is_answered() -> None:
    answer = json.loads(await answer_line(Broken(), b'{"request": "info"}'))
    assert answer["ok"] is False
    assert "ZeroDivisionError" in answer["error"]


def test_a_dead_mount_is_explained() -> None:
    error = OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), "/mnt/x")
    text = describe(error)
    assert text.startswith("/mnt/x: Transport endpoint") and "shardfs umount" in text


def test_figures_by_stream_are_printed() -> None:
    """`shardfs stat` met a bug when a figure became one number for each stream."""
    assert figure_text("stream_bytes", {"hot": 4096, "cold": 0}) == "hot 4 KiB, cold 0 B"
    assert figure_text("stream_bytes", {}) == "-"
    assert figure_text("counts", [1, 2]) == "1 2"
