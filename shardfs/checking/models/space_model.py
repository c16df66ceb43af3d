"""The specification of space: what a store may say of it, from what it holds.

Role: read with key_value_model. A device is a number of extents. Some are never a user's; the
others take what is live, and nothing else counts: neither garbage, nor where things lie, nor what
was there before.

Invariants:
    I1. Free is what a fresh store says, less the live data and the tree's share: exactly, as long
        as any is free. Garbage and history do not come into it, but for garbage beside something
        that a fault keeps from being moved.
    I2. Live data is what the content takes (`Held`), and frames of it: a head for each piece,
        and not many pieces. What was overwritten does not come into it.
    I3. The tree's share is twice its bytes, for a merge, to within an extent; what is in memory
        counts as the run that it will be. Each run has no more than one entry for each key there
        ever was.
    I4. A fresh store gives users all but the superblock, the reserve and an extent for the tree,
        to within FRESH_SHARE_MIN; and no more than that.
    I5. What fits into free is accepted. What does not is refused, and changes nothing.
    I6. Emptied and tidied, free is within EMPTIED_SHARE of a fresh store's; and the tree has
        nothing left, once it is merged.
    I7. The parts of a device add up to its size, and those that users ask for are I1's and I2's.
    I8. A store that has grown or shrunk says what a fresh one of its size says, less what is live;
        from when a shrink begins, what one of the size to come says.

Not here: contents (key_value_model.py), asking a store for its figures (conformance/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from shardfs import limits

FRESH_SHARE_MIN: Final = 0.75
EMPTIED_SHARE: Final = 0.99
_HEAD_BYTES: Final = 96
"""Of a frame, without its key."""
_CHUNK_BYTES_LEAST: Final = 4 * limits.KIB
"""A value is cut into chunks of no less, but for the end of each extent and of each value."""
_ENTRY_BYTES: Final = 24
_PIECE_BYTES: Final = 80
_RECOUNTED_BYTES: Final = 64
"""What is in memory is counted anew whenever a value is replaced, to within so much."""
_RUN_BYTES: Final = 4 * limits.KIB


class Held(NamedTuple):
    """Bytes of data that are live for one key, without heads of frames: at least, and at most.

    They differ where a patch may have covered a hole. `parts` is how often something was written
    to it.
    """

    least: int
    most: int
    parts: int = 1

    def patched(self, length: int, total: int, *, at_end: bool) -> Held:
        """So many of its now `total` bytes were written anew, or added at its end."""
        least = self.least + length if at_end else max(self.least, length)
        return Held(least, min(self.most + length, total), self.parts + 1)

    @property
    def chunks(self) -> int:
        """In how many chunks it may be (I2)."""
        return 3 * self.parts + 2 * self.most // _CHUNK_BYTES_LEAST if self.most else 0

    def framed(self, key: bytes) -> int:
        """The most it can take with heads of frames (I2)."""
        return self.most + self.chunks * (_HEAD_BYTES + len(key))


@dataclass(frozen=True, slots=True)
class Figures:
    """What a store says of its space, bytes.

    Args:
        total, free, reserved: as in engine.stats.Space.
        data: live data, frames included.
        tree: of all runs.
        runs: how many.
        memory: of the runs that what is in memory will make.
        stuck: lost around what a fault keeps from being moved.
    """

    total: int
    free: int
    reserved: int
    data: int
    tree: int
    runs: int
    memory: int = 0
    stuck: int = 0


class Parts(Protocol):
    """Where the bytes of a device are; engine.stats.SpaceParts is one."""

    @property
    def total_bytes(self) -> int:
        """Of all parts."""

    @property
    def live_bytes(self) -> int:
        """Data that is referred to."""

    @property
    def pending_bytes(self) -> int:
        """Set aside."""

    @property
    def garbage_bytes(self) -> int:
        """Reclamation gives it back."""

    @property
    def free_bytes(self) -> int:
        """Can be written at once."""


class SpaceModel:
    """What one store may say.

    Args:
        extent_count, extent_bytes: of the device.
        reserve_extents: that users may not take.
        is_data: whether a key's value of some length is data; else it is in the tree.
    """

    def __init__(
        self,
        extent_count: int,
        extent_bytes: int,
        reserve_extents: int,
        is_data: Callable[[bytes, int], bool],
    ) -> None:
        self._extent_bytes = extent_bytes
        self._is_data = is_data
        self._fresh = 0
        self._set_size(extent_count, reserve_extents)
        self._held: dict[bytes, Held] = {}
        self._values: dict[bytes, bytes] = {}
        self._patches: dict[bytes, tuple[bytes, Held]] = {}
        self._entry_bytes: dict[bytes, int] = {}

    def _set_size(self, extent_count: int, reserve_extents: int) -> None:
        self._total = extent_count * self._extent_bytes
        reserved = limits.SUPERBLOCK_EXTENTS + reserve_extents
        self._users = self._total - reserved * self._extent_bytes

    def resize(self, extent_count: int, reserve_extents: int, fresh_bytes: int) -> None:
        """The device has so many extents from now on; a fresh one of that size says that so much
        is free (I8)."""
        self._set_size(extent_count, reserve_extents)
        self._fresh = fresh_bytes

    def begin(self, figures: Figures) -> None:
        """A fresh store says this (I4)."""
        assert figures.total == self._total, f"{figures} on a device of {self._total} bytes"
        least = FRESH_SHARE_MIN * (self._users - self._extent_bytes)
        assert least <= figures.free <= self._users, (
            f"a fresh store has {figures.free} bytes free; users may have {self._users}"
        )
        self._fresh = figures.free + figures.data + figures.reserved

    # --- what the store holds -------------------------------------------------------------------

    def patched(self, key: bytes, value: bytes, length: int, *, at_end: bool) -> None:
        """`value`, when it comes, is the old one of which `length` bytes were written anew."""
        held = self._held.get(key, Held(0, 0)).patched(length, len(value), at_end=at_end)
        self._patches[key] = value, held

    def scattered(self, key: bytes, value: bytes, parts: int) -> None:
        """`value`, when it comes, is written anew in so many parts."""
        self._patches[key] = value, Held(len(value), len(value), parts)

    def follow(self, content: Mapping[bytes, bytes]) -> None:
        """The content is this now. Values that are the same object have not been written."""
        values = self._values
        for key in [key for key in values if key not in content]:
            del values[key], self._held[key]
        for key, value in content.items():
            if values.get(key) is not value:
                patched = self._patches.get(key)
                if patched is not None and patched[0] is value:
                    self._take(key, value, patched[1])
                else:
                    self._take(key, value, self._whole(key, value))
        self._patches.clear()

    def found(self, content: Mapping[bytes, bytes], held: Mapping[bytes, Held]) -> None:
        """After a crash the store holds this, in chunks of so many bytes where it is in chunks."""
        self._values, self._held = {}, {}
        for key, value in content.items():
            self._take(key, value, held.get(key, Held(0, 0)))

    def _whole(self, key: bytes, value: bytes) -> Held:
        length = len(value)
        return Held(length, length) if self._is_data(key, length) else Held(0, 0)

    def _take(self, key: bytes, value: bytes, held: Held) -> None:
        self._values[key], self._held[key] = value, held
        inside = _PIECE_BYTES * held.chunks if held.most else len(value)
        entry_bytes = _ENTRY_BYTES + 2 * len(key) + inside  # the index may have the key as well
        self._entry_bytes[key] = max(self._entry_bytes.get(key, 0), entry_bytes)

    # --- what it may say ------------------------------------------------------------------------

    def check(self, figures: Figures) -> None:
        """The store says this now, while nothing is being changed.

        Raises:
            AssertionError: it must not.
        """
        least = sum([held.least for held in self._held.values()])
        most = sum([held.framed(key) for key, held in self._held.items()])
        assert least <= figures.data <= most, (
            f"{figures.data} bytes of data are live; the content takes {least} to {most}"
        )
        tree_most = figures.runs * (_RUN_BYTES + sum(self._entry_bytes.values()))
        assert figures.tree <= tree_most, f"the tree has {figures.tree} bytes, not {tree_most}"
        self.check_free(figures)

    def check_free(self, figures: Figures) -> None:
        """What is free fits the other figures (I1, I3), whatever the content is.

        Raises:
            AssertionError: it does not.
        """
        assert figures.total == self._total, f"not {self._total} bytes in all: {figures}"
        share = self._fresh - figures.data - figures.reserved - figures.free - figures.stuck
        runs = figures.tree + figures.memory
        share_most = int(2 * runs / FRESH_SHARE_MIN) + self._extent_bytes
        share_least = 2 * runs * FRESH_SHARE_MIN - self._extent_bytes
        # Nothing free is nothing free: the tree may have grown into what it was owed since.
        assert share_least <= share or figures.free == 0, (
            f"{figures.free} bytes are free, {-share} more than a fresh store with this data has"
        )
        assert share <= share_most or figures.free == 0, (
            f"{figures.free} bytes are free; without garbage {share - share_most} more would be"
        )
        taken = figures.data + figures.reserved + figures.stuck + share_most
        assert figures.free or taken >= self._fresh, f"nothing is free with {taken} bytes taken"

    def check_parts(self, parts: Parts, figures: Figures, device_bytes: int) -> None:
        """The parts say the same as the figures (I7)."""
        assert parts.total_bytes == device_bytes, f"{parts} do not add up to {device_bytes}"
        assert parts.live_bytes == figures.data, f"{parts} with {figures.data} bytes live"
        assert parts.pending_bytes == figures.reserved
        available = parts.garbage_bytes + parts.free_bytes
        assert available == figures.free, f"{parts} with {figures.free} bytes free"

    def accepted(self, wanted: int, before: Figures, after: Figures) -> None:
        """Data of `wanted` bytes was taken (I5). Meanwhile a merge may have made room."""
        merged = 2 * max(0, before.tree - after.tree) + self._extent_bytes
        most = before.free + (merged if before.tree != after.tree else 0)
        most += _RECOUNTED_BYTES
        assert wanted <= most, f"{wanted} bytes were taken, and {before.free} were free"

    def refused(self, key: bytes, wanted: int, before: Figures, after: Figures) -> None:
        """Data of `wanted` bytes for a key was refused: there must have been no room (I5)."""
        free = min(before.free, after.free)
        needed = max(1, Held(wanted, wanted).framed(key))
        assert free < needed, f"{needed} bytes were refused, and {free} are free"

    def emptied(self, figures: Figures, *, merged: bool) -> None:
        """Everything was deleted, and the store has tidied up (I6).

        Args:
            merged: its whole tree, too; else a little of it may be left.
        """
        assert figures.free >= EMPTIED_SHARE * self._fresh, (
            f"an emptied store has {figures.free} bytes free, a fresh one has {self._fresh}"
        )
        assert not (merged and figures.tree), f"the emptied tree keeps {figures.tree} bytes"
