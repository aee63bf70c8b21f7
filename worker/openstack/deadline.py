"""Deadline: how long a call may take in all. requests bounds no more than the time between two bytes of an answer."""

from __future__ import annotations

import contextlib
import contextvars
import os
import socket
import threading
from types import TracebackType
from typing import Any

import requests.adapters
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

_CURRENT: contextvars.ContextVar[Deadline | None] = contextvars.ContextVar("deadline", default=None)


class Deadline:
    """Cuts the connections that a thread uses in its `with` block once somebody says that the time is over.

    The thread sits in a read of the kernel's then, which only the end of the connection ends.
    """

    def __init__(self) -> None:
        self.over = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Deadline:
        self._token = _CURRENT.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _CURRENT.reset(self._token)
        with self._lock:
            for one in self._sockets:
                one.close()
            self._sockets.clear()

    def cut(self) -> None:
        """The time is over: whatever the thread reads or writes ends, now and later. From any thread."""
        with self._lock:
            self.over = True
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def watch(self, connection: socket.socket) -> None:
        """The thread uses this connection from now on; TimeoutError, and it is closed, if the time is over."""
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


_POOLS = {"http": _Pool, "https": _TlsPool}


class Adapter(requests.adapters.HTTPAdapter):
    """requests' adapter, with connections that a `Deadline` can cut."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """See requests."""
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        """See requests."""
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager
