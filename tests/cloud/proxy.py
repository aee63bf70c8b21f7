"""Proxies between a worker and one service, or its broker, that can be told to misbehave."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}

GARBAGE = (
    b"<html>It works!</html>",
    b"{}",
    b"[]",
    b'"',
    b"null",
    b'{"images": {}, "volumes": "", "id": 1}',
    b"\xff\xfe",
)
# What to do with a request: pass it on (None), answer with a status, "drop" it, "delay" it; or pass
# it on and "lose" the answer, "cut" it in the middle, put "garbage" in its place, "drip" its first
# bytes
Fault = int | str | None


class Proxy:
    """Listens on a free port and passes requests on to `url`, unless `fault(method, path)` says
    otherwise."""

    def __init__(self, url: str) -> None:
        self._upstream = urlsplit(url).netloc
        self.fault: Callable[[str, str], Fault] = lambda method, path: None
        # Changes the path that the service is asked for
        self.rewrite: Callable[[str], str] = lambda path: path
        self.delay = 3.0
        # Seconds between two bytes, and how many come that way before the rest follows at once
        self.drip, self.drops = 0.1, 600
        self.tokens: set[str] = set()
        self.faults = 0
        # The service's own answers, by status
        self.answers: Counter[int] = Counter()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                # A service that is away or breaks off, and a client that has gone, are like a
                # connection cut here
                try:
                    proxy._handle(self)
                except (OSError, http.client.HTTPException):
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                """Nothing."""

            def finish(self) -> None:
                with contextlib.suppress(OSError):
                    super().finish()

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            # Of connections that wait to be accepted: a worker opens many at once
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fault = self.fault(request.command, request.path)
        self.tokens.add(request.headers.get("X-Auth-Token", ""))
        if fault is not None:
            self.faults += 1
        if fault == "drop":
            request.close_connection = True
            return
        if fault == "delay":
            time.sleep(self.delay)
        if isinstance(fault, int):
            request.send_response(fault)
            request.send_header("Content-Length", "0")
            request.send_header("Retry-After", "1")
            request.end_headers()
            return
        connection = http.client.HTTPConnection(self._upstream, timeout=120)
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP
        }
        path = self.rewrite(request.path)
        connection.request(request.command, path, body=body or None, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        self.answers[answer.status] += 1
        connection.close()
        if fault == "lose":
            request.close_connection = True
            return
        if fault == "garbage":
            content = GARBAGE[self.faults % len(GARBAGE)]
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if fault == "cut":
            request.close_connection = True
            content = content[: len(content) // 2]
        if fault == "drip":
            for number in range(min(self.drops, len(content))):
                request.wfile.write(content[number : number + 1])
                time.sleep(self.drip)
            content = content[self.drops :]
        request.wfile.write(content)


class Wire:
    """Listens on a free port and passes bytes on to a port of this machine, for a protocol that it
    does not know.

    `fault`: None to pass them on, "cut" to close what is open and whatever comes, "slow" to hold
    each read for `delay` seconds, "drip" to pass on a few bytes at a time, "garbage" to put random
    bytes in place of what the server says.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: set[socket.socket] = set()
        self._fault: str | None = None
        self.delay = 1.0
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Wire:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # A thread that waits in accept() is not woken by close()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    @property
    def fault(self) -> str | None:
        """See the class."""
        return self._fault

    @fault.setter
    def fault(self, fault: str | None) -> None:
        self._fault = fault
        if fault == "cut":
            self.cut()

    def cut(self) -> None:
        """Close all connections."""
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._upstream), timeout=5)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                threading.Thread(target=self._connected, args=(client, server), daemon=True).start()

    def _connected(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            self._open |= {client, server}
            if self._fault != "cut":
                back = threading.Thread(target=self._pass, args=(server, client, True), daemon=True)
                back.start()
                self._pass(client, server, False)
                back.join()
            self._open -= {client, server}

    def _pass(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                match self._fault:
                    case "slow":
                        time.sleep(self.delay)
                    case "garbage" if answers:
                        data = os.urandom(len(data))
                    case "drip":
                        for number in range(0, min(len(data), 1000), 4):
                            sink.sendall(data[number : number + 4])
                            time.sleep(0.05)
                        data = data[1000:]
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
