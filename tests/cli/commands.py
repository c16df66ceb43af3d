"""Runs the real `shardfs` command, and checks how it refuses.

Role: one helper to run a command line, one that says what a good refusal looks like.
"""

from __future__ import annotations

import hashlib
import os
import pty
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from shardfs.fuse.control import server_pid
from tests.mounted.mounts import SHARDFS, find_mount

SECONDS_MAX = 60.0


def run(
    *arguments: str | Path, cwd: Path | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run `shardfs` with these arguments to its end."""
    return subprocess.run(
        [str(SHARDFS), *(str(argument) for argument in arguments)],
        input=stdin,
        capture_output=True,
        timeout=SECONDS_MAX,
        check=False,
        cwd=cwd,
    )


def run_on_a_terminal(
    *arguments: str | Path, until: bytes, then: Callable[[subprocess.Popen[bytes]], None]
) -> int:
    """Run `shardfs` with its standard error on a terminal, call `then` as soon as it has said
    `until` there, or has ended; its exit status."""
    ours, theirs = pty.openpty()
    try:
        command = [str(SHARDFS), *map(str, arguments)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs
        ) as process:
            seen = b""
            while process.poll() is None and until not in seen:
                if select.select([ours], [], [], 0.1)[0]:
                    seen += os.read(ours, 65536)
            then(process)
            return process.wait(SECONDS_MAX)
    finally:
        os.close(ours)
        os.close(theirs)


def output_of(*arguments: str | Path) -> str:
    """Standard output of a command that must succeed, without a word on standard error."""
    done = run(*arguments)
    assert (done.returncode, done.stderr.decode()) == (0, ""), done
    return done.stdout.decode()


def refused(*arguments: str | Path, status: int = 2, saying: str = "") -> str:
    """Run a command that must be refused: the status, one line that begins well, no output."""
    done = run(*arguments)
    text = done.stderr.decode()
    assert done.returncode == status, (done.returncode, text)
    assert text.count("\n") == 1 and text.endswith("\n"), text
    assert text.startswith("shardfs: "), text
    assert "Traceback" not in text
    assert saying in text, text
    assert done.stdout == b""
    return text


def image_hash(path: Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def kill_server_of(path: Path) -> None:
    """Take the server of a mount away as a crash would, and wait until it has gone."""
    from shardfs.fuse.mounts import find_mount as find_entry

    entry = find_entry(str(path))
    assert entry is not None
    pid = server_pid(entry)
    assert pid is not None and pid != os.getpid()
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        wait_for_end(descriptor)
    finally:
        os.close(descriptor)


def wait_for_end(descriptor: int) -> None:
    """Wait until the process of a pidfd has ended."""
    import select

    assert select.select([descriptor], [], [], SECONDS_MAX)[0], "the process does not end"


def stop_everything_at(path: Path) -> None:
    """Leave no mount and no server behind."""
    if find_mount(path) is None:
        return
    if run("umount", path).returncode != 0 and find_mount(path) is not None:
        try:
            kill_server_of(path)
        except (AssertionError, OSError) as error:
            print(f"no server to kill at {path}: {error}")
        subprocess.run(["umount", "-l", str(path)], check=False, timeout=SECONDS_MAX)
