"""HTTP for monitors: /metrics, /healthz, /readyz; and for people, the page. Served by a thread, asks nobody."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

Problems = Callable[[], Mapping[str, str]]
Headers = list[tuple[str, str]]
# Jobs in /status.json unless the query says jobs=N or jobs=all
JOBS = 200
LOOPBACK = ("127.0.0.1", "::1")
# A smaller answer is not worth to be compressed
LARGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Where the page for people gets what it shows: lanes and (at most so many) jobs; images and targets."""

    status: Callable[[float], Mapping[str, Any]]
    images: Callable[[], Mapping[str, Any]]


@cache
def document() -> tuple[bytes, str]:
    """The page, and the policy that allows a browser its style and script and nothing else but asking us."""
    text = files("worker").joinpath("page.html").read_text(encoding="utf-8")

    def allowed(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in parts
        )

    policy = (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is the standard library's
        """Nothing: a probe every few seconds is no news."""


class Probes:
    """The HTTP server. `sick` and `unready` tell what is wrong, by part; nothing when all is well.

    Without `page` there is nothing for people. With `hidden` there is no page either, but the commands on this host are
    told how jobs stand.
    """

    def __init__(
        self,
        *,
        registry: CollectorRegistry,
        sick: Problems,
        unready: Problems,
        page: Page | None = None,
        hidden: bool = False,
    ) -> None:
        self._page = page
        self._hidden = hidden
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
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            start_response("405 Method Not Allowed", [("Allow", "GET, HEAD"), ("Content-Type", "text/plain")])
            return [b"nothing can be changed here\n"]
        if path == "/metrics":
            return cast("Iterable[bytes]", self._metrics(environ, start_response))
        if path in self._answers:
            problems = dict(self._answers[path]())
            status = "503 Service Unavailable" if problems else "200 OK"
            return _answer(environ, start_response, {"ok": not problems, "problems": problems}, status=status)
        told = path == "/status.json" and environ.get("REMOTE_ADDR") in LOOPBACK
        match path, None if self._hidden and not told else self._page:
            case "/", Page():
                text, policy = document()
                headers = [("Content-Type", "text/html; charset=utf-8"), ("Content-Security-Policy", policy)]
                return _send(environ, start_response, text, headers)
            case "/status.json", Page() as page:
                asked = _most(parse_qs(environ.get("QUERY_STRING", "")).get("jobs", [""])[0])
                return _answer(environ, start_response, {**page.status(asked), "problems": self._answers["/readyz"]()})
            case "/images.json", Page() as page:
                return _answer(environ, start_response, page.images())
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"/metrics /healthz /readyz\n"]


def _most(text: str) -> float:
    """How many jobs a query asks for."""
    if text == "all":
        return math.inf
    return float(text) if text.isdecimal() else JOBS


def _answer(
    environ: WSGIEnvironment, start_response: StartResponse, body: Mapping[str, Any], *, status: str = "200 OK"
) -> list[bytes]:
    headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
    return _send(environ, start_response, json.dumps(body).encode() + b"\n", headers, status=status)


def _send(
    environ: WSGIEnvironment, start_response: StartResponse, body: bytes, headers: Headers, *, status: str = "200 OK"
) -> list[bytes]:
    headers = [*headers, ("X-Content-Type-Options", "nosniff")]
    if len(body) > LARGE and "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
        body = gzip.compress(body, compresslevel=1)
        headers += [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")]
    start_response(status, [*headers, ("Content-Length", str(len(body)))])
    return [b"" if environ.get("REQUEST_METHOD") == "HEAD" else body]
