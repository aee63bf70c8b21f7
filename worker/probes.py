"""HTTP for monitors: /metrics, /healthz, /readyz. Served by a thread, asks nobody."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

Problems = Callable[[], Mapping[str, str]]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is the standard library's
        """Nothing: a probe every few seconds is no news."""


class Probes:
    """The HTTP server. `sick` and `unready` tell what is wrong, by part; nothing when all is well."""

    def __init__(self, *, registry: CollectorRegistry, sick: Problems, unready: Problems) -> None:
        self._metrics = make_wsgi_app(registry)
        self._answers: Mapping[str, Problems] = {"/healthz": sick, "/readyz": unready}
        self._server: WSGIServer | None = None

    def start(self, host: str, port: int) -> int:
        """Begin to serve; the port, chosen by the system if 0. OSError when the address is taken."""
        self._server = make_server(host, port, self._serve, server_class=_Server, handler_class=_Quiet)
        # Looks ten times a second whether it is to stop
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="probes", daemon=True).start()
        return self._server.server_port

    def stop(self) -> None:
        """Serve no more."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()

    def _serve(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return cast("Iterable[bytes]", self._metrics(environ, start_response))
        if path not in self._answers:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/metrics /healthz /readyz\n"]
        problems = dict(self._answers[path]())
        status = "503 Service Unavailable" if problems else "200 OK"
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps({"ok": not problems, "problems": problems}).encode() + b"\n"]
