"""The specification of a store's size: a number of extents, before a change or after it.

Role: read with space_model. A store is made larger or smaller while it is used; a size in between,
or one that only a part of the store knows, there never is.

Invariants:
    I1. A change that has returned is durable.
    I2. A crash while a change is being made leaves the old size or the new one.
    I3. So does a change that fails because the device does. One that is refused leaves the old.

Not here: what fits into a size (space_model.py), making the change (conformance/).
"""

from __future__ import annotations


class SizeModel:
    """The size of one store.

    Args:
        extent_count: that it was formatted with.
    """

    def __init__(self, extent_count: int) -> None:
        self.extent_count = extent_count
        """As the store says, while nothing is being changed."""
        self._possible = {extent_count}
        self._possible_before = self._possible

    @property
    def is_changing(self) -> bool:
        """A crash now may leave one size or another."""
        return len(self._possible) > 1

    def begin(self, extent_count: int) -> None:
        """A change to this size begins (I2)."""
        self._possible_before = self._possible
        self._possible = self._possible | {extent_count}

    def changed(self, extent_count: int) -> None:
        """The change has returned (I1)."""
        self.extent_count = extent_count
        self._possible = self._possible_before = {extent_count}

    def refused(self) -> None:
        """It was refused, or given up (I3)."""
        self._possible = self._possible_before

    def failed(self, found: int) -> None:
        """It met an error of the device, and the store says that it has this size (I3)."""
        assert found in self._possible, f"{found} extents, not one of {sorted(self._possible)}"
        self.extent_count = found

    def opened(self, found: int) -> None:
        """The store was opened and has this size, from here on durably.

        Raises:
            AssertionError: it must not have.
        """
        self.failed(found)
        self.changed(found)

    def snapshot(self) -> SizeModel:
        """As of now, for a crash at this moment."""
        copy = SizeModel(self.extent_count)
        copy._possible, copy._possible_before = self._possible, self._possible_before
        return copy
