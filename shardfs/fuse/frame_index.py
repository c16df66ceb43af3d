"""An index of the frames that a scan of a device has found, by what files they belong to.

Role: a temporary SQLite database, so that memory does not grow with the device. Takes in frames of
data and of name pages, and the entries of runs and deltas, which know inodes and names as well.

Invariants:
    I1. Frames of one store only are asked for; another store's old frames may lie beside them.
    I2. Where two frames cover the same byte the one with the higher sequence number counts: an
        append is newer than what it takes the place of, and so is a copy that reclamation made.
    I3. A granule that does not match its checksum is never given out, nor does an older frame show
        through where it lies.

Not here: the scan (engine/salvage.py), what becomes of files (salvage.py, reconstruction.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from shardfs import limits
from shardfs.engine.framing import Frame
from shardfs.engine.layout import Kind, Tag
from shardfs.engine.lsm.delta import DeltaPart, decode_delta
from shardfs.engine.lsm.entry import Block, decode_block
from shardfs.engine.salvage import FoundFrame
from shardfs.engine.superblock_record import ExtentEntry, Identity, Record, decode_record
from shardfs.errors import CorruptionError, IncompatibleError
from shardfs.fuse.keys import (
    ENTRY_PREFIX,
    INO_MAX,
    NAME_PAGE_PREFIX,
    decode_entry_key,
    decode_file_key,
    decode_name_page_key,
)
from shardfs.fuse.records import (
    INODES_PER_NAME_PAGE,
    NamedInode,
    decode_entry,
    decode_inode,
    decode_name_page,
    encode_inode,
)
from shardfs.fuse.scratch import Scratch

_PAGE_MAX: Final = INO_MAX // INODES_PER_NAME_PAGE
_NUMBER_MAX: Final = (1 << 63) - 1
_SHARDS_MAX: Final = limits.FILE_BYTES_MAX // limits.SHARD_BYTES
_TABLES: Final = """
CREATE TABLE data (store, ino, shard, start, length, sequence, at, payload, epoch, damaged);
CREATE TABLE pages (store, page, start, sequence, content);
CREATE TABLE inodes (store, ino, sequence, ctime, record);
CREATE TABLE names (store, ino, parent, name, sequence);
CREATE TABLE deltas (store, number, part, parts, durable, sequence, epoch, at, content);
CREATE TABLE places (store, at, end, epoch, kind, sequence, damaged);
CREATE TABLE found (ino INTEGER PRIMARY KEY, page_sequence, record);
CREATE TABLE linked (ino, parent, name);
"""
_INDEXES: Final = """
CREATE INDEX data_by_file ON data (store, ino, shard, sequence);
CREATE INDEX pages_by_number ON pages (store, page, sequence);
CREATE INDEX inodes_by_number ON inodes (store, ino, ctime);
CREATE INDEX names_by_inode ON names (store, ino, sequence);
CREATE INDEX deltas_by_number ON deltas (store, number, part, sequence);
CREATE INDEX places_by_sequence ON places (store, sequence);
CREATE INDEX linked_by_inode ON linked (ino);
"""

_INOS: Final = (
    "SELECT ino FROM found UNION SELECT ino FROM data WHERE store = ? "
    "UNION SELECT ino FROM inodes WHERE store = ?"
)


class DataFrame(NamedTuple):
    """A frame of a file's data, and where it lies.

    start: first byte within the shard.
    at, payload_at: bytes of the device.
    damaged: first bytes of granules of the payload that are damaged.
    """

    shard: int
    start: int
    length: int
    sequence: int
    at: int
    payload_at: int
    epoch: int
    damaged: tuple[int, ...]


class DeltaFrame(NamedTuple):
    """One part of a delta, and where its frame begins on the device."""

    part: DeltaPart
    sequence: int
    epoch: int
    at: int


@dataclass
class SuperblockRemains:
    """What records of a superblock say, wherever they were found: the newest one, and the newest
    word on each extent (with the number of the record it is from)."""

    identity: Identity
    record: Record
    entries: dict[int, tuple[int, ExtentEntry]]


class FrameIndex(Scratch):
    """What a scan has found. A context manager; the database goes with it.

    Args:
        directory: where the temporary database is made.
    """

    def __init__(self, directory: str | None = None) -> None:
        super().__init__(_TABLES, directory)
        self.store_id = 0
        self._frames: dict[int, int] = {}
        """Frames of each store."""
        self._superblocks: dict[int, SuperblockRemains] = {}

    # --- taking in

    def add(self, found: FoundFrame) -> None:
        """Take in a frame."""
        frame, store = found.frame, _signed(found.store_id)
        self._frames[store] = self._frames.get(store, 0) + 1
        end = found.at + frame.total_bytes
        place = (store, found.at, end, frame.epoch, int(frame.kind), _bounded(frame.sequence))
        values = (*place, len(found.damaged))
        self._db.execute("INSERT INTO places VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        try:
            if frame.kind is Kind.DATA:
                self._add_data(found, store)
            elif frame.kind is Kind.SUPERBLOCK and not found.damaged:
                self._add_record(*decode_record(found.payload))
            elif frame.kind is Kind.RUN_BLOCK and not found.damaged:
                self._add_entries(decode_block(bytes(found.payload)), frame, store)
            elif frame.kind is Kind.DELTA and not found.damaged:
                self._add_delta(found, store)
        except (CorruptionError, IncompatibleError):
            return  # whole, and yet not what it should be: made by something else

    def _add_data(self, found: FoundFrame, store: int) -> None:
        frame = found.frame
        if frame.owner[:1] == NAME_PAGE_PREFIX:
            page = decode_name_page_key(frame.owner)
            end = frame.owner_offset + frame.payload_bytes
            if not found.damaged and page <= _PAGE_MAX and end <= limits.SHARD_BYTES:
                sequence = _bounded(frame.sequence)
                row = (store, page, frame.owner_offset, sequence, bytes(found.payload))
                self._db.execute("INSERT INTO pages VALUES (?, ?, ?, ?, ?)", row)
            return
        about = decode_file_key(frame.owner)
        end = frame.owner_offset + frame.payload_bytes
        if about.shard is None or end > limits.SHARD_BYTES or about.shard > _SHARDS_MAX:
            return
        self._db.execute(
            "INSERT INTO data VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                store,
                about.ino,
                about.shard,
                frame.owner_offset,
                frame.payload_bytes,
                _bounded(frame.sequence),
                found.at,
                found.at + frame.payload_offset,
                frame.epoch,
                " ".join(map(str, found.damaged)),
            ),
        )

    def _add_record(self, identity: Identity, record: Record) -> None:
        store = _signed(identity.store_id)
        remains = self._superblocks.get(store)
        if remains is None:
            remains = self._superblocks[store] = SuperblockRemains(identity, record, {})
        elif record.number > remains.record.number:
            remains.identity, remains.record = identity, record
        for entry in record.entries:
            known = remains.entries.get(entry.extent)
            if known is None or record.number >= known[0]:
                remains.entries[entry.extent] = (record.number, entry)

    def _add_delta(self, found: FoundFrame, store: int) -> None:
        content = bytes(found.payload)
        part = decode_delta(content)
        numbers = (store, _bounded(part.number), part.part, part.parts, _bounded(part.durable))
        values = (*numbers, _bounded(found.frame.sequence), found.frame.epoch, found.at, content)
        self._db.execute("INSERT INTO deltas VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        self._add_entries(part.block, found.frame, store)

    def _add_entries(self, block: Block, frame: Frame, store: int) -> None:
        for key, value in zip(block.keys, block.values, strict=True):
            if value[:1] != bytes([Tag.RECORD]):
                continue
            try:
                if key[:1] == ENTRY_PREFIX:
                    parent, _, name = decode_entry_key(key)
                    ino = decode_entry(value[1:]).ino
                    row = (store, ino, parent, name, _bounded(frame.sequence))
                    self._db.execute("INSERT INTO names VALUES (?, ?, ?, ?, ?)", row)
                    continue
                about = decode_file_key(key)
                if about.shard is None and about.xattr is None:
                    ctime = decode_inode(value[1:]).ctime_ns
                    values = (store, about.ino, _bounded(frame.sequence), ctime, value[1:])
                    self._db.execute("INSERT INTO inodes VALUES (?, ?, ?, ?, ?)", values)
            except CorruptionError:
                continue

    def finish(self, store_id: int | None = None) -> None:
        """All frames are in: choose the store, and put the name pages together.

        Args:
            store_id: of the store that is wanted; None: the one with the most frames.
        """
        if store_id is not None:
            self.store_id = _signed(store_id)
        elif self._frames:
            self.store_id = max(self._frames, key=lambda store: self._frames[store])
        self._db.executescript(_INDEXES)
        query = "SELECT DISTINCT page FROM pages WHERE store = ? ORDER BY page"
        for (page,) in self._db.execute(query, (self.store_id,)).fetchall():
            self._read_page(page)

    def _read_page(self, page: int) -> None:
        found = self._newest_page(page)
        if found is None:
            return
        sequence, inodes = found
        for ino, (inode, names) in inodes.items():
            values = (ino, sequence, encode_inode(inode))
            self._db.execute("INSERT OR REPLACE INTO found VALUES (?, ?, ?)", values)
            for parent, name in names:
                self._db.execute("INSERT INTO linked VALUES (?, ?, ?)", (ino, parent, name))

    def _newest_page(self, page: int) -> tuple[int, dict[int, NamedInode]] | None:
        for version in self.page_versions(page):
            return version
        return None

    def page_versions(self, page: int) -> Iterator[tuple[int, dict[int, NamedInode]]]:
        """(sequence number, content) of each version of a name page that is left, newest first."""
        query = (
            "SELECT start, sequence, content FROM pages WHERE store = ? AND page = ? "
            "ORDER BY sequence DESC LIMIT 1000"
        )
        frames = self._db.execute(query, (self.store_id, page)).fetchall()[::-1]
        for count in range(len(frames), 0, -1):
            data = bytearray()
            for start, _, content in frames[:count]:
                if start + len(content) > limits.SHARD_BYTES:
                    continue
                data.extend(bytes(max(0, start - len(data))))
                data[start : start + len(content)] = content
            try:
                number, inodes = decode_name_page(data)
            except CorruptionError:
                continue
            if number == page:
                yield frames[count - 1][1], inodes

    # --- asking

    @property
    def frame_count(self) -> int:
        """Frames of the store."""
        return self._frames.get(self.store_id, 0)

    def inos(self) -> Iterator[int]:
        """Inode numbers that a name page or the log knows, or that have data; ascending."""
        values = (self.store_id, self.store_id)
        for (ino,) in self._db.execute(f"{_INOS} ORDER BY 1", values):
            yield ino

    @property
    def inode_count(self) -> int:
        """How many `inos` there are."""
        values = (self.store_id, self.store_id)
        row = self._db.execute(f"SELECT COUNT(*) FROM ({_INOS})", values).fetchone()
        return int(row[0])

    def inos_with_data(self) -> Iterator[int]:
        """Inode numbers that have data, ascending."""
        query = "SELECT DISTINCT ino FROM data WHERE store = ? ORDER BY ino"
        for (ino,) in self._db.execute(query, (self.store_id,)):
            yield ino

    def former(self, ino: int) -> NamedInode | None:
        """What the newest version of its name page that knows the inode says; or else the log."""
        for _, inodes in self.page_versions(ino // INODES_PER_NAME_PAGE):
            if ino in inodes:
                return inodes[ino]
        return self.logged(ino)

    def named(self, ino: int) -> NamedInode | None:
        """The inode and its names, as its name page has them."""
        row = self._db.execute("SELECT record FROM found WHERE ino = ?", (ino,)).fetchone()
        if row is None:
            return None
        names = self._db.execute("SELECT parent, name FROM linked WHERE ino = ?", (ino,)).fetchall()
        return NamedInode(decode_inode(row[0]), tuple(names))

    def page_sequence(self, ino: int) -> int | None:
        """Sequence number of the name page that the inode would be in; None if there is none."""
        query = "SELECT MAX(sequence) FROM pages WHERE store = ? AND page = ?"
        row = self._db.execute(query, (self.store_id, ino // INODES_PER_NAME_PAGE)).fetchone()
        return None if row is None else row[0]

    def logged(self, ino: int) -> NamedInode | None:
        """The inode and its names as blocks of runs and deltas have them, which may be out of date:
        the newest inode, and the name that was given last."""
        query = "SELECT record FROM inodes WHERE store = ? AND ino = ? ORDER BY ctime DESC LIMIT 1"
        row = self._db.execute(query, (self.store_id, ino)).fetchone()
        if row is None:
            return None
        query = (
            "SELECT parent, name FROM names WHERE store = ? AND ino = ? "
            "ORDER BY sequence DESC LIMIT 1"
        )
        names = self._db.execute(query, (self.store_id, ino)).fetchall()
        return NamedInode(decode_inode(row[0]), tuple(names))

    def data(self, ino: int, shard: int | None = None) -> Iterator[DataFrame]:
        """The frames of a file's data (of one shard), those that count more behind others."""
        query = (
            "SELECT shard, start, length, sequence, at, payload, epoch, damaged FROM data "
            "WHERE store = ? AND ino = ?"
        )
        values: tuple[int, ...] = (self.store_id, ino)
        if shard is not None:
            query += " AND shard = ?"
            values = (*values, shard)
        for *numbers, damaged in self._db.execute(query + " ORDER BY shard, sequence", values):
            yield DataFrame._make([*numbers, tuple(map(int, damaged.split()))])

    def newest_data(self, ino: int) -> int:
        """The highest sequence number of a file's frames; -1 if it has none."""
        query = "SELECT MAX(sequence) FROM data WHERE store = ? AND ino = ?"
        row = self._db.execute(query, (self.store_id, ino)).fetchone()
        return -1 if row is None or row[0] is None else int(row[0])

    # --- for repair

    @property
    def superblock(self) -> SuperblockRemains | None:
        """What is left of the store's superblock."""
        return self._superblocks.get(self.store_id)

    def choose_by_superblock(self) -> None:
        """Take the store of which most is left and a record of the superblock too, if any."""
        stores = [each for each in self._frames if each in self._superblocks]
        if stores:
            self.store_id = max(stores, key=lambda store: self._frames[store])

    def delta_numbers(self, above: int) -> list[int]:
        """Numbers of deltas of which something is left, above a number, descending."""
        query = (
            "SELECT DISTINCT number FROM deltas WHERE store = ? AND number > ? "
            "ORDER BY number DESC LIMIT 1000000"
        )
        rows = self._db.execute(query, (self.store_id, _bounded(above)))
        return [number for (number,) in rows]

    def delta(self, number: int) -> list[DeltaFrame]:
        """Frames of the parts of a delta; of one part, the one written last comes last."""
        query = (
            "SELECT sequence, epoch, at, content FROM deltas WHERE store = ? AND number = ? "
            "ORDER BY part, sequence"
        )
        rows = self._db.execute(query, (self.store_id, number))
        return [
            DeltaFrame(decode_delta(content), sequence, epoch, at)
            for sequence, epoch, at, content in rows
        ]

    def has_whole(self, sequence: int) -> bool:
        """The frame with this sequence number is there, and undamaged."""
        query = "SELECT damaged FROM places WHERE store = ? AND sequence = ?"
        row = self._db.execute(query, (self.store_id, _bounded(sequence))).fetchone()
        return row is not None and row[0] == 0

    def places(self) -> Iterator[tuple[int, int, int, int]]:
        """(first byte on the device, first byte behind it, epoch, kind) of every frame."""
        query = "SELECT at, end, epoch, kind FROM places WHERE store = ? ORDER BY at"
        yield from self._db.execute(query, (self.store_id,))

    def highest(self) -> tuple[int, int]:
        """The highest sequence number, and the highest number of a delta, of the store."""
        query = "SELECT MAX(sequence) FROM places WHERE store = ?"
        sequence = self._db.execute(query, (self.store_id,)).fetchone()[0] or 0
        query = "SELECT MAX(number) FROM deltas WHERE store = ?"
        return sequence, self._db.execute(query, (self.store_id,)).fetchone()[0] or 0

    def is_deleted(self, ino: int) -> bool:
        """A name page that was written after the newest data of the inode does not know it."""
        page = self.page_sequence(ino)
        return page is not None and self.named(ino) is None and page > self.newest_data(ino)


def _signed(number: int) -> int:
    """The identity of a store, any 64 bits, as SQLite keeps it."""
    return number - (1 << 64) if number >> 63 else number


def _bounded(number: int) -> int:
    """A number that counts something. No store gets as far as SQLite's highest; one that is beyond
    was made up, and stays the highest."""
    return min(number, _NUMBER_MAX)
