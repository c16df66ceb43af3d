"""The file systems that are compared: how each is made on a device, mounted and taken away.

Role: `ALL` names them. `mounted` gives a fresh one at a mount point for the length of a `with`,
and takes everything away again whatever happens: mount, server, what is left in the folder.

Invariants:
    I1. All get the same device: a loop device over one image file whose blocks were all written
        before, and that takes no discards; so none pays for space that another was given.
    I2. Only processes that were started here are ended, by the session that they were started in.

juicefs has no device. It keeps its data and its metadata in a directory of the disk that the image
file is on.

Not here: what is measured (bench_rows.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
    """Of the device: flushes, reads, bytes. Of the server: processor seconds, resident bytes."""

    flushes: int
    reads: int
    read_bytes: int
    written_bytes: int
    server_s: float
    resident_bytes: int


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
        ticks = pages = 0
        if self.session:
            for process in _processes(self.session):
                ticks += int(process[11]) + int(process[12])
                pages += int(process[21])
        return Counts(
            flushes=int(fields[FLUSHES_FIELD]),
            reads=int(fields[0]),
            read_bytes=int(fields[SECTORS_READ_FIELD]) * SECTOR_BYTES,
            written_bytes=int(fields[SECTORS_WRITTEN_FIELD]) * SECTOR_BYTES,
            server_s=ticks / os.sysconf("SC_CLK_TCK"),
            resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        )


def _processes(session: int) -> Iterator[list[str]]:
    """/proc/PID/stat behind the name of each living process of a session."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        if int(fields[3]) == session and fields[0] != "Z":
            yield fields


@dataclass(frozen=True)
class System:
    """One column of the table.

    kind: "shardfs", "kernel", "fuse" (a peer) or "floor".
    needs: programs without which it cannot be had.
    begin: makes it in a place and mounts it; what takes it away goes on the stack.
    """

    name: str
    kind: str
    needs: tuple[str, ...]
    begin: Callable[[Place, ExitStack], Mounted]

    def missing(self) -> str:
        """Why it cannot be had here; empty: it can."""
        lacking = [program for program in self.needs if shutil.which(program) is None]
        return f"not installed: {', '.join(lacking)}" if lacking else ""


@contextmanager
def mounted(system: System, place: Place) -> Iterator[Mounted]:
    """A fresh file system of this kind, for the length of a `with`.

    Raises:
        BenchError: it cannot be made or mounted; or not be taken away.
    """
    run("wipefs", "--all", "--quiet", place.device)
    try:
        with ExitStack() as stack:
            yield system.begin(place, stack)
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
    with attached(image, size_bytes) as device:
        queue = Path("/sys/block", Path(device).name, "queue")
        limit, step = queue / "discard_max_bytes", int((queue / "discard_granularity").read_text())
        before = int(limit.read_text())
        limit.write_text("0")
        try:
            yield device
        finally:  # the kernel keeps it for the number's next user
            limit.write_text(str(before - before % step if step else 0))


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


# --- systems -----------------------------------------------------------------------------------


def kernel_system(name: str, *mkfs: str) -> System:
    """A file system of the kernel."""

    def begin(place: Place, stack: ExitStack) -> Mounted:
        run(*mkfs, place.device)
        run("mount", "-t", name, place.device, place.mountpoint)
        stack.callback(unmount, place.mountpoint)
        return Mounted(disk_of_device(place.device))

    return System(name, "kernel", (mkfs[0],), begin)


def shardfs_system(options: str = "") -> System:
    """shardfs, with mount options."""

    def begin(place: Place, stack: ExitStack) -> Mounted:
        run(BIN / "shardfs", "mkfs", "--force", place.device)
        mount: list[str | Path] = [BIN / "shardfs", "mount", "-f", place.device, place.mountpoint]
        more = ["-o", options] if options else []
        return Mounted(disk_of_device(place.device), serve([*mount, *more], place, stack))

    return System(f"shardfs -o {options}" if options else "shardfs", "shardfs", (), begin)


def _begin_floor(place: Place, stack: ExitStack) -> Mounted:
    return Mounted(
        None, serve([sys.executable, SCRIPTS / "floor.py", place.mountpoint], place, stack)
    )


def _begin_ntfs_3g(place: Place, stack: ExitStack) -> Mounted:
    run("mkfs.ntfs", "--fast", "--force", "--quiet", place.device)
    command: list[str | Path] = [
        "ntfs-3g",
        place.device,
        place.mountpoint,
        "-o",
        "no_detach,big_writes",
    ]
    return Mounted(disk_of_device(place.device), serve(command, place, stack))


def _begin_fuse2fs(place: Place, stack: ExitStack) -> Mounted:
    run("mkfs.ext4", "-q", "-F", place.device)
    command: list[str | Path] = ["fuse2fs", "-f", place.device, place.mountpoint]
    return Mounted(disk_of_device(place.device), serve(command, place, stack))


def _begin_juicefs(place: Place, stack: ExitStack) -> Mounted:
    meta, data = f"badger://{place.folder}/meta", f"{place.folder}/data/"
    program = shutil.which("juicefs") or "juicefs"
    store = ["--storage", "file", "--bucket", data, "--trash-days", "0"]
    run(program, "format", *store, meta, "bench")
    cache: list[str | Path] = [
        "--cache-dir",
        place.folder / "cache",
        "--no-usage-report",
        "--backup-meta",
        "0",
    ]
    session = serve([program, "mount", *cache, meta, place.mountpoint], place, stack)
    return Mounted(disk_of_folder(place.folder), session)


def _begin_s3ql(place: Place, stack: ExitStack) -> Mounted:
    data = place.folder / "data"
    data.mkdir()
    place_it = ["--cachedir", str(place.folder / "cache"), "--authfile", os.devnull]
    run("mkfs.s3ql", *place_it, "--plain", f"local://{data}")
    command: list[str | Path] = [
        "mount.s3ql",
        *place_it,
        "--fg",
        f"local://{data}",
        place.mountpoint,
    ]
    return Mounted(disk_of_folder(place.folder), serve(command, place, stack))


ALL = (
    shardfs_system(),
    System("floor", "floor", (), _begin_floor),
    kernel_system("ext4", "mkfs.ext4", "-q", "-F"),
    kernel_system("xfs", "mkfs.xfs", "-q", "-f"),
    System("ntfs-3g", "fuse", ("mkfs.ntfs", "ntfs-3g"), _begin_ntfs_3g),
    System("fuse2fs", "fuse", ("mkfs.ext4", "fuse2fs"), _begin_fuse2fs),
    System("juicefs", "fuse", ("juicefs",), _begin_juicefs),
    System("s3ql", "fuse", ("mkfs.s3ql", "mount.s3ql"), _begin_s3ql),
)
