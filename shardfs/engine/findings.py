"""What a check of a store or its files has found.

Role: one finding, and the report that gathers them; the words are the checks' own.

Invariants:
    I1. Every finding is counted; the first FINDINGS_MAX are kept, so that a device full of damage
        does not fill the memory.

Not here: what is checked (fsck.py, superblock_check.py, fuse/fsck.py), printing (cli/fsck.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

FINDINGS_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not hold.

    invariant: its number, such as "E8".
    message: one line.
    where: the structure, in words; a path, where files are known.
    key: of the entry it is about, if it is about one.
    start, length: the bytes of the key's shard that are hit, if it is about data.
    extent, offset: where on the device, if known; the offset is within the extent.
    """

    invariant: str
    message: str
    where: str = ""
    key: bytes | None = None
    start: int | None = None
    length: int | None = None
    extent: int | None = None
    offset: int | None = None

    def __str__(self) -> str:
        place = "" if self.extent is None else f" (extent {self.extent}"
        if place:
            place += ")" if self.offset is None else f" byte {self.offset})"
        where = f"{self.where}: " if self.where else ""
        return f"{self.invariant} {where}{self.message}{place}"


@dataclass(slots=True)
class Report:
    """What a check has found.

    counts: how much was looked at.
    lost_keys: ranges [start, end) of keys of which the tree cannot be read.
    """

    findings: list[Finding] = field(default_factory=list)
    finding_count: int = 0
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    lost_keys: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Nothing was found."""
        return self.finding_count == 0

    def add(self, finding: Finding) -> None:
        """Take in a finding; beyond FINDINGS_MAX it is only counted."""
        self.finding_count += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)

    def count(self, name: str, number: int = 1) -> None:
        """So much more was looked at."""
        self.counts[name] = self.counts.get(name, 0) + number
