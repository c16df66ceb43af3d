"""What systemd is told of a mount: sd_notify(3) without its library.

Role: one datagram to $NOTIFY_SOCKET for each piece of news; nothing where there is none.

Not here: the unit's file (cli/installing.py), the journal (cli/logs.py).
"""

from __future__ import annotations

import logging
import os
import socket

_log = logging.getLogger(__name__)


def is_heard() -> bool:
    """systemd, or who stands in for it, asked to be told."""
    return os.environ.get("NOTIFY_SOCKET", "").startswith(("/", "@"))


def notify(*news: str) -> bool:
    """Tell systemd, if it asked to be told; whether it was.

    Args:
        news: assignments such as "READY=1" or "STATUS=...", without line ends.
    """
    if not is_heard():
        return False
    path = os.environ["NOTIFY_SOCKET"]
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.sendto("\n".join(news).encode(), address)
    except OSError as error:
        _log.warning("systemd could not be told %r: %s", news, error)
        return False
    return True
