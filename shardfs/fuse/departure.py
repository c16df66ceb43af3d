"""What a mount does when its device is in trouble: stay, become read-only, or go away.

Role: the option errors=. With `unmount`, the first request that the device refuses, or the first
failure that makes the store read-only, takes the mount away: others then find no mount there, which
a layer that keeps copies on other disks understands, where single errors would make it doubt
files that are whole. Rot in one file (errors.CorruptionError) is that file's trouble, not the
device's.

Invariants:
    I1. When a request is answered with the device's error, nothing can be changed any more and the
        mount point is no mount, or the connection to the kernel ends with it: whoever reads the
        answer cannot act on what it finds there (move the file away, say).
    I2. A request in trouble waits for no longer than it takes to detach, at most DETACH_S.

Ordering: (1) the store takes no more changes; (2) the mount point is detached; (3) requests in
trouble are answered; (4) the connection ends, and with it the process. What was buffered and had
not reached the device is lost, as in a power cut: nobody was told otherwise.

Not here: detaching (session.py), the kernel's read-only flag (cli/serving.py).
"""

from __future__ import annotations

from typing import Final

import trio

from shardfs.engine.health import Health
from shardfs.errors import DeviceError, ReadOnlyError
from shardfs.fuse.mount_options import ErrorPolicy

DETACH_S: Final = 10.0


class Departure:
    """Whether a mount has to go away, and how far that has come.

    Args:
        health: of the store; told that it takes no more changes.
        policy: the option errors=.
    """

    def __init__(self, health: Health, policy: ErrorPolicy) -> None:
        self.policy = policy
        self.reason = ""
        """Why the mount goes away; empty: it stays."""
        self.begun = trio.Event()
        self.detached = trio.Event()
        self._health = health
        health.on_change(self._on_health)

    async def meet(self, error: Exception) -> None:
        """Called before a request is answered with `error`; returns when it may be (I1, I2)."""
        if self.policy is not ErrorPolicy.UNMOUNT:
            return
        if isinstance(error, DeviceError):
            self._begin(str(error))
        if self.begun.is_set() and isinstance(error, DeviceError | ReadOnlyError):
            with trio.move_on_after(DETACH_S):
                await self.detached.wait()

    def _on_health(self) -> None:
        if self.policy is ErrorPolicy.UNMOUNT:
            self._begin(self._health.reason)

    def _begin(self, reason: str) -> None:
        if not self.reason:
            self.reason = reason
            self.begun.set()
            self._health.make_read_only(f"errors=unmount: {reason}")
