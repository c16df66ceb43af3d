"""The process that serves a mount: in the foreground, or as a daemon that its caller waits for.

Role: opens the device, serves it with the services that belong to a mount, tells systemd and
`shardfs umount` about it. Shared by `shardfs mount` and the helper of mount(8).

The background process has "/" as its directory and no input; what it prints goes to its log file,
or nowhere when it logs to the journal. From when the mount answers it has a session of its own.

Invariants:
    I1. The caller returns when the mount answers, or with one line when it cannot; the line and
        the exit status are the background process's own, sent through a pipe.
    I2. How the mount ended is left for `shardfs umount`, whatever happens.
    I3. Until the mount answers, whoever makes it stays in the process group that it was started
        in. Where the mount point is an automount's, the kernel lets only that group pass; anybody
        else waits there until the mount has been made.
    I4. With errors=remount-ro, when the store turns read-only, the kernel's mount follows as soon
        as no file is open for writing, so that who looks at the mount table sees it.

Not here: serving and its end (fuse/session.py), options (fuse/mount_options.py).
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
import trio

from shardfs.cli.errors import FINDING, SUCCESS, describe, exit_status, is_expected, root_cause
from shardfs.cli.heap import keep_freed_memory, keep_pauses_short
from shardfs.cli.logs import JOURNAL, log_to_file, log_to_journal
from shardfs.cli.systemd import is_heard, notify
from shardfs.engine.block_device import BlockDevice, open_device
from shardfs.engine.device import Device
from shardfs.engine.options import StoreOptions
from shardfs.engine.recorder import Recorder, RecordingDevice
from shardfs.engine.store import Store
from shardfs.errors import DeviceBusyError, ReadOnlyError, UsageError
from shardfs.fuse.control import ControlSocket
from shardfs.fuse.inspection import Inspection
from shardfs.fuse.mount_options import ErrorPolicy, MountOptions
from shardfs.fuse.mounts import find_mount, mounts, mounts_of
from shardfs.fuse.promises import PromiseRecorder
from shardfs.fuse.remounting import MountConversation
from shardfs.fuse.scrub import Scrub

if TYPE_CHECKING:
    from shardfs.fuse.session import Mount

_log = logging.getLogger(__name__)

DEVICE_WAIT_S: Final = 10.0
"""A device without a mount may be in use for this long: umount(8) returns before the server of
a mount has brought everything to the device."""
_DEVICE_POLL_S: Final = 0.1
_MOUNT_TABLE_POLL_S: Final = 5.0
_READ_ONLY_RETRY_S: Final = 10.0
_READ_ONLY_TIMEOUT_S: Final = 60.0

Ready = Callable[[tuple[str, ...]], None]
"""Called with recovery's notes when the mount answers."""


def say_notes(notes: tuple[str, ...]) -> None:
    """Print notes for the user."""
    for note in notes:
        click.echo(f"shardfs: note: {note}", err=True)


