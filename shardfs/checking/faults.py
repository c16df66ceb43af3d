"""Faults of a simulated device: which there are, and what shardfs must make of each.

Role: a FaultPlan says what goes wrong with which requests of a simulated device.

The fault model. *Survived* means: every promise of docs/crash-consistency.md holds. *Found* means:
a read gives the right bytes or an error that names the place, never wrong ones.

    Power cut, kill       Survived. Of the unflushed writes any subset may remain, torn at sectors
                          (power_cuts.I1, I2); the store opens by itself, with everything that
                          was called persistent.
    Read error, once      Survived. The call that met it fails with DeviceError, nothing else
                          changes; a later try may succeed.
    Read error, lasting   Found. What lies there cannot be read until it is written anew; all
                          the rest can. Of the two superblock copies either is enough. In the
                          manifest, in the index of a run or in the delta log it keeps the store
                          from opening, with DeviceError and nothing changed on the device.
    Write error           Survived as data, not as a mount: the store turns read-only, what was
                          persistent stays, what was not fails for all who wait. A failed write
                          leaves any of its sectors new.
    Reset error           Survived. The extents that were to be freed stay unused until the next
                          opening; the background's reclamation turns the store read-only, one
                          asked for by hand raises and leaves it writable. Of a superblock log
                          that is to begin anew: read-only.
    Flush error           The same. It has failed for ever (device.I2): nothing more is written.
                          Whatever it should have covered may be lost, also if the power stays
                          on: the next opening reads what the medium has.
    Lost write            Acknowledged and never applied. Found in a chunk, a run or a manifest:
                          their checksums are in the reference (chunks.I2). In one superblock copy
                          survived: the other serves. In the delta log: see below.
    Misdirected write     Applied at another block-aligned place: a lost write here, and rot
                          there. Zoned devices are spared: a zone refuses it.
    Flipped bits, lasting Found by checksums and named; what they held is lost. When both
                          superblock copies rot, the store does not open.
    Flipped bits, once    In the answer to one read: found, and the next read is right. While
                          opening, the same as lasting ones, but the next opening is right
                          again if this one wrote nothing.
    Vanished device       Every call fails from then on: a write or flush error for the mount,
                          nobody hangs. When it has come back, opening it is opening after
                          a power cut. When it comes back by itself under an open store, that
                          store has met errors and no more.

Damage of the delta log, by lost or misdirected writes or by rot, of a delta or of a rider of it:
found, when anything shows that the delta had been durable: a superblock record that calls it so, or
any later delta of the same mount, because none is issued before the last is durable
(delta_log.I2; looked for limits.LOG_LOOK_BYTES past the damage, which is the largest write, and
in the extents declared for the log). The store opens read-only with a reason and shows what came
before. Of a damaged rider only the data are lost, and reading them fails. Damage of the *very last*
delta before a crash, with no record behind it, cannot be told from a crash before its flush: it is
dropped without a word, acknowledged or not. That one is out of scope; a clean close ends the
danger, because its record covers the whole log.

Out of scope: a device that acknowledges flushes and loses what they covered in a power cut; one
that answers reads of the superblock or the delta log with older, valid content (a rollback);
faults in both superblock copies at once, except that they must be reported as such.

Invariants:
    I1  A plan changes nothing by itself: it tells what happens to a request, and counts down.
    I2  What is planned for ever belongs to the medium: it is there after a power cut as well.

Ordering: faults strike in the order they were planned, each after the `skip` requests that it
lets pass; one request is struck by one fault.

Not here: power cuts (power_cuts), and what the device does with a request that is struck.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from shardfs.checking.power_cuts import PAGE_BYTES
from shardfs.errors import DeviceError

_EVERYWHERE_BYTES: Final = 1 << 62
KINDS: Final = ("read", "write", "flush", "reset", "discard")


class Effect(StrEnum):
    """What a fault does to a request."""

    ERROR = "error"
    LOST = "lost"
    MISDIRECTED = "misdirected"
    FLIPPED = "flipped"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something planned for requests of one kind that touch bytes [start, end).

    Args:
        effect: what happens to them.
        errno: that a failing request reports.
        skip: requests that pass unharmed first.
        times: requests that are struck; None: all, for ever.
        until_rewritten: a write cures the bytes that it covers.
        distance: bytes by which a write goes astray.
    """

    kind: str
    start: int
    end: int
    effect: Effect = Effect.ERROR
    errno: int = errno.EIO
    skip: int = 0
    times: int | None = 1
    until_rewritten: bool = False
    distance: int = 0

    def __post_init__(self) -> None:
        assert self.kind in KINDS, f"no such kind of request: {self.kind}"
        assert self.times is None or self.times > 0
        assert self.skip >= 0

    @property
    def name(self) -> str:
        """For counts of what has struck."""
        if self.effect is not Effect.ERROR:
            return f"{self.kind} {self.effect}"
        return f"{self.kind} error {'once' if self.times else 'for ever'}"


