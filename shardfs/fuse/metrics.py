"""A mount's figures as Prometheus metrics.

Role: one table from what a mount answers (`info`, `stat`, `space`) to metrics with names, units and
types after Prometheus' conventions; docs/operations.md has the table for users. Written by
prometheus-client, in its text format.

Invariants:
    I1. Nothing here names a file: whoever may read metrics learns nothing of what is stored.

Not here: how they are asked for over HTTP (exporter.py), what the figures are (inspection.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from shardfs.fuse.durations import Summary

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

Figures = Mapping[str, Any]

COUNTERS: Final = {
    "read_bytes": ("shardfs_read_bytes", "Bytes given to read requests"),
    "written_bytes": ("shardfs_written_bytes", "Bytes taken from write requests"),
    "requests_that_woke": ("shardfs_wakeups", "Requests that found the server asleep"),
    "cache_hits": ("shardfs_cache_hits", "Blocks of the tree found in the cache"),
    "cache_misses": ("shardfs_cache_misses", "Blocks of the tree read from the device"),
    "device_reads": ("shardfs_device_reads", "Reads of the device"),
    "device_read_bytes": ("shardfs_device_read_bytes", "Bytes read from the device"),
    "device_writes": ("shardfs_device_writes", "Writes to the device"),
    "device_write_bytes": ("shardfs_device_written_bytes", "Bytes written to the device"),
    "device_flushes": ("shardfs_device_flushes", "Flushes of the device"),
    "gathered_shards": ("shardfs_gathered_shards", "Scattered shards rewritten in fewer pieces"),
    "gathered_bytes": ("shardfs_gathered_bytes", "Bytes rewritten for that"),
    "processor_s": ("shardfs_processor_seconds", "Processor time the server has taken"),
}
"""Figures of `stat` that only rise: name, help. Their samples end in _total."""

GAUGES: Final = {
    "dirty_bytes": ("shardfs_dirty_bytes", "Written data that the store does not have yet"),
    "dirty_files": ("shardfs_dirty_files", "Files with such data"),
    "removed_files_waiting": ("shardfs_removed_files_waiting", "Removed files not yet freed"),
    "pending_bytes": ("shardfs_uncommitted_bytes", "Changes that no delta holds yet"),
    "queued_bytes": ("shardfs_queued_bytes", "Bytes waiting to be written to the device"),
    "memtable_bytes": ("shardfs_memtable_bytes", "Memory of the tree's newest entries"),
    "memtable_entries": ("shardfs_memtable_entries", "The tree's newest entries"),
    "tree_bytes": ("shardfs_tree_bytes", "Bytes of the tree's runs on the device"),
    "runs": ("shardfs_tree_runs", "Runs of the tree"),
    "cache_bytes": ("shardfs_cache_bytes", "Memory of the cache of tree blocks"),
    "extents_free": ("shardfs_free_extents", "Extents that hold nothing"),
    "extents_total": ("shardfs_extents", "Extents of the device"),
    "scattered_shards": ("shardfs_scattered_shards", "Shards in many small pieces"),
    "resident_bytes": ("shardfs_resident_memory_bytes", "Memory of the server"),
    "memory_bound_bytes": ("shardfs_memory_bound_bytes", "What it may take: -o cache="),
    "caches_bytes": ("shardfs_caches_bytes", "Memory of all caches together"),
    "caches_bound_bytes": ("shardfs_caches_bound_bytes", "What the caches may take now"),
}
"""Figures of `stat` that rise and fall."""

LATENCY_EXPONENTS: Final = range(12, 35)
"""Bounds of the histogram of durations: these powers of 2, in nanoseconds: 4 us to 17 s."""


class Questions(Protocol):
    """Answers requests; see inspection.py."""

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The result of one request."""


async def gather(questions: Questions) -> Figures:
    """Ask a mount for all that becomes metrics.

    Raises:
        ShardfsError: it cannot be answered.
    """
    return {name: await questions.answer({"request": name}) for name in ("info", "stat", "space")}


def exposition(figures: Figures) -> str:
    """The figures in the text format of Prometheus.

    Args:
        figures: as `gather` gives them.
    """
    # It takes long to load, which is spared to those who do not need it.
    from prometheus_client.exposition import generate_latest
    from prometheus_client.registry import Collector, CollectorRegistry

    class Once(Collector):
        def collect(self) -> Iterable[Metric]:
            return _metrics(figures)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Once())
    return generate_latest(registry).decode("utf-8")


