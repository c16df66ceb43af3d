"""The worked example of docs/format.md: true bytes, and a document that is enough to read them.

Role: `Reader` is a second, independent reader of the format. It knows the offsets and sizes that
the document's tables give, xxh3, and int.from_bytes; it shares no code with the package. It
follows "Finding everything from byte 0": for the example, and for a store with runs and files.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import pytest
import xxhash

from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine import Store, StoreOptions, format_device, plan
from shardfs.fuse.filesystem import FileSystem
from tests.tidy.documents import code_block, documents, sections
from tests.tidy.format_example import KEY, STORE_UUID, VALUE, examples, make_image, render_block

FORMAT = documents()["docs/format.md"]
GRANULE_BYTES = 4096
WHOLE_BYTES_MAX = 32768
BLOCK_BYTES = 4096
SHARD_BYTES = 4 << 20


class Field(NamedTuple):
    offset: int
    size: int


@cache
def fields_of(structure: str) -> dict[str, Field]:
    """Offsets and sizes of a structure's fields, as the document gives them."""
    rows = sections(FORMAT)[structure].table()
    return {name: Field(int(offset), int(size)) for offset, size, name, _ in rows}


@cache
def number_of(enumeration: str, name: str) -> int:
    """The stored number of a name, as the document gives it."""
    rows = sections(FORMAT)[enumeration].table()
    return next(int(value) for value, each, _ in rows if each == name)


@dataclass(frozen=True)
class Structure:
    """A structure of the document, laid over bytes."""

    fields: dict[str, Field]
    data: bytes
    at: int

    def raw(self, name: str) -> bytes:
        """A field as it is."""
        field = self.fields[name]
        start = self.at + field.offset
        return self.data[start : start + field.size]

    def __getitem__(self, name: str) -> int:
        """A field as a number."""
        return int.from_bytes(self.raw(name), "little")

    @property
    def end(self) -> int:
        """Where the structure ends."""
        return self.at + max(field.offset + field.size for field in self.fields.values())


class Frame(NamedTuple):
    header: Structure
    owner: bytes
    digests: bytes
    payload: bytes
    end: int


def structure(name: str, data: bytes, at: int) -> Structure:
    """The structure of that name at byte `at` of `data`."""
    return Structure(fields_of(name), data, at)


def granule_bytes(length: int) -> int:
    return WHOLE_BYTES_MAX if length <= WHOLE_BYTES_MAX else GRANULE_BYTES


