"""One file, several processes: appends, mappings, locks, programs, notices.

Role: what the kernel promises between the processes of one machine holds through the mount: each
sees what the other has just done, and nothing that was written is lost.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted.mounts import run_command

LIBC = ctypes.CDLL(None, use_errno=True)
PROCESSES = 4
LINES = 300


class Helper:
    """Another process, which does what it is told, one line at a time, and answers."""

    def __init__(self, folder: Path, script: str) -> None:
        command = [sys.executable, "-S", "-u", "-c", script]
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str) -> str:
        """Have it do something; its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], 30)
        assert ready, f"no answer to {line}"
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(30)
        self.process.stdout.close()


ECHO = """
import fcntl, mmap, os, struct, sys
names = {}
for line in sys.stdin:
    try:
        answer = eval(line, globals(), names)
    except OSError as error:
        answer = -error.errno
    print(answer)
"""


@pytest.fixture
def helper(folder: Path) -> Iterator[Callable[[], Helper]]:
    """A factory of processes that evaluate Python expressions; a negative answer is an errno."""
    made: list[Helper] = []

    def make() -> Helper:
        made.append(Helper(folder, ECHO))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_appending(folder: Path) -> None:
    """Every line of every process is there once, whole, and in its writer's order."""
    script = """
import os, sys
file = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(LINES):
    line = f"{sys.argv[1]} {number} ".ljust(100 + 37 * number % 5000, "x") + "\\n"
    assert os.write(file, line.encode()) == len(line)
""".replace("LINES", str(LINES))
    command = [sys.executable, "-S", "-c", script]
    writers = [subprocess.Popen([*command, str(name)], cwd=folder) for name in range(PROCESSES)]
    assert [writer.wait(120) for writer in writers] == [0] * PROCESSES
    lines = (folder / "log").read_text().splitlines()
    assert len(lines) == PROCESSES * LINES
    for name in range(PROCESSES):
        mine = [line.split() for line in lines if line.startswith(f"{name} ")]
        assert [int(fields[1]) for fields in mine] == list(range(LINES))
        assert all(set(fields[2]) == {"x"} for fields in mine)


def test_shared_mappings(folder: Path, helper: Callable[[], Helper]) -> None:
    """A store is seen by the other process at once, by read(2) too, and stays when both end."""
    path = folder / "file"
    path.write_bytes(bytes(16384))
    other = helper()
    other.ask("names.update(f=open('file', 'r+b'))")
    other.ask("names.update(m=mmap.mmap(f.fileno(), 0))")
    with path.open("r+b", 0) as file, mmap.mmap(file.fileno(), 0) as mapped:
        for number in range(20):
            mapped[number * 500] = number + 1
            assert other.ask(f"m[{number * 500}]") == str(number + 1)
            assert other.ask(f"os.pread(f.fileno(), 1, {number * 500})[0]") == str(number + 1)
            other.ask(f"m.__setitem__({number * 500 + 1}, {number + 100})")
            assert mapped[number * 500 + 1] == number + 100
            os.pwrite(file.fileno(), b"w", number * 500 + 2)
            assert other.ask(f"m[{number * 500 + 2}]") == str(ord("w"))
        private = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
        private[0] = 99
        assert mapped[0] == 1 and other.ask("m[0]") == "1"
        private.close()
    other.close()
    expected = bytearray(16384)
    for number in range(20):
        expected[number * 500 : number * 500 + 3] = bytes([number + 1, number + 100, ord("w")])
    assert path.read_bytes() == expected


def test_reading_behind_the_end_of_a_mapping(folder: Path, helper: Callable[[], Helper]) -> None:
    """What lies behind the end in the last page is zero; behind that page it is SIGBUS."""
    path = folder / "file"
    path.write_bytes(b"x" * 5000)
    other = helper()
    other.ask("names.update(f=open('file', 'r+b'))")
    other.ask("names.update(m=mmap.mmap(f.fileno(), 5000))")
    assert other.ask("m[4999]") == str(ord("x"))
    os.truncate(path, 100)
    os.truncate(path, 5000)
    assert other.ask("bytes(m[:102])[-3:]") == "b'x\\x00\\x00'"
    os.truncate(path, 100)
    assert other.ask("m[4500]") == "", "it has ended"
    assert other.process.wait(30) == -signal.SIGBUS


def test_locks_of_open_files(folder: Path, helper: Callable[[], Helper]) -> None:
    """flock(2): shared, exclusive, given up at close, and kept over unlink."""
    (folder / "file").touch()
    one, two = helper(), helper()
    for each in (one, two):
        each.ask("names.update(f=open('file', 'r+b'))")
    shared, exclusive = fcntl.LOCK_SH | fcntl.LOCK_NB, fcntl.LOCK_EX | fcntl.LOCK_NB
    assert one.ask(f"fcntl.flock(f, {shared})") == two.ask(f"fcntl.flock(f, {shared})") == "None"
    assert one.ask(f"fcntl.flock(f, {exclusive})") == str(-errno.EWOULDBLOCK)
    two.ask(f"fcntl.flock(f, {fcntl.LOCK_UN})")
    assert one.ask(f"fcntl.flock(f, {exclusive})") == "None"
    (folder / "file").unlink()
    assert two.ask(f"fcntl.flock(f, {shared})") == str(-errno.EWOULDBLOCK)
    one.ask("f.close()")
    assert two.ask(f"fcntl.flock(f, {exclusive})") == "None"


