"""A small HTTP server that a hostile network can neither stop nor use up: GET and HEAD, one request
a connection.

Neither the standard library's server nor waitress bounds how long a request may take to come: a
client that sends a byte now and then keeps its connection, and with enough of these nobody else
gets one. Here every connection has a deadline. When too many are open, we drop the oldest one of
the address that has the most.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ipaddress
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs

import structlog

from worker.observe.address import BACKLOG, listen

log = structlog.get_logger(__name__)

Headers = tuple[tuple[str, str], ...]
# An item of an Accept-Encoding, and a weight that says no
GZIP = re.compile(r"\s*(?:x-)?gzip\s*(?:;.*)?", re.IGNORECASE)
REFUSED = re.compile(r";\s*q\s*=\s*0(?:\.0*)?\s*(?:;|$)", re.IGNORECASE)
METHODS = ("GET", "HEAD")
LOOPBACK = ("127.0.0.1", "::1")
ALLOW = ", ".join(METHODS)
# Bytes of a request with all its headers
HEAD = 16_384
# An answer of fewer bytes is not worth to be compressed
LARGE = 4096
BURST = 16
# Seconds that a client has to take note of the answer, before the connection is closed under it
LINGER = 1.0
# Turns of the event loop from a connection to its task, at the most
TURNS = 8
# struct linger: whether unsent bytes are dropped when a socket is closed
RESET, KEEP = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Limits for all clients together, and the seconds that a client has to ask and to take its
    answer."""

    connections: int = 64
    threads: int = 2
    asking: float = 5.0
    taking: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request: `path` without its query, `local` whether it comes from this host, header names
    in lower case."""

    method: str
    path: str
    query: str = ""
    local: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    def parameters(self) -> dict[str, list[str]]:
        """Return the values of each name in the query."""
        return parse_qs(self.query, keep_blank_values=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, not compressed."""

    body: bytes
    status: int = 200
    headers: Headers = (("Content-Type", "text/plain; charset=utf-8"),)


Quick = Callable[[Request], Answer | None]
Handle = Callable[[Request], Answer]


