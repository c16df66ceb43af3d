"""Faults of a simulated device: which there are, and what shardfs must make of each.

Role: a FaultPlan says which requests of a simulated device fail.

The fault model:
    Power cut             survived. Of the unflushed writes any subset may remain, torn at
                          sectors (power_cuts.I1, I2); the store opens by itself, with
                          everything that was called persistent.
    Read error            survived. One request fails; a later try may succeed.
    Write or flush error  survived as data, not as a mount: what was persistent stays, the store
                          turns read-only. A write that failed leaves any of its sectors new; a
                          flush that failed has failed for ever (device.I2).
    Rotten bytes          found by checksums and named; what they held is lost. When both
                          superblock copies rot, the store does not open.
    Out of scope          a device that acknowledges a flush and loses the data, that writes to
                          a wrong place, or that answers a read with another, valid block.

Invariants:
    I1  A plan changes nothing by itself: it only tells which request fails, and counts down.

Ordering: faults strike in the order they were planned, each after the `skip` requests that it
lets pass.

Not here: power cuts (power_cuts), and what the device does with a failed request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shardfs.errors import DeviceError

KINDS: Final = ("read", "write", "flush", "reset", "discard")


@dataclass(slots=True)
class _Fault:
    kind: str
    start: int
    end: int
    errno: int
    skip: int
    times: int


class FaultPlan:
    """The failures still to come."""

    def __init__(self) -> None:
        self._faults: list[_Fault] = []

    def add(self, kind: str, start: int, end: int, errno: int, skip: int, times: int) -> None:
        """Plans failures of requests of one kind that touch bytes [start, end)."""
        assert kind in KINDS, f"no such kind of request: {kind}"
        assert times > 0
        self._faults.append(_Fault(kind, start, end, errno, skip, times))

    def strike(self, kind: str, offset: int, length: int) -> None:
        """Raises the DeviceError planned for this request, if there is one."""
        for fault in self._faults:
            if fault.kind != kind or not (offset < fault.end and fault.start < offset + length):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.times -= 1
            if not fault.times:
                self._faults.remove(fault)
            raise DeviceError(kind, offset, length, fault.errno)
