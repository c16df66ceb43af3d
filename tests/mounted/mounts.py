"""Real mounts for tests: one server process each, bounded in time, cleaned up in every case.

Role: start `shardfs mount --foreground` as a child, know when it answers, stop it politely or
not at all politely, and never leave a mount, a process or a loop device behind.

Invariants:
    I1. A mount is cut off (its FUSE connection aborted, its server killed) when it has lived for
        `seconds_max`. A system call stuck in it then returns, so a hang fails one test.
    I2. Only processes started here are killed, by the handle they were started with.
    I3. Whether something is mounted is read from /proc, never by touching the mount point.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SHARDFS = Path(sys.executable).with_name("shardfs")
SECONDS_TO_ANSWER_MAX = 30.0
SECONDS_TO_STOP_MAX = 60.0
SECONDS_PER_COMMAND_MAX = 60.0
LOG_TROUBLE = re.compile(r"Traceback|\b(?:WARNING|ERROR|CRITICAL)\b")


def run_command(
    *arguments: str | Path, expected_status: int = 0, seconds_max: float = SECONDS_PER_COMMAND_MAX
) -> str:
    """Run a command to its end and return its standard output.

    Raises: AssertionError with the command's output if its exit status is another one.
    """
    command = [str(argument) for argument in arguments]
    run = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=seconds_max,
        check=False,
    )
    assert run.returncode == expected_status, (
        f"{' '.join(command)} ended with status {run.returncode}, not {expected_status}\n"
        f"{run.stdout}{run.stderr}"
    )
    return run.stdout


def errno_of(call: Callable[..., object], *arguments: object) -> int:
    """The errno with which a call fails; 0 if it does not."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno or 0
    return 0


def shardfs(*arguments: str | Path, expected_status: int = 0) -> str:
    """Run the real shardfs command; see run_command."""
    return run_command(SHARDFS, *arguments, expected_status=expected_status)


@dataclass(frozen=True)
class MountEntry:
    """One line of /proc/self/mountinfo."""

    device_number: int
    kind: str
    source: str


def find_mount(path: Path) -> MountEntry | None:
    """The topmost mount at exactly this path, if there is one."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if point == str(path):
            major, minor = (int(number) for number in fields[2].split(":"))
            kind, source = right.split()[:2]
            found = MountEntry((major << 20) | minor, kind, source)
    return found


class MountedShardfs:
    """A formatted device and its mount.

    Args:
        device: block device or image file that carries a shardfs.
        path: an empty directory to mount it at.
        log: file that collects what the servers say, one after the other.
        options: mount options, as in `-o a,b`.
        arguments: more of the command line of `shardfs mount`.
        seconds_max: life of one mount, from start to stop (I1).
    """

    def __init__(
        self,
        device: Path,
        path: Path,
        log: Path,
        options: Sequence[str] = (),
        *,
        arguments: Sequence[str | Path] = (),
        seconds_max: float = 120.0,
        command: Sequence[str | Path] = (SHARDFS,),
    ) -> None:
        self.device = device
        self.path = path
        self.log = log
        self.options = tuple(options)
        self.arguments = tuple(str(each) for each in arguments)
        self.seconds_max = seconds_max
        self.was_cut_off = False
        self.verify_at_end = True
        self.expected_log_patterns: list[str] = []
        self._command = tuple(str(part) for part in command)
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: threading.Timer | None = None

    @property
    def pid(self) -> int:
        """The server's process id. Requires: mounted."""
        assert self._process is not None, "not mounted"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the server process is alive."""
        return self._process is not None and self._process.poll() is None

    def log_text(self) -> str:
        """Everything the servers of this mount have said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def start(self) -> None:
        """Mount, and return once the root directory answers.

        Raises: AssertionError with the server's log when it ends or stays silent.
        """
        assert self._process is None, "already mounted"
        command = [*self._command, "mount", str(self.device), str(self.path), "--foreground"]
        if self.options:
            command += ["-o", ",".join(self.options)]
        command += self.arguments
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
            )
        self._watchdog = threading.Timer(self.seconds_max, self._cut_off)
        self._watchdog.daemon = True
        self._watchdog.start()
        deadline = time.monotonic() + SECONDS_TO_ANSWER_MAX
        while find_mount(self.path) is None:
            status = self._process.poll()
            if status is not None or time.monotonic() > deadline:
                self.kill()
                said = "ended with status " + str(status) if status is not None else "is silent"
                raise AssertionError(f"{' '.join(command)} {said}\n{self.log_text()}")
            time.sleep(0.01)
        os.stat(self.path)  # waits for the server's first answer; the watchdog bounds it

    def umount(self) -> None:
        """Unmount in the regular way: returns when everything is on the device.

        Raises: AssertionError when unmounting fails or the server does not end with status 0.
        """
        assert self._process is not None, "not mounted"
        run_command(*self._command, "umount", self.path, seconds_max=SECONDS_TO_STOP_MAX)
        try:
            status = self._process.wait(SECONDS_TO_STOP_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"server still runs {SECONDS_TO_STOP_MAX} s after umount\n{self.log_text()}"
            ) from None
        self._forget_process()
        assert status == 0, f"server ended with status {status}\n{self.log_text()}"
        assert find_mount(self.path) is None, f"{self.path} is still mounted"

    def strike(self) -> None:
        """SIGKILL to the server, no more: its mount point stays and fails, until `kill`."""
        assert self._process is not None, "not mounted"
        self._process.kill()
        self._process.wait(SECONDS_TO_STOP_MAX)

    def kill(self) -> None:
        """Take the server away as a crash would (SIGKILL); nothing is flushed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(SECONDS_TO_STOP_MAX)
            self._forget_process()
        while find_mount(self.path) is not None:
            self._detach()

    def remount(self, options: Sequence[str] | None = None) -> None:
        """Mount again, after a regular umount if one is due."""
        if self._process is not None:
            self.umount()
        if options is not None:
            self.options = tuple(options)
        self.start()

    def close(self) -> None:
        """Unmount if mounted; leave nothing behind whatever happens.

        Raises: AssertionError when the mount was cut off, the server logged unannounced trouble,
            or fsck finds something (unless verify_at_end is off).
        """
        try:
            if self._process is not None:
                self.umount()
        finally:
            self.kill()
        assert not self.was_cut_off, (
            f"the mount lived for more than {self.seconds_max} s and was cut off\n{self.log_text()}"
        )
        trouble = [
            line
            for line in self.log_text().splitlines()
            if LOG_TROUBLE.search(line)
            and not any(re.search(pattern, line) for pattern in self.expected_log_patterns)
        ]
        assert not trouble, f"unannounced trouble in the server's log\n{self.log_text()}"
        if self.verify_at_end:
            run_command(*self._command, "fsck", self.device, "--data")

    def _cut_off(self) -> None:
        self.was_cut_off = True
        entry = find_mount(self.path)
        if entry is not None:
            abort = Path(f"/sys/fs/fuse/connections/{entry.device_number}/abort")
            try:
                abort.write_text("1")
            except OSError as error:
                print(f"cannot abort {self.path}: {error}; killing its server", file=sys.stderr)
        if self._process is not None:
            self._process.kill()

    def _detach(self) -> None:
        lazily = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z", "--"]
        run_command(*lazily, self.path)

    def _forget_process(self) -> None:
        self._process = None
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