class Server:
    """Serves on a thread of its own. `quick` answers there at once, without waiting for a
    thread; where it returns None, `handle` answers on one of a few other threads."""

    def __init__(self, *, quick: Quick, handle: Handle, bounds: Bounds | None = None) -> None:
        self._quick = quick
        self._handle = handle
        self._bounds = bounds or Bounds()
        self._pool = ThreadPoolExecutor(self._bounds.threads, thread_name_prefix="probes")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # Whose connection each task serves, oldest first
        self._open: dict[asyncio.Task[object], str] = {}
        self._servers: list[asyncio.Server] = []

    def start(self, host: str, port: int) -> int:
        """Begin to serve; return the port, chosen by the system if 0. OSError if the address
        can't be had. Blocks: it may look up a name."""
        sockets = listen(host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="probes", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(sockets), self._loop).result()
        number: int = sockets[0].getsockname()[1]
        return number

    def stop(self) -> None:
        """Stop serving, and cut off answers under way. Blocks, but not for long."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, sockets: list[socket.socket]) -> None:
        for one in sockets:
            self._servers.append(
                await asyncio.start_server(self._connected, sock=one, backlog=BURST, limit=HEAD)
            )
            # asyncio accepts as many at once as its backlog, which would be more than we want to
            # have open
            one.listen(BACKLOG)

    async def _close(self) -> None:
        # A connection that was accepted a moment ago takes some turns until its task runs. If its
        # server is closed or its task is cancelled before that, it stays open for ever: so accept
        # no more, and wait for them
        for server in self._servers:
            for sock in server.sockets:
                asyncio.get_running_loop().remove_reader(sock.fileno())
        for _ in range(TURNS):
            await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self._servers:
            server.close()
        # The transports close their sockets in the next turn
        await asyncio.sleep(0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection from its beginning to its end."""
        client, task = _plain(writer.get_extra_info("peername")), asyncio.current_task()
        assert task is not None
        if len(self._open) >= self._bounds.connections:
            self._drop_one()
        self._open[task] = client
        # Cut off with a reset: else the kernel would keep bytes for minutes that the client does not take
        sock = writer.get_extra_info("socket")
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            local = client in (*LOOPBACK, _plain(writer.get_extra_info("sockname")))
            await self._exchange(reader, writer, local=local)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, KEEP)
        except (OSError, EOFError, TimeoutError, asyncio.CancelledError):
            # The client is gone, or too slow, or was dropped: nobody waits for this task, and
            # asyncio before 3.11.7 takes one that is cancelled for a bug
            pass
        finally:
            self._open.pop(task, None)
            writer.transport.abort()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, local: bool
    ) -> None:
        """Read the request, answer it; TimeoutError if the client takes too long."""
        async with asyncio.timeout(self._bounds.asking):
            try:
                request = _request(await reader.readuntil(b"\r\n\r\n"), local=local)
            except asyncio.LimitOverrunError:
                request = TOO_LARGE
        answer = request if isinstance(request, Answer) else await self._answer(request)
        body = b"" if isinstance(request, Request) and request.method == "HEAD" else answer.body
        async with asyncio.timeout(self._bounds.taking):
            writer.write(_head(answer) + body)
            await writer.drain()
            writer.write_eof()
            # A connection that is closed with something unread is reset, and the answer with it
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER):
                    while await reader.read(HEAD):
                        pass

    def _drop_one(self) -> None:
        """Close the oldest connection of the client that has the most, and do not answer it."""
        ((most, _),) = Counter(self._open.values()).most_common(1)
        task = next(one for one, client in self._open.items() if client == most)
        del self._open[task]
        task.cancel()

    async def _answer(self, request: Request) -> Answer:
        try:
            if answer := self._quick(request):
                return answer
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, self._handled, request
            )
        except Exception:
            # The root of a request: a bug in an answer ends nothing else
            log.exception("request_failed", path=request.path)
            return Answer(status=500, body=b"see request_failed in the log\n")

    def _handled(self, request: Request) -> Answer:
        answer = self._handle(request)
        if len(answer.body) > LARGE and _takes_gzip(request.headers.get("accept-encoding", "")):
            headers = (*answer.headers, ("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding"))
            return Answer(
                status=answer.status,
                body=gzip.compress(answer.body, compresslevel=1),
                headers=headers,
            )
        return answer


def _takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding names gzip, and not to refuse it."""
    return any(GZIP.fullmatch(one) and not REFUSED.search(one) for one in accepted.split(","))


def _head(answer: Answer) -> bytes:
    """Return the status line and the headers."""
    headers = (
        *answer.headers,
        ("X-Content-Type-Options", "nosniff"),
        ("Content-Length", str(len(answer.body))),
        ("Connection", "close"),
    )
    lines = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        *(f"{k}: {v}" for k, v in headers),
    )
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def _plain(peer: object) -> str:
    """Return a client's address; an IPv4 address in the same form on a socket of IPv6."""
    if not isinstance(peer, tuple):
        return ""
    found = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


BAD = Answer(status=400, body=b"that is no HTTP request\n")
TOO_LARGE = Answer(status=431, body=b"the request is too large\n")
NOT_ALLOWED = Answer(
    status=405,
    body=b"nothing can be changed here\n",
    headers=(("Allow", ALLOW), ("Content-Type", "text/plain; charset=utf-8")),
)


def _request(head: bytes, *, local: bool) -> Request | Answer:
    """Return the request in these bytes, or the answer if they hold none. Pure."""
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[1].startswith("/") or not words[2].startswith("HTTP/1."):
        return BAD
    if words[0] not in METHODS:
        return NOT_ALLOWED
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines)
    }
    path, _, query = words[1].partition("?")
    return Request(method=words[0], path=path, query=query, local=local, headers=headers)
