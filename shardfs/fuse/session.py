"""One mount from its beginning to its end: the composition root, signals, order of shutdown.

Role: `serve_store` mounts an open store, answers requests, and returns when the mount has ended
and everything is durable.

Ordering at the end, with nothing lost: (1) the kernel lets go of the mount (umount(8), or SIGTERM
and SIGINT, which unmount here; busy files get GRACE_S to be closed; or a device in trouble, with
the option errors=unmount, departure.py); (2) the request loop returns;
(3) services and background tasks are cancelled; (4) the file system brings all it holds to the
store and syncs it (filesystem.end); (5) the caller closes the store.

Only one mount lives in a process, because pyfuse3 keeps its session in globals.

Not here: becoming a daemon and telling the user (cli/mount.py), handlers (operations.py).
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyfuse3
import trio

from shardfs import clock
from shardfs.errors import ReadOnlyError, UsageError
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.durations import Summary
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.handshake import Handshake, fuse_descriptor
from shardfs.fuse.memory import resident_bytes
from shardfs.fuse.mount_options import MountOptions
from shardfs.fuse.mounts import change_flags
from shardfs.fuse.operations import Operations
from shardfs.fuse.polling import Polling, standing_in
from shardfs.fuse.promises import Observer

_log = logging.getLogger(__name__)
_UNWANTED: Final = f"fuse_reply_* failed with {os.strerror(errno.ENOENT)}"

GRACE_S: Final = 10.0
"""After a signal, open files may delay the end for this long."""
ANSWERS_S: Final = 0.2
"""Requests in trouble are answered within this time, then the connection ends."""
_UNKNOWN_TO_LIBFUSE: Final = frozenset({"rw", "relatime", "strictatime", "nodiratime"})
_READ_AHEAD_KIB: Final = 8192
_MOUNTINFO: Final = Path("/proc/self/mountinfo")


@dataclass
class Mount:
    """A mount as its services see it (the control socket, metrics)."""

    source: str
    mountpoint: str
    options: MountOptions
    operations: Operations
    file_system: FileSystem
    polling: Polling
    unmount_requested: trio.Event
    detached: trio.Event
    """Set when nothing is left at the mountpoint, though open files may still be served."""

    @property
    def store(self) -> StoreDoor:
        """The store below."""
        return self.file_system.store

    def request_unmount(self) -> None:
        """Begin the end of the mount, as SIGTERM does. Returns at once."""
        self.unmount_requested.set()

    def obey(self, options: MountOptions) -> None:
        """Serve with these options from now on; what the kernel does is the caller's business."""
        if options.poll_us != self.options.poll_us:
            self.polling.obey(options.poll_us)
        self.options = options
        self.operations.obey(options)

    def request_figures(self) -> dict[str, Any]:
        """What the kernel has asked for, how long it took, and how requests were waited for."""
        operations = self.operations
        latencies = {
            name: Summary.of(durations).as_answer()
            for name, durations in sorted(operations.durations.items())
        }
        return {
            "requests": {name: latency["count"] for name, latency in latencies.items()},
            "latencies": latencies,
            "errors": {
                errno.errorcode.get(number, str(number)): count
                for number, count in sorted(operations.answers.items())
            },
            "read_bytes": operations.read_bytes,
            "written_bytes": operations.written_bytes,
            "processor_s": round(clock.processor_s(), 3),
            "resident_bytes": resident_bytes(),
            "requests_read": self.polling.waits,
            "requests_that_woke": self.polling.sleeps,
            "poll_window_us": self.polling.window.window_ns // 1000,
        }

    async def sync(self) -> None:
        """Make everything durable, buffered data included.

        Raises:
            DeviceError, ReadOnlyError
        """
        await self.file_system.sync()


Service = Callable[[Mount], Awaitable[None]]
"""Runs beside the mount; cancelled when it ends."""


