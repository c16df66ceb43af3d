"""mount(8), umount(8) and fstab with the helpers of shardfs, in a mount namespace of its own.

Role: each test is a shell script that runs where /usr/sbin holds the helpers and nothing else,
and /etc/fstab is the test's. The namespaces, of mounts and of processes, end with the script and
take whatever it leaves with them; the machine's own /sbin and /etc are not touched.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shardfs.cli.install import LINKS
from tests.mounted.shell import play

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="calls mount(8) as root"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare (util-linux)"),
]
ENTRY_POINTS = {
    "shardfs": "from shardfs.cli.main import main",
    "mount.shardfs": "from shardfs.cli.mount_helper import main_mount as main",
    "umount.shardfs": "from shardfs.cli.mount_helper import main_umount as main",
}
NAMESPACE = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
PREPARE = """
mount --make-rprivate /
mount --bind "$PLACE/sbin" "$(realpath /sbin)"
mount --bind "$PLACE/fstab" /etc/fstab
cd "$PLACE"
shown() { grep " $PLACE/mnt " /proc/self/mountinfo; }
shardfs mkfs disk.img --size 64M >/dev/null || exit 8
"""


class Stage:
    """A directory with everything that a script needs."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.bin = place / "bin"
        sbin = place / "sbin"
        for directory in (self.bin, sbin, place / "mnt", place / "run"):
            directory.mkdir()
        (place / "run").chmod(0o700)
        (place / "fstab").touch()
        for name, line in ENTRY_POINTS.items():
            (self.bin / name).write_text(f"#!{sys.executable}\n{line}\nmain()\n")
            (self.bin / name).chmod(0o755)
        for path, name in LINKS.items():
            (sbin / Path(path).name).symlink_to(self.bin / name)
        fuse = shutil.which("mount.fuse3", path="/sbin:/usr/sbin")
        if fuse is not None:
            shutil.copy(fuse, sbin / "mount.fuse3")

    def play(self, script: str) -> str:
        """Run a script on the stage; what it says on standard error."""
        modules = os.environ.get("PYTHONPATH", str(Path(__file__).parents[2]))
        environment = {
            **os.environ,
            "PLACE": str(self.place),
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PYTHONPATH": modules,
            "SHARDFS_RUNTIME_DIR": str(self.place / "run"),
            "LC_ALL": "C",
        }
        return play(NAMESPACE, PREPARE + script, environment).stderr


@pytest.fixture
def stage(fuse_is_usable: None, tmp_path: Path) -> Stage:
    """An empty stage; skips where namespaces cannot be made."""
    probe = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False, timeout=30)
    if probe.returncode != 0:
        pytest.skip(f"no namespaces here: {probe.stderr.decode().strip()}")
    return Stage(tmp_path)


def test_mount_by_type(stage: Stage) -> None:
    text = stage.play(
        """
        expect 0 mount -t shardfs disk.img mnt -o noatime,nofail,_netdev,x-systemd.automount
        shown | grep -q noatime || exit 10
        shown | grep -Eq 'nosuid|nodev|noexec' && exit 11
        echo hello >mnt/file || exit 12
        expect 0 umount mnt
        shardfs info disk.img | grep -q 'closed in order' || exit 13
        expect 0 mount -t fuse.shardfs "$PLACE/disk.img" mnt -o ro,nosuid
        shown | grep -q ' ro,nosuid' || exit 14
        [ "$(cat mnt/file)" = hello ] || exit 15
        expect 0 umount mnt
        if [ -e "$PLACE/sbin/mount.fuse3" ]; then
            expect 0 "$PLACE/sbin/mount.fuse3" "$PLACE/disk.img" mnt -t fuse.shardfs -o noatime
            shown | grep -Eq 'nosuid|nodev|noexec' && exit 16
            shown | grep -q noatime || exit 17
            expect 0 umount -l mnt
            shown && exit 18
        fi
        expect 0 mount -t shardfs disk.img mnt  # waits for the server that still ends
        expect 0 umount mnt
        """
    )
    assert text == ""


