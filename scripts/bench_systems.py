"""A file system under measurement: made on a device, mounted, counted, taken away.

Role: `alive` gives a fresh one at a mount point for the length of a `with`, and takes everything
away again whatever happens: mount, server, what is left in the folder.

Invariants:
    I1. All get the same device: a loop device over one image file whose blocks were all written
        before, and that takes no discards; so none pays for space that another was given.
    I2. Only processes that were started here are ended, by the session that they were started in.

Not here: which file systems there are (bench_file_systems.py), what is measured (bench_rows.py).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

MIB = 1024 * 1024
BEGIN_TIMEOUT_S = 180.0
END_TIMEOUT_S = 60.0
BIN = Path(sys.executable).parent
SCRIPTS = Path(__file__).parent
FLUSHES_FIELD = 15
"""Of /sys/block/*/stat: flushes completed."""
SECTORS_READ_FIELD = 2
SECTORS_WRITTEN_FIELD = 6
SECTOR_BYTES = 512
LOOP_CTL_ADD, LOOP_CTL_REMOVE = 0x4C80, 0x4C81
"""ioctl(2) of /dev/loop-control, <linux/loop.h>."""


class BenchError(Exception):
    """Something cannot be measured, and why."""


def run(*command: str | Path) -> str:
    """Run a command; its output.

    Raises:
        BenchError: it failed.
    """
    words = [str(part) for part in command]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise BenchError(f"{' '.join(words)}: {said[-1] if said else f'status {done.returncode}'}")
    return done.stdout.strip()


def drop_caches() -> None:
    """Write back and forget everything that the kernel caches."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


@dataclass(frozen=True)
class Place:
    """Where a file system is made.

    device: of the image, as /dev/loopN.
    mountpoint: an empty directory.
    folder: an empty directory of the disk, for stores that are no device.
    """

    device: str
    mountpoint: Path
    folder: Path


class Counts(NamedTuple):
    """Of the device: flushes, reads, bytes. Of the server: processor seconds, resident bytes and
    the most that they have been since `Mounted.forget_peak`."""

    flushes: int
    reads: int
    read_bytes: int
    written_bytes: int
    server_s: float
    resident_bytes: int
    peak_bytes: int


@dataclass
class Mounted:
    """A file system at work.

    disk: the directory in /sys of the block device that it writes to; None: it writes nowhere.
    session: of the processes that serve it; 0: the kernel does.
    """

    disk: Path | None
    session: int = 0

    def counts(self) -> Counts:
        """Everything so far."""
        fields = ["0"] * (FLUSHES_FIELD + 1)
        if self.disk is not None:
            fields = (self.disk / "stat").read_text().split()
        ticks = pages = peak_kib = 0
        if self.session:
            for pid, process in _processes(self.session):
                ticks += int(process[11]) + int(process[12])
                pages += int(process[21])
                peak_kib += _peak_kib(pid)
        return Counts(
            flushes=int(fields[FLUSHES_FIELD]),
            reads=int(fields[0]),
            read_bytes=int(fields[SECTORS_READ_FIELD]) * SECTOR_BYTES,
            written_bytes=int(fields[SECTORS_WRITTEN_FIELD]) * SECTOR_BYTES,
            server_s=ticks / os.sysconf("SC_CLK_TCK"),
            resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
            peak_bytes=1024 * peak_kib,
        )

    def forget_peak(self) -> None:
        """From now on `counts` tells the most that the server takes from now on."""
        for pid, _ in _processes(self.session) if self.session else ():
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def _processes(session: int) -> Iterator[tuple[int, list[str]]]:
    """Number and /proc/PID/stat behind the name of each living process of a session."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        if int(fields[3]) == session and fields[0] != "Z":
            yield int(path.parent.name), fields


def _peak_kib(pid: int) -> int:
    """The most memory that a process has had since its mark was set back; 0: it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


@dataclass(frozen=True)
class System:
    """One column of the table.

    kind: "shardfs", "kernel", "fuse" (a peer) or "floor".
    needs: programs without which it cannot be had.
    make: a fresh one in a place.
    mount: mounts it; what takes the mount away again goes on the stack.
    """

    name: str
    kind: str
    needs: tuple[str, ...]
    make: Callable[[Place], None]
    mount: Callable[[Place, ExitStack], Mounted]

    def missing(self) -> str:
        """Why it cannot be had here; empty: it can."""
        lacking = [program for program in self.needs if shutil.which(program) is None]
        return f"not installed: {', '.join(lacking)}" if lacking else ""


class Life:
    """A file system from its making on.

    Args:
        stack: takes the mount away.
    """

    def __init__(self, system: System, place: Place, stack: ExitStack) -> None:
        self._system, self._place, self._stack = system, place, stack
        self.mount = system.mount(place, stack)

    def mount_anew(self) -> None:
        """Unmount and mount it: the server has forgotten everything too. The floor would have
        nothing any more, and stays.

        Raises:
            BenchError: it cannot be done.
        """
        if self._system.kind != "floor":
            self._stack.close()
            self.mount = self._system.mount(self._place, self._stack)


@contextmanager
def alive(system: System, place: Place) -> Iterator[Life]:
    """A fresh file system of this kind, mounted for the length of a `with`.

    Raises:
        BenchError: it cannot be made or mounted; or not be taken away.
    """
    run("wipefs", "--all", "--quiet", place.device)
    try:
        system.make(place)
        with ExitStack() as stack:
            yield Life(system, place, stack)
    finally:
        for path in place.folder.iterdir():
            shutil.rmtree(path)


@contextmanager
def stop_in_order(program: str) -> Iterator[None]:
    """For a whole program: what it made is taken away when it is told to end; errors are a line."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    try:
        yield
    except (BenchError, OSError, ValueError) as error:
        sys.exit(f"{program}: {error}")


def say(text: str) -> None:
    """Progress, for who waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


# --- parts -------------------------------------------------------------------------------------


@contextmanager
def loop_device(folder: Path, size_bytes: int) -> Iterator[str]:
    """A loop device over a new image file that is written from end to end (I1)."""
    image = folder / "disk.img"
    block = os.urandom(MIB)
    with image.open("wb") as file:
        for _ in range(size_bytes // MIB):
            file.write(block)
        os.fsync(file.fileno())
    with ExitStack() as after, attached(image, size_bytes) as device:
        limit = Path("/sys/block", Path(device).name, "queue", "discard_max_bytes")
        limit.write_text("0")
        after.callback(renew, device)  # else the kernel keeps it for the number's next user
        yield device


def renew(device: str) -> None:
    """Have the kernel forget what was set for a loop device that nothing is attached to."""
    number = int(Path(device).name.removeprefix("loop"))
    # Somebody may have taken the number meanwhile.
    with suppress(OSError), open("/dev/loop-control", "rb") as control:
        fcntl.ioctl(control, LOOP_CTL_REMOVE, number)
        fcntl.ioctl(control, LOOP_CTL_ADD, number)


@contextmanager
def attached(image: Path, size_bytes: int) -> Iterator[str]:
    """A loop device over an image file, which is made that large and removed at the end."""
    with image.open("ab") as file:
        file.truncate(size_bytes)
    device = run("losetup", "--find", "--show", image)
    try:
        yield device
    finally:
        run("losetup", "--detach", device)
        image.unlink()


def disk_of_device(device: str) -> Path:
    """The directory in /sys of a block device."""
    return Path("/sys/block", Path(device).name)


def disk_of_folder(folder: Path) -> Path:
    """The directory in /sys of the block device that a directory is on."""
    number = os.stat(folder).st_dev
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()


def is_mounted(path: Path) -> bool:
    """Something is mounted at a path; asks the kernel's table only."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ")[4] == str(path) for line in lines)


def unmount(path: Path) -> None:
    """Take away what is mounted at a path, by force if it has to be.

    Raises:
        BenchError: it was busy to the end, so it was only detached.
    """
    deadline = time.monotonic() + END_TIMEOUT_S
    while is_mounted(path):
        try:
            run("umount", path)
        except BenchError:
            if time.monotonic() > deadline:
                run("umount", "--lazy", path)
                raise
            time.sleep(0.1)


def serve(command: Sequence[str | Path], place: Place, stack: ExitStack) -> int:
    """Start a server in the foreground in a session of its own, and wait for its mount.

    Returns:
        the session.

    Raises:
        BenchError: it ended, or did not mount in time.
    """
    log = stack.enter_context(tempfile.TemporaryFile(dir=place.folder.parent))  # noqa: SIM115
    words = [str(part) for part in command]
    server = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
    )
    stack.callback(_end, server)
    be_as_nice(server.pid)
    stack.callback(unmount, place.mountpoint)
    deadline = time.monotonic() + BEGIN_TIMEOUT_S
    while not is_mounted(place.mountpoint):
        if server.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()
            end = "still running" if server.returncode is None else f"status {server.returncode}"
            raise BenchError(f"{words[0]} did not mount ({end}): {said[-1] if said else '-'}")
        time.sleep(0.02)
    os.statvfs(place.mountpoint)
    return server.pid


def _end(server: subprocess.Popen[bytes]) -> None:
    """Wait for a server that has lost its mount; end what is left of its session (I2)."""
    try:
        server.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    for _ in range(100):
        if not any(_processes(server.pid)):
            return
        time.sleep(0.1)
    os.killpg(server.pid, signal.SIGKILL)


def kill_server(session: int) -> None:
    """Kill what serves a mount, as a crash would, and wait until it is gone."""
    os.killpg(session, signal.SIGKILL)
    while any(_processes(session)):
        time.sleep(0.01)


def be_as_nice(pid: int) -> None:
    """Let the scheduler's group of a session have the niceness of this process.

    Where sessions are grouped (autogroup), niceness counts within a group only: without this,
    `nice -n -15 scripts/bench` would change nothing against who works in other sessions.
    """
    path = Path(f"/proc/{pid}/autogroup")
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    if niceness and path.exists():
        path.write_text(str(niceness))


@contextmanager
def as_nice_as_this() -> Iterator[None]:
    """The same for this process' own session, and as it was afterwards."""
    path = Path("/proc/self/autogroup")
    before = path.read_text().split()[-1] if path.exists() else ""
    be_as_nice(os.getpid())
    try:
        yield
    finally:
        if before:
            path.write_text(before)
