"""How programs save: editors, mail servers, log files that are rotated, temporary files.

Each pattern is done as the programs do it, call by call; what may never be seen in between is
looked for by a reader at the same time.
"""

from __future__ import annotations

import contextlib
import logging.handlers
import mailbox
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.mounted.applications.programs import REPOSITORY
from tests.mounted.mounts import MountedShardfs
from tests.mounted.test_recordings import sync_directory

PROCESSES = 3
MESSAGES = 15
LINES = 150


TICK_NS = 10_000_000
"""What utime(2) calls "now" is the kernel's last tick, and may lie that far before a write."""


def write_and_sync(path: Path, data: bytes) -> None:
    """A whole file, durable."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def save_by_rename(path: Path, data: bytes) -> None:
    """As GNOME's editors, git and most libraries do: temporary file, its mode, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write_and_sync(temporary, data)
    shutil.copystat(path, temporary)
    os.utime(temporary)
    os.replace(temporary, path)
    sync_directory(path.parent)


def save_with_backup(path: Path, data: bytes) -> None:
    """As vim does: a swap file, the old file renamed to a backup, the new one written."""
    swap = path.with_name(f".{path.name}.swp")
    descriptor = os.open(swap, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    backup = path.with_name(f"{path.name}~")
    try:
        os.write(descriptor, b"b0VIM" + bytes(4000))
        backup.unlink(missing_ok=True)
        mode = path.stat().st_mode
        os.rename(path, backup)
        write_and_sync(path, data)
        path.chmod(mode & 0o7777)
    finally:
        os.close(descriptor)
        swap.unlink()


def save_in_place(path: Path, data: bytes) -> None:
    """As emacs does with files of several names: a backup is copied, the file overwritten."""
    shutil.copy2(path, path.with_name(f"{path.name}.bak"))
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        for at in range(0, len(data), 8192):
            os.write(descriptor, data[at : at + 8192])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_by_link(path: Path, data: bytes) -> None:
    """As careful programs without rename do: unlink, then link the new file to the name."""
    temporary = path.with_name(f"{path.name}.new")
    write_and_sync(temporary, data)
    shutil.copymode(path, temporary)
    path.unlink()
    os.link(temporary, path)
    temporary.unlink()


SAVES: tuple[Callable[[Path, bytes], None], ...] = (
    save_by_rename,
    save_with_backup,
    save_in_place,
    save_by_link,
)


def editor_work(folder: Path, seed: int) -> None:
    """Each way of saving, many times; the file has what was saved last, and its mode."""
    rng = random.Random(seed)
    for save in SAVES:
        path = folder / f"{save.__name__}.txt"
        path.write_bytes(b"first")
        path.chmod(0o640)
        last = b"first"
        for _ in range(12):
            data = rng.randbytes(rng.choice((1, 100, 4096, 10_000, 200_000)))
            before = path.stat().st_mtime_ns
            with path.open("rb") as reader:
                save(path, data)
                seen = reader.read()
            # A reader has the old file to the end, unless it was overwritten in place.
            assert seen == (data if save is save_in_place else last), save.__name__
            assert path.read_bytes() == data
            assert path.stat().st_mode & 0o7777 == 0o640
            assert path.stat().st_mtime_ns >= before - TICK_NS
            last = data
    left = [path.name for path in folder.iterdir() if path.suffix in (".tmp", ".swp", ".new")]
    assert left == []


DELIVER = """
import mailbox, os, sys
box = mailbox.Maildir(sys.argv[1], create=True)
for number in range(int(sys.argv[3])):
    message = mailbox.MaildirMessage("From: a\\nSubject: %s %d\\n\\n%s\\n"
                                     % (sys.argv[2], number, "text " * 37 * (number % 11)))
    box.add(message)
"""


def run_side_by_side(script: str, arguments: Sequence[Sequence[object]]) -> None:
    """Run a Python script once for each list of arguments, all at once; all must succeed."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, each)], cwd=REPOSITORY, stderr=subprocess.PIPE
        )
        for each in arguments
    ]
    try:
        for child in children:
            _, complaint = child.communicate(timeout=120)
            assert child.returncode == 0, complaint.decode(errors="replace")
    finally:
        for child in children:
            child.kill()
            child.wait()


def mail_work(folder: Path, seed: int) -> None:
    """Several processes deliver into one maildir; then messages are read, flagged, removed."""
    place = folder / "Maildir"
    mailbox.Maildir(place, create=True)
    deliveries = [[place, f"{number}", f"{MESSAGES}"] for number in range(PROCESSES)]
    run_side_by_side(DELIVER, deliveries)
    box = mailbox.Maildir(place)
    subjects = sorted(message["Subject"] for message in box)
    sent = [f"{process} {number}" for process in range(PROCESSES) for number in range(MESSAGES)]
    assert subjects == sorted(sent)
    read = box.add_folder("read")
    for number, key in enumerate(sorted(box.keys())):
        message = box[key]
        assert isinstance(message, mailbox.MaildirMessage)
        if number % 3 == 0:
            read.add(message)
            box.discard(key)
        elif number % 3 == 1:
            message.set_subdir("cur")
            message.set_flags("S")
            box[key] = message
    assert len(box) + len(read) == len(sent)
    assert list((place / "tmp").iterdir()) == []
    with contextlib.closing(mailbox.mbox(folder / "mbox")) as spool:
        spool.lock()
        for message in box:
            spool.add(mailbox.mboxMessage(message))
        spool.flush()
        spool.unlock()
    with contextlib.closing(mailbox.mbox(folder / "mbox")) as spool:
        assert len(spool) == len(box)


LOG_LINES = """
import logging, logging.handlers, sys
handler = logging.handlers.WatchedFileHandler(sys.argv[1])
log = logging.getLogger()
log.addHandler(handler)
for number in range(int(sys.argv[3])):
    log.warning("%s %d %s", sys.argv[2], number, "x" * (number % 70))
"""
ROTATE = """
import os, sys, time
path, number, rounds = sys.argv[1], 0, 8
while number < rounds:
    time.sleep(0.02)
    try:
        os.rename(path, "%s.%d" % (path, number))
        number += 1
    except FileNotFoundError:
        rounds -= 1
"""


def log_work(folder: Path, seed: int) -> None:
    """Several processes append to a log that is renamed under them; every line is there once."""
    path = folder / "log"
    writers = [[path, f"{number}", f"{LINES}"] for number in range(PROCESSES)]
    script = f"import sys\nexec({ROTATE!r} if sys.argv[2] == 'rotate' else {LOG_LINES!r})"
    run_side_by_side(script, [*writers, [path, "rotate", "0"]])
    lines = [line for part in folder.glob("log*") for line in part.read_text().splitlines()]
    wanted = [
        f"{process} {number} {'x' * (number % 70)}"
        for process in range(PROCESSES)
        for number in range(LINES)
    ]
    assert sorted(lines) == sorted(wanted)
    handler = logging.handlers.RotatingFileHandler(folder / "own", maxBytes=2000, backupCount=100)
    try:
        for number in range(LINES):
            handler.emit(logging.makeLogRecord({"msg": f"line {number}"}))
    finally:
        handler.close()
    parts = [line for part in folder.glob("own*") for line in part.read_text().split("\n")]
    assert sorted(filter(None, parts)) == sorted(f"line {number}" for number in range(LINES))


def temporary_work(folder: Path, seed: int) -> None:
    """Python's temporary files: without a name, with one, spooled, and in folders of their own."""
    rng = random.Random(seed)
    data = rng.randbytes(100_000)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(data)
        file.seek(0)
        assert file.read() == data
        assert os.fstat(file.fileno()).st_nlink == 0
    with tempfile.NamedTemporaryFile(dir=folder) as named:
        named.write(data)
        named.flush()
        assert Path(named.name).read_bytes() == data
    with tempfile.SpooledTemporaryFile(max_size=1000, mode="w+b", dir=str(folder)) as spooled:
        spooled.write(data)
        spooled.seek(500)
        assert spooled.read() == data[500:]
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        for number in range(50):
            descriptor, name = tempfile.mkstemp(dir=inner, prefix=f"{number}-")
            os.write(descriptor, data[:number])
            os.close(descriptor)
            assert Path(name).stat().st_size == number
            assert Path(name).stat().st_mode & 0o777 == 0o600
    assert list(folder.iterdir()) == []


def saving_work(folder: Path, seed: int) -> None:
    """All of these, each in a folder of its own."""
    for work in (editor_work, mail_work, log_work, temporary_work):
        own = folder / work.__name__
        own.mkdir()
        work(own, seed)


def test_saving(mounted_shardfs: MountedShardfs) -> None:
    saving_work(mounted_shardfs.path, 1)
    mounted_shardfs.remount()
    box = mailbox.Maildir(mounted_shardfs.path / "mail_work" / "Maildir", create=False)
    assert len(box) + len(box.get_folder("read")) == PROCESSES * MESSAGES
