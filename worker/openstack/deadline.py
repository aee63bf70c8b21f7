"""Bounds of a call: how long it may take in all, how large its answer may be, and to which host it
may lead.

requests bounds only the time between two bytes of an answer.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import socket
import threading
from types import TracebackType
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests.adapters
import requests.exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from worker.core.errors import TooLarge

LARGEST = 64 << 20
"""Bytes of an answer, decompressed. An image may have 128 properties of 64 KiB by Glance's defaults:
48 MiB if JSON escapes each character."""
LARGE = 4 << 20
"""Bytes from which on an answer waits until no other one of this process is that large: to read one
takes about four times its size in memory, and users decide how many there are."""
_PIECE = 65_536
_TURN = threading.Lock()

_CURRENT: contextvars.ContextVar[Deadline | None] = contextvars.ContextVar("deadline", default=None)


class Deadline:
    """Cuts the connections that a thread uses in its `with` block once somebody says that the time
    is over.

    The thread waits in a read of the kernel then, which only the end of the connection ends.
    `largest` is its own bound for an answer, if not LARGEST.
    """

    def __init__(self, largest: int | None = None) -> None:
        self.over = False
        self.largest = largest
        self._has_turn = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Deadline:
        self._token = _CURRENT.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        _CURRENT.reset(self._token)
        if self._has_turn:
            _TURN.release()
        with self._lock:
            for one in self._sockets:
                one.close()
            self._sockets.clear()

    def cut(self) -> None:
        """End all reads and writes of the thread, now and later: the time is over. May be called
        on any thread."""
        with self._lock:
            self.over = True
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def take_turn(self) -> None:
        """Wait until this answer may be a large one, and be that until the block ends. TimeoutError
        if the time is over before."""
        while not self._has_turn:
            if self.over:
                raise TimeoutError("the time for this request is over")
            self._has_turn = _TURN.acquire(timeout=0.1)

    def watch(self, connection: socket.socket) -> None:
        """Cut this connection too; if the time is over, close it and raise TimeoutError."""
        with self._lock:
            if not self.over:
                # A handle of our own: TLS takes the socket's away from it
                self._sockets.append(socket.socket(fileno=os.dup(connection.fileno())))
                return
        connection.close()
        raise TimeoutError("the time for this request is over")


def _watch(connection: socket.socket) -> None:
    if deadline := _CURRENT.get():
        deadline.watch(connection)


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        _watch(made)
        return made

    def request(self, *args: Any, **options: Any) -> None:
        # One that was kept from an earlier call
        if self.sock is not None:
            _watch(self.sock)
        super().request(*args, **options)


class _TlsConnection(_Connection, HTTPSConnection):
    """The same with TLS; its handshake is cut too."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def _content(response: requests.Response) -> bytes:
    """Return the bytes of an answer, decompressed; TooLarge if there are too many."""
    deadline = _CURRENT.get()
    largest = (deadline and deadline.largest) or LARGEST
    content = bytearray()
    for piece in response.iter_content(_PIECE):
        content += piece
        if len(content) > largest:
            raise TooLarge(f"an answer of more than {largest >> 20} MiB")
        if deadline and len(content) > LARGE:
            deadline.take_turn()
    return bytes(content)


def _stay(url: str, response: requests.Response) -> None:
    """Raise RequestException if an answer leads to another host, or from TLS to none.

    keystoneauth would follow it, and send a token or the password there.
    """
    location = response.headers.get("Location")
    if not response.is_redirect or not location:
        return
    here, there = urlsplit(url), urlsplit(urljoin(url, location))
    if here.hostname != there.hostname or there.scheme not in (here.scheme, "https"):
        where = f"{there.scheme}://{there.hostname}"
        raise requests.exceptions.RequestException(
            f"the answer leads to {where}, where our login is not sent"
        )


_POOLS = {"http": _Pool, "https": _TlsPool}


class Adapter(requests.adapters.HTTPAdapter):
    """requests' adapter, with connections that a `Deadline` can cut, and answers that are whole and
    not too large."""

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: ARG002  all is read here, for a deadline to cut
        *args: Any,
        **options: Any,
    ) -> requests.Response:
        """See requests; TooLarge, or RequestException for an answer that leads astray."""
        response = super().send(request, True, *args, **options)
        try:
            _stay(request.url or "", response)
            response._content = _content(response)
        except BaseException:
            # With the rest of the answer
            response.close()
            raise
        return response

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager
