"""Issues writes in dependency order, and shares flushes.

Role: every device write of the engine passes through here. A write waits until its `before`
dependency is persistent; writes to one extent are issued in the order submitted; contiguous
ones are gathered into one request. One device flush serves all who wait for one.

Invariants:
    I1. No write reaches the device before its `before` is persistent.
    I2. Within an extent, device writes start in submission order, each after the one before it
        has completed: a zoned device accepts them.
    I3. A write's `persistent` resolves only after a flush that started after the write
        completed, and has itself succeeded.
    I4. A failed write or flush is never retried as if clean: the store turns read-only, and
        everything that is not persistent by then fails, so that nobody waits for ever.
    I5. A write that has begun is finished even if the nursery is cancelled: closing in order
        still has to write.
    I6. What the device takes without waiting is written within `submit`, in its turn.

Ordering: a power cut may lose any write that has been issued and not flushed, in part or in
whole. At every await below, that is all that may be lost; nothing is reported persistent early.

Not here: where writes go (extents.py, superblock.py), and which edges exist.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from shardfs import limits
from shardfs.engine.dependency import Dependency
from shardfs.engine.device import Buffer, Device
from shardfs.engine.health import Health
from shardfs.errors import DeviceError, ReadOnlyError

_GATHERED_BYTES_MAX = 4 * limits.WRITE_BYTES_TARGET


@dataclass(slots=True, eq=False)
class _Write:
    number: int
    offset: int
    buffers: Sequence[Buffer]
    length: int
    before: Dependency
    persistent: Dependency
    on_written: Callable[[], None]


@dataclass(slots=True, eq=False)
class _Queue:
    """Writes of one extent, oldest first; `in_flight` is the oldest number being written."""

    writes: deque[_Write] = field(default_factory=deque)
    in_flight: int = 0
    watched: Dependency | None = None


class Scheduler:
    """The one way to the device for writes.

    Args:
        device: where writes go.
        health: told of failures.
        nursery: runs the writes; must outlive the scheduler's use.
    """

    def __init__(self, device: Device, health: Health, nursery: trio.Nursery) -> None:
        self._device = device
        self._health = health
        self._nursery = nursery
        self._queues: dict[int, _Queue] = {}
        self._submitted = 0
        self._writing = 0
        self._progress = trio.lowlevel.ParkingLot()
        self._parked = 0
        """Tasks in that lot."""
        self._written: list[Dependency] = []
        self._flushes_started = 0
        self._flushes_finished = 0
        self.is_flushing = False
        """A flush of the device is running."""
        self.queued_bytes = 0
        health.on_change(self._fail_everything)

    def submit(
        self,
        extent: int,
        offset: int,
        buffers: Sequence[Buffer],
        length: int,
        before: Dependency,
        persistent: Dependency,
        on_written: Callable[[], None],
    ) -> None:
        """Queue a write; it starts as soon as its turn comes and `before` is persistent.

        Args:
            extent: writes to the same extent keep their order.
            offset: byte on the device, a multiple of limits.BLOCK_BYTES.
            buffers: gathered into one write; must not change until written.
            length: their total, a multiple of limits.BLOCK_BYTES.
            before: what must be persistent first.
            persistent: resolved, or failed, by the scheduler.
            on_written: called once the device has taken the bytes (they can be read back).
        """
        assert offset % limits.BLOCK_BYTES == 0 and length % limits.BLOCK_BYTES == 0
        self._submitted += 1
        if (
            extent not in self._queues
            and before.is_persistent()
            and self._health.is_writable
            and self._device.write_at_once(offset, buffers)
        ):  # nothing is before it: no need of a queue (I6)
            self._written.append(persistent)
            on_written()
            self._made_progress()
            return
        write = _Write(self._submitted, offset, buffers, length, before, persistent, on_written)
        self._queues.setdefault(extent, _Queue()).writes.append(write)
        self.queued_bytes += length
        self._issue_ready()

    async def write_out(self) -> None:
        """Return when no write submitted before the call could still be issued or is running.

        Writes whose dependencies need a flush first stay queued. Checkpoints: sometimes.
        """
        ticket = self._submitted
        while self._has_movable(ticket):
            await self._park()

    async def flush(self) -> None:
        """Make everything persistent that was written before the call; shared among callers.

        Raises:
            DeviceError: the flush failed; the store is read-only from here on.
            ReadOnlyError: an earlier write or flush failed.
        """
        self._health.require_writable()
        if not self._written and not self.is_flushing:
            return
        # A flush that is running covers all that was written, unless more has come since.
        wanted = self._flushes_started + (1 if self._written else 0)
        while self._flushes_finished < wanted:
            self._health.require_writable()
            if self.is_flushing:
                await self._park()
            else:
                await self._flush_once()

    async def settle(self, dependency: Dependency) -> None:
        """Write and flush until `dependency` is persistent.

        Durable when: returned.

        Raises:
            DeviceError, ReadOnlyError: it cannot become persistent any more.
        """
        while not dependency.settled:
            if self._queues:
                await self.write_out()
                if dependency.settled:
                    break
            if not self._written and not self.is_flushing and not self._has_movable():
                self._health.require_writable()
                raise AssertionError("waiting for something that nobody writes")
            await self.flush()
        dependency.require_persistent()

    async def admit(self) -> None:
        """Return when the queue is short enough to take more. Checkpoints: sometimes."""
        while self.queued_bytes > limits.QUEUED_BYTES_MAX:
            self._health.require_writable()
            await self.write_out()
            if self.queued_bytes > limits.QUEUED_BYTES_MAX:
                await self.flush()

    async def _flush_once(self) -> None:
        batch, self._written = self._written, []
        self._flushes_started += 1
        number = self._flushes_started
        self.is_flushing = True
        failure: Exception | None = None
        try:
            await self._device.flush()
        except DeviceError as error:
            failure = error
            self._health.make_read_only(str(error))
        except BaseException:  # cancelled: these are as unflushed as before
            self._written = batch + self._written
            raise
        finally:
            self.is_flushing = False
            self._made_progress()
        for dependency in batch:
            if failure is None:
                dependency.resolve()
            elif not dependency.settled:
                dependency.fail(failure)
        self._flushes_finished = number
        self._made_progress()
        if failure is not None:
            raise failure

    def _has_movable(self, ticket: int | None = None) -> bool:
        if ticket is None:
            ticket = self._submitted
        for queue in self._queues.values():
            if queue.in_flight:
                # Writes that others keep submitting meanwhile do not count.
                if queue.in_flight <= ticket:
                    return True
            elif queue.writes[0].number <= ticket and queue.writes[0].before.settled:
                return True
        return False

    def _issue_ready(self) -> None:
        for extent, queue in list(self._queues.items()):
            if self._writing >= limits.WRITES_IN_FLIGHT_MAX:
                return
            while self._issue_next(extent, queue):
                pass

    def _issue_next(self, extent: int, queue: _Queue) -> bool:
        """Begin the next writes of an extent, if they may; whether they are done already (I6)."""
        # Failing one queue may have come back here and dealt with this one.
        if queue.in_flight or not queue.writes:
            return False
        head = queue.writes[0]
        if not head.before.settled:
            if queue.watched is not head.before:
                queue.watched = head.before
                head.before.on_settled(self._issue_ready)
            return False
        failure = head.before.failure or self._blocked()
        if failure is not None:
            self._drop_queue(extent, failure)
            return False
        group = self._take_group(queue)
        queue.in_flight = group[0].number
        if not self._write_at_once(group):
            self._writing += 1
            self._nursery.start_soon(self._write_group, extent, group)
            return False
        queue.in_flight = 0
        if not queue.writes:
            del self._queues[extent]
        self._made_progress()
        return True

    def _write_at_once(self, group: list[_Write]) -> bool:
        buffers: Sequence[Buffer] = group[0].buffers
        if len(group) > 1:
            buffers = [buffer for write in group for buffer in write.buffers]
        if not self._device.write_at_once(group[0].offset, buffers):
            return False
        for write in group:
            self.queued_bytes -= write.length
            self._written.append(write.persistent)
            write.on_written()
        return True

    def _blocked(self) -> Exception | None:
        try:
            self._health.require_writable()
        except ReadOnlyError as error:
            return error
        return None

    @staticmethod
    def _take_group(queue: _Queue) -> list[_Write]:
        """The head and the contiguous writes behind it that may go in the same request."""
        group = [queue.writes.popleft()]
        total = group[0].length
        while queue.writes:
            candidate = queue.writes[0]
            contiguous = candidate.offset == group[0].offset + total
            fits = total + candidate.length <= _GATHERED_BYTES_MAX
            if not (contiguous and fits and candidate.before.is_persistent()):
                break
            group.append(queue.writes.popleft())
            total += candidate.length
        return group

    async def _write_group(self, extent: int, group: list[_Write]) -> None:
        queue = self._queues[extent]
        length = sum(write.length for write in group)
        buffers = [buffer for write in group for buffer in write.buffers]
        failure: Exception | None = None
        try:
            with trio.CancelScope(shield=True):
                await self._device.write(group[0].offset, buffers)
        except DeviceError as error:
            failure = error
        finally:
            self._writing -= 1
            queue.in_flight = 0
            self.queued_bytes -= length
            if not queue.writes:
                del self._queues[extent]
        if failure is not None:
            self._health.make_read_only(str(failure))
        blocked = failure or self._blocked()
        for write in group:
            if failure is None:
                write.on_written()
            if blocked is None:
                self._written.append(write.persistent)
            else:
                write.persistent.fail(blocked)
        self._issue_ready()
        self._made_progress()

    def _drop_queue(self, extent: int, failure: Exception) -> None:
        """Fail what can no longer be written in order."""
        queue = self._queues.pop(extent)
        writes, queue.writes = queue.writes, deque()
        for write in writes:
            self.queued_bytes -= write.length
            write.persistent.fail(failure)
        self._made_progress()

    def _fail_everything(self) -> None:
        """The store has turned read-only: what is not persistent now never will be (I4)."""
        failure = ReadOnlyError(self._health.reason)
        lost, self._written = self._written, []
        for extent, queue in list(self._queues.items()):
            lost += [write.persistent for write in queue.writes]
            self.queued_bytes -= sum(write.length for write in queue.writes)
            queue.writes.clear()
            if not queue.in_flight:
                del self._queues[extent]
        for dependency in lost:
            dependency.fail(failure)
        self._made_progress()

    async def _park(self) -> None:
        self._parked += 1
        try:
            await self._progress.park()
        finally:
            self._parked -= 1

    def _made_progress(self) -> None:
        if self._parked:
            self._progress.unpark_all()
