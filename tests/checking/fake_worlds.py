"""Worlds without a file system, for tests of campaigns: calm, failing, hanging, dying ones.

Role: `python -m tests.checking.fake_worlds worker TASK` is a worker of a campaign, and
`python -m tests.checking.fake_worlds ARGUMENTS` the command shardfs, both of them in these worlds.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import trio

from shardfs.checking.conformance import campaign, running, worker
from shardfs.checking.conformance.case import Coverage, Operation, Operations, World
from shardfs.checking.schedule import Control, Program
from shardfs.cli.main import main

COMMAND = (sys.executable, "-m", "tests.checking.fake_worlds", "worker")


@dataclass(frozen=True)
class FakeWorld:
    """Two tasks add numbers up; a "trouble" does what the world is named after."""

    name: str
    alphabet: tuple[str, ...] = ("add", "crash", "trouble", "unheard-of")

    def generate(self, rng: random.Random) -> Operations:
        """Twenty operations; about one case in forty has a trouble worth its name."""
        names = rng.choices(("add", "crash", "trouble"), (80, 20, 2), k=20)
        return tuple(Operation(name, (rng.randrange(40),)) for name in names)

    def program(self, operations: Operations, coverage: Coverage) -> Program[None]:
        """See World."""

        async def run(control: Control) -> None:
            total = 0

            async def add(numbers: list[int]) -> None:
                nonlocal total
                for number in numbers:
                    await trio.lowlevel.checkpoint()
                    total += number

            numbers = []
            for operation in operations:
                numbers.append(operation.arguments[0])
                if operation.name == "crash":
                    coverage.counts["crash torn"] += 1
                    coverage.crash_states.add(control.draw(1000))
                if operation.name == "trouble" and operation.arguments[0] >= 20:
                    self._make_trouble()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(add, numbers[::2])
                nursery.start_soon(add, numbers[1::2])
            assert total == sum(numbers)

        return run

    def _make_trouble(self) -> None:
        if self.name == "failing":
            raise AssertionError("a planted mistake")
        if self.name == "dying":
            os.kill(os.getpid(), signal.SIGKILL)
        while self.name == "hanging":
            pass


WORLDS: Mapping[str, World] = MappingProxyType(
    {name: FakeWorld(name) for name in ("calm", "failing", "hanging", "dying")}
)


def worlds() -> Mapping[str, World]:
    """Takes the place of running.worlds."""
    return WORLDS


def plant() -> None:
    """There are no worlds but these, in this process and in the workers it starts."""
    vars(running)["worlds"] = worlds
    vars(worker)["worlds"] = worlds
    vars(campaign)["COMMAND"] = COMMAND


if __name__ == "__main__":
    plant()
    if sys.argv[1] == "worker":
        del sys.argv[1]
        worker.main()
    else:
        main()
