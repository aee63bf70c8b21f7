"""A proxy between a worker and one service that can be told to misbehave."""

from __future__ import annotations

import http.client
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
# What to do with a request: pass it on (None), answer with a status, "drop" it, "delay" it; or pass it on and "lose"
# the answer, "cut" it in the middle, put "garbage" in its place
Fault = int | str | None


class Proxy:
    """Listens on a free port and passes requests on to `url`, unless `fault(method, path)` says otherwise."""

    def __init__(self, url: str) -> None:
        self._upstream = urlsplit(url).netloc
        self.fault: Callable[[str, str], Fault] = lambda method, path: None
        self.delay = 3.0
        self.tokens: set[str] = set()
        self.faults = 0
        # The service's own answers, by status
        self.answers: Counter[int] = Counter()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy._handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
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
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        connection.request(request.command, request.path, body=body or None, headers=headers)
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
        request.wfile.write(content)