async def serve_store(
    store: StoreDoor,
    source: str,
    mountpoint: str,
    options: MountOptions,
    *,
    ready: Callable[[], None] | None = None,
    services: Sequence[Service] = (),
    observer: Observer | None = None,
) -> None:
    """Mount an open store, serve it until the mount ends, and leave everything durable in it.

    Args:
        source: the device's path, shown by mount(8) and df(1).
        mountpoint: absolute path of an existing directory.
        ready: called when the mount answers.
        services: further tasks.
        observer: is told of changes and promises.

    Raises:
        UsageError: it cannot be mounted there.
        ShardfsError: the file system cannot be opened, or its end was not orderly.
    """
    file_system = await FileSystem.open(
        store,
        uid=os.getuid() if options.uid is None else options.uid,
        gid=os.getgid() if options.gid is None else options.gid,
        dirty_bytes_max=options.dirty_bytes_max,
        memory_bytes_max=options.memory_bytes_max,
        observer=observer,
    )
    operations = Operations(file_system, options)
    try:
        pyfuse3.init(operations, mountpoint, fuse_options(source, options))
        handshake = Handshake.begin(fuse_descriptor())
    except (RuntimeError, OSError) as error:
        raise UsageError(f"cannot mount at {mountpoint}: {error}") from error
    if options.access_lists and options.xattrs and handshake.offers_access_lists:
        operations.have_access_lists()
    polling = Polling(
        options.poll_us,
        handshake,
        is_flushing=lambda: store.is_flushing,
        settle=file_system.tables.settle,
    )
    file_system.orphans.requests = lambda: polling.waits
    events = (trio.Event(), trio.Event())
    mount = Mount(source, mountpoint, options, operations, file_system, polling, *events)
    try:
        with standing_in(polling):
            await _answer_requests(mount, ready, services)
    finally:
        handshake.close()
        # Whatever has happened, and even if this task is cancelled: nothing is lost.
        with trio.CancelScope(shield=True):
            await file_system.end()
    if operations.departure.reason:
        raise ReadOnlyError(f"{mountpoint} was unmounted, {store.health.reason}")


def is_wanted(record: logging.LogRecord) -> bool:
    """Whether a record of pyfuse3's log is of use. An answer that the kernel does not wait for any
    more, because who asked was killed or the mount was taken away, is no trouble."""
    return _UNWANTED not in record.getMessage()


async def _answer_requests(
    mount: Mount, ready: Callable[[], None] | None, services: Sequence[Service]
) -> None:
    """Be there for the kernel until it lets go of the mount, with everything that runs beside."""
    logging.getLogger(pyfuse3.__name__).addFilter(is_wanted)
    try:
        async with trio.open_nursery() as nursery:
            mount.file_system.start(nursery)
            for service in services:
                nursery.start_soon(_run_service, service, mount)
            nursery.start_soon(mount.file_system.memory.run)
            nursery.start_soon(_watch_signals, mount)
            nursery.start_soon(_unmount_when_requested, mount)
            nursery.start_soon(_leave_when_in_trouble, mount)
            nursery.start_soon(_announce, mount, ready)
            await pyfuse3.main()
            _log.info("the mount at %s has ended", mount.mountpoint)
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=not mount.detached.is_set())


def fuse_options(source: str, options: MountOptions) -> set[str]:
    """Mount options in the words of libfuse."""
    allow_other = os.getuid() == 0 if options.allow_other is None else options.allow_other
    # A comma separates options; libfuse takes it literally behind a backslash.
    escaped = source.replace("\\", "\\\\").replace(",", "\\,")
    chosen = {f"fsname={escaped}", "subtype=shardfs", "default_permissions"}
    chosen |= options.kernel_words() - _UNKNOWN_TO_LIBFUSE
    if allow_other:
        chosen.add("allow_other")
    return chosen


async def _announce(mount: Mount, ready: Callable[[], None] | None) -> None:
    """Once the kernel has begun to talk: prepare the read-ahead, and say so."""
    await mount.file_system.started.wait()
    await trio.lowlevel.checkpoint()  # the reply to the kernel's first message goes out first
    raise_read_ahead(mount.mountpoint)
    _show_flags(mount)
    if ready is not None:
        ready()


def _show_flags(mount: Mount) -> None:
    """Have the kernel's table show what libfuse cannot ask for; only root may, others do without.

    This asks the mount itself for nothing, so it may be done here.
    """
    words = mount.options.kernel_words() & {"strictatime", "nodiratime"}
    if words and os.getuid() == 0:
        try:
            change_flags(mount.mountpoint, words, whole=False)
        except UsageError as error:
            _log.info("the kernel does not show %s: %s", " and ".join(sorted(words)), error)


def raise_read_ahead(mountpoint: str) -> None:
    """Let buffered reads arrive in large requests; only root may, others do without.

    Args:
        mountpoint: absolute path.
    """
    if os.getuid() != 0:
        return
    try:
        number = device_number_of(mountpoint, _MOUNTINFO.read_text(encoding="utf-8"))
        path = Path(f"/sys/class/bdi/{number}/read_ahead_kb")
        path.write_text(str(_READ_AHEAD_KIB), encoding="ascii")
    except OSError as error:
        _log.info("the read-ahead stays as it is: %s", error)


def device_number_of(mountpoint: str, mountinfo: str) -> str:
    """The "major:minor" of what is mounted on top at a mountpoint.

    Args:
        mountinfo: the text of /proc/self/mountinfo. (stat(2) would ask the mount itself.)

    Raises:
        FileNotFoundError: nothing is.
    """
    found = ""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        path = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if path == mountpoint:
            found = fields[2]
    if not found:
        raise FileNotFoundError(f"nothing is mounted at {mountpoint}")
    return found


async def _run_service(service: Service, mount: Mount) -> None:
    """Run a service; trouble there is logged and does not reach the mount."""
    try:
        await service(mount)
    except Exception as error:
        _log.error("a service of the mount failed", exc_info=error)


async def _watch_signals(mount: Mount) -> None:
    """SIGTERM and SIGINT end the mount; a second one does not wait for open files."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            if mount.unmount_requested.is_set():
                _log.warning("%s again: not waiting for open files", signal.Signals(number).name)
                pyfuse3.terminate()
            mount.request_unmount()


async def _unmount_when_requested(mount: Mount) -> None:
    """Unmount in order; when files stay open, detach the tree and give them GRACE_S."""
    await mount.unmount_requested.wait()
    # umount(2) makes the kernel write back mapped pages, which this process has to take: so it
    # happens in another process while requests are served.
    if await _unmount(mount.mountpoint):
        mount.detached.set()
        return  # the request loop ends by itself
    if await _unmount(mount.mountpoint, "-z"):
        mount.detached.set()
        await trio.sleep(GRACE_S)
        _log.warning("files at %s are still open; ending all the same", mount.mountpoint)
    pyfuse3.terminate()


async def _leave_when_in_trouble(mount: Mount) -> None:
    """With errors=unmount: take the mount away, and then answer what has waited for that."""
    departure = mount.operations.departure
    await departure.begun.wait()
    _log.error("taking %s away: %s", mount.mountpoint, departure.reason)
    if await _unmount(mount.mountpoint, "-z"):
        mount.detached.set()
    departure.detached.set()
    await trio.sleep(ANSWERS_S)
    pyfuse3.terminate()


async def _unmount(mountpoint: str, *flags: str) -> bool:
    tool = shutil.which("fusermount3")
    if tool is None:
        return False
    command = [tool, "-u", "-q", *flags, "--", mountpoint]
    try:
        result = await trio.run_process(command, check=False, stderr=subprocess.DEVNULL)
    except OSError as error:
        _log.error("%s: %s", " ".join(command), error)
        return False
    return result.returncode == 0
