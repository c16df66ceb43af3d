"""The soft-updates graph: what must be persistent before what.

Role: a Dependency stands for some device writes that are or will be persistent. It can be
asked, waited for, and combined with `&`. An append names a Dependency that must be persistent
before the device sees it; the scheduler honours that. Source: Bornholt et al., "Using
Lightweight Formal Methods to Validate a Key-Value Storage Node in Amazon S3", SOSP 2021, 2.2.

Invariants:
    I1. A Dependency goes from pending to persistent or failed once, and stays.
    I2. `a & b` is persistent exactly when both are; it fails as soon as one has failed.
    I3. Nothing here does I/O or creates tasks: pure bookkeeping.

Not here: who writes and flushes (scheduler.py), and which edges exist
(docs/crash-consistency.md lists each of them).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Final

import trio


class Dependency:
    """Something that is, or will be, persistent on the device.

    Created pending; whoever owns the writes calls `resolve` or `fail` once.
    """

    __slots__ = ("_callbacks", "_failure", "_persistent")

    def __init__(self) -> None:
        self._persistent = False
        self._failure: Exception | None = None
        self._callbacks: list[Callable[[], None]] = []

    def is_persistent(self) -> bool:
        """True when everything this stands for survives a power cut."""
        return self._persistent

    @property
    def failure(self) -> Exception | None:
        """Why this can never become persistent, or None."""
        return self._failure

    @property
    def settled(self) -> bool:
        """Persistent or failed."""
        return self._persistent or self._failure is not None

    def __and__(self, other: Dependency) -> Dependency:
        """A Dependency that is persistent when both are."""
        if self._persistent or other is self:
            return other
        if other._persistent:
            return self
        return _All((self, other))

    async def wait(self) -> None:
        """Return once persistent; this does not cause any flush (Store.sync does).

        Checkpoints: only when pending.

        Raises:
            Exception: the failure, if this failed.
        """
        if not self.settled:
            event = trio.Event()
            self.on_settled(event.set)
            await event.wait()
        self.require_persistent()

    def require_persistent(self) -> None:
        """Requires: settled.

        Raises:
            Exception: the failure, if this failed.
        """
        if self._failure is not None:
            raise self._failure

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when settled; at once if it already is."""
        if self._persistent or self._failure is not None:
            callback()
        else:
            self._callbacks.append(callback)

    def resolve(self) -> None:
        """The owner's word that it is persistent. Requires: pending."""
        assert not self._persistent and self._failure is None, "a dependency settles once"
        self._persistent = True
        if self._callbacks:
            self._run_callbacks()

    def fail(self, failure: Exception) -> None:
        """The owner's word that it never will be. Requires: pending."""
        assert not self.settled, "a dependency settles once"
        self._failure = failure
        self._run_callbacks()

    def _run_callbacks(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class _All(Dependency):
    """A conjunction of distinct operands; settles by itself when they do."""

    __slots__ = ("_pending",)

    def __init__(self, operands: Collection[Dependency]) -> None:
        super().__init__()
        self._pending = len(operands)
        for operand in operands:
            operand.on_settled(partial(self._operand_settled, operand))

    def _operand_settled(self, operand: Dependency) -> None:
        self._pending -= 1
        if self.settled:
            return
        if operand.failure is not None:
            self.fail(operand.failure)
        elif self._pending == 0:
            self.resolve()


def _persistent() -> Dependency:
    dependency = Dependency()
    dependency.resolve()
    return dependency


PERSISTENT: Final = _persistent()
"""The dependency of whatever needs nothing before it."""


def all_of(dependencies: Iterable[Dependency]) -> Dependency:
    """The conjunction of many; PERSISTENT for none."""
    pending = {id(each): each for each in dependencies if not each.is_persistent()}
    if not pending:
        return PERSISTENT
    return next(iter(pending.values())) if len(pending) == 1 else _All(pending.values())
