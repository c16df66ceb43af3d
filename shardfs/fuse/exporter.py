"""Metrics of a mount over HTTP, for Prometheus to fetch.

Role: a small HTTP/1.1 server beside the mount: GET and HEAD of /metrics, nothing else. h11 knows
the protocol, this file moves bytes.

Invariants:
    I1. Nothing here ends the mount or holds it up: trouble with a connection ends the connection,
        an address that cannot be used is tried again every RETRY_S.
    I2. Everything is bounded: connections, the head of a request, its body, the time a connection
        is silent, what it is answered.
    I3. Nothing but numbers and the identity of the store is told (metrics.I1); nothing can be
        changed.

Not here: what the metrics are (metrics.py), the option (mount_options.py).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import h11
import trio
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from shardfs.errors import ShardfsError
from shardfs.fuse.control import next_connection
from shardfs.fuse.metrics import Questions, exposition, gather

_log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 8
HEAD_BYTES_MAX: Final = 8192
SILENCE_S_MAX: Final = 30.0
RETRY_S: Final = 10.0
PATH: Final = "/metrics"
_RECEIVE_BYTES: Final = 4096
_WELCOME: Final = f"shardfs serves its metrics at {PATH}\n"

_DROPPED: Final = (
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    h11.ProtocolError,
)

Address = tuple[str, int]


async def serve_metrics(address: Address, begin: Callable[[], Questions]) -> None:
    """Answer until cancelled.

    Args:
        address: numeric, and a port.
        begin: gives something that answers the requests of inspection.py.
    """
    listener = await _listen(address)
    places = trio.Semaphore(CONNECTIONS_MAX)
    try:
        async with trio.open_nursery() as nursery:
            while True:
                await places.acquire()
                connection = await next_connection(listener, "metrics")
                nursery.start_soon(_converse, connection, begin(), places)
    finally:
        listener.close()


async def _listen(address: Address) -> trio.socket.SocketType:
    """A listening socket, as soon as the address can be had (I1)."""
    told = ""
    while True:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        listener = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await listener.bind(address)
            listener.listen(CONNECTIONS_MAX)
        except OSError as error:
            listener.close()
            text = f"no metrics at {address_text(address)}: {error.strerror or error}"
            if text != told:
                _log.warning("%s; trying again every %d s", text, RETRY_S)
            told = text
            await trio.sleep(RETRY_S)
        else:
            _log.info("metrics at http://%s%s", address_text(address), PATH)
            return listener


def address_text(address: Address) -> str:
    """An address as it stands in a URL."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _converse(
    connection: trio.socket.SocketType, questions: Questions, places: trio.Semaphore
) -> None:
    """One connection from its first request to its end (I1)."""
    try:
        await _Conversation(trio.SocketStream(connection), questions).run()
    except _DROPPED as error:
        _log.debug("metrics connection dropped: %s", error)
    except Exception as error:
        _log.error("the metrics met a bug", exc_info=error)
    finally:
        connection.close()
        places.release()


class _Conversation:
    """The requests of one connection."""

    def __init__(self, stream: trio.SocketStream, questions: Questions) -> None:
        self._stream = stream
        self._questions = questions
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)

    async def run(self) -> None:
        """Answer until the other side ends it, is silent, or makes no sense."""
        while True:
            try:
                request = await self._request()
            except h11.RemoteProtocolError as error:
                if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await self._answer(error.error_status_hint, "this is not a request\n")
                return
            if request is None:
                return
            status, text = await self._found(request)
            await self._answer(status, text, bodiless=request.method == b"HEAD")
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _request(self) -> h11.Request | None:
        """The next request, read to its end; None if no more come."""
        request: h11.Request | None = None
        received = 0
        with trio.move_on_after(SILENCE_S_MAX):
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    data = await self._stream.receive_some(_RECEIVE_BYTES)
                    received += len(data)
                    if received > 2 * HEAD_BYTES_MAX:
                        raise h11.RemoteProtocolError("too long", error_status_hint=413)
                    self._http.receive_data(data)
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.EndOfMessage):
                    return request
                elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                    return None
        return None

    async def _found(self, request: h11.Request) -> tuple[int, str]:
        """Status and text of the answer."""
        if request.method not in (b"GET", b"HEAD"):
            return 405, "only GET and HEAD\n"
        path = request.target.partition(b"?")[0]
        if path == b"/":
            return 200, _WELCOME
        if path != PATH.encode("ascii"):
            return 404, _WELCOME
        try:
            return 200, exposition(await gather(self._questions))
        except ShardfsError as error:
            return 503, f"{error}\n"

    async def _answer(self, status: int, text: str, *, bodiless: bool = False) -> None:
        body = text.encode("utf-8")
        headers = [
            ("Content-Type", CONTENT_TYPE),
            ("Content-Length", str(len(body))),
            ("X-Content-Type-Options", "nosniff"),
        ]
        if status == 405:
            headers.append(("Allow", "GET, HEAD"))
        reason = HTTPStatus(status).phrase
        parts = [self._http.send(h11.Response(status_code=status, headers=headers, reason=reason))]
        if not bodiless:
            parts.append(self._http.send(h11.Data(data=body)))
        parts.append(self._http.send(h11.EndOfMessage()))
        with trio.move_on_after(SILENCE_S_MAX) as patience:
            await self._stream.send_all(b"".join(part or b"" for part in parts))
        if patience.cancelled_caught:
            raise trio.BrokenResourceError
