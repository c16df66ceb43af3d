"""The reference file content: what a reader sees, and what a crash may leave of it.

Role: an executable specification of write(2), truncate(2) and fsync(2) for one file, as a list of
the versions it has had. The changes of names are numbered (namespace_model.py); a crash leaves
the state after one of them, and `may_be` tells which bytes a file may show then.

Invariants (what an application may rely on after a crash):
    I1. Each shard (4 MiB) of the file is as some version had it: writes are kept in the order
        made, and a write within one shard is there wholly or not at all. The shards of a file
        are independent of each other.
    I2. The size reaches exactly as far as what was kept: never over bytes that are neither old
        nor new nor the zeros of a hole.
    I3. What fsync was called for stays: data and size.
    I4. A write is never kept without the changes of names that were made before it.
    I5. A truncation is a numbered change: it is there wholly or not at all, and after all writes
        before it.

Not of files of which more than 32 separate stretches of one shard are buffered at once: those
are stored in several batches (docs/crash-consistency.md), and I1 does not hold between them.

Not here: names (namespace_model.py), and which call applies what (file_model.py).
"""

from __future__ import annotations

from typing import NamedTuple

from shardfs import limits

SHARD_BYTES = limits.SHARD_BYTES


class Version(NamedTuple):
    """The content after one change.

    Args:
        moment: number of changes of names made before it.
        writes: (start, end) of those made since the last truncation.
    """

    content: bytes
    moment: int
    writes: tuple[tuple[int, int], ...] = ()

    def end_in(self, shard: int) -> int:
        """Where the last byte written in a shard ends; 0 if there is none."""
        first, behind = shard * SHARD_BYTES, (shard + 1) * SHARD_BYTES
        return max(
            (min(end, behind) for start, end in self.writes if start < behind and end > first),
            default=0,
        )

    def writes_below(self, length: int) -> tuple[tuple[int, int], ...]:
        """What of the writes lies below an offset."""
        return tuple((start, min(end, length)) for start, end in self.writes if start < length)


class Mark(NamedTuple):
    """A point that `back_to` goes back to."""

    versions: int
    floors: int


class ContentModel:
    """The versions of one file.

    Args:
        content: the first one.
        moment: when it was made.
    """

    def __init__(self, content: bytes = b"", moment: int = 0) -> None:
        self._versions = [Version(content, moment)]
        self._floors = [(moment, 0)]
        """(moment, index): the state after that many changes has that version or a later one."""

    def copy(self) -> ContentModel:
        """As of now."""
        after = ContentModel()
        after._versions, after._floors = list(self._versions), list(self._floors)
        return after

    @property
    def content(self) -> bytes:
        """What a reader sees."""
        return self._versions[-1].content

    @property
    def last(self) -> int:
        """Index of the last version."""
        return len(self._versions) - 1

    # --- changing

    def write(self, offset: int, data: bytes, moment: int) -> None:
        """pwrite(2) of at least one byte, after `moment` changes of names."""
        self._versions.append(_written(self._versions[-1], offset, data, moment))

    def truncate(self, length: int, moment: int) -> None:
        """truncate(2), which is change number `moment`."""
        content = self.content[:length].ljust(length, b"\0")
        self._versions.append(Version(content, moment))
        self._floors.append((moment, self.last))

    def store(self, moment: int) -> None:
        """All that was written goes to the store: the next change of names comes after it."""
        self._floors.append((moment + 1, self.last))

    def settle(self, found: bytes, moment: int) -> bool:
        """Writes may have been lost while nobody crashed: what is found now, if it may be."""
        if not self.may_be(found, moment):
            return False
        writes = self._versions[-1].writes_below(len(found))
        self._versions.append(Version(found, moment, writes))
        return True

    def made_durable(self, index: int, moment: int) -> None:
        """The versions up to `index` and the first `moment` changes survive any crash (I3)."""
        self._floors.append((moment, index))

    def mark(self) -> Mark:
        """For `back_to`."""
        return Mark(len(self._versions), len(self._floors))

    def back_to(self, mark: Mark) -> None:
        """Undo what was done since: the file system has refused it."""
        del self._versions[mark.versions :]
        del self._floors[mark.floors :]

    # --- crashes

    def may_be(self, found: bytes, moment: int) -> bool:
        """Whether a crash may leave these bytes with the first `moment` changes of names."""
        low, high = self._window(moment)
        candidates = self._versions[low : high + 1]
        size_least = len(self._versions[low].content)
        size_max = max(len(version.content) for version in candidates)
        sizes = {size_least}
        for shard in range(-(-max(size_max, len(found)) // SHARD_BYTES)):
            here = slice(shard * SHARD_BYTES, (shard + 1) * SHARD_BYTES)
            ends = {
                max(size_least, version.end_in(shard))
                for version in candidates
                if _same(found[here], version.content[here])
            }
            ends = {end for end in ends if end <= len(found)}
            if not ends:
                return False
            sizes |= ends
        return len(found) in sizes

    def _window(self, moment: int) -> tuple[int, int]:
        """First and last version that the state after `moment` changes may have."""
        low = max(index for since, index in self._floors if since <= moment)
        high = max(
            index for index, version in enumerate(self._versions) if version.moment <= moment
        )
        return low, high


def _written(old: Version, offset: int, data: bytes, moment: int) -> Version:
    end = offset + len(data)
    content = old.content[:offset].ljust(offset, b"\0") + data + old.content[end:]
    return Version(content, moment, (*old.writes, (offset, end)))


def _same(found: bytes, version: bytes) -> bool:
    """Equal, the shorter one continued with zeros."""
    if len(found) < len(version):
        found, version = version, found
    return found.startswith(version) and not found[len(version) :].strip(b"\0")
