"""Each name page was written twice while many files were made.

Pages were written whenever some thousands of names waited. Data of new files is flushed three
seconds after it was written, and changes their inodes, so their pages were to be written again:
120 bytes a file, and the time to read, change and write the page. Found by comparing
bench_metadata_bytes with an earlier run.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from shardfs.checking.models.store_model import ModelStore
from shardfs.engine.layout import Bytes
from shardfs.engine.pieces import Piece
from shardfs.fuse.keys import NAME_PAGE_PREFIX
from shardfs.fuse.name_pages import INTERVAL_S
from shardfs.fuse.records import INODES_PER_NAME_PAGE
from shardfs.limits import MIB
from tests.fuse.harness import Caller, serving

FILES_PER_S = 64
SECONDS = 20


class CountingStore(ModelStore):
    """Counts the name pages that are written."""

    pages_written = 0

    def append_pieces(
        self,
        owner: bytes,
        offset: int,
        buffers: Sequence[Bytes],
        *,
        replaced: Sequence[Piece] = (),
    ) -> tuple[Piece, ...]:
        """See StoreDoor."""
        self.pages_written += owner.startswith(NAME_PAGE_PREFIX)
        return super().append_pieces(owner, offset, buffers, replaced=replaced)


async def test_a_page_waits_for_the_data_of_its_files() -> None:
    store = CountingStore(64 * MIB)
    async with serving(store) as file_system:
        caller = Caller(file_system)
        for number in range(FILES_PER_S * SECONDS):
            await caller.create(f"file {number}", data=b"some data")
            await trio.sleep(1 / FILES_PER_S)
        await trio.sleep(2 * INTERVAL_S)
        assert file_system.name_pages.waiting_count == 0
        pages = FILES_PER_S * SECONDS // INODES_PER_NAME_PAGE + 1
        assert store.pages_written == pages
