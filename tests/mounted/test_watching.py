"""`shardfs trace` and `shardfs top` on real mounts, the latter on a real terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.mounted.mounts import SHARDFS, MountedShardfs, shardfs

SECONDS_MAX = 60.0
_SIZES = frozenset({"COLUMNS", "LINES"})


def trace_of(
    path: Path,
    work: Callable[[], None],
    *arguments: str,
    begun: str = "begun",
    ended_by: signal.Signals = signal.SIGINT,
) -> list[dict[str, Any]]:
    """What `shardfs trace --json` says while something is done, after it has heard of `begun`."""
    with subprocess.Popen(
        [SHARDFS, "trace", path, "--json", *arguments], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        deadline = time.monotonic() + SECONDS_MAX
        # It listens from some moment on: ask until it has heard something.
        while not select.select([process.stdout], [], [], 0.1)[0]:
            assert time.monotonic() < deadline and process.poll() is None
            (path / begun).write_bytes(b"")
            (path / begun).unlink()
        work()
        time.sleep(1.5)
        process.send_signal(ended_by)
        lines = process.stdout.read().decode().splitlines()
        assert process.wait(SECONDS_MAX) == 0
    return [json.loads(line) for line in lines]


def test_a_mount_is_traced(mounted_shardfs: MountedShardfs) -> None:
    path = mounted_shardfs.path

    def work() -> None:
        (path / "a").write_bytes(b"12345")
        (path / "a").rename(path / "b")
        (path / "b").unlink()

    heard = trace_of(path, work)
    about = [(each["call"], each["path"]) for each in heard if each["path"] in ("/a", "/b")]
    wanted = [("create", "/a"), ("write", "/a"), ("rename", "/a"), ("unlink", "/b")]
    assert [each for each in about if each in wanted] == wanted
    (renamed,) = (each for each in heard if each["call"] == "rename")
    assert (renamed["target"], renamed["pid"]) == ("/b", os.getpid())
    wanted_only = ("--path", "/a", "--call", "unlink", "--call", "create")
    some = trace_of(path, work, *wanted_only, begun="a", ended_by=signal.SIGTERM)
    assert {(each["call"], each["path"]) for each in some} == {("create", "/a"), ("unlink", "/a")}


def test_a_listener_that_is_stopped_holds_nobody_up(mounted_shardfs: MountedShardfs) -> None:
    """It does not read; the mount goes on, and says what was lost when it reads again."""
    path = mounted_shardfs.path

    def work() -> None:
        for number in range(2000):
            os.access(path / f"none{number}", os.F_OK)
            (path / "made").write_bytes(b"x")
            (path / "made").unlink()

    with subprocess.Popen([SHARDFS, "trace", path, "--json"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while not select.select([process.stdout], [], [], 0.1)[0]:
            (path / "begun").write_bytes(b"")  # always new: the kernel remembers what is not there
            (path / "begun").unlink()
        process.send_signal(signal.SIGSTOP)
        work()
        process.send_signal(signal.SIGCONT)
        dropped = 0
        for line in process.stdout:
            dropped = json.loads(line).get("dropped", 0)
            if dropped:
                break
        process.kill()
    assert dropped > 1000


class Terminal:
    """A pseudo-terminal with `shardfs top` on it."""

    def __init__(self, path: Path, columns: int, rows: int, *arguments: str) -> None:
        self._ours, self._theirs = pty.openpty()
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, size)
        self.before = termios.tcgetattr(self._theirs)
        inherited = {key: value for key, value in os.environ.items() if key not in _SIZES}
        self.process = subprocess.Popen(
            [SHARDFS, "top", path, *arguments],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=subprocess.PIPE,
            env={**inherited, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        self.text = ""

    def read_until(self, pattern: str) -> None:
        """Read what is shown until it matches."""
        deadline = time.monotonic() + SECONDS_MAX
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, self.text
            if select.select([self._ours], [], [], 0.2)[0]:
                self.text += os.read(self._ours, 65536).decode()

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def end(self) -> tuple[int, str]:
        """Its exit status and what it said; the terminal must be as it was."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + SECONDS_MAX
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self._ours], [], [], 0.1)[0]:
                self.text += os.read(self._ours, 65536).decode()
        assert self.process.poll() is not None, f"does not end:\n{self.text[-2000:]}"
        while select.select([self._ours], [], [], 0)[0]:
            self.text += os.read(self._ours, 65536).decode()
        said = self.process.stderr.read().decode()
        self.process.stderr.close()
        assert termios.tcgetattr(self._theirs) == self.before
        # The other screen is left as often as it is entered, and the cursor is seen again.
        assert self.text.count("\x1b[?1049h") == self.text.count("\x1b[?1049l") == 1
        assert self.text.rfind("\x1b[?25h") > self.text.rfind("\x1b[?25l")
        return self.process.wait(SECONDS_MAX), said

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(SECONDS_MAX)
        os.close(self._ours)
        os.close(self._theirs)


@contextmanager
def terminal(path: Path, columns: int, rows: int, *arguments: str) -> Iterator[Terminal]:
    opened = Terminal(path, columns, rows, *arguments)
    try:
        yield opened
    finally:
        opened.close()


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50), (40, 12)])
def test_top_fits_and_ends(mounted_shardfs: MountedShardfs, columns: int, rows: int) -> None:
    for number in range(30):
        (mounted_shardfs.path / f"{number}").write_bytes(b"x" * 5000)
    with terminal(mounted_shardfs.path, columns, rows, "--interval", "0.3") as shown:
        shown.read_until("REQUEST")
        shown.press(b"q")
        assert shown.end() == (0, "")
    lines = re.sub(r"\x1b\[[0-9;]*H", "\n", shown.text)  # it begins at the top again
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", lines)
    assert max(map(len, re.split(r"[\r\n]+", plain))) <= columns
    assert ("DURATIONS" in plain) == (columns == 200)


@pytest.mark.parametrize("how", ["^C", "SIGTERM", "umount"])
def test_top_leaves_the_terminal_as_it_was(mounted_shardfs: MountedShardfs, how: str) -> None:
    with terminal(mounted_shardfs.path, 80, 24, "--interval", "0.3") as shown:
        shown.read_until("requests/s")
        if how == "^C":
            # A new session has no controlling terminal here: the key becomes the signal's twin.
            shown.process.send_signal(signal.SIGINT)
        elif how == "SIGTERM":
            shown.process.send_signal(signal.SIGTERM)
        else:
            mounted_shardfs.umount()
        status, said = shown.end()
        assert (status, said.count("\n")) == ((2, 1) if how == "umount" else (0, 0)), said


def test_top_for_programs(mounted_shardfs: MountedShardfs) -> None:
    once = json.loads(shardfs("top", mounted_shardfs.path, "--once", "--json", "--interval", "0.2"))
    assert once["health"] == "healthy" and once["mountpoint"] == str(mounted_shardfs.path)
    text = shardfs("top", mounted_shardfs.path, "--once", "--interval", "0.2")
    assert "reclamation" in text and "\x1b" not in text
    run = subprocess.run(
        [SHARDFS, "top", mounted_shardfs.path], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2 and "--once" in run.stderr and run.stdout == ""
