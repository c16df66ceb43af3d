"""One open directory: its entries in a steady order, whatever comes and goes meanwhile.

Role: entries are ordered by the hash of their name; a position is the hash of the last entry
given. So a position stays valid while other entries are created and removed.

Invariants:
    I1. Listing from position 0, going on from each entry's `next`, gives every entry that is there
        all the time exactly once, and none that was removed before the call.
    I2. What one call gives is the directory at one moment, with inodes of that moment.
    I3. "." and ".." come first, at positions 1 and 2.
    I4. A page is used again only under the very inode, as an object, that it was read under: each
        change of a directory's names makes a new one.

What was read of a small directory is kept for the next who opens it (`RecentPages`).

Two names of one directory may have equal hashes (2^-63 by chance, but someone may try). Then the
second has the next free number for its position, which the listing remembers.

Not here: attributes and lookup counts (operations.py).
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from shardfs import limits
from shardfs.errors import CorruptionError, FileError
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.keys import (
    HASH_FIRST,
    HASH_MAX,
    INO_MAX,
    decode_entry_key,
    entries_start,
    inode_key,
)
from shardfs.fuse.records import ENTRY, KEY_TYPES, Inode, decode_entry
from shardfs.fuse.tables import NotLoaded, Tables

_DOT: Final = 1
DOT_DOT: Final = 2
"""The position of "..", and behind that of all that a lookup is counted for."""
_DOTS: Final = frozenset({b".", b".."})
_KEPT_ENTRIES_MAX: Final = 8192
"""Of all pages that are kept, some 2 MiB."""
_ITEMS_AT_ONCE: Final = 64
"""About as many as one reply to the kernel holds."""
_NAME_LAST: Final = b"\xff" * (limits.NAME_BYTES_MAX + 1)
"""Sorts behind every name."""


class Item(NamedTuple):
    """One name of a directory.

    `inode` is None when its record is damaged. `next` is the position behind this item.
    """

    name: bytes
    ino: int
    type: int
    inode: Inode | None
    next: int

    @property
    def is_dot(self) -> bool:
        """The directory itself or its parent, for which no lookup is counted."""
        return self.next <= DOT_DOT


class _Listed(NamedTuple):
    """An entry of a page; `next` is the position behind it."""

    hash: int
    name: bytes
    ino: int
    type: int
    next: int


class _Page(NamedTuple):
    """Entries behind the position `start`, and the directory's inode they were read under."""

    directory: Inode
    start: int
    items: list[_Listed]
    is_last: bool

    def tells(self, position: int) -> bool:
        """The page shows what lies behind a position."""
        if position < self.start:
            return False
        return self.is_last or position < self.items[-1].next


class RecentPages:
    """Whole small directories that were listed lately (I4)."""

    def __init__(self) -> None:
        self._pages: OrderedDict[int, _Page] = OrderedDict()
        self._entries = 0

    @property
    def memory_bytes(self) -> int:
        """About what they take."""
        return limits.LISTED_NAME_MEMORY_BYTES * self._entries

    def get(self, ino: int, directory: Inode) -> _Page | None:
        """The names of a directory if nothing has changed among them."""
        page = self._pages.get(ino)
        if page is None or page.directory is not directory:
            return None
        self._pages.move_to_end(ino)
        return page

    def keep(self, ino: int, page: _Page) -> None:
        """For the next who opens the directory, if that is all of it; what a listing has to
        remember positions for is not."""
        if page.start or not page.is_last or any(each.next != each.hash for each in page.items):
            return
        self._forget(self._pages.pop(ino, None))
        self._pages[ino] = page
        self._entries += 1 + len(page.items)
        while self._entries > _KEPT_ENTRIES_MAX:
            self._forget(self._pages.popitem(last=False)[1])

    def _forget(self, page: _Page | None) -> None:
        if page is not None:
            self._entries -= 1 + len(page.items)


