"""cli/logs.py and cli/systemd.py: priorities, the journal's protocol, news for systemd."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfs.cli.logs import JournalHandler, PriorityFormatter, journal_reads, level_number
from shardfs.cli.systemd import notify
from tests.cli.commands import run


def record(level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord("shardfs.x", level, "x.py", 1, message, None, None)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A datagram socket, in the place of systemd's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(str(tmp_path / "socket"))
        opened.setblocking(False)
        yield opened


def test_priorities() -> None:
    form = PriorityFormatter()
    assert form.format(record(logging.ERROR, "a\nb")) == "<3>shardfs.x: a\n<3>b"
    marks = [
        form.format(record(level, "m"))[:3]
        for level in (logging.CRITICAL, logging.WARNING, logging.INFO, logging.DEBUG)
    ]
    assert marks == ["<2>", "<4>", "<6>", "<7>"]
    assert level_number("info") == logging.INFO


def test_records_for_the_journal(listener: socket.socket) -> None:
    handler = JournalHandler(Path(listener.getsockname()))
    handler.emit(record(logging.WARNING, "hello"))
    handler.emit(record(logging.ERROR, "two\nlines"))
    fields = listener.recv(4096).splitlines()
    assert fields == [b"PRIORITY=4", b"SYSLOG_IDENTIFIER=shardfs", b"MESSAGE=hello"]
    long = listener.recv(4096)
    assert long.endswith(b"MESSAGE\n" + (9).to_bytes(8, "little") + b"two\nlines\n")
    for _ in range(3000):  # nobody reads: the socket is full before that
        handler.emit(record(logging.INFO, "x" * 1000))
    assert handler.dropped > 0
    handler.close()
    with pytest.raises(OSError):
        JournalHandler(Path("/nonexistent/socket"))


def test_who_reads_standard_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "f").open("w") as file:
        status = os.fstat(file.fileno())
        assert not journal_reads(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert journal_reads(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
        assert not journal_reads(file.fileno())
    assert not journal_reads(10_000)


def test_news_for_systemd(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", listener.getsockname())
    assert notify("READY=1", "STATUS=fine")
    assert listener.recv(100) == b"READY=1\nSTATUS=fine"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind(f"\0shardfs-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@shardfs-test-{os.getpid()}")
        assert notify("STOPPING=1")
        assert abstract.recv(100) == b"STOPPING=1"


@pytest.mark.expected_warnings("systemd could not be told")
def test_a_deaf_systemd_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/socket")
    assert not notify("READY=1")


def test_levels_of_the_command(tmp_path: Path) -> None:
    done = run("--log-level", "loud", "info", tmp_path)
    assert done.returncode == 2 and b"loud" in done.stderr
    for options in (["-q"], ["--log-level", "debug"], ["-vv"]):
        assert run(*options, "info", tmp_path).returncode == 2
