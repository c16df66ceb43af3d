"""What a repair has found and done.

Role: the report that repair.py and its parts fill in, and `shardfs fsck --repair` prints.

Invariants:
    I1. Everything is counted; the first ACTIONS_MAX actions and lost ranges are kept.

Not here: repairing (repair.py, data_repair.py, files_repair.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from shardfs.engine.findings import Report

ACTIONS_MAX: Final = 1000


@dataclass(frozen=True)
class Action:
    """One thing that was done. `ino`: to which inode; `path`: its name, if it has one."""

    what: str
    ino: int | None = None
    path: str | None = None


@dataclass(frozen=True)
class LostRange:
    """Bytes [start, end) of a file that nobody can read any more."""

    ino: int
    start: int
    end: int
    path: str | None = None


@dataclass
class RepairReport:
    """What was found, what was done, and what is left."""

    before: Report
    after: Report = field(default_factory=Report)
    is_rebuilt: bool = False
    actions: list[Action] = field(default_factory=list)
    action_count: int = 0
    lost: list[LostRange] = field(default_factory=list)
    lost_bytes: int = 0
    deleted: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Nothing is wrong any more, and nothing was lost."""
        return self.after.is_clean and not self.lost_bytes and not self.deleted

    def tell(self, what: str, ino: int | None = None) -> None:
        """Something was done."""
        self.action_count += 1
        if len(self.actions) < ACTIONS_MAX:
            self.actions.append(Action(what, ino))

    def lose(self, ino: int, start: int, end: int) -> None:
        """Bytes of a file are lost."""
        self.lost_bytes += end - start
        if len(self.lost) < ACTIONS_MAX:
            self.lost.append(LostRange(ino, start, end))
