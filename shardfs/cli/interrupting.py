"""What ^C does to commands that change a store.

Role: runs a command's work so that an interruption cancels it. Python's own way breaks into the
running code at any place, shielded ones included, and what is broken off there may be half of
something that is only right as a whole.

Invariants:
    I1. Work is cancelled where it waits, and not where it has shielded itself.

Not here: what a cancelled change leaves (engine/), signals of a serving mount (serving.py).
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import trio

T = TypeVar("T")


def run_until_interrupted(work: Callable[[], Awaitable[T]]) -> T:
    """As trio.run, but ^C cancels (I1).

    Raises:
        KeyboardInterrupt: it was cancelled, and has ended in good order.
        ExceptionGroup: of what the work raises.
    """
    results: list[T] = []

    async def run() -> None:
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_at, signals, nursery.cancel_scope)
                results.append(await work())
                nursery.cancel_scope.cancel()

    trio.run(run)
    if not results:
        raise KeyboardInterrupt
    return results[0]


async def _cancel_at(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
