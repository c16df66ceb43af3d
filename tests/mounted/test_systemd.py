"""The service, lines of fstab and automounts with a real systemd, in a container of its own.

Role: boots systemd in namespaces of its own, over a copy-on-write view of this machine's files
and with a /dev, /run and cgroup of its own, and looks at what it makes of a mount. Everything
ends with the container; the machine's own /etc, /sbin and /dev are not touched. (The messages
themselves are in test_mount_life.py.)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mounted.mounts import SHARDFS
from tests.mounted.shell import SECONDS_MAX, play

SYSTEMD = Path("/lib/systemd/systemd")
SECONDS_TO_BOOT_MAX = 90

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="boots systemd: needs root"),
    pytest.mark.skipif(not SYSTEMD.exists(), reason="no systemd (Debian package systemd)"),
    pytest.mark.skipif(shutil.which("nsenter") is None, reason="no nsenter (util-linux)"),
    pytest.mark.timeout(4 * SECONDS_MAX),
]

BOOT = """
set -eu
for each in $CGROUPS; do echo $$ >$each/cgroup.procs; done
exec unshare --mount --pid --fork --uts --ipc --cgroup --kill-child sh -euc '
mount --make-rprivate /
mount -t tmpfs tmpfs "$PLACE/top" -o size=256M
cd "$PLACE/top"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
mount -t tmpfs tmpfs tmp -o mode=1777
for each in "$PLACE" $NEEDED; do mkdir -p "./$each"; mount --rbind "$each" "./$each"; done
mount -t proc proc proc
mount -t sysfs sysfs sys -o ro
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs dev -o mode=755
mkdir dev/shm
for each in null zero full random urandom tty fuse autofs; do
    [ ! -e /dev/$each ] || { touch dev/$each; mount --bind /dev/$each dev/$each; }
done
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mount -t tmpfs tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/unified sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd systemd sys/fs/cgroup/systemd
fi
rm -rf etc/systemd/system etc/fstab; mkdir -p etc/systemd/system etc/shardfs
ln -s /dev/null etc/systemd/system/systemd-tmpfiles-setup.service  # it would look at all of /tmp
cat >etc/systemd/system/default.target <<X
[Unit]
Wants=systemd-journald.service dbus.service
After=systemd-journald.service dbus.service
X
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . /lib/systemd/systemd \\
    --system --log-target=journal --show-status=false'
"""
PREPARE = """
show() { systemctl show --property "$2" --value "$1"; }
wait_until() {
    for _ in $(seq 600); do "$@" && return; sleep 0.1; done
    echo "never: $*" >&2; exit 7
}
stopped() { [ "$(show $1 ActiveState)" = "${2:-inactive}" ]; }
"""


class Container:
    """A running systemd."""

    def __init__(self, place: Path, pid: int) -> None:
        self._place = place
        self._pid = pid

    def play(self, script: str) -> str:
        """Run a shell script in it; what it prints."""
        entering = [
            *("nsenter", "--target", str(self._pid), "--all", "--root", "--wd"),
            *("env", "-i", "LC_ALL=C", "SYSTEMD_PAGER=cat", f"shardfs={SHARDFS}"),
            *(f"place={self._place}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"),
        ]
        return play(entering, PREPARE + script).stdout


@pytest.fixture(scope="module")
def container(
    tmp_path_factory: pytest.TempPathFactory, fuse_is_usable: None
) -> Iterator[Container]:
    """systemd, booted, with shardfs installed; skips where it cannot be booted."""
    place = tmp_path_factory.mktemp("systemd")
    (place / "top").mkdir()
    cgroups = [make_cgroup(each) for each in cgroup_hierarchies()]
    needed = {str(Path(path).resolve()) for path in (sys.prefix, sys.base_prefix, Path.cwd())}
    environment = {
        **os.environ,
        "PLACE": str(place),
        "CGROUPS": " ".join(map(str, cgroups)),
        "NEEDED": " ".join(sorted(needed)),
    }
    with (place / "boot").open("w+") as said:
        outer = subprocess.Popen(
            ["sh", "-c", BOOT], env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
        try:
            pid = wait_for_boot(outer)
            if pid is None:
                said.seek(0)
                pytest.skip(f"systemd cannot be booted here: {said.read().strip()[-300:]}")
            booted = Container(place, pid)
            booted.play('expect 0 "$shardfs" install && systemctl daemon-reload')
            booted.play('expect 0 "$shardfs" mkfs "$place/disk.img" --size 64M')
            yield booted
        finally:
            outer.kill()
            outer.wait()
            for each in cgroups:
                remove_cgroup(each)


def cgroup_hierarchies() -> list[Path]:
    """Where systemd keeps its groups of processes: one of version 2, and its own of version 1."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [
        Path(place)
        for _, place, kind, options, *_ in lines
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options)
    ]


def make_cgroup(hierarchy: Path) -> Path:
    group = hierarchy / f"shardfs-test-{os.getpid()}"
    try:
        group.mkdir(exist_ok=True)
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    return group


def remove_cgroup(group: Path) -> None:
    """Remove it with those that systemd has made in it, once their processes have gone."""
    deadline = time.monotonic() + SECONDS_MAX
    while group.exists():
        for folder, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()
        assert time.monotonic() < deadline, f"processes live on in {group}"
        time.sleep(0.05)


