"""What a canary is: a mistake that the ordinary checks have to find.

Role: the type that the catalog is made of.

Not here: how a mistake is planted (planting.py), how it is hunted (hunting.py).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from shardfs.checking.canaries.planting import Change, planted


@dataclass(frozen=True, slots=True)
class Canary:
    """A planted mistake.

    Args:
        name: words joined by hyphens.
        description: what is wrong, in a sentence; where shardfs has no part like the one of the
            published issue, how near this comes.
        changes: to shardfs, or to a model.
        worlds: whose random sequences hunt it, likeliest first.
        issue: number of the published ShardStore issue with the same mechanism.
    """

    name: str
    description: str
    changes: tuple[Change, ...]
    worlds: tuple[str, ...]
    issue: int | None = None

    def planted(self) -> AbstractContextManager[None]:
        """The mistake is in force while the context lasts.

        Raises:
            PlantingError: shardfs no longer reads as the mutant expects.
        """
        return planted(self.changes)
