"""A PostgreSQL server on a folder of a mount, started and ended by a test.

Role: initdb, the server as a child in the foreground, psql and pgbench beside it. As root it runs
for the user nobody, because PostgreSQL refuses root.

Invariants:
    I1. The server is a child, and is taken away however the test ends; only it is signalled.

Not here: what is asked of it (test_postgresql.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import pytest

from tests.mounted.mounts import run_command

SECONDS_TO_START_MAX = 600.0
SECONDS_TO_STOP_MAX = 120.0
SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "8MB",
    "max_connections": "20",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "autovacuum_naptime": "2s",
    "max_wal_size": "64MB",
    "logging_collector": "off",
}


def find_programs() -> Path:
    """The folder of PostgreSQL's programs; Debian keeps them out of PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb")
    if found is not None:
        folders.append(Path(found).resolve().parent)
    for folder in reversed(folders):
        if all((folder / name).exists() for name in ("initdb", "postgres", "pgbench", "psql")):
            return folder
    pytest.skip("no PostgreSQL server on this machine (Debian package postgresql)")


def find_user() -> list[str]:
    """What comes before a command so that it does not run as root."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv on this machine, and PostgreSQL refuses root (package util-linux)")
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]


class Cluster:
    """A cluster of databases in a new folder of the mount; `with` starts and stops its server.

    Args:
        folder: an existing folder of the mount, of which the cluster becomes a subfolder; anybody
            can get to it.
    """

    def __init__(self, folder: Path) -> None:
        self._programs = find_programs()
        self._user = find_user()
        self._server: subprocess.Popen[bytes] | None = None
        self.data = folder / "cluster"
        # Beside the mount, because the path of a socket may have 107 characters only.
        self._socket = Path(tempfile.mkdtemp(prefix="shardfs-pg-"))
        self._log = self._socket / "log"
        if self._user:
            shutil.chown(self._socket, "nobody", "nogroup")

    def initialize(self) -> None:
        """initdb, with checksums of pages."""
        self.data.mkdir(mode=0o700)
        if self._user:
            shutil.chown(self.data, "nobody", "nogroup")
        options = ("--data-checksums", "--username=shardfs", "--auth=trust", "--encoding=UTF8")
        self.run("initdb", *options, "--locale=C", "-D", self.data)
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in SETTINGS.items())

    def run(
        self,
        program: str,
        *arguments: str | Path,
        expected_status: int = 0,
        seconds_max: float = 300,
    ) -> str:
        """Run one of PostgreSQL's programs; its standard output."""
        command = self._command(program, *arguments)
        return run_command(*command, expected_status=expected_status, seconds_max=seconds_max)

    def client(self, program: str, *arguments: str | Path, expected_status: int = 0) -> str:
        """Run a program that connects to the server."""
        where = ("-h", self._socket, "-U", "shardfs")
        return self.run(program, *where, *arguments, expected_status=expected_status)

    def ask(self, statement: str) -> str:
        """What psql prints for a statement: rows in lines, columns between bars."""
        options = ("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", "postgres")
        return self.client("psql", *options, "-c", statement).strip()

    def start_client(self, program: str, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start a program that connects to the server and goes on."""
        return subprocess.Popen(
            self._command(program, "-h", self._socket, "-U", "shardfs", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
        )

    def start(self) -> None:
        """Start the server, and return when it takes connections: it has recovered then."""
        assert self._server is None
        command = self._command("postgres", "-D", self.data, "-k", self._socket)
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
            )
        deadline = time.monotonic() + SECONDS_TO_START_MAX
        ready = self._command("pg_isready", "-q", "-h", self._socket)
        while subprocess.run(ready, check=False, cwd="/").returncode != 0:
            assert self._server.poll() is None, f"postgres has ended\n{self.log_text()}"
            assert time.monotonic() < deadline, f"postgres does not answer\n{self.log_text()}"
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT checkpoints and ends, SIGQUIT ends at once. Waits for it."""
        if self._server is None:
            return
        self._server.send_signal(how)
        try:
            self._server.wait(SECONDS_TO_STOP_MAX)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
            raise AssertionError(f"postgres does not end\n{self.log_text()}") from None
        finally:
            self._server = None

    def log_text(self) -> str:
        """What the server has said."""
        return self._log.read_text(errors="replace")

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop(signal.SIGQUIT if kind is not None else signal.SIGINT)
        finally:
            shutil.rmtree(self._socket)

    def _command(self, program: str, *arguments: str | Path) -> list[str]:
        words = [*self._user, str(self._programs / program)]
        return [*words, *(str(argument) for argument in arguments)]