def wait_for_boot(outer: subprocess.Popen[bytes]) -> int | None:
    """The process number of a systemd that has started everything; None if it does not."""
    deadline = time.monotonic() + SECONDS_TO_BOOT_MAX
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    while time.monotonic() < deadline and outer.poll() is None:
        with suppress(OSError, IndexError):
            pid = int(children.read_text().split()[0])
            if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                asked = ["nsenter", "--target", str(pid), "--all", "--root", "--wd"]
                asked += ["systemctl", "is-system-running"]
                done = subprocess.run(asked, capture_output=True, text=True, check=False)
                if done.stdout.strip() in ("running", "degraded"):
                    return pid
        time.sleep(0.1)
    return None


def test_a_service(container: Container) -> None:
    text = container.play(
        """
        mkdir /srv/data
        printf "DEVICE=$place/disk.img\\nMOUNTPOINT=/srv/data\\n" >/etc/shardfs/data.conf
        expect 0 systemctl start shardfs@data
        grep -q ' /srv/data fuse.shardfs rw' /proc/mounts || exit 10
        echo "status: $(show shardfs@data StatusText)"
        echo kept >/srv/data/file; expect 0 "$shardfs" sync /srv/data

        # killed: it is started again, and the mount is there again
        before=$(show shardfs@data MainPID)
        kill -9 $before
        again() { [ "$(show shardfs@data MainPID)" != $before ] && grep -q kept /srv/data/file; }
        wait_until again 2>/dev/null
        echo "restarts: $(show shardfs@data NRestarts)"

        # unmounted by somebody: it has ended, and is not started again
        expect 0 umount /srv/data
        wait_until stopped shardfs@data
        sleep 2
        stopped shardfs@data || exit 14

        expect 0 systemctl start shardfs@data
        grep -q kept /srv/data/file || exit 11
        echo more >/srv/data/more
        expect 0 systemctl stop shardfs@data
        grep -q shardfs /proc/mounts && exit 12
        expect 0 "$shardfs" shards cat "$place/disk.img" more
        "$shardfs" info "$place/disk.img" | grep -q 'closed in order' || exit 13
        journalctl --no-pager -o cat -u shardfs@data | grep -q 'the mount at /srv/data has ended'
        """
    )
    lines = text.splitlines()
    assert lines[0].startswith("status: /") and lines[0].endswith("disk.img at /srv/data")
    assert lines[1:] == ["restarts: 1", "more"]


def test_a_service_without_its_mount(container: Container) -> None:
    """`umount -l`: it runs on for what is open, and says so; a restart mounts again."""
    text = container.play(
        """
        cp "$place/disk.img" "$place/lazy.img"; mkdir /srv/lazy
        printf "DEVICE=$place/lazy.img\nMOUNTPOINT=/srv/lazy\n" >/etc/shardfs/lazy.conf
        expect 0 systemctl start shardfs@lazy
        echo kept >/srv/lazy/file
        exec 3</srv/lazy/file
        expect 0 umount -l /srv/lazy
        told() { show shardfs@lazy StatusText | grep -q '^unmounted, serves what is still open'; }
        wait_until told
        expect 0 systemctl start shardfs@lazy
        grep -q ' /srv/lazy ' /proc/mounts && exit 10
        cat <&3
        expect 0 systemctl restart shardfs@lazy
        grep -q ' /srv/lazy ' /proc/mounts || exit 11
        cat /srv/lazy/file
        expect 0 systemctl stop shardfs@lazy
        """
    )
    assert text == "kept\nkept\n"


def test_a_service_whose_device_is_not_there(container: Container) -> None:
    """It fails once, and says why; it was started again and again, for ever where that is slow."""
    text = container.play(
        """
        printf "DEVICE=/nothing.img\\nMOUNTPOINT=/srv/data\\nOPTIONS=\\n" >/etc/shardfs/nowhere.conf
        expect 1 systemctl start shardfs@nowhere 2>/dev/null
        stopped shardfs@nowhere failed || exit 10
        sleep 3
        stopped shardfs@nowhere failed || exit 11
        echo "restarts: $(show shardfs@nowhere NRestarts)"
        echo "status: $(show shardfs@nowhere ExecMainStatus)"
        journalctl --no-pager -o cat -u shardfs@nowhere | grep 'there is no'
        """
    )
    assert text.startswith("restarts: 0\nstatus: 2\nshardfs: there is no /nothing.img"), text


def test_fstab_and_automount(container: Container) -> None:
    text = container.play(
        """
        cp "$place/disk.img" "$place/other.img"
        cat >/etc/fstab <<X
        $place/disk.img   /srv/img  shardfs  noatime,nofail                     0 0
        $place/other.img  /srv/auto  shardfs  noauto,user,x-systemd.automount    0 0
X
        mkdir /srv/auto /srv/img
        systemctl daemon-reload
        expect 0 systemctl start srv-img.mount
        grep -q ' /srv/img fuse.shardfs rw,noatime' /proc/mounts || exit 10
        echo kept >/srv/img/file
        expect 0 systemctl stop srv-img.mount
        expect 0 "$shardfs" shards cat "$place/disk.img" file

        [ -e /dev/autofs ] || exit 0
        expect 0 systemctl start srv-auto.automount
        grep -q ' /srv/auto fuse.shardfs' /proc/mounts && exit 11
        expect 0 timeout 60 touch /srv/auto/file
        grep -q ' /srv/auto fuse.shardfs' /proc/mounts || exit 12
        expect 0 systemctl stop srv-auto.automount srv-auto.mount
        "$shardfs" info "$place/other.img" | grep -q 'closed in order' || exit 13
        journalctl --no-pager -o cat -t shardfs | grep -o '/srv/[ai].* has ended'
        """
    )
    if not Path("/dev/autofs").exists():
        pytest.skip("this kernel has no automounts; lines of fstab without them work")
    assert text.splitlines() == ["kept", "/srv/img has ended", "/srv/auto has ended"]
