"""How long requests take: one histogram for each kind of request, cheap enough to be always on.

Role: `Durations` is a list of counts by powers of two of a nanosecond. Adding to it is two list
operations, which the guard of errnos.py spells out; everything else here is arithmetic on what was
counted, for the command line and for metrics.

Measured is a handler's time: from when the server begins with a request to when its answer is
ready, waiting included. The kernel's part, and how long a request waited for the server, are not.

Not here: who counts (errnos.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

BUCKETS: Final = 64
"""Bucket b holds durations below 2^b nanoseconds that do not fit into the one before."""
SUM: Final = BUCKETS
"""Where a list of durations holds their sum, nanoseconds."""

Durations = list[int]


def no_durations() -> Durations:
    """Nothing counted yet."""
    return [0] * (BUCKETS + 1)


@dataclass(frozen=True)
class Summary:
    """What was counted of one kind of request.

    seconds: of all of them together.
    buckets: (upper bound in nanoseconds, count) of each bucket that is not empty, ascending.
    """

    count: int
    seconds: float
    buckets: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, durations: Durations) -> Summary:
        """What a list holds."""
        buckets = tuple((1 << b, count) for b, count in enumerate(durations[:BUCKETS]) if count)
        return cls(sum(count for _, count in buckets), durations[SUM] / 1e9, buckets)

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> Summary:
        """What `as_answer` has made."""
        buckets = tuple((int(upper), int(count)) for upper, count in answer["buckets"])
        return cls(int(answer["count"]), float(answer["seconds"]), buckets)

    def as_answer(self) -> dict[str, Any]:
        """As values for JSON, with quantiles for those who do not want to count."""
        return {
            "count": self.count,
            "seconds": round(self.seconds, 9),
            "p50_us": round(self.quantile_ns(0.50) / 1000, 1),
            "p99_us": round(self.quantile_ns(0.99) / 1000, 1),
            "buckets": [list(bucket) for bucket in self.buckets],
        }

    def quantile_ns(self, share: float) -> float:
        """The duration that a share of all do not exceed; right within its bucket, a factor of 2.

        Args:
            share: above 0, at most 1.
        """
        wanted = share * self.count
        below = 0
        for upper, count in self.buckets:
            if below + count >= wanted:
                # In between, as if those of one bucket were spread evenly.
                return upper / 2 + upper / 2 * (wanted - below) / count
            below += count
        return 0.0

    def since(self, earlier: Summary) -> Summary:
        """What came after an earlier look at the same counts."""
        before = dict(earlier.buckets)
        buckets = ((upper, count - before.get(upper, 0)) for upper, count in self.buckets)
        return Summary(
            self.count - earlier.count,
            self.seconds - earlier.seconds,
            tuple((upper, count) for upper, count in buckets if count > 0),
        )


NONE: Final = Summary(0, 0.0, ())


def together(summaries: Iterable[Summary]) -> Summary:
    """Several kinds of requests as one."""
    counts: dict[int, int] = {}
    seconds = 0.0
    for summary in summaries:
        seconds += summary.seconds
        for upper, count in summary.buckets:
            counts[upper] = counts.get(upper, 0) + count
    return Summary(sum(counts.values()), seconds, tuple(sorted(counts.items())))
