"""Python on a mount: a virtual environment, a large wheel installed into it and used.

The wheel comes from a package registry through pip; where none can be reached, the test is
skipped and says so. What was downloaded once is in pip's own cache.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mounted.applications.programs import run_in
from tests.mounted.mounts import MountedShardfs

WHEEL = "numpy"
USE = """
import numpy, pathlib, numpy.linalg
assert numpy.__file__.startswith({folder!r}), numpy.__file__
matrix = numpy.arange(1.0, 10_001.0).reshape(100, 100) + numpy.eye(100) * 1000
assert numpy.allclose(matrix @ numpy.linalg.inv(matrix), numpy.eye(100))
mapped = numpy.memmap("mapped", dtype="int64", mode="w+", shape=(200_000,))
mapped[:] = numpy.arange(200_000)
mapped.flush()
del mapped
again = numpy.memmap("mapped", dtype="int64", mode="r+", shape=(200_000,))
again[::7] = -1
del again
numbers = numpy.fromfile("mapped", dtype="int64")
assert (numbers[::7] == -1).all() and numbers[1] == 1 and numbers[-1] == 199_999
numpy.savez_compressed("arrays.npz", matrix=matrix, numbers=numbers)
with numpy.load("arrays.npz") as arrays:
    assert (arrays["matrix"] == matrix).all() and (arrays["numbers"] == numbers).all()
print(numpy.__version__)
"""
CHECK_RECORDS = """
import base64, csv, hashlib, importlib.metadata
files = importlib.metadata.files({wheel!r})
count = 0
for file in files:
    if file.hash:
        digest = hashlib.new(file.hash.mode, file.read_binary()).digest()
        assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value, file
        count += 1
print(count)
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, fetched by pip; skips the tests where that cannot be done."""
    folder = tmp_path_factory.mktemp("wheels")
    fetch_wheel(folder)
    return folder


def fetch_wheel(folder: Path) -> None:
    """Fetch the wheel into a folder, from pip's cache or a registry; skips the test if neither."""
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--retries", "1")
    choice = ("--only-binary", ":all:", "--no-deps", "--dest", str(folder), WHEEL)
    try:
        fetched = subprocess.run(
            [*pip, "--disable-pip-version-check", *choice],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip got no wheel of {WHEEL} from its registry within two minutes")
    if fetched.returncode != 0:
        said = fetched.stderr.strip().splitlines() or ["no message"]
        pytest.skip(f"pip cannot get a wheel of {WHEEL} here: {said[-1]}")


def install_and_use(folder: Path, wheels: Path) -> None:
    """A virtual environment, the wheel in it, every file of it verified, and used."""
    # Without a pip of its own, which would be installed from within Python; there is one here.
    run_in(folder, sys.executable, "-m", "venv", "--without-pip", "environment")
    python = folder / "environment" / "bin" / "python"
    options = ("--python", python, "--quiet", "--no-input", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip", *options)
    run_in(folder, *pip, "install", "--no-index", "--find-links", wheels, WHEEL)
    run_in(folder, *pip, "check")
    use_again(folder)


def use_again(folder: Path) -> None:
    """Verify the installed files by the checksums of the wheel, and run a program on it."""
    python = folder / "environment" / "bin" / "python"
    assert int(run_in(folder, python, "-c", CHECK_RECORDS.format(wheel=WHEEL))) > 500
    run_in(folder, python, "-c", USE.format(folder=str(folder)))


def test_a_large_wheel_in_a_virtual_environment(
    wheels: Path, mounted_shardfs: MountedShardfs
) -> None:
    install_and_use(mounted_shardfs.path, wheels)
    mounted_shardfs.remount()
    use_again(mounted_shardfs.path)
