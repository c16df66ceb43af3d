"""Metrics of a real mount: scraped over HTTP and by the command, read as Prometheus reads them."""

from __future__ import annotations

import os
import re
import socket
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.mounted.conftest import MountFactory
from tests.mounted.mounts import shardfs
from tests.tidy.documents import documents, sections

FILES = 20
FILE_BYTES = 10_000


def families(text: str) -> Mapping[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(found: Mapping[str, Metric], family: str, sample: str = "", **labels: str) -> float:
    """The value of one sample."""
    (only,) = (
        each.value
        for each in found[family].samples
        if each.name == (sample or family) and labels.items() <= each.labels.items()
    )
    return float(only)


def requests(found: Mapping[str, Metric], kind: str) -> float:
    name = "shardfs_request_duration_seconds"
    return value(found, name, f"{name}_count", request=kind)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_mount_is_scraped(image_file: Path, mount_shardfs: MountFactory) -> None:
    port = free_port()
    mounted = mount_shardfs(image_file, [f"metrics={port}"])
    for number in range(FILES):
        (mounted.path / f"{number}").write_bytes(os.urandom(FILE_BYTES))
    shardfs("sync", mounted.path)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        scraped = families(answer.read().decode())
    commanded = families(shardfs("stat", mounted.path, "--prometheus"))
    assert set(scraped) == set(commanded)
    for found in (scraped, commanded):
        assert requests(found, "create") == requests(found, "write") == FILES
        assert value(found, "shardfs_written_bytes", "shardfs_written_bytes_total") == (
            FILES * FILE_BYTES
        )
        assert value(found, "shardfs_healthy") == 1
        assert value(found, "shardfs_dirty_bytes") == 0
        assert value(found, "shardfs_info", mountpoint=str(mounted.path)) == 1
        assert value(found, "shardfs_space_bytes", part="live") >= FILES * FILE_BYTES
        parts = sum(each.value for each in found["shardfs_space_bytes"].samples)
        assert parts == value(found, "shardfs_size_bytes") == image_file.stat().st_size
        assert value(found, "shardfs_device_flushes", "shardfs_device_flushes_total") >= 1
        assert 0 <= value(found, "shardfs_debt_ratio", work="reclamation") <= 1
    table = sections(documents()["docs/operations.md"])["Metrics"].table()
    described = {name: row[1] for row in table for name in re.findall(r"`(\w+)", row[0])}
    found_types = {
        f"{name}_total" if family.type == "counter" else name: family.type
        for name, family in scraped.items()
    }
    assert found_types == described


def test_an_address_in_use_does_not_keep_from_mounting(
    image_file: Path, mount_shardfs: MountFactory
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        mounted = mount_shardfs(image_file, [f"metrics=127.0.0.1:{other.getsockname()[1]}"])
        mounted.expected_log_patterns.append("no metrics at")
        (mounted.path / "file").write_bytes(b"served all the same")
        mounted.umount()
    assert "trying again" in mounted.log_text()