def _metrics(figures: Figures) -> Iterator[Metric]:
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        InfoMetricFamily,
    )

    info, stat, space = figures["info"], figures["stat"], figures["space"]
    identity = {key: _text(info[key]) for key in ("uuid", "label", "device", "mountpoint")}
    yield InfoMetricFamily("shardfs", "Which store is mounted; always 1", value=identity)
    yield GaugeMetricFamily(
        "shardfs_healthy", "1 while the store takes changes", value=stat["health"] == "healthy"
    )
    yield GaugeMetricFamily("shardfs_size_bytes", "The device", value=space["device_bytes"])
    yield GaugeMetricFamily(
        "shardfs_available_bytes",
        "What can be written now, garbage included",
        value=space["available_bytes"],
    )
    parts = {name.removesuffix("_bytes"): size for name, size in space["parts"].items()}
    names = ("shardfs_space_bytes", "Where the bytes are; the parts add up to the device")
    yield _labelled(GaugeMetricFamily, names, "part", parts)
    for key, (name, text) in COUNTERS.items():
        yield CounterMetricFamily(name, text, value=stat[key])
    for key, (name, text) in GAUGES.items():
        yield GaugeMetricFamily(name, text, value=stat[key])
    names = ("shardfs_debt_ratio", "How far work is behind: 0 not at all, 1 writers wait for it")
    yield _labelled(GaugeMetricFamily, names, "work", stat["debts"])
    names = ("shardfs_stream_written_bytes", "Bytes written to the device, by what they are")
    yield _labelled(CounterMetricFamily, names, "stream", stat["stream_bytes"])
    names = ("shardfs_memory_bytes", "Memory that is counted, by what for")
    yield _labelled(GaugeMetricFamily, names, "part", stat["memory_use_bytes"])
    yield from _scrub(stat["scrub"])
    names = ("shardfs_request_errors", "Requests answered with an error")
    yield _labelled(CounterMetricFamily, names, "errno", stat["errors"])
    yield _durations(stat["latencies"])


def _scrub(figures: Mapping[str, Any]) -> Iterator[Metric]:
    """How far the scrub of the mount is, and what it has found."""
    from prometheus_client.metrics_core import GaugeMetricFamily

    texts = {
        "shardfs_scrub_running": ("1 while a scrub runs", figures["state"] == "running"),
        "shardfs_scrub_verified_bytes": (
            "Bytes of data that this scrub, or the last, has verified",
            figures["verified_bytes"],
        ),
        "shardfs_scrub_size_bytes": ("Bytes of data there are to verify", figures["total_bytes"]),
        "shardfs_scrub_damaged_bytes": (
            "Bytes of files it found damaged",
            figures["damaged_bytes"],
        ),
        "shardfs_scrub_damaged_tree_parts": (
            "Parts of the tree and its log it found damaged",
            figures["tree_damaged"],
        ),
    }
    for name, (text, value) in texts.items():
        yield GaugeMetricFamily(name, text, value=value)


def _labelled(kind: Any, names: tuple[str, str], label: str, values: Mapping[str, Any]) -> Metric:
    """A metric with a value for each value of a label."""
    family: Metric = kind(*names, labels=(label,))
    for each, value in values.items():
        family.add_metric((each,), value)  # type: ignore[attr-defined]  # every kind has it
    return family


def _durations(latencies: Mapping[str, Any]) -> Metric:
    from prometheus_client.metrics_core import HistogramMetricFamily

    family = HistogramMetricFamily(
        "shardfs_request_duration_seconds",
        "How long requests took in the server, by kind; its _count is how many there were",
        labels=("request",),
    )
    for name, latency in latencies.items():
        summary = Summary.from_answer(latency)
        buckets: list[tuple[str, float]] = []
        for exponent in LATENCY_EXPONENTS:
            below = sum(count for upper, count in summary.buckets if upper <= 1 << exponent)
            buckets.append((repr((1 << exponent) / 1e9), below))
        buckets.append(("+Inf", summary.count))
        family.add_metric((name,), buckets, summary.seconds)
    return family


def _text(value: str | None) -> str:
    """A label's value: valid UTF-8, whatever a path may be."""
    return (value or "").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