@dataclass(frozen=True)
class Server:
    """One mount, from opening the device to its end.

    device: absolute path.
    mountpoint: absolute path of an empty directory.
    recording: a file for all that is written; empty: none.
    """

    device: str
    mountpoint: str
    options: MountOptions
    recording: str = ""

    def run(self, ready: Ready) -> int:
        """Serve until the mount ends; the exit status."""
        control = None
        keep_freed_memory()
        try:
            control = ControlSocket()
            trio.run(self._open_and_begin, control, ready)
        except BaseException as error:  # whoever looks for the mount later is told its end
            if control is not None:
                control.write_ending(exit_status(error), describe(error))
            raise
        control.write_ending(SUCCESS, "")
        return SUCCESS

    async def _open_and_begin(self, control: ControlSocket, ready: Ready) -> None:
        device = await self._open_device()
        try:
            await self._begin(device, control, ready)
        finally:
            device.close()

    async def _open_device(self) -> BlockDevice:
        """The device, once the server of a mount that has just ended has let go of it."""
        with trio.move_on_after(DEVICE_WAIT_S):
            while not mounts_of(self.device):
                try:
                    return open_device(self.device, read_only=self.options.read_only)
                except DeviceBusyError as error:
                    _log.debug("waiting: %s", error)
                await trio.sleep(_DEVICE_POLL_S)
        return open_device(self.device, read_only=self.options.read_only)

    async def _begin(self, device: BlockDevice, control: ControlSocket, ready: Ready) -> None:
        """Serve, and record if that is wished."""
        if not self.recording:
            await self._serve(device, control, ready)
            return
        answers = False

        def ready_with_note(notes: tuple[str, ...]) -> None:
            nonlocal answers
            answers = True
            ready((*notes, f"every write is recorded in {self.recording}"))

        recorder = Recorder.create(self.recording)
        try:
            recorded = await RecordingDevice.start(device, recorder)
            observer = PromiseRecorder(recorder.mark)
            await self._serve(recorded, control, ready_with_note, observer)
        finally:
            if answers:
                recorder.close()
            else:
                recorder.remove()

    async def _serve(
        self,
        device: Device,
        control: ControlSocket,
        ready: Ready,
        observer: PromiseRecorder | None = None,
    ) -> None:
        # pyfuse3 takes time to load, which no other command needs to spend.
        from shardfs.fuse.session import serve_store

        read_only = self.options.read_only or device.read_only
        async with Store.open(device, options=StoreOptions(read_only=read_only)) as store:
            _log.info("opened %s: %s", device.path, store.identity.uuid)
            if self.options.errors is ErrorPolicy.UNMOUNT and store.health.reason and not read_only:
                raise ReadOnlyError(f"{store.health.reason}; errors=unmount mounts no such store")

            async def answer_requests(mount: Mount) -> None:
                from shardfs.fuse.tracing import TraceConversation, Tracer

                scrub = Scrub(store, lambda: mount.polling.waits)
                tracer = Tracer(mount)

                def inspection() -> Inspection:
                    return Inspection(
                        store,
                        device.path,
                        mount=mount,
                        more=scrub.handlers,
                        scrub=scrub.figures,
                    )

                def begin() -> TraceConversation:
                    return TraceConversation(tracer, mount, MountConversation(mount, inspection()))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(scrub.run)
                    if mount.options.metrics is not None:
                        from shardfs.fuse.exporter import serve_metrics

                        nursery.start_soon(serve_metrics, mount.options.metrics, inspection)
                    await control.serve(mount.mountpoint, begin)

            services = (answer_requests, _tell_systemd, _tell_of_lazy_unmount, _show_read_only)
            await serve_store(
                store,
                device.path,
                self.mountpoint,
                _with_read_only(self.options, read_only or bool(store.health.reason)),
                ready=partial(ready, (*store.notes, *_warnings(self.options))),
                services=(*services, _keep_pauses_short),
                observer=observer,
            )


def _warnings(options: MountOptions) -> tuple[str, ...]:
    """What the user may not have meant."""
    if options.metrics is None or ipaddress.ip_address(options.metrics[0]).is_loopback:
        return ()
    host, port = options.metrics
    return (f"whoever reaches {host} port {port} can read how this mount is used, without a word",)


def _with_read_only(options: MountOptions, read_only: bool) -> MountOptions:
    from dataclasses import replace

    return replace(options, read_only=read_only)


# --- services -----------------------------------------------------------------------------------


async def _tell_systemd(mount: Mount) -> None:
    """That the mount answers, and when it begins to end."""
    await mount.file_system.started.wait()
    notify("READY=1", f"STATUS={mount.source} at {mount.mountpoint}", f"MAINPID={os.getpid()}")
    try:
        await mount.unmount_requested.wait()
    finally:
        notify("STOPPING=1", "STATUS=writing what is left")


async def _tell_of_lazy_unmount(mount: Mount) -> None:
    """Say that a running service has no mount any more: systemd does not see umount -l."""
    await mount.file_system.started.wait()
    entry = find_mount(mount.mountpoint)
    if entry is None or not is_heard():
        return
    while True:
        await trio.sleep(_MOUNT_TABLE_POLL_S)
        if all(each.device_number != entry.device_number for each in mounts()):
            break
    await trio.sleep(1)  # an unmount in order ends here
    if not mount.unmount_requested.is_set():
        _log.warning("%s was unmounted; what is open there is served on", mount.mountpoint)
        notify("STATUS=unmounted, serves what is still open; to mount again: systemctl restart")


