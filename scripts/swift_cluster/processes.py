"""Child processes of a cluster: started with a log of their own, watched, ended.

Invariants:
    I1. Only processes started here are ended, by their handles, with all their own children.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from scripts.swift_cluster.layout import ADDRESS

START_S_MAX: Final = 180.0
END_S_MAX: Final = 15.0


class ClusterError(Exception):
    """The cluster cannot do what was asked; one line for people."""


def wait_until(condition: Callable[[], bool], what: str, seconds_max: float = START_S_MAX) -> None:
    """Poll for a condition.

    Raises:
        ClusterError: it did not come about in time.
    """
    deadline = time.monotonic() + seconds_max
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"after {seconds_max:.0f} s still not: {what}")
        time.sleep(0.05)


def end_in_order_on_sigterm() -> None:
    """From now on SIGTERM raises SystemExit, so that what was begun is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def listens(port: int) -> bool:
    """Somebody answers at a port of the loopback interface."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((ADDRESS, port)) == 0


def run(*command: str | Path, seconds_max: float = 120.0, check: bool = True) -> str:
    """Run a command to its end; what it printed.

    Raises:
        ClusterError: it failed, with its last line.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds_max,
        check=False,
    )
    if check and done.returncode != 0:
        last = (done.stdout.strip().splitlines() or ["no message"])[-1]
        raise ClusterError(f"{' '.join(words)}: status {done.returncode}: {last}")
    return done.stdout


class Process:
    """One child process, in a process group of its own.

    Args:
        command: its words.
        log: what it prints is appended there.
    """

    def __init__(self, command: Sequence[str | Path], log: Path) -> None:
        self.log = log
        self._words = [str(word) for word in command]
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its number."""
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """It has not ended yet."""
        return self._child.poll() is None

    def wait(self, seconds_max: float) -> int:
        """Its exit status.

        Raises:
            ClusterError: it does not end.
        """
        try:
            return self._child.wait(seconds_max)
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{self._words[0]} still runs; see {self.log}") from None

    def send(self, number: signal.Signals) -> None:
        """A signal to it alone."""
        self._child.send_signal(number)

    def end(self, *, kindly: bool = True) -> None:
        """End it and its children; SIGKILL when it does not obey, or if not `kindly`."""
        if kindly and self.is_running:
            self._child.terminate()
            try:
                self._child.wait(END_S_MAX)
            except subprocess.TimeoutExpired:
                kindly = False
        try:
            os.killpg(self._child.pid, signal.SIGTERM if kindly else signal.SIGKILL)
        except ProcessLookupError:
            return  # nothing of it is left
        finally:
            self._child.wait(END_S_MAX)
