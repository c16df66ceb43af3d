"""fio on a mount: sequential and random writes by many jobs at once, each block verified.

fio writes blocks that carry their own checksum, place and number, and reads them back; a block
that is not what was written last at its place ends the run. Each job has a file of its own, and
all jobs of a run go on at the same time.
"""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.mounted.applications.programs import need, run_in
from tests.mounted.conftest import ImageFactory, MountFactory
from tests.mounted.mounts import MountedShardfs

ENGINES = ("sync", "psync", "pvsync2", "mmap", "splice", "posixaio", "libaio", "io_uring")
QUEUEING = ("posixaio", "libaio", "io_uring")
"""Engines that keep several requests under way."""
DIRECT = ("psync", "libaio", "io_uring")
"""Engines that are run with O_DIRECT too."""
PATTERNS = {
    "sequential": {"rw": "write", "bs": "64k"},
    "random": {"rw": "randwrite", "bs": "4k"},
    "mixed": {"rw": "randrw", "bsrange": "1k-32k", "bs_unaligned": "1"},
    "synced": {"rw": "randwrite", "bs": "16k", "fdatasync": "16"},
}
EVERY_JOB = {
    "directory": ".",
    "verify": "crc32c",
    "verify_fatal": "1",
    "verify_dump": "0",
    "do_verify": "1",
    "fallocate": "none",
    "unlink": "1",
    "norandommap": "0",
}
MIB_EACH = 1
MIB_EACH_SLOW = 32

Jobs = dict[str, dict[str, str]]


@cache
def obstacle(engine: str, folder: Path) -> str | None:
    """Why an engine cannot be used on this machine, found out beside the mount."""
    job = ("--name=probe", f"--ioengine={engine}", "--rw=write", "--size=4k", "--unlink=1")
    probe = subprocess.run(
        ["fio", *job], capture_output=True, text=True, cwd=folder, timeout=60, check=False
    )
    if probe.returncode == 0:
        return None
    return (probe.stderr + probe.stdout).strip().splitlines()[0]


def choose_jobs(folder: Path, seed: int) -> Jobs:
    """Every pattern with every engine that can be used, and some of them around the page cache."""
    jobs: Jobs = {}
    for engine in ENGINES:
        if obstacle(engine, folder) is not None:
            continue
        more = {"ioengine": engine, "iodepth": "8" if engine in QUEUEING else "1"}
        for name, pattern in PATTERNS.items():
            jobs[f"{engine}-{name}"] = {**more, **pattern, "randseed": str(seed)}
        if engine in DIRECT:
            random = PATTERNS["random"]
            jobs[f"{engine}-direct"] = {**more, **random, "direct": "1", "randseed": str(seed)}
    return jobs


def run_jobs(folder: Path, jobs: Jobs, mib_each: int) -> int:
    """Run jobs all at once; how many bytes were verified."""
    sections = {"global": {**EVERY_JOB, "size": f"{mib_each}M"}, **jobs}
    lines = []
    for name, settings in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key}={value}" for key, value in settings.items()]
    (folder / "jobs.fio").write_text("\n".join(lines) + "\n")
    said = run_in(folder, "fio", "--output-format=json", "jobs.fio", seconds_max=1500)
    report = json.loads(said[said.index("{") :])["jobs"]
    assert {job["jobname"]: job["error"] for job in report} == dict.fromkeys(jobs, 0)
    verified = {job["jobname"]: int(job["read"]["io_bytes"]) for job in report}
    least = mib_each << 19
    assert {name: count for name, count in verified.items() if count < least} == {}
    return sum(verified.values())


def fio_work(folder: Path, seed: int) -> None:
    """All engines and patterns at once, in small files."""
    need("fio", "fio")
    run_jobs(folder, choose_jobs(folder, seed), MIB_EACH)


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_of_this_machine(engine: str, tmp_path: Path) -> None:
    """Only there to say which of them `test_fio` has to leave out."""
    need("fio", "fio")
    reason = obstacle(engine, tmp_path)
    if reason is not None:
        pytest.skip(f"fio cannot use {engine} on this machine: {reason}")


def test_fio(mounted_shardfs: MountedShardfs) -> None:
    fio_work(mounted_shardfs.path, 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fio_with_large_files(make_image: ImageFactory, mount_shardfs: MountFactory) -> None:
    need("fio", "fio")
    mounted = mount_shardfs(make_image(4 << 30), seconds_max=1700)
    jobs = choose_jobs(mounted.path, 2)
    assert run_jobs(mounted.path, jobs, MIB_EACH_SLOW) >= len(jobs) * (MIB_EACH_SLOW << 19)