class Listing:
    """An open directory.

    Args:
        recent: shared by the listings of a mount.
    """

    def __init__(
        self, store: StoreDoor, tables: Tables, ino: int, recent: RecentPages | None = None
    ) -> None:
        self.ino = ino
        self._store = store
        self._tables = tables
        self._recent = recent or RecentPages()
        self._page: _Page | None = None
        self._places: dict[int, tuple[int, bytes]] = {}
        """Position -> (hash, name), where a position alone may not tell."""
        self._positions: dict[tuple[int, bytes], int] = {}

    def let_go(self) -> None:
        """It was read to its end: what was read is not kept. It can be read on all the same."""
        self._page = None

    async def read(self, position: int) -> list[Item]:
        """Some items behind `position`; none when the directory ends there.

        Read from its beginning, it is a new listing: positions of an earlier one that a name was
        given because it shares its hash are gone (rewinddir(3)).

        Raises:
            DeviceError, CorruptionError, FileError
        """
        if not position and self._places:
            self._places, self._positions, self._page = {}, {}, None
        while True:
            tables = self._tables
            directory = tables.cached_inode(self.ino) or await tables.inode(self.ino)
            if directory is None or not directory.is_directory:
                raise FileError(errno.ESTALE)
            page = self._page
            if page is None or page.directory != directory or not page.tells(position):
                page = self._recent.get(self.ino, directory)
                if page is None:
                    page = await self._load(directory, position)
                    self._recent.keep(self.ino, page)
                self._page = page
            first = bisect_right(page.items, self._place_of(position), key=itemgetter(0, 1))
            listed = page.items[first : first + _ITEMS_AT_ONCE]
            await self._load_inodes(listed)
            try:
                items = self._collect(page, position, listed)
            except NotLoaded:
                items = await tables.run(partial(self._collect, page, position, listed))
            if items is not None:
                return items

    def ends_with(self, item: Item) -> bool:
        """Whether nothing is behind the last item that `read` has just given.

        Requires: nothing was awaited since.
        """
        page = self._page
        if page is None or not page.is_last:
            return False
        return not page.items or page.items[-1].name == item.name

    async def _load(self, directory: Inode, position: int) -> _Page:
        place, _ = self._place_of(position)
        start = entries_start(self.ino, max(place, HASH_FIRST))
        count = limits.DIRECTORY_PAGE_ENTRIES
        # One more: whether the last name of the page shares its hash.
        found = await self._store.records(start, _entries_end(self.ino), count + 1)
        is_last = len(found) <= count
        names = [decode_place(key) for key, _ in found]
        entries = decode_entries([record for _, record in found[:count]])
        items: list[_Listed] = []
        for index, ((place, name), (ino, kind)) in enumerate(zip(names, entries, strict=False)):
            is_shared = (index > 0 and names[index - 1][0] == place) or (
                index + 1 < len(names) and names[index + 1][0] == place
            )
            next_position = self._position_behind(place, name) if is_shared else place
            items.append(_Listed(place, name, ino, kind, next_position))
        return _Page(directory, position, items, is_last)

    def _position_behind(self, place: int, name: bytes) -> int:
        """A position of its own for a name that shares its hash."""
        position = self._positions.get((place, name))
        if position is None:
            position = place
            while position in self._places:
                position += 1
            self._places[position] = (place, name)
            self._positions[place, name] = position
        return position

    def _place_of(self, position: int) -> tuple[int, bytes]:
        """(hash, name) behind which to go on."""
        return self._places.get(position, (position, _NAME_LAST))

    async def _load_inodes(self, items: list[_Listed]) -> None:
        """Load what is missing in the order of inode numbers: neighbours share a block, and
        neighbouring blocks a read."""
        tables = self._tables
        cached = tables.cached_inode
        missing = sorted([ino for _, _, ino, _, _ in items if cached(ino) is None])
        is_brought = False
        for ino in missing:
            try:
                try:
                    tables.find_inode(ino)
                except NotLoaded:
                    if not is_brought:
                        is_brought = True
                        await self._store.bring([inode_key(each) for each in missing])
                    await tables.load(ino)
            except CorruptionError:
                continue  # its name is still listed

    def _collect(self, page: _Page, position: int, listed: list[_Listed]) -> list[Item] | None:
        """The dots behind a position, and what is listed, as they are now; None if the directory
        has changed."""
        tables = self._tables
        directory = tables.find_inode(self.ino)
        if directory is None or directory != page.directory:
            return None
        items = []
        if position < _DOT:
            items.append(Item(b".", self.ino, directory.mode >> 12, directory, _DOT))
        if position < DOT_DOT:
            parent = tables.find_inode(directory.parent)
            items.append(Item(b"..", directory.parent, directory.mode >> 12, parent, DOT_DOT))
        cached = tables.cached_inode
        items += [
            Item(name, ino, kind, cached(ino), behind) for _, name, ino, kind, behind in listed
        ]
        return items


def decode_place(key: bytes) -> tuple[int, bytes]:
    """(hash, name), as keys.decode_entry_key of a key in a directory's range; in one step for
    names that are as they should be.

    Raises:
        CorruptionError
    """
    place, name = int.from_bytes(key[9:17], "big"), key[17:]
    if (
        xxh3_64_intdigest(name) >> 1 == place >= HASH_FIRST
        and 0 < len(name) <= limits.NAME_BYTES_MAX
        and b"/" not in name
        and b"\0" not in name
        and name not in _DOTS
    ):
        return place, name
    return decode_entry_key(key)[1:]


def decode_entries(records: Sequence[bytes]) -> Sequence[tuple[int, int]]:
    """(inode number, type) of each, as records.decode_entry; in one step if all are as they
    should be.

    Raises:
        CorruptionError
    """
    if {ENTRY.size}.issuperset(map(len, records)):
        found = list(ENTRY.unpack_many(b"".join(records), 0, len(records)))
        if all(0 < ino <= INO_MAX and kind << 12 in KEY_TYPES for ino, kind in found):
            return found
    return [decode_entry(record) for record in records]


def _entries_end(ino: int) -> bytes:
    return entries_start(ino, HASH_MAX) + _NAME_LAST
