"""Whether the store may be changed, and if not, why.

Role: one object per store, passed down to every module that writes. Trouble is reported here
once and turns the store read-only; nothing ever turns it back before the next open.

Invariants:
    I1. healthy -> read-only -> failed, never the other way.
    I2. The first reason is kept: it is the cause, later ones are consequences.

Not here: what a mount tells its users (fuse/errnos.py) or does about it (fuse/session.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum

from shardfs.errors import ReadOnlyError

_log = logging.getLogger(__name__)


class HealthState(StrEnum):
    """What the store can still do."""

    HEALTHY = "healthy"
    READ_ONLY = "read-only"
    FAILED = "failed"


class Health:
    """The state of one store and its reason, in words for the user."""

    def __init__(self) -> None:
        self.state = HealthState.HEALTHY
        self.reason = ""
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` each time the state gets worse."""
        self._listeners.append(listener)

    def make_read_only(self, reason: str, *, expected: bool = False) -> None:
        """Take no more changes. `expected` (asked for by the user) is not logged as an error."""
        self._worsen(HealthState.READ_ONLY, reason, expected)

    def fail(self, reason: str) -> None:
        """Neither changes nor reads make sense any more."""
        self._worsen(HealthState.FAILED, reason, False)

    @property
    def is_writable(self) -> bool:
        """The store takes changes."""
        return self.state is HealthState.HEALTHY

    def require_writable(self) -> None:
        """Raises:
        ReadOnlyError: the store takes no changes.
        """
        if self.state is not HealthState.HEALTHY:
            raise ReadOnlyError(self.reason)

    def _worsen(self, state: HealthState, reason: str, expected: bool) -> None:
        ranks = list(HealthState)
        if ranks.index(state) <= ranks.index(self.state):
            return
        if self.state is HealthState.HEALTHY:
            self.reason = reason
        self.state = state
        if not expected:
            _log.error("the store is now %s: %s", state, reason)
        for listener in self._listeners:
            listener()