def test_fstab(stage: Stage) -> None:
    line = "nofail,noauto,user,_netdev,x-systemd.automount,x-systemd.requires=/,comment=x"
    (stage.place / "fstab").write_text(
        f"{stage.place}/disk.img {stage.place}/mnt shardfs {line},exec 0 0\n"
    )
    text = stage.play(
        """
        expect 0 mount mnt
        shown | grep -q 'rw,nosuid,nodev,relatime' || { shown >&2; exit 10; }
        echo hello >mnt/file || exit 11
        expect 0 mount -o remount,ro mnt
        shown | grep -q ' ro,' || exit 12
        ( echo x >mnt/file ) 2>/dev/null && exit 13
        expect 0 mount -o remount,rw,noatime "$PLACE/mnt"
        shown | grep -q 'rw,.*noatime' || exit 14
        echo x >mnt/file || exit 15
        expect 0 umount "$PLACE/disk.img"
        expect 0 mount -a
        shown && exit 16
        expect 0 mount "$PLACE/disk.img"
        [ "$(cat mnt/file)" = x ] || exit 17
        expect 0 umount mnt
        """
    )
    assert text == ""


def test_exit_statuses(stage: Stage) -> None:
    text = stage.play(
        """
        expect 1 mount -t shardfs disk.img mnt -o fast
        expect 1 mount.shardfs disk.img
        expect 1 mount.shardfs -N 1 disk.img mnt
        expect 32 mount -t shardfs nothing.img mnt
        expect 32 mount -t shardfs disk.img nowhere
        truncate -s 64M empty.img
        expect 32 mount -t shardfs empty.img mnt
        expect 32 mount -t shardfs bin mnt
        expect 0 mount -f -t shardfs disk.img mnt
        expect 0 mount.shardfs -f disk.img mnt
        expect 0 mount.shardfs -s -n -v disk.img mnt -t shardfs -o fast,rw
        expect 32 mount.shardfs disk.img mnt
        expect 32 mount.shardfs disk.img bin
        exec 3>mnt/file
        expect 32 umount mnt
        expect 32 umount.fuse.shardfs mnt
        expect 32 mount -o remount,ro mnt
        exec 3>&-
        expect 0 umount.fuse.shardfs mnt
        expect 32 umount.fuse.shardfs mnt
        expect 0 mount.shardfs --version >&2
        """
    )
    lines = text.splitlines()
    assert lines[-1].startswith("shardfs ")
    assert len(lines) == 14, text
    for line in lines[:-1]:
        assert line.startswith(("mount.shardfs: ", "umount.shardfs: ", "shardfs: ")), text
    assert "known are ro" in lines[0] and "noxattr" in lines[0]


def test_stale_mounts(stage: Stage) -> None:
    """A killed server leaves nothing stuck; its mount point goes with the next mount."""
    text = stage.play(
        """
        mkdir other
        kill_server() {
            for each in /proc/[0-9]*; do
                tr '\\0' ' ' <$each/cmdline 2>/dev/null | grep -q 'mount.shardfs disk.img' &&
                    [ "$(cut -d' ' -f6 $each/stat)" = "${each#/proc/}" ] && kill -9 ${each#/proc/}
            done
            while timeout 5 ls mnt >/dev/null 2>&1; do sleep 0.1; done
        }
        expect 0 mount.shardfs disk.img mnt
        exec 3<mnt
        kill_server
        LC_ALL=C ls mnt 2>&1 | grep -q 'not connected' || exit 10
        shardfs stat mnt 2>&1 | grep -q 'killed' || exit 11
        expect 1 shardfs umount mnt
        shown && exit 12
        expect 0 mount.shardfs disk.img mnt
        kill_server
        expect 0 mount.shardfs disk.img mnt
        echo hello >mnt/file || exit 13
        kill_server
        expect 0 mount.shardfs disk.img other
        shown && exit 14
        expect 0 umount other
        exec 3<&-
        """
    )
    lines = text.splitlines()
    assert len(lines) == 3 and "took away" not in lines[0], text
    assert all("had gone" in line for line in lines), text


def test_the_stage_is_not_the_machine(stage: Stage) -> None:
    before = os.listdir("/sbin"), Path("/etc/fstab").stat().st_mtime_ns
    stage.play("[ $(ls /sbin | wc -l) -lt 10 ] || exit 20")
    assert (os.listdir("/sbin"), Path("/etc/fstab").stat().st_mtime_ns) == before
    assert stat.S_ISDIR((stage.place / "mnt").stat().st_mode)
