"""What every test can rely on: async tests under trio, no unannounced warnings, steady hypothesis,
and to be alone where it has to be.

Role: five rules for the whole suite.

Invariants:
    I1. An `async def test_...` runs under trio. Its clock jumps as soon as every task waits, so a
        test never really sleeps; a test that does real I/O says so with the marker `real_clock`
        (or `mounted`), because the jumping clock would not wait for a thread's work.
    I2. A log record of level WARNING or above that no one announced fails the test it falls into.
        Announce it with `@pytest.mark.expected_warnings("pattern")` or, inside the test, with the
        fixture `expect_warning("pattern")`; a pattern is a regular expression, searched for.
    I3. Hypothesis has no deadline (a busy machine must not fail a test) and, where the variable CI
        is set, makes the same choices on every run.
    I4. While a test with the marker `alone` runs, no other test of this tree does, in whatever
        process: of several workers (scripts/test), or of another run.
    I5. ^C ends what a test has started, also when the suite runs in the background of a shell,
        which makes its jobs ignore it.

Not here: fixtures that need a kernel; those are in tests/mounted/conftest.py.
"""

from __future__ import annotations

import fcntl
import functools
import inspect
import logging
import os
import re
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import trio
import trio.testing

hypothesis.settings.register_profile(
    "developer",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "continuous-integration",
    parent=hypothesis.settings.get_profile("developer"),
    derandomize=True,
    database=None,
)
hypothesis.settings.load_profile("continuous-integration" if os.environ.get("CI") else "developer")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # I5


def _run_under_trio(
    function: Callable[..., Awaitable[None]], *, real_clock: bool
) -> Callable[..., None]:
    """Wrap an async test so that each call is a trio run of its own."""

    @functools.wraps(function)
    def run(*args: object, **kwargs: object) -> None:
        clock = None if real_clock else trio.testing.MockClock(autojump_threshold=0)
        trio.run(functools.partial(function, *args, **kwargs), clock=clock)

    return run


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Give async tests, and async tests under hypothesis, a trio run to live in (I1)."""
    real_clock = any(pyfuncitem.get_closest_marker(name) for name in ("real_clock", "mounted"))
    function: Any = pyfuncitem.obj
    handle = getattr(function, "hypothesis", None)
    if handle is not None and inspect.iscoroutinefunction(handle.inner_test):
        handle.inner_test = _run_under_trio(handle.inner_test, real_clock=real_clock)
    elif inspect.iscoroutinefunction(function):
        pyfuncitem.obj = _run_under_trio(function, real_clock=real_clock)
    return (yield)


_DOOR = Path(__file__)
_ROOM = Path(__file__).parents[1] / "pyproject.toml"


@contextmanager
def _locked(path: Path, operation: int) -> Iterator[None]:
    with path.open() as file:
        fcntl.flock(file, operation)
        try:
            yield
        finally:
            # Closing is not enough: what the test has forked may have the file open as well.
            fcntl.flock(file, fcntl.LOCK_UN)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Wait until others have made room, before the test's time limit begins (I4)."""
    is_alone = item.get_closest_marker("alone") is not None
    with ExitStack() as stack:
        with _locked(_DOOR, fcntl.LOCK_EX):  # who waits for the room lets nobody in before himself
            stack.enter_context(_locked(_ROOM, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH))
        return (yield)


class _WarningCollector(logging.Handler):
    """Keeps every record of level WARNING or above, and the patterns a test announced."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []
        self.patterns: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def unexpected(self) -> list[str]:
        lines = [f"{r.levelname} {r.name}: {r.getMessage()}" for r in self.records]
        return [
            line for line in lines if not any(re.search(pattern, line) for pattern in self.patterns)
        ]


@pytest.fixture(autouse=True)
def _warnings_are_announced(request: pytest.FixtureRequest) -> Iterator[_WarningCollector]:
    collector = _WarningCollector()
    for marker in request.node.iter_markers("expected_warnings"):
        collector.patterns.extend(marker.args)
    root = logging.getLogger()
    root.addHandler(collector)
    try:
        yield collector
    finally:
        root.removeHandler(collector)
    unexpected = collector.unexpected()
    if unexpected:
        pytest.fail("warnings nobody announced:\n  " + "\n  ".join(unexpected), pytrace=False)


@pytest.fixture
def expect_warning(_warnings_are_announced: _WarningCollector) -> Callable[[str], None]:
    """Announce, inside a test, that records matching a pattern may be logged."""
    return _warnings_are_announced.patterns.append
