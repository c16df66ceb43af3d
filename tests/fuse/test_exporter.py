"""fuse/exporter.py: the HTTP server of a mount's metrics, over real sockets."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from shardfs.errors import DeviceError
from shardfs.fuse import exporter
from shardfs.fuse.durations import SUM, Summary, no_durations
from shardfs.fuse.exporter import Address, address_text, serve_metrics
from shardfs.fuse.metrics import COUNTERS, GAUGES, exposition

HOST = "127.0.0.1"


def figures() -> dict[str, dict[str, Any]]:
    """What a mount would answer."""
    durations = no_durations()
    for took_ns in (900, 5000, 70_000, 1 << 40):
        durations[took_ns.bit_length()] += 1
        durations[SUM] += took_ns
    stat: dict[str, Any] = dict.fromkeys((*COUNTERS, *GAUGES), 7)
    stat |= {
        "health": "healthy",
        "debts": {"merging": 0.5},
        "stream_bytes": {"data": 11},
        "memory_use_bytes": {"dirty": 5},
        "scrub": {
            "state": "running",
            "verified_bytes": 3,
            "total_bytes": 60,
            "damaged_bytes": 1,
            "tree_damaged": 0,
        },
        "errors": {"ENOSPC": 2},
        "latencies": {"lookup": Summary.of(durations).as_answer()},
    }
    label = 'a "label"\nof\\two lines \udcff'
    info = {"uuid": "u", "label": label, "device": "/dev/x", "mountpoint": "/mnt/ä"}
    space = {"device_bytes": 100, "available_bytes": 40, "parts": {"live_bytes": 60}}
    return {"stat": stat, "info": info, "space": space}


class Answers:
    """A mount that always answers the same; or that cannot."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """See metrics.Questions."""
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return figures()[request["request"]]


def free_address() -> Address:
    with socket.create_server((HOST, 0)) as probe:
        return (HOST, int(probe.getsockname()[1]))


@contextlib.asynccontextmanager
async def served(
    error: Exception | None = None, address: Address | None = None
) -> AsyncIterator[Callable[[], Awaitable[trio.SocketStream]]]:
    """A call that connects to a server, which ends with the body."""
    address = address or free_address()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_metrics, address, lambda: Answers(error))

        async def connect() -> trio.SocketStream:
            with trio.fail_after(20):
                while True:
                    try:
                        return await trio.open_tcp_stream(*address)
                    except OSError:
                        await trio.sleep(0.02)

        yield connect
        nursery.cancel_scope.cancel()


async def said(stream: trio.SocketStream, request: bytes = b"") -> tuple[int, bytes]:
    """What is answered to a request until the connection ends: status and body; 0: nothing."""
    data = b""
    async with stream:
        with trio.fail_after(20), contextlib.suppress(trio.BrokenResourceError):
            if request:
                await stream.send_all(request)
            async for part in stream:
                data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


def get(path: str, method: str = "GET", more: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n".encode()


@pytest.mark.real_clock
@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/metrics"), 200),
        (get("/metrics?a=b"), 200),
        (get("/metrics", "HEAD"), 200),
        (get("/"), 200),
        (get("/metrics/more"), 404),
        (get("/%2e%2e/metrics"), 404),
        (get("/metrics", "POST", "Content-Length: 3\r\n") + b"abc", 405),
        (get("/metrics", "DELETE"), 405),
        (get("/metrics", more="X: " + "y" * 20_000 + "\r\n"), 431),
        (get("/metrics", "PUT", "Content-Length: 100000\r\n") + b"z" * 100_000, 413),
        (b"\x16\x03\x01 this is TLS\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"nonsense\n" * 4000, 431),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else None,
)
async def test_answers(request_bytes: bytes, status: int) -> None:
    async with served() as connect:
        found, body = await said(await connect(), request_bytes)
        # Who sends that much may find the connection reset before there is an answer to read.
        assert found == status or (found == 0 and len(request_bytes) > 16_000)
        if request_bytes.startswith(b"HEAD"):
            assert body == b""
        elif b" /metrics " in request_bytes and status == 200:
            assert body.decode() == exposition(figures())
        # Whatever was said, the next one is served.
        assert (await said(await connect(), get("/metrics")))[0] == 200


@pytest.mark.real_clock
async def test_one_connection_asks_often() -> None:
    async with served() as connect:
        stream = await connect()
        for _ in range(3):
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            data = b""
            with trio.fail_after(20):
                while not data.endswith(exposition(figures()).encode()):
                    data += await stream.receive_some()
            assert data.startswith(b"HTTP/1.1 200 OK\r\n")
        await stream.aclose()


@pytest.mark.real_clock
async def test_trouble_of_the_mount_is_an_answer() -> None:
    async with served(DeviceError("read", 0, 512, 5)) as connect:
        status, body = await said(await connect(), get("/metrics"))
        assert status == 503 and b"read" in body


@pytest.mark.real_clock
@pytest.mark.expected_warnings("the metrics met a bug")
async def test_a_bug_ends_a_connection_and_no_more() -> None:
    async with served(ZeroDivisionError()) as connect:
        for _ in range(2):
            assert (await said(await connect(), get("/metrics")))[0] == 0
            assert (await said(await connect(), get("/")))[0] == 200


@pytest.mark.real_clock
async def test_silent_connections_are_few_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many that say nothing hold the next one up until they are dropped, and no longer."""
    monkeypatch.setattr(exporter, "SILENCE_S_MAX", 0.5)
    async with served() as connect:
        silent = [await connect() for _ in range(exporter.CONNECTIONS_MAX)]
        await silent[0].send_all(b"GET /met")
        started = trio.current_time()
        assert (await said(await connect(), get("/metrics")))[0] == 200
        assert trio.current_time() - started > 0.2
        for stream in silent:
            assert (await said(stream))[0] == 0


@pytest.mark.real_clock
@pytest.mark.expected_warnings("no metrics at")
async def test_an_address_in_use_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "RETRY_S", 0.05)
    with socket.create_server((HOST, 0)) as other:
        address = (HOST, int(other.getsockname()[1]))
        async with served(address=address) as connect:
            await trio.sleep(0.2)
            other.close()
            assert (await said(await connect(), get("/metrics")))[0] == 200


def test_the_text_is_what_prometheus_reads() -> None:
    found = {
        sample.name + "".join(sorted(map(str, sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(exposition(figures()))
        for sample in family.samples
    }
    assert found["shardfs_available_bytes"] == 40 and found["shardfs_healthy"] == 1
    assert found["shardfs_cache_hits_total"] == 7 and found["shardfs_space_byteslive"] == 60
    name = "shardfs_request_duration_seconds"
    assert found[f"{name}_countlookup"] == found[f"{name}_bucket+Inflookup"] == 4
    assert found[f"{name}_bucket4.096e-06lookup"] == 1
    assert found[f"{name}_bucket8.192e-06lookup"] == 2
    assert found[f"{name}_bucket17.179869184lookup"] == 3
    assert found[f"{name}_sumlookup"] == pytest.approx((900 + 5000 + 70_000 + (1 << 40)) / 1e9)


def test_addresses_in_text() -> None:
    assert address_text((HOST, 9100)) == "127.0.0.1:9100"
    assert address_text(("::1", 9100)) == "[::1]:9100"
