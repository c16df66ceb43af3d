"""Eight processes do the work of all applications at once; then the device is verified.

APPLICATIONS_SECONDS in the environment is how long the slow form goes on: 600 seconds, as long as
nothing else is asked for.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mounted.applications.all_at_once import WORKS
from tests.mounted.applications.programs import REPOSITORY
from tests.mounted.applications.test_python_packages import fetch_wheel
from tests.mounted.conftest import ImageFactory, MountFactory
from tests.mounted.mounts import SHARDFS, MountedShardfs, run_command

PROCESSES = 8
IMAGE_BYTES = 6 * 1024 * 1024 * 1024
SECONDS = int(os.environ.get("APPLICATIONS_SECONDS", "600"))
SECONDS_TO_FINISH_MAX = 900
"""For work that had begun when the time was over; all of it together is then under way."""
SECONDS_TO_VERIFY_MAX = 600
SECONDS_TO_CLEAN_UP_MAX = 30


def work_side_by_side(mounted: MountedShardfs, seconds: int, wheels: str) -> Counter[str]:
    """Eight loads at once; how often each work was done."""
    children = []
    try:
        for number in range(PROCESSES):
            folder = mounted.path / f"process-{number}"
            folder.mkdir()
            command = [sys.executable, "-m", "tests.mounted.applications.all_at_once"]
            children.append(
                subprocess.Popen(
                    [*command, str(folder), f"{1000 * number}", f"{seconds}", wheels],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=REPOSITORY,
                    start_new_session=True,
                )
            )
        done: Counter[str] = Counter()
        for child in children:
            said, complaint = child.communicate(timeout=seconds + SECONDS_TO_FINISH_MAX)
            assert child.returncode == 0, f"{said}\n{complaint}"
            done.update(" ".join(line.split()[:2]) for line in said.splitlines())
        return done
    finally:
        for child in children:
            end_with_all_it_started(child)


def end_with_all_it_started(child: subprocess.Popen[str]) -> None:
    """Asked first, for only it can end its PostgreSQL server as that wants to be ended."""
    child.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        child.wait(SECONDS_TO_CLEAN_UP_MAX)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def verify(mounted: MountedShardfs) -> None:
    """Unmounted and verified, mounted and emptied, unmounted and verified again."""
    for _ in range(2):
        mounted.umount()
        run_command(SHARDFS, "fsck", mounted.device, "--data", seconds_max=SECONDS_TO_VERIFY_MAX)
        mounted.start()
        for path in mounted.path.iterdir():
            shutil.rmtree(path)
    assert list(mounted.path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + SECONDS_TO_FINISH_MAX + 600)
def test_eight_processes_do_all_of_it(
    make_image: ImageFactory, mount_shardfs: MountFactory, tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    try:
        fetch_wheel(wheels)
    except pytest.skip.Exception as reason:
        print(reason)
        where = "-"
    else:
        where = str(wheels)
    limit = SECONDS + SECONDS_TO_FINISH_MAX + 300
    mounted = mount_shardfs(make_image(IMAGE_BYTES), for_everybody=True, seconds_max=limit)
    done = work_side_by_side(mounted, SECONDS, where)
    print("\n".join(f"{count:5} {what}" for what, count in sorted(done.items())))
    if SECONDS >= 600:
        tried = {what.partition(" ")[2] for what in done}
        assert tried >= {name.replace(" ", "-") for name in WORKS}
    verify(mounted)