async def _keep_pauses_short(_mount: Mount) -> None:
    """Python's search for garbage does not hold requests up."""
    await keep_pauses_short()


async def _show_read_only(mount: Mount) -> None:
    """Let the kernel's table follow when the store stops taking changes (I4)."""
    health = mount.store.health
    worse = trio.Event()
    health.on_change(worse.set)
    if not health.reason:
        await worse.wait()
    if mount.options.read_only:
        return
    notify(f"STATUS=read-only: {health.reason}")
    if os.geteuid() != 0 or mount.options.errors is not ErrorPolicy.REMOUNT_READ_ONLY:
        return
    # Not from this process: the kernel writes back what it holds, and that is asked of us.
    command = [sys.executable, "-m", "shardfs", mount.source, mount.mountpoint, "-o", "remount,ro"]
    while not mount.options.read_only:
        with trio.move_on_after(_READ_ONLY_TIMEOUT_S):
            done = await trio.run_process(
                command, check=False, stdin=subprocess.DEVNULL, capture_stderr=True
            )
            _log.info("remounting read-only: %s", done.stderr.decode().strip() or "done")
        if not mount.options.read_only:
            await trio.sleep(_READ_ONLY_RETRY_S)


# --- background ---------------------------------------------------------------------------------


def run_in_background(server: Server, log: str, level: int) -> int:
    """Fork a process that serves; the exit status that it has to say once it is ready (I1).

    Args:
        log: absolute path of a file, or JOURNAL.
        level: of the logging package.
    """
    receiving, sending = os.pipe()
    if os.fork() == 0:
        _be_background(server, log, level, sending)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        message = pipe.readline()
    if not message:
        raise UsageError(f"the mount process ended without a word; see {log}")
    said: dict[str, Any] = json.loads(message)
    for line in said["lines"]:
        click.echo(f"shardfs: {line}", err=True)
    return int(said["status"])


def _be_background(server: Server, log: str, level: int, sending: int) -> NoReturn:
    """The new process: never returns."""
    status = FINDING
    relay = _Relay(sending)
    logs = False

    def ready(notes: tuple[str, ...]) -> None:
        os.setsid()  # not before (I3)
        relay.say(SUCCESS, [f"note: {note}" for note in notes])

    try:
        _detach(log, sending)
        _begin_log(log, level)
        logs = True
        status = server.run(ready)
    except BaseException as error:  # the end of the process: whoever waits for it is told
        status = exit_status(error)
        if logs:
            shown = None if is_expected(root_cause(error)) else error
            _log.error("the mount failed: %s", describe(error), exc_info=shown)
        relay.say(status, [describe(error)])
    finally:
        logging.shutdown()
        os._exit(status)


class _Relay:
    """The pipe to the command that waits; takes one message."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._said = False

    def say(self, status: int, lines: list[str]) -> None:
        """Send the command's exit status and what it prints. Only the first call counts."""
        if self._said:
            return
        self._said = True
        try:
            os.write(
                self._descriptor, json.dumps({"status": status, "lines": lines}).encode() + b"\n"
            )
        except BrokenPipeError:
            _log.info("nobody waits for the mount any more")
        os.close(self._descriptor)


def _detach(log: str, sending: int) -> None:
    """Let go of what was inherited: directory, terminal, other descriptors."""
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    if log == JOURNAL:
        output = nothing
    else:
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY, 0o600)
        except OSError as error:
            raise UsageError(f"cannot write the log {log}: {error.strerror}") from error
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.closerange(3, sending)
    os.closerange(sending + 1, os.sysconf("SC_OPEN_MAX"))


def _begin_log(log: str, level: int) -> None:
    if log != JOURNAL:
        log_to_file(log, level)
        return
    try:
        log_to_journal(level)
    except OSError as error:
        raise UsageError(f"there is no journal to log to: {error.strerror}") from error