class FaultPlan:
    """What is still to go wrong.

    Args:
        size_bytes: of the device.
        zoned: it has zones.

    Attributes:
        struck: requests that faults have struck so far, by the fault's name.
        gone: the device has vanished.
    """

    def __init__(self, size_bytes: int, *, zoned: bool = False) -> None:
        self._size_bytes = size_bytes
        self._zoned = zoned
        self._faults: list[Fault] = []
        self._requests_to_vanish: int | None = None
        self._requests_away: int | None = None
        self._errno_when_away = errno.ENXIO
        self.struck: Counter[str] = Counter()
        self.gone = False

    # --- planning -----------------------------------------------------------------------------

    def fail(
        self,
        kind: str,
        offset: int = 0,
        length: int | None = None,
        *,
        errno: int = errno.EIO,
        skip: int = 0,
        times: int | None = 1,
        until_rewritten: bool = False,
    ) -> None:
        """Makes `times` requests of a kind that touch a range fail, after `skip` good ones.

        Args:
            length: None: up to the device's end.
            times: None: for ever.
            until_rewritten: writing cures the bytes written.
        """
        end = self._end(offset, length)
        self.add(Fault(kind, offset, end, Effect.ERROR, errno, skip, times, until_rewritten))

    def lose_write(
        self, offset: int = 0, length: int | None = None, *, skip: int = 0, times: int | None = 1
    ) -> None:
        """Makes writes that touch a range succeed without leaving anything on the medium."""
        end = self._end(offset, length)
        self.add(Fault("write", offset, end, Effect.LOST, skip=skip, times=times))

    def misdirect_write(
        self,
        distance: int,
        offset: int = 0,
        length: int | None = None,
        *,
        skip: int = 0,
        times: int | None = 1,
    ) -> None:
        """Makes writes that touch a range land `distance` bytes away, round the device's end.

        Requires: a conventional device; a multiple of 4096.
        """
        assert not self._zoned, "a zone refuses a write that is not at its pointer"
        assert distance % PAGE_BYTES == 0 and distance % self._size_bytes
        end = self._end(offset, length)
        fault = Fault("write", offset, end, Effect.MISDIRECTED, skip=skip, times=times)
        self.add(replace(fault, distance=distance))

    def flip_read(
        self, offset: int = 0, length: int | None = None, *, skip: int = 0, times: int | None = 1
    ) -> None:
        """Makes reads that touch a range return it with one bit wrong, the medium being right."""
        end = self._end(offset, length)
        self.add(Fault("read", offset, end, Effect.FLIPPED, skip=skip, times=times))

    def vanish(self, skip: int = 0, *, times: int | None = None, errno: int = errno.ENXIO) -> None:
        """Makes every request fail, after `skip` more of any kind.

        Args:
            times: requests after which the device is there again with all it had, like a path
                that was down; None: not before SimulatedDevice.reopen, or in a copy that
                SimulatedDevice.power_cut makes.
        """
        assert times is None or times > 0
        self._requests_to_vanish = skip
        self._requests_away = times
        self._errno_when_away = errno

    def add(self, fault: Fault) -> None:
        """Plans a fault, behind those planned before."""
        self._faults.append(fault)

    @property
    def are_planned(self) -> bool:
        """Something may go wrong, or has gone wrong and lasts."""
        return bool(self._faults) or self.gone or self._requests_to_vanish is not None

    # --- what the device asks -----------------------------------------------------------------

    def come_back(self) -> None:
        """The device is there again, and stays."""
        self.gone = False
        self._requests_to_vanish = None

    def lasting(self) -> FaultPlan:
        """What a power cut leaves of the plan (I2)."""
        plan = FaultPlan(self._size_bytes, zoned=self._zoned)
        plan._faults = [each for each in self._faults if each.times is None]
        return plan

    def admit(self, kind: str, offset: int, length: int) -> None:
        """A request begins.

        Raises:
            DeviceError: the device is away.
        """
        if self._requests_to_vanish is not None:
            if self._requests_to_vanish:
                self._requests_to_vanish -= 1
            else:
                self._requests_to_vanish = None
                self.gone = True
        if self.gone:
            if self._requests_away == 0:
                self.come_back()
                return
            if self._requests_away is not None:
                self._requests_away -= 1
            self._fail_away(kind, offset, length)

    def strike(self, kind: str, offset: int, length: int) -> Fault | None:
        """The fault that strikes a request about to complete; None: nothing is wrong with it.

        Raises:
            DeviceError: the request fails.
        """
        if self.gone:
            self._fail_away(kind, offset, length)
        for index, fault in enumerate(self._faults):
            if fault.kind != kind or not (offset < fault.end and fault.start < offset + length):
                continue
            if fault.skip:
                self._faults[index] = replace(fault, skip=fault.skip - 1)
                continue
            self.struck[fault.name] += 1
            if fault.times == 1:
                del self._faults[index]
            elif fault.times is not None:
                self._faults[index] = replace(fault, times=fault.times - 1)
            if fault.effect is Effect.ERROR:
                raise DeviceError(kind, offset, length, fault.errno)
            return fault
        return None

    def rewritten(self, offset: int, length: int) -> None:
        """A write of these bytes has completed: what it covers is cured, where writing cures."""
        if not any(each.until_rewritten for each in self._faults):
            return
        kept: list[Fault] = []
        for fault in self._faults:
            if not fault.until_rewritten or offset >= fault.end or fault.start >= offset + length:
                kept.append(fault)
                continue
            if fault.start < offset:
                kept.append(replace(fault, end=offset))
            if offset + length < fault.end:
                kept.append(replace(fault, start=offset + length))
        self._faults = kept

    def _end(self, offset: int, length: int | None) -> int:
        # The device may have become larger by then.
        return _EVERYWHERE_BYTES if length is None else offset + length

    def _fail_away(self, kind: str, offset: int, length: int) -> None:
        self.struck["vanished"] += 1
        raise DeviceError(kind, offset, length, self._errno_when_away)
