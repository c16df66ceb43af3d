"""Where log records go, from which level on, and in which form.

Role: standard error, a file of bounded size, or the journal. On a terminal or in a file a line has
its time; what systemd reads has its priority instead, since the journal knows the time itself.

Invariants:
    I1. A log that cannot be written costs its records, never the process: a record is dropped
        when the journal does not take it at once.

Not here: what is logged.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import socket
import sys
from pathlib import Path
from typing import Final

from shardfs.limits import KIB, MIB

LOG_BYTES_MAX: Final = 1 * MIB
"""A log file is kept below twice this size."""
JOURNAL: Final = "journal"
"""In the place of a log file's path: the journal."""
JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")
LEVELS: Final = ("error", "warning", "info", "debug")
_LINE: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LINE_OF_JOURNAL: Final = "%(name)s: %(message)s"
_MESSAGE_BYTES_MAX: Final = 64 * KIB


def level_number(name: str) -> int:
    """The number that the logging package has for one of LEVELS."""
    return logging.getLevelNamesMapping()[name.upper()]


def priority(level: int) -> int:
    """The priority of syslog(3) for a level of the logging package."""
    for at_least, number in (
        (logging.CRITICAL, 2),
        (logging.ERROR, 3),
        (logging.WARNING, 4),
        (logging.INFO, 6),
    ):
        if level >= at_least:
            return number
    return 7


def log_to_standard_error(level: int) -> None:
    """Have everything from a level on written to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PriorityFormatter() if journal_reads(2) else logging.Formatter(_LINE))
    logging.basicConfig(level=level, handlers=[handler])


def log_to_file(path: str, level: int) -> None:
    """Have everything from a level on written to a file, which begins anew now and then."""
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES_MAX, backupCount=1)
    logging.basicConfig(level=level, format=_LINE, handlers=[handler], force=True)


def log_to_journal(level: int, path: Path = JOURNAL_SOCKET) -> None:
    """Have everything from a level on sent to the journal.

    Raises:
        OSError: there is no journal.
    """
    handler = JournalHandler(path)
    logging.basicConfig(level=level, format=_LINE_OF_JOURNAL, handlers=[handler], force=True)


def journal_reads(descriptor: int) -> bool:
    """An inherited descriptor leads to the journal (sd-daemon's $JOURNAL_STREAM)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def is_begun_by_systemd() -> bool:
    """This process belongs to a unit of systemd, and there is a journal."""
    return "INVOCATION_ID" in os.environ and JOURNAL_SOCKET.exists()


class PriorityFormatter(logging.Formatter):
    """Lines as sd-daemon(3) wants them: each begins with its priority."""

    def __init__(self) -> None:
        super().__init__(_LINE_OF_JOURNAL)

    def format(self, record: logging.LogRecord) -> str:
        """The record's lines."""
        mark = f"<{priority(record.levelno)}>"
        return "\n".join(mark + line for line in super().format(record).splitlines())


class JournalHandler(logging.Handler):
    """Sends each record to the journal, one datagram each, in its native protocol."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.connect(os.fspath(path))
        except BaseException:  # whatever ended it, nobody else knows the socket
            self._socket.close()
            raise
        self.dropped = 0
        """Records that the journal did not take (I1)."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        message = self.format(record).encode("utf-8", "backslashreplace")[:_MESSAGE_BYTES_MAX]
        fields = {
            b"PRIORITY": str(priority(record.levelno)).encode("ascii"),
            b"SYSLOG_IDENTIFIER": b"shardfs",
            b"MESSAGE": message,
        }
        try:
            self._socket.send(b"".join(_field(name, value) for name, value in fields.items()))
        except OSError:
            self.dropped += 1

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
        super().close()


def _field(name: bytes, value: bytes) -> bytes:
    """A field; one with lines in it carries its length."""
    if b"\n" not in value:
        return name + b"=" + value + b"\n"
    return name + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
