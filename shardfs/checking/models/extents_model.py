"""What append-only extents are, in a few dictionaries; and what a crash may make of them.

Role: the specification of engine/extents.py and the superblock's soft write pointers, for readers
first. conformance/extents_system.py runs it beside the engine; tests/engine/model_extents.py puts
it in the place of engine/extents.py, under the unit tests of chunks, shard data, runs and merges.

Invariants, of every implementation:
    I1. Bytes are appended at the write pointer, which may first move up to the next block. They
        end within the extent, and never change before the extent's reset.
    I2. A reset moves the write pointer to 0 and raises the epoch by one. What lay in the extent
        cannot be read from then on.
    I3. Nothing at or behind the write pointer can be read.
    I4. After a crash, an extent has the epoch and the content it had at some moment since its
        last persistent reset: a reset that was not persistent may be undone, one that was
        cannot.
    I5. After a crash, the write pointer lies between the last one that was persistently recorded
        in that epoch, and the last one there was, rounded up to a block.
    I6. After a crash, what had been called persistent in that epoch is there, whole; behind the
        write pointer only until something is appended over it, and not in an extent that is
        found free. What had not may be there, or be gone, or be torn (and then it is an error
        to read it).

Not here: which extent an append goes to, frames, and who refers to what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Position(NamedTuple):
    """Where something was appended; `length` in bytes, padding included."""

    extent: int
    epoch: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        """First byte behind it, within the extent."""
        return self.offset + self.length


class Found(NamedTuple):
    """An extent as opening finds it."""

    epoch: int
    write_pointer: int


class UnreadableError(Exception):
    """Reading this is forbidden: it was reset, or lies behind the write pointer."""


@dataclass(slots=True)
class _Life:
    """One epoch of one extent."""

    write_pointer: int = 0
    recorded: int = 0
    contents: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    persistent: set[int] = field(default_factory=set)

    def copy(self) -> _Life:
        return replace(self, contents=dict(self.contents), persistent=set(self.persistent))


class ExtentsModel:
    """Extents of equal size, numbered from 0, each in epoch `epoch` at first.

    Args:
        extent_bytes: size of each.
        block_bytes: what a write pointer may be rounded up to.
        epoch: of extents that have never been reset.
    """

    def __init__(self, extent_bytes: int, block_bytes: int, epoch: int = 0) -> None:
        self.extent_bytes = extent_bytes
        self._block_bytes = block_bytes
        self._epoch = epoch
        self._epochs: dict[int, int] = {}
        self._lives: dict[tuple[int, int], _Life] = {}

    def copy(self) -> ExtentsModel:
        """The same, to be changed on its own."""
        other = ExtentsModel(self.extent_bytes, self._block_bytes, self._epoch)
        other._epochs = dict(self._epochs)
        other._lives = {key: life.copy() for key, life in self._lives.items()}
        return other

    # --- while it is open ---------------------------------------------------------------------

    def epoch(self, extent: int) -> int:
        """How often it was reset, and with what it began."""
        return self._epochs.get(extent, self._epoch)

    def write_pointer(self, extent: int) -> int:
        """Where the next append goes, or a little behind."""
        return self._life(extent).write_pointer

    def append(self, extent: int, data: bytes, length: int, offset: int | None = None) -> Position:
        """Append `data`, padded to `length` bytes.

        Args:
            offset: where the implementation has put it; None: at the write pointer.

        Raises:
            AssertionError: it must not be there (I1).
        """
        life = self._life(extent)
        pointer = life.write_pointer
        if offset is None:
            offset = pointer
        assert len(data) <= length
        assert offset in (pointer, self._rounded(pointer)), (
            f"appended at byte {offset} of extent {extent}, whose write pointer is at {pointer}"
        )
        position = Position(extent, self.epoch(extent), offset, length)
        assert position.end <= self.extent_bytes, (
            f"appended up to byte {position.end} of an extent of {self.extent_bytes} bytes"
        )
        life.contents[offset] = position.end, data
        life.write_pointer = position.end
        return position

    def read(self, position: Position) -> bytes:
        """What was appended there.

        Raises:
            UnreadableError: it must not be read any more (I2, I3).
        """
        life = self._life(position.extent)
        if position.epoch != self.epoch(position.extent):
            raise UnreadableError(f"{position} was reset")
        if position.end > life.write_pointer or position.offset not in life.contents:
            raise UnreadableError(f"{position} lies behind the write pointer")
        return life.contents[position.offset][1]

    def reset(self, extent: int) -> None:
        """Give up the content (I2). Persistent only after `persist_reset`."""
        # Also a life in which nothing was appended may come back after a crash.
        self._life(extent)
        self._epochs[extent] = self.epoch(extent) + 1

    # --- what is persistent -------------------------------------------------------------------

    def persist(self, position: Position) -> None:
        """This append was called persistent."""
        life = self._lives.get((position.extent, position.epoch))
        if life is not None and position.offset in life.contents:
            life.persistent.add(position.offset)

    def write_pointers(self) -> dict[tuple[int, int], int]:
        """All write pointers as of now, for `record`."""
        return {key: life.write_pointer for key, life in self._lives.items()}

    def record(self, pointers: Mapping[tuple[int, int], int]) -> None:
        """These write pointers, given by `write_pointers` before, are persistent."""
        for key, pointer in pointers.items():
            life = self._lives.get(key)
            if life is not None:
                life.recorded = max(life.recorded, pointer)

    def persist_reset(self, extent: int) -> None:
        """The last reset of the extent is persistent: no crash undoes it."""
        for key in [each for each in self._lives if each[0] == extent]:
            if key[1] < self.epoch(extent):
                del self._lives[key]

    # --- after a crash ------------------------------------------------------------------------

    def crash(self, found: Mapping[int, Found]) -> set[tuple[int, int, int]]:
        """Power has failed, and opening finds this.

        Returns:
            Extent, epoch and offset of every append that must be whole now (I6).

        Raises:
            AssertionError: it is not allowed to (I4, I5).
        """
        whole = set()
        oldest = dict(self._epochs)
        for extent, epoch in self._lives:
            oldest[extent] = min(epoch, oldest.get(extent, epoch))
        for extent in sorted(found):
            epoch, pointer = found[extent]
            least = oldest.get(extent, self._epoch)
            assert least <= epoch <= self.epoch(extent), (
                f"extent {extent} has epoch {epoch}, allowed are {least} to {self.epoch(extent)}"
            )
            life = self._lives.get((extent, epoch), _Life())
            most = self._rounded(life.write_pointer)
            assert life.recorded <= pointer <= most, (
                f"the write pointer of extent {extent} in epoch {epoch} is {pointer}, "
                f"allowed are {life.recorded} to {most}"
            )
            self._epochs[extent] = epoch
            whole |= {(extent, epoch, offset) for offset in life.persistent}
            self._cut_off(life, pointer)
        self._lives = {
            key: life for key, life in self._lives.items() if key[1] == self.epoch(key[0])
        }
        return whole

    @staticmethod
    def _cut_off(life: _Life, pointer: int) -> None:
        """What lies behind the pointer is not there any more (I3)."""
        life.write_pointer = pointer
        life.contents = {at: each for at, each in life.contents.items() if each[0] <= pointer}
        life.persistent &= life.contents.keys()

    def _life(self, extent: int) -> _Life:
        return self._lives.setdefault((extent, self.epoch(extent)), _Life())

    def _rounded(self, pointer: int) -> int:
        return pointer + -pointer % self._block_bytes
