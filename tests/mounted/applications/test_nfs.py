"""A mount exported over NFS, by a server and read by a client that both live in user space.

NFS-Ganesha finds files by their handles (open_by_handle_at(2)), as the kernel's server does, which
not every kernel has. libnfs needs no mount. (The server keeps attributes for a minute, so nothing
is changed behind its back.) Not installed by scripts/test: Debian's package of
NFS-Ganesha starts a server of its own for the machine.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounted.applications.programs import need
from tests.mounted.mounts import MountedShardfs

SECONDS_TO_START_MAX = 60.0
WRITE_BYTES = 2000
"""As much as nfs-cp of libnfs 4.0 writes at once through NFS 4; more of it fails, on ext4 too."""
CONFIGURATION = """
NFS_CORE_PARAM {{ NFS_Port = {port}; NFS_Protocols = 4; Enable_NLM = false; Enable_RQUOTA = false;
    Bind_addr = 127.0.0.1; }}
NFSv4 {{ Graceless = true; Only_Numeric_Owners = true; RecoveryBackend = fs;
    RecoveryRoot = {folder}; }}
EXPORT {{ Export_Id = 7; Path = {path}; Pseudo = /export; Filesystem_Id = 192.168;
    Access_Type = RW; Squash = No_Root_Squash; SecType = sys; Protocols = 4; Transports = TCP;
    FSAL {{ Name = VFS; }} }}
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an NFS server needs root")


class Export:
    """A directory exported over NFS 4.

    Args:
        port: where the server listens.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    def run(self, program: str, *arguments: str) -> bytes:
        """Run one of libnfs's programs; names that begin with / are the export's."""
        words = [
            f"nfs://127.0.0.1/export{each}?version=4&nfsport={self._port}"
            if each.startswith("/")
            else each.removeprefix("local:")
            for each in arguments
        ]
        done = subprocess.run([program, *words], capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, f"{program} {words}: {done.stderr.decode()}"
        return done.stdout


@contextmanager
def exported(path: Path, folder: Path) -> Iterator[Export]:
    """Serve a directory while the context lasts; the server's log is in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings, log = folder / "ganesha.conf", folder / "ganesha.log"
    settings.write_text(CONFIGURATION.format(port=port, folder=folder, path=path))
    command = ["ganesha.nfsd", "-F", "-f", str(settings), "-L", str(log), "-p", str(folder / "pid")]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SECONDS_TO_START_MAX
        while True:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield Export(port)
    finally:
        server.terminate()
        server.wait(60)


def test_nfs(mounted_shardfs: MountedShardfs, tmp_path: Path) -> None:
    need("nfs-ganesha with nfs-ganesha-vfs", "ganesha.nfsd")
    need("libnfs-utils", "nfs-ls", "nfs-cat", "nfs-cp")
    top, rng = mounted_shardfs.path, random.Random(1)
    contents = {
        f"{n % 3}/{n % 5}/file-{n}": rng.randbytes(rng.randrange(50_000)) for n in range(30)
    }
    contents["large"] = rng.randbytes(5_000_000)
    for name, content in contents.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content)
    with exported(top, tmp_path) as export:
        for name, content in contents.items():
            assert export.run("nfs-cat", f"/{name}") == content
        for number in range(10):
            content = rng.randbytes(rng.randrange(WRITE_BYTES))
            (tmp_path / "new").write_bytes(content)
            export.run("nfs-cp", f"local:{tmp_path}/new", f"/1/new-{number}")
            assert (top / f"1/new-{number}").read_bytes() == content
        listed = export.run("nfs-ls", "/1").decode()
        assert sorted(line.split()[-1] for line in listed.splitlines()) == sorted(
            os.listdir(top / "1")
        )