def granules(length: int) -> int:
    return -(-length // granule_bytes(length))


def digests_of(payload: bytes) -> bytes:
    """Every granule's digest, big-endian."""
    step = granule_bytes(len(payload))
    parts = [payload[at : at + step] for at in range(0, len(payload), step)]
    return b"".join(xxhash.xxh3_64(part).intdigest().to_bytes(8, "big") for part in parts)


def read_frame(data: bytes, at: int) -> Frame | None:
    """The frame at byte `at`, if a valid one is there."""
    if data[at : at + 4] != b"SHF1":
        return None
    header = structure("frame header", data, at)
    owner_end = header.end + header["key_bytes"]
    length = header["payload_bytes"]
    start = owner_end + 8 * granules(length)
    covered = data[at : at + header.fields["checksum"].offset] + data[header.end : start]
    frame = Frame(
        header,
        data[header.end : owner_end],
        data[owner_end:start],
        data[start : start + length],
        -(-(start + length) // 8) * 8,
    )
    if header["flags"] or xxhash.xxh3_64(covered).intdigest() != header["checksum"]:
        return None
    return frame if frame.digests == digests_of(frame.payload) else None


def read_entries(payload: bytes, at: int) -> dict[bytes, bytes]:
    """The entries of the block that fills a payload from byte `at`."""
    block = structure("entry block", payload, at)
    count = block["entry_count"]
    lengths = []
    at = block.end
    for size in (2, 4):
        for _ in range(count):
            lengths.append(int.from_bytes(payload[at : at + size], "little"))
            at += size
    fields = []
    for length in lengths:
        fields.append(payload[at : at + length])
        at += length
    assert at == len(payload)
    return dict(zip(fields[:count], fields[count:], strict=True))


class Reader:
    """A store, read from an image with the document in hand."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        self.entries: dict[int, Structure] = {}
        self.record = self._read_superblock()
        self.extent_bytes = self.record["extent_bytes"]
        self.values: dict[bytes, bytes] = {}
        if self.record["manifest_bytes"]:
            self._read_runs()
        for delta in self._read_deltas():
            self._replay(delta)

    def _log(self, start: int) -> list[Frame]:
        """Step 1, one copy."""
        frames: list[Frame] = []
        at = start
        while (frame := read_frame(self.image, at)) is not None:
            is_newer = not frames or frame.header["sequence"] > frames[-1].header["sequence"]
            if frame.header["kind"] != number_of("Kind", "SUPERBLOCK") or not is_newer:
                break
            frames.append(frame)
            at = start + -(-(frame.end - start) // BLOCK_BYTES) * BLOCK_BYTES
        return frames

    def _read_superblock(self) -> Structure:
        """Steps 1 to 4."""
        first = self._log(0)
        record = structure("superblock record", first[0].payload, 0)
        second = self._log(record["extent_bytes"])
        chosen = max(first, second, key=lambda log: _number(log[-1]))
        assert structure("superblock record", chosen[0].payload, 0)["record_kind"] == number_of(
            "RecordKind", "SNAPSHOT"
        )
        for frame in chosen:
            record = structure("superblock record", frame.payload, 0)
            assert record["format_version"] == 5
            assert not record["incompatible"]
            at = record.end + record["manifest_bytes"]
            for _ in range(record["entry_count"]):
                entry = structure("extent entry", frame.payload, at)
                self.entries[entry["extent"]] = entry
                at = entry.end
            assert at == len(frame.payload)
        return record

    def _read_runs(self) -> None:
        """Step 5, and all entries of the runs."""
        payload, _ = self._read_locator(self.record.data, self.record.end)
        manifest = structure("manifest", payload, 0)
        at = manifest.end
        for _ in range(manifest["segment_count"]):
            segment = structure("segment", payload, at)
            key_end = segment.end + segment["first_key_bytes"]
            last_end = key_end + segment["last_key_bytes"]
            index, at = self._read_locator(payload, last_end)
            keys = self._read_segment(index)
            assert len(keys) == segment["entry_count"]
            assert (keys[0], keys[-1]) == (
                payload[segment.end : key_end],
                payload[key_end:last_end],
            )
        for _ in range(manifest["usage_count"]):
            at = structure("usage", payload, at).end
        assert at == len(payload)

    def _read_segment(self, payload: bytes) -> list[bytes]:
        """Takes a segment's entries in, over older ones; returns its keys."""
        index = structure("run index", payload, 0)
        keys: list[bytes] = []
        at = index.end
        for _ in range(index["block_count"]):
            reference = structure("block reference", payload, at)
            key_end = reference.end + reference["key_bytes"]
            block, at = self._read_locator(payload, key_end)
            entries = read_entries(block, 0)
            assert next(iter(entries)) == payload[reference.end : key_end]
            self.values.update(entries)
            keys += entries
        assert at + index["filter_bytes"] == len(payload)
        return keys

    def _read_locator(self, data: bytes, at: int) -> tuple[bytes, int]:
        """The payload that the locator at byte `at` names, and where the locator ends."""
        locator = structure("locator", data, at)
        end = locator.end + 8 * granules(locator["length"])
        return self._chunk(locator, data[locator.end : end]), end

    def _read_deltas(self) -> Iterator[bytes]:
        """Step 6: payloads of the delta log, in order."""
        meta = number_of("Stream", "META")
        logs = [entry for entry in self.entries.values() if entry["stream"] == meta]
        logs.sort(key=lambda entry: entry["order"])
        numbers = [entry["extent"] for entry in logs]
        first = self.record["log_extent"]
        expected = self.record["checkpoint"] + 1
        part = 0
        for entry in logs[numbers.index(first) if first in numbers else 0 :]:
            at = start = entry["extent"] * self.extent_bytes
            if entry["extent"] == first:
                at += self.record["log_offset"]
            while at < start + self.extent_bytes:
                frame = read_frame(self.image, at)
                if frame is None:
                    if at % BLOCK_BYTES == 0:
                        break
                    at += -at % BLOCK_BYTES
                    continue
                delta = structure("delta", frame.payload, 0)
                fits = delta["number"] == expected and delta["part"] == part
                if frame.header["epoch"] != entry["epoch"] or not fits:
                    break
                yield frame.payload
                part = (part + 1) % delta["parts"]
                expected += part == 0
                at = frame.end

    def _replay(self, payload: bytes) -> None:
        """Step 7, and an entry block."""
        delta = structure("delta", payload, 0)
        at = delta.end
        for _ in range(delta["tail_count"]):
            at = structure("tail", payload, at).end
        for _ in range(delta["rider_count"]):
            rider = structure("rider", payload, at)
            frame = read_frame(self.image, rider["extent"] * self.extent_bytes + rider["offset"])
            assert frame is not None
            assert frame.header["sequence"] == rider["sequence"]
            assert frame.header["epoch"] == rider["epoch"]
            at = rider.end
        self.values.update(read_entries(payload, at))

    def get(self, key: bytes) -> bytes:
        """Steps 8 and 9: the value of a key."""
        value = self.values[key]
        if value[0] == number_of("Tag", "RECORD"):
            return value[1:]
        assert value[0] == number_of("Tag", "SHARD")
        shard = structure("shard", value, 1)
        at = shard.end
        content = b""
        chunks = []
        for _ in range(shard["chunk_count"]):
            chunk, at = self._read_locator(value, at)
            chunks.append(chunk)
        for _ in range(shard["piece_count"]):
            piece = structure("piece", value, at)
            at = piece.end
            content = content.ljust(piece["start"], b"\0")
            content += chunks[piece["chunk"]][piece["skip"] :][: piece["length"]]
        assert at == len(value)
        return content

    def keys(self, prefix: bytes) -> list[bytes]:
        """The keys that begin with a prefix and are not deleted, in order."""
        tombstone = number_of("Tag", "TOMBSTONE")
        found = (key for key, value in self.values.items() if value[0] != tombstone)
        return sorted(key for key in found if key.startswith(prefix))

    def _chunk(self, locator: Structure, digests: bytes) -> bytes:
        """A payload, found without its header and checked by the locator's digests."""
        at = locator["extent"] * self.extent_bytes + locator["offset"]
        at += structure("frame header", b"", 0).end + locator["key_bytes"] + len(digests)
        payload = self.image[at : at + locator["length"]]
        assert digests_of(payload) == digests
        return payload


def _number(frame: Frame) -> int:
    return structure("superblock record", frame.payload, 0)["record_number"]


def shown(name: str) -> bytes:
    """The bytes of a frame as the document shows them."""
    data = b""
    for line in code_block(FORMAT, name):
        offset, digits, *_ = line.split()
        assert int(offset, 16) == len(data), f"{name}: {line}"
        data += bytes.fromhex(digits)
    return data


async def test_the_document_shows_the_bytes_of_the_store() -> None:
    image = await make_image()
    for example in examples(image):
        assert code_block(FORMAT, example.name) == render_block(example), (
            "print the example anew: python -m tests.tidy.format_example"
        )
        assert shown(example.name) == example.data
        where = f"(device byte {example.offset}: "
        assert where in FORMAT, f"{example.name} is at device byte {example.offset}"


async def test_the_store_is_the_same_each_time() -> None:
    assert await make_image() == await make_image()


async def test_the_document_is_enough_to_read_the_store() -> None:
    reader = Reader(await make_image())
    assert reader.record.raw("uuid") == STORE_UUID.bytes
    assert reader.record.raw("label").rstrip(b"\0") == b"example"
    assert reader.values.keys() == {KEY}
    assert reader.get(KEY) == VALUE


def test_the_document_is_enough_to_read_what_it_shows() -> None:
    superblock = read_frame(shown("superblock"), 0)
    data = read_frame(shown("data"), 0)
    delta = read_frame(shown("delta"), 0)
    assert superblock is not None and data is not None and delta is not None
    record = structure("superblock record", superblock.payload, 0)
    assert record["durable_delta"] == structure("delta", delta.payload, 0)["number"] == 1
    assert record["flags"] == 1, "closed in order"
    assert (data.owner, data.payload) == (KEY, VALUE)
    store_id = int.from_bytes(record.raw("uuid")[:8], "little")
    for frame in (superblock, data, delta):
        assert frame.header["store_id"] == store_id
    assert data.digests in delta.payload, "the digests are kept with the reference"
    for name in ("superblock", "data", "delta"):
        assert granules(len(shown(name))) == 1


@pytest.mark.parametrize("name", ["superblock", "data", "delta"])
def test_a_changed_bit_is_found(name: str) -> None:
    good = shown(name)
    frame = read_frame(good, 0)
    assert frame is not None
    covered = len(frame.payload) + frame.header.end + len(frame.owner) + len(frame.digests)
    for at in range(covered):
        bad = good[:at] + bytes([good[at] ^ 0x04]) + good[at + 1 :]
        assert read_frame(bad, 0) is None, f"byte {at}"


# --- a store with runs and files ---------------------------------------------------------------

CONTENT = random.Random(1).randbytes(5_000_000)
NAMES = [b"file-%03d" % number for number in range(200)]


async def make_file_system() -> bytes:
    """A directory of many small files and one of two shards, across runs and deltas."""
    device = SimulatedDevice(64 << 20)
    await format_device(device, plan(64 << 20, 512))
    async with Store.open(device, options=StoreOptions(background=False)) as store:
        files = await FileSystem.open(store)
        directory = await files.namespace.create(1, b"directory", 0o040755, 0, 0)
        large = await files.namespace.create(directory.ino, b"large", 0o100644, 0, 0)
        await files.writeback.write(large.ino, 0, CONTENT)
        for part in (NAMES[:100], NAMES[100:]):
            for name in part:
                found = await files.namespace.create(directory.ino, name, 0o100600, 7, 8)
                await files.writeback.write(found.ino, 0, name * 10)
            await files.sync()
            await store.checkpoint()
        await files.namespace.unlink(directory.ino, NAMES[0])
        await files.namespace.create(1, b"link", 0o120777, 0, 0, target=b"directory/large")
        await files.xattrs.set(large.ino, b"user.colour", b"blue")
        await files.end()
    return device.image()


def entries_of(reader: Reader, directory: int) -> dict[bytes, int]:
    """Names and inode numbers in a directory."""
    found = {}
    prefix = b"D" + directory.to_bytes(8, "big")
    for key in reader.keys(prefix):
        place, name = int.from_bytes(key[9:17], "big"), key[17:]
        assert place == xxhash.xxh3_64(name).intdigest() >> 1
        found[name] = structure("directory entry", reader.get(key), 0)["ino"]
    return found


def content_of(reader: Reader, ino: int) -> bytes:
    """The bytes of a regular file."""
    prefix = b"F" + ino.to_bytes(8, "big")
    size = structure("inode", reader.get(prefix + b"\0"), 0)["size"]
    content = b""
    for key in reader.keys(prefix + b"\1"):
        content = content.ljust(int.from_bytes(key[10:], "big") * SHARD_BYTES, b"\0")
        content += reader.get(key)
    return content.ljust(size, b"\0")


async def test_the_document_is_enough_to_read_files() -> None:
    reader = Reader(await make_file_system())
    assert reader.record["manifest_bytes"] and reader.record["checkpoint"]
    root = entries_of(reader, 1)
    assert root.keys() == {b"directory", b"link"}
    files = entries_of(reader, root[b"directory"])
    assert files.keys() == {b"large", *NAMES[1:]}
    assert content_of(reader, files[b"large"]) == CONTENT
    for name in NAMES[1:]:
        assert content_of(reader, files[name]) == name * 10
    large = b"F" + files[b"large"].to_bytes(8, "big")
    assert reader.get(large + b"\2user.colour") == b"blue"
    link = structure("inode", reader.get(b"F" + root[b"link"].to_bytes(8, "big") + b"\0"), 0)
    assert link.data[link.end :] == b"directory/large"
    small = structure("inode", reader.get(b"F" + files[NAMES[1]].to_bytes(8, "big") + b"\0"), 0)
    assert (small["mode"], small["uid"], small["gid"], small["nlink"]) == (0o100600, 7, 8, 1)
    facts = structure("file system facts", reader.get(b"Minode-numbers"), 0)
    assert facts["next_ino"] > max(files.values())
