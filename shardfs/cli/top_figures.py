"""What a mount does right now: two looks at its counts become rates.

Role: one value, which `shardfs top` prints as JSON and draws.

Not here: how it is drawn (cli/top_view.py), what is counted (fuse/inspection.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardfs.fuse.durations import NONE, Summary, together

Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Look:
    """A mount's counts at one moment.

    time_s: of a clock that only goes forward.
    """

    time_s: float
    stat: Answer
    space: Answer
    info: Answer


def figures(before: Look, now: Look) -> dict[str, Any]:
    """Rates between two looks, and sizes as of the later one; keys as in schemas/top.json."""
    seconds = max(now.time_s - before.time_s, 1e-6)

    def rate(key: str, digits: int = 1) -> float:
        change: float = now.stat[key] - before.stat[key]
        return round(change / seconds, digits)

    summaries = {
        name: Summary.from_answer(latency) for name, latency in now.stat["latencies"].items()
    }
    earlier = {
        name: Summary.from_answer(latency) for name, latency in before.stat["latencies"].items()
    }
    recent = {name: each.since(earlier.get(name, NONE)) for name, each in summaries.items()}
    lookups = [now.stat[key] - before.stat[key] for key in ("cache_hits", "cache_misses")]
    return {
        "mountpoint": now.info["mountpoint"],
        "device": now.info["device"],
        "device_bytes": now.space["device_bytes"],
        "health": now.stat["health"],
        "reason": now.stat["reason"],
        "seconds": round(seconds, 3),
        "all_requests": _request(together(recent.values()), together(summaries.values()), seconds),
        "requests": {
            name: _request(recent[name], summary, seconds) for name, summary in summaries.items()
        },
        "errors": {
            name: count - before.stat["errors"].get(name, 0)
            for name, count in now.stat["errors"].items()
        },
        "read_bytes_per_s": rate("read_bytes"),
        "written_bytes_per_s": rate("written_bytes"),
        "processor_share": rate("processor_s", 3),
        "resident_bytes": now.stat["resident_bytes"],
        "cache_hit_share": round(lookups[0] / sum(lookups), 4) if any(lookups) else None,
        "cache_bytes": now.stat["cache_bytes"],
        "memory_bound_bytes": now.stat["memory_bound_bytes"],
        "caches_bytes": now.stat["caches_bytes"],
        "caches_bound_bytes": now.stat["caches_bound_bytes"],
        "scrub": dict(now.stat["scrub"]),
        "dirty_bytes": now.stat["dirty_bytes"],
        "dirty_files": now.stat["dirty_files"],
        "uncommitted_bytes": now.stat["pending_bytes"],
        "queued_bytes": now.stat["queued_bytes"],
        "removed_files_waiting": now.stat["removed_files_waiting"],
        "device_reads_per_s": rate("device_reads"),
        "device_read_bytes_per_s": rate("device_read_bytes"),
        "device_writes_per_s": rate("device_writes"),
        "device_written_bytes_per_s": rate("device_write_bytes"),
        "device_flushes_per_s": rate("device_flushes"),
        "moved_bytes_per_s": round(
            (now.stat["stream_bytes"]["survivors"] - before.stat["stream_bytes"]["survivors"])
            / seconds,
            1,
        ),
        "debts": dict(now.stat["debts"]),
        "available_bytes": now.space["available_bytes"],
        "space": dict(now.space["parts"]),
    }


def _request(recent: Summary, ever: Summary, seconds: float) -> dict[str, Any]:
    answer = recent.as_answer()
    return {
        "per_s": round(recent.count / seconds, 1),
        "p50_us": answer["p50_us"],
        "p99_us": answer["p99_us"],
        "buckets": answer["buckets"],
        "total": ever.count,
    }
