"""The `shardfs mount` command: serves a store at a directory, in the background or not.

Role: checks what can be checked before anything is opened, becomes a daemon, opens the device and
serves it, and tells the caller when the mount answers or why it does not.

The background process has a session of its own, "/" as its directory and no input; what it prints
and logs goes to a file in the runtime directory (fuse/runtime.py), or where --log says. That file
is kept below twice LOG_BYTES_MAX.

Invariants:
    I1. The command returns when the mount answers, or with one line when it cannot; the line and
        the exit status are the background process's own, sent through a pipe.
    I2. How the mount ended is left for `shardfs umount`, whatever happens.

Not here: serving and its end (fuse/session.py), the mount point (fuse/mounts.py).
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NoReturn

import click
import trio

from shardfs.cli.errors import FINDING, SUCCESS, describe, exit_status, is_expected, root_cause
from shardfs.cli.options import PATH, SIZE
from shardfs.engine.device import BlockDevice, Device, open_device
from shardfs.engine.recorder import Recorder, RecordingDevice
from shardfs.engine.store import Store, StoreOptions
from shardfs.errors import UsageError
from shardfs.fuse.control import ControlSocket
from shardfs.fuse.inspection import Inspection
from shardfs.fuse.mounts import prepare_mountpoint, require_fuse
from shardfs.fuse.promises import PromiseRecorder
from shardfs.fuse.runtime import log_name, runtime_directory
from shardfs.limits import DIRTY_BYTES_MAX, MIB, SHARD_BYTES

_log = logging.getLogger(__name__)

LOG_BYTES_MAX: Final = 1 * MIB
_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_FOR_THE_KERNEL: Final = frozenset(
    {
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "atime",
        "noatime",
        "nodiratime",
        "dirsync",
    }
)
_WITHOUT_EFFECT: Final = frozenset(
    {"defaults", "rw", "async", "auto", "noauto", "nofail", "user", "users", "_netdev", "relatime"}
)
_KNOWN: Final = "ro, sync, allow_other, private, dirty=SIZE, noexec, nosuid, nodev, noatime"


@dataclass
class Wishes:
    """The mount options that the user gave."""

    read_only: bool = False
    sync: bool = False
    allow_other: bool | None = None
    dirty_bytes_max: int = DIRTY_BYTES_MAX
    extra: list[str] = field(default_factory=list)


def parse_options(texts: tuple[str, ...]) -> Wishes:
    """The options of any number of `-o a,b=c`.

    Raises:
        UsageError: an option is unknown or has a wrong value.
    """
    wishes = Wishes()
    for option in [each.strip() for text in texts for each in text.split(",")]:
        name, _, value = option.partition("=")
        if option == "ro":
            wishes.read_only = True
        elif option == "sync":
            wishes.sync = True
        elif option == "allow_other":
            wishes.allow_other = True
        elif option == "private":
            wishes.allow_other = False
        elif name == "dirty":
            try:
                wishes.dirty_bytes_max = SIZE.convert(value, None, None)
            except click.ClickException as error:
                raise UsageError(f"mount option {option}: {error.format_message()}") from error
            if wishes.dirty_bytes_max < 2 * SHARD_BYTES:
                raise UsageError(f"mount option {option}: at least {2 * SHARD_BYTES} bytes")
        elif option in _FOR_THE_KERNEL:
            wishes.extra.append(option)
        elif option and option not in _WITHOUT_EFFECT and not option.startswith("x-"):
            raise UsageError(f"unknown mount option {option!r}; known are {_KNOWN}")
    return wishes


@click.command()
@click.argument("device", type=PATH)
@click.argument("mountpoint", type=PATH)
@click.option("-o", "options", multiple=True, help=f"Mount options: {_KNOWN}.")
@click.option("-f", "--foreground", is_flag=True, help="Stay, and log to standard error.")
@click.option("--log", "log_path", type=PATH, help="File for the background process's log.")
@click.option(
    "--record",
    "record_path",
    type=PATH,
    metavar="FILE",
    help="Write every request to the device into a new FILE, for: shardfs check crashes FILE.",
)
@click.pass_context
def mount(
    context: click.Context,
    device: str,
    mountpoint: str,
    options: tuple[str, ...],
    foreground: bool,
    log_path: str | None,
    record_path: str | None,
) -> int:
    """Mount the shardfs on DEVICE at the empty directory MOUNTPOINT.

    Returns when the mount answers. A device that is write-protected is mounted read-only.
    """
    wishes = parse_options(options)
    if not os.path.lexists(device):
        raise UsageError(f"there is no {device}; make it with: shardfs mkfs {device} --size 1G")
    require_fuse()
    place = prepare_mountpoint(mountpoint)
    recording = _recording_place(record_path, place, wishes) if record_path else None
    server = _Server(os.path.realpath(device), place, wishes, recording)
    if foreground:
        return server.run(_say_notes)
    log = os.path.abspath(log_path) if log_path else str(runtime_directory() / log_name(place))
    return _run_in_background(server, log, context.obj or 0)


def _recording_place(path: str, mountpoint: str, wishes: Wishes) -> str:
    """Where a recording goes, as an absolute path.

    Raises:
        UsageError: there cannot be one, or not there.
    """
    if wishes.read_only:
        raise UsageError("--record: a read-only mount writes nothing that could be recorded")
    absolute = os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
    if os.path.commonpath([absolute, mountpoint]) == mountpoint:
        raise UsageError(f"--record: {path} would lie on the mount that it records")
    return absolute


def _say_notes(notes: tuple[str, ...]) -> None:
    for note in notes:
        click.echo(f"shardfs: note: {note}", err=True)


class _Server:
    """One mount, from opening the device to its end."""

    def __init__(
        self, device: str, mountpoint: str, wishes: Wishes, recording: str | None = None
    ) -> None:
        self._device = device
        self._mountpoint = mountpoint
        self._wishes = wishes
        self._recording = recording
        self._control: ControlSocket | None = None

    def run(self, ready: Callable[[tuple[str, ...]], None]) -> int:
        """Serve until the mount ends; the exit status.

        Args:
            ready: called with recovery's notes when the mount answers.
        """
        try:
            self._control = ControlSocket()
            device = open_device(self._device, read_only=self._wishes.read_only)
            try:
                trio.run(partial(self._begin, device, ready))
            finally:
                device.close()
        except BaseException as error:
            self._leave_word(exit_status(error), describe(error))
            raise
        self._leave_word(SUCCESS, "")
        return SUCCESS

    async def _begin(self, device: BlockDevice, ready: Callable[[tuple[str, ...]], None]) -> None:
        """Serve, and record if that is wished."""
        if self._recording is None:
            await self._serve(device, ready)
            return
        answers = False

        def ready_with_note(notes: tuple[str, ...]) -> None:
            nonlocal answers
            answers = True
            ready((*notes, f"every write is recorded in {self._recording}"))

        recorder = Recorder.create(self._recording)
        try:
            recorded = await RecordingDevice.start(device, recorder)
            observer = PromiseRecorder(recorder.mark)
            await self._serve(recorded, ready_with_note, observer)
        finally:
            if answers:
                recorder.close()
            else:
                recorder.remove()

    async def _serve(
        self,
        device: Device,
        ready: Callable[[tuple[str, ...]], None],
        observer: PromiseRecorder | None = None,
    ) -> None:
        # pyfuse3 takes time to load, which no other command needs to spend.
        from shardfs.fuse.session import Mount, MountOptions, serve_store

        wishes, control = self._wishes, self._control
        assert control is not None
        read_only = wishes.read_only or device.read_only
        async with Store.open(device, options=StoreOptions(read_only=read_only)) as store:
            _log.info("opened %s: %s", device.path, store.identity.uuid)
            options = MountOptions(
                read_only=read_only or bool(store.health.reason),
                allow_other=wishes.allow_other,
                sync=wishes.sync,
                dirty_bytes_max=wishes.dirty_bytes_max,
                extra=tuple(wishes.extra),
            )

            async def answer_requests(mount: Mount) -> None:
                begin = partial(Inspection, store, device.path, mount=mount)
                await control.serve(mount.mountpoint, begin)

            await serve_store(
                store,
                device.path,
                self._mountpoint,
                options,
                ready=partial(ready, store.notes),
                services=(answer_requests,),
                observer=observer,
            )

    def _leave_word(self, status: int, message: str) -> None:
        if self._control is not None:
            self._control.write_ending(status, message)


# --- background ---------------------------------------------------------------------------------


def _run_in_background(server: _Server, log: str, verbosity: int) -> int:
    """Fork a process that serves; return what it has to say once it is ready (I1)."""
    receiving, sending = os.pipe()
    if os.fork() == 0:
        _be_background(server, log, verbosity, sending)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        message = pipe.readline()
    if not message:
        raise UsageError(f"the mount process ended without a word; see {log}")
    said: dict[str, Any] = json.loads(message)
    for line in said["lines"]:
        click.echo(f"shardfs: {line}", err=True)
    return int(said["status"])


def _be_background(server: _Server, log: str, verbosity: int, sending: int) -> NoReturn:
    """The new process: never returns."""
    status = FINDING
    relay = _Relay(sending)
    logs_to_file = False
    try:
        os.setsid()
        _detach(log, sending)
        _log_to_file(log, verbosity)
        logs_to_file = True
        status = server.run(lambda notes: relay.say(SUCCESS, [f"note: {note}" for note in notes]))
    except BaseException as error:
        status = exit_status(error)
        if logs_to_file:
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
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY, 0o600)
    except OSError as error:
        raise UsageError(f"cannot write the log {log}: {error.strerror}") from error
    nothing = os.open(os.devnull, os.O_RDWR)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.closerange(3, sending)
    os.closerange(sending + 1, os.sysconf("SC_OPEN_MAX"))


def _log_to_file(log: str, verbosity: int) -> None:
    handler = logging.handlers.RotatingFileHandler(log, maxBytes=LOG_BYTES_MAX, backupCount=1)
    logging.basicConfig(
        level=logging.DEBUG if verbosity > 1 else logging.INFO,
        format=_LOG_FORMAT,
        handlers=[handler],
        force=True,
    )
