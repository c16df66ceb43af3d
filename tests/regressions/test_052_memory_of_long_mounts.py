"""What grew without end, or was not counted, while a mount went on for weeks.

Found by reading all that holds something for each name, handle or number, and counting what
many turns leave.
"""

from __future__ import annotations

import sys

import pyfuse3
import pytest

from shardfs import limits
from shardfs.errors import CorruptionError
from shardfs.fuse.call_paths import CallPaths
from shardfs.fuse.calls import Call
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.listing import Item, Listing
from shardfs.fuse.mount_options import MountOptions
from shardfs.fuse.operations import Operations
from shardfs.fuse.recent_cache import RecentCache
from tests.fuse.harness import Caller, mounted

INODES = 100_000
PAGE = 8


async def names_of(listing: Listing) -> list[bytes]:
    """All that it lists, from the beginning."""
    names = []
    position = 0
    while items := await listing.read(position):
        names += [item.name for item in items if not item.is_dot]
        position = items[-1].next
    return names


async def test_a_directory_that_is_listed_again_and_again_remembers_no_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each page's last name had one, for as long as the directory was open."""
    monkeypatch.setattr(limits, "DIRECTORY_PAGE_ENTRIES", PAGE)
    async with mounted() as file_system:
        caller = Caller(file_system)
        listing = file_system.list_directory(ROOT_INO)
        for turn in range(5):
            names = [f"{turn} {number}" for number in range(3 * PAGE)]
            for name in names:
                await caller.create(name)
            assert sorted(await names_of(listing)) == sorted(name.encode() for name in names)
            assert not listing._places
            for name in names:
                await caller.unlink(name)


@pytest.mark.expected_warnings("readdir failed")
async def test_a_listing_that_fails_counts_no_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel had never heard of them, so it never let go of them: a file that was deleted
    gave its space back at the end of the mount."""
    taken = []

    def take(token: object, name: bytes, attributes: object, position: int) -> bool:
        taken.append(name)
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", take)
    async with mounted() as file_system:
        caller = Caller(file_system)
        for number in range(100):
            await caller.create(f"file {number}")
        operations = Operations(file_system, MountOptions())
        handle = await operations.opendir(ROOT_INO, pyfuse3.RequestContext())
        real = Listing.read
        rotten_behind: list[int] = []

        async def read(self: Listing, position: int) -> list[Item]:
            if position in rotten_behind:
                raise CorruptionError("rot", "tree")
            items = await real(self, position)
            rotten_behind.append(items[-1].next)
            return items

        monkeypatch.setattr(Listing, "read", read)
        token: pyfuse3.ReaddirToken = None  # type: ignore[assignment]  # for the kernel only
        await operations.readdir(handle, 0, token)
        told = len(taken)
        assert 2 < told < 100
        assert len(file_system.handles._lookups) == told - 2
        with pytest.raises(pyfuse3.FUSEError):
            await operations.readdir(handle, rotten_behind[0], token)
        assert len(file_system.handles._lookups) == told - 2


async def test_a_directory_read_to_its_end_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "readdir_reply", lambda *_: True)
    async with mounted() as file_system:
        for number in range(limits.DIRECTORY_PAGE_ENTRIES + 10):
            await Caller(file_system).create(f"file {number}")
        operations = Operations(file_system, MountOptions())
        handle = await operations.opendir(ROOT_INO, pyfuse3.RequestContext())
        await operations.readdir(handle, 0, None)  # type: ignore[arg-type]  # for the kernel only
        assert file_system.handles.directory(handle)._page is None


async def test_the_table_of_lookups_shrinks_and_is_counted_until_then() -> None:
    async with mounted() as file_system:
        handles = file_system.handles
        least = handles.memory_bytes
        for ino in range(1 << 40, (1 << 40) + INODES):
            handles.looked_up(ino)
        for ino in range(1 << 40, (1 << 40) + INODES):
            assert handles.memory_bytes >= sys.getsizeof(handles._lookups)
            handles.forget(ino, 1)
        assert handles.memory_bytes <= least + limits.MIB
        handle = handles.open_directory(file_system.list_directory(ROOT_INO))
        assert handles.memory_bytes >= least + limits.HANDLE_MEMORY_BYTES
        handles.release_directory(handle)


async def test_paths_of_traced_calls_are_bounded_by_name() -> None:
    """A file that was linked under ever new names kept them all."""
    async with mounted() as file_system:
        paths = CallPaths(file_system)
        ino = await Caller(file_system).create("file")
        for number in range(1000):
            name = b"name %d" % number
            target = (ROOT_INO, name)
            call = Call(0, 0, "link", ROOT_INO, name, target, "", 0, ino, -1, 0)
            assert (await paths.of([call]))[0][0] == f"/name {number}"
        assert len(paths._inodes) == 1


def test_what_was_deleted_is_not_found_in_the_older_half_of_a_cache() -> None:
    cache: RecentCache[int, str | None] = RecentCache(100, lambda key, value: 10)
    for number in range(5):
        cache[number] = "there"
    cache[0] = None
    assert 0 in cache._old and cache.get(0) is None and cache[0] is None
