"""cli/interrupting.py: ^C cancels a command's work, which ends in good order."""

from __future__ import annotations

import signal

import pytest
import trio

from shardfs.cli.errors import INTERRUPTED, exit_status, root_cause
from shardfs.cli.interrupting import run_until_interrupted
from shardfs.errors import UsageError


async def wait_with_another() -> None:
    """Waits in a nursery of its own, as an open store does."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()


def test_it_is_told_as_an_interruption() -> None:
    with pytest.raises(KeyboardInterrupt) as raised:
        run_until_interrupted(wait_with_another)
    assert exit_status(raised.value) == INTERRUPTED


def test_what_is_shielded_comes_to_its_end() -> None:
    ended = []

    async def work() -> None:
        with trio.CancelScope(shield=True):
            signal.raise_signal(signal.SIGINT)
            await trio.sleep(0.05)
            ended.append(True)
        await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        run_until_interrupted(work)
    assert ended


def test_results_and_errors_come_through() -> None:
    async def fail() -> None:
        raise UsageError("not like this")

    async def answer() -> int:
        return 7

    assert run_until_interrupted(answer) == 7
    with pytest.raises(ExceptionGroup) as raised:
        run_until_interrupted(fail)
    assert isinstance(root_cause(raised.value), UsageError)
