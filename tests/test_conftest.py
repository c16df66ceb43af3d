"""The suite's own rules hold: each of the four in tests/conftest.py can fail.

Role: run small test files in a pytest of their own, with the real conftest beside them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def run_pytest(directory: Path, body: str, *arguments: str) -> str:
    """Run one test file under the suite's conftest and settings; return pytest's output."""
    tests = directory / "tests"
    tests.mkdir()
    shutil.copy(REPOSITORY / "pyproject.toml", directory)
    shutil.copy(REPOSITORY / "tests" / "conftest.py", tests)
    (tests / "test_sample.py").write_text(body)
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "--durations=0",
            "-q",
            *arguments,
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return run.stdout + run.stderr


def test_an_async_test_never_really_sleeps(tmp_path: Path) -> None:
    body = """
import trio, time
async def test_sleep():
    started = time.monotonic()
    await trio.sleep(3600)
    assert trio.current_time() >= 3600
    assert time.monotonic() - started < 60
async def test_fails():
    await trio.sleep(0)
    assert False, "reached the end"
"""
    output = run_pytest(tmp_path, body)
    assert "1 failed, 1 passed" in output, output
    assert "reached the end" in output


def test_real_clock_waits(tmp_path: Path) -> None:
    body = """
import pytest, trio, time
@pytest.mark.real_clock
async def test_sleep():
    started = time.monotonic()
    await trio.sleep(0.05)
    assert time.monotonic() - started >= 0.05
"""
    output = run_pytest(tmp_path, body)
    assert "1 passed" in output, output


def test_hypothesis_runs_async_tests(tmp_path: Path) -> None:
    body = """
import trio
from hypothesis import given, strategies
seen = []
@given(strategies.integers())
async def test_given(number):
    await trio.sleep(1)
    seen.append(number)
def test_more_than_one():
    assert len(seen) > 10
@given(strategies.integers(), strategies.booleans())
async def test_fails(number, flag):
    await trio.sleep(1)
    assert number < 1000
"""
    output = run_pytest(tmp_path, body)
    assert "1 failed, 2 passed" in output, output
    assert "number=1000" in output


@pytest.mark.parametrize("level", ["warning", "error", "critical"])
def test_unannounced_warnings_fail(tmp_path: Path, level: str) -> None:
    body = f"""
import logging, pytest
log = logging.getLogger("shardfs.sample")
def test_unannounced():
    log.{level}("extent 3 is strange")
def test_quiet():
    log.info("all is well")
@pytest.mark.expected_warnings("extent . is strange")
def test_by_marker():
    log.{level}("extent 3 is strange")
def test_by_fixture(expect_warning):
    expect_warning("is strange")
    log.{level}("extent 3 is strange")
@pytest.mark.expected_warnings("something else")
def test_wrong_pattern():
    log.{level}("extent 3 is strange")
"""
    output = run_pytest(tmp_path, body)
    assert "5 passed, 2 errors" in output, output
    assert "warnings nobody announced" in output
    assert "ERROR tests/test_sample.py::test_unannounced" in output
    assert "ERROR tests/test_sample.py::test_wrong_pattern" in output


def test_python_warnings_fail(tmp_path: Path) -> None:
    body = """
import warnings
def test_warns():
    warnings.warn("old", DeprecationWarning)
"""
    output = run_pytest(tmp_path, body)
    assert "1 failed" in output, output


def test_who_measures_is_alone(tmp_path: Path) -> None:
    body = """
import pathlib, pytest, time
PLACE = pathlib.Path(__file__).parent
@pytest.mark.parametrize("number", range(12))
def test_some(number):
    beside = {each.name for each in PLACE.glob("runs-*")}
    (PLACE / f"runs-{number}").touch()
    time.sleep(0.05)
    (PLACE / f"runs-{number}").rename(PLACE / f"ran-{number}{'-beside' if beside else ''}")
@pytest.mark.alone
@pytest.mark.parametrize("number", range(4))
def test_measuring(number):
    assert not list(PLACE.glob("runs-*"))
    (PLACE / f"runs-alone-{number}").touch()
    time.sleep(0.05)
    (PLACE / f"runs-alone-{number}").unlink()
    assert not list(PLACE.glob("runs-*"))
"""
    output = run_pytest(tmp_path, body, "-n", "2", "--dist", "load")
    assert "16 passed" in output, output
    assert list((tmp_path / "tests").glob("ran-*-beside")), "the others run side by side"


def test_skips_and_slowest_are_shown_with_several_workers(tmp_path: Path) -> None:
    body = """
import pytest
@pytest.mark.parametrize("number", range(4))
def test_some(number):
    if number == 3:
        pytest.skip("nothing to be had here")
"""
    output = run_pytest(tmp_path, body, "-n", "2", "--dist", "worksteal")
    assert "3 passed, 1 skipped" in output, output
    assert "nothing to be had here" in output
    assert "slowest durations" in output
