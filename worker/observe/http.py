"""HTTP for monitors: /metrics, /healthz, /readyz; and for people, the page. Asks nobody."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from worker.observe.activity import JOBS
from worker.observe.assets import asset
from worker.observe.order import IMAGES, Choice
from worker.observe.web import Answer, Request, Server

Problems = Callable[[], Mapping[str, str]]
# Items of a list that are written as JSON in one go
PART = 500
# Parameters that choose images
CHOICE = ("text", "state", "target", "project", "reason", "sort")
# What the commands on this host ask for, also where there is no page
COMMANDS = ("/status.json", "/volume.json")

NOT_FOUND = Answer(status=404, body=b"/metrics /healthz /readyz\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The sources of the page: lanes with at most so many jobs, some of the images, all about one
    image, and how a volume was made."""

    status: Callable[[float], Mapping[str, Any]]
    images: Callable[[Choice], Mapping[str, Any]]
    volume: Callable[[str], Mapping[str, Any]] = field(default=lambda _: {})
    image: Callable[[str], Mapping[str, Any]] = field(default=lambda _: {})


class Probes:
    """The answers. `sick` and `unready` return problems by part, nothing when all is well.

    With `hidden` there is no page, but commands on this host still get the state of jobs.
    """

    def __init__(
        self,
        *,
        registry: CollectorRegistry,
        sick: Problems,
        unready: Problems,
        page: Page,
        hidden: bool = False,
    ) -> None:
        self._page = page
        self._hidden = hidden
        self._registry = registry
        self._problems: Mapping[str, Problems] = {"/healthz": sick, "/readyz": unready}
        self._server = Server(quick=self._quick, handle=self._handle)

    def start(self, host: str, port: int) -> int:
        """Begin to serve; return the port, chosen by the system if 0. OSError if the address
        can't be had. Blocks."""
        return self._server.start(host, port)

    def stop(self) -> None:
        """Stop serving."""
        self._server.stop()

    def _quick(self, request: Request) -> Answer | None:
        """Answer the probes on which the process's life depends: they must not wait behind a
        large page."""
        if request.path not in self._problems:
            return None
        problems = dict(self._problems[request.path]())
        return _json({"ok": not problems, "problems": problems}, status=503 if problems else 200)

    def _handle(self, request: Request) -> Answer:
        if request.path == "/metrics":
            return self._metrics(request)
        if self._hidden and not (request.local and request.path in COMMANDS):
            return NOT_FOUND
        if answer := asset(request.path):
            return answer
        page = self._page
        match request.path:
            case "/status.json":
                asked = _most(_parameter(request, "jobs"))
                return _json({**page.status(asked), "problems": self._problems["/readyz"]()})
            # It names projects and pools
            case "/volume.json" if request.local:
                return _json(page.volume(_parameter(request, "id")))
            case "/images.json":
                return _json(page.images(_choice(request)))
            case "/image.json":
                found = page.image(_parameter(request, "id"))
                return _json(found, status=200 if found else 404)
        return NOT_FOUND

    def _metrics(self, request: Request) -> Answer:
        try:
            encode, kind = choose_encoder(request.headers.get("accept", ""))
        except (TypeError, ValueError):
            # It stumbles over a version that is not a number. Such a client gets the format that
            # everybody understands
            encode, kind = choose_encoder("")
        names = request.parameters().get("name[]")
        registry = self._registry.restricted_registry(names) if names else self._registry
        return Answer(body=encode(registry), headers=(("Content-Type", kind),))


def _most(text: str) -> float:
    """Return how many jobs a query asks for."""
    return math.inf if text == "all" else _number(text, JOBS)


def _number(text: str, default: int) -> int:
    """Return the number that a query names, bounded by the length of the longest list."""
    if not text.isdecimal():
        return default
    return int(min(float(text), sys.maxsize // 2))


def _choice(request: Request) -> Choice:
    """Return the images that a query asks for."""
    return Choice(
        start=_number(_parameter(request, "from"), 0),
        count=_number(_parameter(request, "count"), IMAGES),
        **{name: _parameter(request, name) for name in CHOICE},
    )


def _parameter(request: Request, name: str) -> str:
    return request.parameters().get(name, [""])[0]


def _json(body: Mapping[str, Any], *, status: int = 200) -> Answer:
    headers = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))
    # A long list part by part: while one is written nothing else in the process runs
    parts = ", ".join(f"{json.dumps(name)}: {_text(value)}" for name, value in body.items())
    return Answer(status=status, body=f"{{{parts}}}\n".encode(), headers=headers)


def _text(value: Any) -> str:
    if not isinstance(value, list) or len(value) <= PART:
        return json.dumps(value)
    return f"[{', '.join(json.dumps(value[at : at + PART])[1:-1] for at in range(0, len(value), PART))}]"