def test_locks_of_ranges(folder: Path, helper: Callable[[], Helper]) -> None:
    """fcntl(2): ranges, who holds one, gone with the process; and those of open files (OFD)."""
    (folder / "file").write_bytes(bytes(100))
    one, two = helper(), helper()
    for each in (one, two):
        each.ask("names.update(f=open('file', 'r+b'))")
    lock = "fcntl.lockf(f, fcntl.{} | fcntl.LOCK_NB, {}, {})"
    assert one.ask(lock.format("LOCK_EX", 10, 0)) == "None"
    assert two.ask(lock.format("LOCK_EX", 10, 10)) == "None"
    for length, start in ((1, 9), (20, 5)):
        answer = two.ask(lock.format("LOCK_EX", length, start))
        assert answer in (str(-errno.EAGAIN), str(-errno.EACCES))
    question = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 5, 1, 0)
    held = two.ask(f"fcntl.fcntl(f, fcntl.F_GETLK, {question!r})")
    kind, _, start, length, pid = struct.unpack("hhqqi4x", eval(held))
    assert (kind, start, length, pid) == (fcntl.F_WRLCK, 0, 10, one.process.pid)
    one.close()
    assert two.ask(lock.format("LOCK_EX", 0, 0)) == "None"
    two.ask("fcntl.lockf(f, fcntl.LOCK_UN)")
    own = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 200, 10, 0)
    set_own = f"fcntl.fcntl(f, 37, {own!r})"  # F_OFD_SETLK
    assert two.ask(set_own).startswith("b")
    three = helper()
    three.ask("names.update(f=open('file', 'r+b'))")
    assert three.ask(set_own) in (str(-errno.EAGAIN), str(-errno.EACCES))


def test_programs_that_run_cannot_be_written(folder: Path) -> None:
    """ETXTBSY while it runs, and EACCES or ETXTBSY for running what is open for writing."""
    program = folder / "sleep"
    shutil.copy("/bin/sleep", program)
    running = subprocess.Popen([program, "60"])
    try:
        while os.readlink(f"/proc/{running.pid}/exe") != str(program):
            assert running.poll() is None
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
            with pytest.raises(OSError) as raised:
                os.open(program, flags)
            assert raised.value.errno == errno.ETXTBSY
        with pytest.raises(OSError) as raised:
            os.truncate(program, 0)
        assert raised.value.errno == errno.ETXTBSY
        program.rename(folder / "moved")
        (folder / "moved").unlink()
    finally:
        running.kill()
        running.wait(30)
    shutil.copy("/bin/true", program)
    with program.open("r+b"), pytest.raises(OSError) as raised:
        subprocess.run([program], check=False, timeout=30)
    assert raised.value.errno == errno.ETXTBSY
    assert subprocess.run([program], check=False, timeout=30).returncode == 0


def test_notices(folder: Path) -> None:
    """inotify(7): what another process does is told, in its order."""
    names = {
        0x2: "modify",
        0x4: "attrib",
        0x8: "close_write",
        0x40: "moved_from",
        0x80: "moved_to",
        0x100: "create",
        0x200: "delete",
    }
    notices = LIBC.inotify_init1(os.O_NONBLOCK)
    try:
        assert LIBC.inotify_add_watch(notices, os.fsencode(folder), sum(names)) >= 0
        script = "echo x >a; chmod 600 a; mv a b; mkdir d; rmdir d; rm b"
        run_command("sh", "-c", f"cd '{folder}' && {script}")
        data, told = os.read(notices, 65536), []
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            name = data[16 : 16 + length].rstrip(b"\0").decode()
            told += [(names[bit], name) for bit in names if mask & bit]
            data = data[16 + length :]
    finally:
        os.close(notices)
    assert told == [
        *(("create", "a"), ("modify", "a"), ("close_write", "a"), ("attrib", "a")),
        *(("moved_from", "a"), ("moved_to", "b"), ("create", "d"), ("delete", "d")),
        ("delete", "b"),
    ]


def test_nobody_misses_a_name(folder: Path) -> None:
    """mkdir and O_EXCL are decided for one of several processes; rename is never half."""
    script = """
import os
won = 0
for number in range(LINES):
    try:
        os.mkdir(f"d{number}")
        os.close(os.open(f"f{number}", os.O_CREAT | os.O_EXCL))
        won += 1
    except FileExistsError:
        pass
print(won)
""".replace("LINES", str(LINES))
    command = [sys.executable, "-S", "-c", script]
    racers = [
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    won = [int(racer.communicate(timeout=120)[0]) for racer in racers]
    assert sum(won) == LINES
    assert len(os.listdir(folder)) == 2 * LINES
