"""The border to the cloud, over real connections: whatever a service answers, and whatever a
library makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import logging
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import structlog

from worker.core import request_id
from worker.core.errors import Blocked, Malformed, Misconfigured, NotFound, Temporary, TooLarge
from worker.observe.metrics import Metrics
from worker.openstack import deadline, login, session
from worker.openstack.cloud import OpenStackCloud

IMAGE_ID = "f8195267-dc43-443b-86bf-8a5200144f25"
OURS = (Temporary, Blocked, NotFound, Malformed)
Answer = tuple[int, object, dict[str, str]]
NEVER = "2036-01-01T00:00:00.000000Z"


class Services:
    """Keystone, Glance and Cinder, as far as a log-in and a question go; `strange` are paths that
    answer otherwise."""

    def __init__(self) -> None:
        self.strange: dict[str, Answer | Callable[[BaseHTTPRequestHandler], None]] = {}
        self.request_ids: list[tuple[str, str]] = []
        self._open: set[socket.socket] = set()
        services = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                services._open.add(self.connection)

            def finish(self) -> None:
                services._open.discard(self.connection)
                super().finish()

            def log_message(self, *_: object) -> None:
                return

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.partition("?")[0].rstrip("/")
                services.request_ids.append((path, self.headers["X-OpenStack-Request-ID"]))
                given = services.strange.get(path) or services.usual(path)
                if callable(given):
                    given(self)
                    return
                status, body, headers = given
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # Whoever still answers when it is closed is waited for
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def encrypt(self, folder: Path) -> Path:
        """Speak TLS from now on; the file to trust."""
        cert, key = folder / "cert.pem", folder / "key.pem"
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        made = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-keyout",
            key,
            "-out",
            cert,
        ]
        subprocess.run([*made, *names], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        # Each connection shakes hands on its own thread
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = self.url.replace("http:", "https:")
        return cert

    def close(self) -> None:
        self._server.shutdown()
        for connection in tuple(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def usual(self, path: str) -> Answer:
        if path == "/v3/auth/tokens":
            return 201, {"token": self.token()}, {"X-Subject-Token": "t"}
        if path == "/v3":
            return 200, {"version": self.version("v3.14", "/v3/")}, {}
        if path == "/image":
            return 300, {"versions": [self.version("v2.17", "/image/v2/")]}, {}
        if path == "/volume/v3":
            return (
                200,
                {"versions": [{**self.version("v3.0", "/volume/v3/"), "version": "3.71"}]},
                {},
            )
        if path == f"/image/v2/images/{IMAGE_ID}":
            return 200, {"id": IMAGE_ID, "status": "active"}, {}
        if path == "/volume/v3/types":
            return 200, {"volume_types": [{"id": "t1", "name": "fast"}]}, {}
        return 404, {"message": f"no {path}"}, {}

    def version(self, name: str, path: str) -> dict[str, Any]:
        return {
            "id": name,
            "status": "CURRENT",
            "links": [{"rel": "self", "href": self.url + path}],
        }

    def token(self, **changes: object) -> dict[str, Any]:
        catalog = [
            {
                "type": kind,
                "name": kind,
                "endpoints": [{"interface": "public", "region": "R", "url": self.url + path}],
            }
            for kind, path in (
                ("image", "/image"),
                ("block-storage", "/volume/v3"),
                ("identity", "/v3"),
            )
        ]
        project = {"id": "p" * 32, "name": "p", "domain": {"id": "d", "name": "d"}}
        roles = [{"id": "1", "name": "admin"}]
        user = {"id": "u", "name": "u", "domain": {"id": "d", "name": "d"}}
        token = {
            "project": project,
            "roles": roles,
            "user": user,
            "catalog": catalog,
            "expires_at": NEVER,
        }
        return {
            **token,
            "methods": ["password"],
            "issued_at": "2026-01-01T00:00:00.000000Z",
            **changes,
        }


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """No log lines: their tracebacks take more time than all the rest."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.fixture
def services() -> Iterator[Services]:
    served = Services()
    yield served
    served.close()


async def at_once(_: float) -> None:
    """No pause between the tries of a read."""


@pytest.fixture
def clouds(
    services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., OpenStackCloud]]:
    """Makes clouds with their own log-in."""
    made: list[OpenStackCloud] = []

    def make(*, cacert: str = "", timeout: float = 5.0, concurrency: int = 2) -> OpenStackCloud:
        auth = {
            "auth_url": f"{services.url}/v3",
            "username": "u",
            "password": "p",
            "project_name": "p",
        }
        auth |= {"user_domain_name": "d", "project_domain_name": "d"}
        entry = {"auth": auth, "region_name": "R"} | ({"cacert": cacert} if cacert else {})
        path = tmp_path / "clouds.yaml"
        path.write_text(json.dumps({"clouds": {"a": entry}}))
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
        connection = login.connect(name="a", timeout=timeout, concurrency=concurrency)
        cloud = OpenStackCloud(
            connection=connection,
            metrics=Metrics(),
            concurrency=concurrency,
            timeout=timeout,
            sleep=at_once,
        )
        made.append(cloud)
        return cloud

    yield make
    for cloud in made:
        cloud.close()


QUESTIONS = {
    "identity": lambda cloud: cloud.identity(),
    "image": lambda cloud: cloud.get_image(IMAGE_ID),
    "volume": lambda cloud: cloud.describe_volume_types(),
}
VERSIONS: dict[str, object] = {
    "a list": [],
    "text": "x",
    "a number": 5,
    "null": None,
    "an empty object": {},
    "a page": b"<html>hello</html>",
    "versions null": {"versions": None},
    "versions of null": {"versions": [None]},
    "versions that are text": {"versions": "x"},
    "versions that are a number": {"versions": 5},
    "version null": {"version": None},
    "links null": {"versions": [{"id": "v3.0", "status": "CURRENT", "links": None}]},
    "id null": {"versions": [{"id": None, "status": "CURRENT", "links": []}]},
    "id a number": {
        "versions": [{"id": 3, "status": "CURRENT", "links": [{"rel": "self", "href": "x"}]}]
    },
    "status null": {
        "versions": [{"id": "v3.0", "status": None, "links": [{"rel": "self", "href": "x"}]}]
    },
    "href null": {
        "versions": [{"id": "v2.17", "status": "CURRENT", "links": [{"rel": "self", "href": None}]}]
    },
}
DISCOVERIES = [("/v3", "identity", 200), ("/image", "image", 300), ("/volume/v3", "volume", 200)]
TOKENS: dict[str, tuple[object, dict[str, str]]] = {
    "a list": ([], {"X-Subject-Token": "t"}),
    "null": ({"token": None}, {"X-Subject-Token": "t"}),
    "of a list": ({"token": []}, {"X-Subject-Token": "t"}),
    "without its header": (
        {"token": {"expires_at": NEVER, "roles": [], "project": {"id": "x"}}},
        {},
    ),
    "without roles": ({"token": {"expires_at": NEVER}}, {"X-Subject-Token": "t"}),
    "that expires some time": ({"token": {"expires_at": "soon"}}, {"X-Subject-Token": "t"}),
    "that never expires": ({"token": {"expires_at": None}}, {"X-Subject-Token": "t"}),
    "that is empty": ({"token": {}}, {"X-Subject-Token": "t"}),
    "with no catalog": (
        {"token": {"expires_at": NEVER, "catalog": None}},
        {"X-Subject-Token": "t"},
    ),
    "with an empty row": (
        {"token": {"expires_at": NEVER, "catalog": [None]}},
        {"X-Subject-Token": "t"},
    ),
    "a page": (b"<html>", {}),
}


async def ends_as_ours(question: Callable[[OpenStackCloud], Any], cloud: OpenStackCloud) -> None:
    """It may be answered; if not, the error is one of ours."""
    (answer,) = await asyncio.gather(question(cloud), return_exceptions=True)
    assert not isinstance(answer, BaseException) or isinstance(answer, OURS), repr(answer)


@pytest.mark.parametrize(("path", "question", "status"), DISCOVERIES)
@pytest.mark.parametrize("what", VERSIONS)
async def test_any_answer_to_a_look_for_versions(
    services: Services,
    clouds: Callable[..., OpenStackCloud],
    path: str,
    question: str,
    status: int,
    what: str,
) -> None:
    services.strange[path] = (status, VERSIONS[what], {})
    await ends_as_ours(QUESTIONS[question], clouds())


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("what", TOKENS)
async def test_any_token(
    services: Services, clouds: Callable[..., OpenStackCloud], question: str, what: str
) -> None:
    body, headers = TOKENS[what]
    services.strange["/v3/auth/tokens"] = (201, body, headers)
    await ends_as_ours(QUESTIONS[question], clouds())


async def test_a_bundle_of_certificates_that_is_not_there_for_a_moment(
    services: Services, clouds: Callable[..., OpenStackCloud], tmp_path: Path
) -> None:
    services.url = services.url.replace("http:", "https:")
    cloud = clouds(cacert=str(tmp_path / "gone.pem"))
    with pytest.raises(Temporary, match=r"gone\.pem"):
        await cloud.identity()


async def test_no_thread_is_to_be_had(
    clouds: Callable[..., OpenStackCloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a pod's limit of processes, or TasksMax of a unit."""
    cloud = clouds()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Temporary, match="can't start new thread"):
            await cloud.identity()
    assert (await cloud.get_image(IMAGE_ID)).status == "active"


@pytest.mark.parametrize(
    "text", ["clouds:\n  a: {auth: [\n", "clouds:\n  a:\n\tauth: x\n", b"clouds:\n  a: \xff\xfe\n"]
)
def test_a_clouds_yaml_that_is_half_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | bytes
) -> None:
    path = tmp_path / "clouds.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
    with pytest.raises(Misconfigured, match=r"clouds\.yaml"):
        login.connect(name="a", timeout=1.0, concurrency=1)


# What leads astray, or never ends


@pytest.mark.parametrize("compressed", [False, True])
async def test_an_answer_that_is_too_large_is_not_kept(
    services: Services,
    clouds: Callable[..., OpenStackCloud],
    monkeypatch: pytest.MonkeyPatch,
    compressed: bool,
) -> None:
    monkeypatch.setattr(deadline, "LARGEST", 1 << 20)
    body = json.dumps({"volume_types": [], "more": "x" * (1 << 20)}).encode()
    given = (
        (gzip.compress(body), {"Content-Encoding": "gzip"})
        if compressed
        else (body, dict[str, str]())
    )
    services.strange["/volume/v3/types"] = (200, *given)
    cloud = clouds()
    with pytest.raises(Temporary, match="more than 1 MiB"):
        await cloud.describe_volume_types()
    del services.strange["/volume/v3/types"]
    assert [one.name for one in await cloud.describe_volume_types()] == ["fast"]


async def test_large_answers_are_read_one_at_a_time(
    services: Services, clouds: Callable[..., OpenStackCloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight images of 48 MiB that were read at once took twice the memory."""
    monkeypatch.setattr(deadline, "LARGE", 1 << 18)
    monkeypatch.setattr(deadline, "LARGEST", 1 << 20)
    path = f"/image/v2/images/{IMAGE_ID}"
    image = {"id": IMAGE_ID, "status": "active"}
    services.strange[path] = (200, image | {"p": "x" * (1 << 19)}, {})
    cloud = clouds(timeout=1.0)
    with deadline._TURN:
        with pytest.raises(Temporary, match=r"no whole answer within 1 s"):
            await cloud.get_image(IMAGE_ID)
        # One of an ordinary size waits for nobody
        assert await cloud.describe_volume_types()
    for _ in range(2):
        # Each passes the turn on, whatever becomes of it
        assert (await cloud.get_image(IMAGE_ID)).status == "active"
        services.strange[path] = (200, image | {"p": "x" * (1 << 21)}, {})
        with pytest.raises(TooLarge):
            await cloud.get_image(IMAGE_ID)
        services.strange[path] = (200, b"x" * (1 << 19), {})
        with pytest.raises(Temporary, match="no JSON"):
            await cloud.get_image(IMAGE_ID)
        services.strange[path] = (200, image | {"p": "x" * (1 << 19)}, {})


async def test_a_page_has_a_bound_of_its_own(
    services: Services, clouds: Callable[..., OpenStackCloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of several rows that is larger is asked for with fewer, so that memory stays small."""
    monkeypatch.setattr(session, "LARGEST_PAGE", 1 << 20)
    rows = [{"id": str(n), "status": "active", "p": "x" * (1 << 18)} for n in range(9)]
    asked: list[tuple[int, int]] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        query = dict(parse_qsl(urlsplit(handler.path).query))
        limit, first = int(query["limit"]), int(query.get("marker", -1)) + 1
        shown = rows[first : first + limit] if query["os_hidden"] == "false" else []
        asked.append((limit, len(shown)))
        page: dict[str, object] = {"images": shown}
        if len(shown) == limit:
            page["next"] = f"/v2/images?{urlencode({**query, 'marker': shown[-1]['id']})}"
        raw = json.dumps(page).encode()
        with contextlib.suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)

    services.strange["/image/v2/images"] = answer
    assert len([image async for image in clouds().list_images()]) == 9
    # Four rows are just too large
    assert asked == [
        (1000, 9), (100, 9), (10, 9), (1, 1), (2, 2), (4, 4), (1, 1), (2, 2), (4, 3), (1000, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "question"), [("/v3/auth/tokens", "identity"), ("/volume/v3/types", "volume")]
)
async def test_neither_password_nor_token_is_sent_where_an_answer_leads(
    services: Services, clouds: Callable[..., OpenStackCloud], path: str, question: str
) -> None:
    other = Services()
    # The same place by another name
    astray = other.url.replace("127.0.0.1", "localhost")
    asked: list[str] = []
    other.strange["/stolen"] = lambda handler: asked.append(handler.path)
    services.strange[path] = (302, b"", {"Location": f"{astray}/stolen"})
    with pytest.raises(Temporary, match="leads to http://localhost, where our login is not sent"):
        await QUESTIONS[question](clouds())
    other.close()
    assert not asked


async def test_an_answer_may_lead_to_another_place_on_its_host(
    services: Services, clouds: Callable[..., OpenStackCloud]
) -> None:
    services.strange["/volume/v3/types"] = (
        301,
        b"",
        {"Location": f"{services.url}/volume/v3/moved"},
    )
    services.strange["/volume/v3/moved"] = (
        200,
        {"volume_types": [{"id": "t1", "name": "moved"}]},
        {},
    )
    assert [one.name for one in await clouds().describe_volume_types()] == ["moved"]


async def test_pages_that_never_end(
    services: Services, clouds: Callable[..., OpenStackCloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MOST_PAGES", 5)
    numbers = itertools.count()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        raw = json.dumps({"images": [], "next": f"/v2/images?marker={next(numbers)}"}).encode()
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)

    services.strange["/image/v2/images"] = answer
    with pytest.raises(Temporary, match="go round in circles"):
        assert [image async for image in clouds().list_images()] == []
    assert next(numbers) == 5


# Deadlines


def drip(part: str, done: threading.Event) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer that comes a byte at a time, with its end far away."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        text = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n"
        handler.wfile.write(text + (b"X-Slow: " if part == "headers" else b"\r\n"))
        while not done.wait(0.05):
            try:
                handler.wfile.write(b" ")
            except OSError:
                return

    return answer


@pytest.fixture
def done() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("part", ["headers", "body"])
@pytest.mark.parametrize(("path", "question"), [("/image", "image"), (f"/image/v2/images/{IMAGE_ID}", "image"),
                                                ("/v3/auth/tokens", "identity")])  # fmt: skip
async def test_an_answer_that_drips_holds_no_thread(
    services: Services,
    clouds: Callable[..., OpenStackCloud],
    done: threading.Event,
    path: str,
    question: str,
    part: str,
) -> None:
    cloud = clouds(timeout=1.0, concurrency=1)
    if path.endswith(IMAGE_ID):
        # By a connection that is there already
        await cloud.get_image(IMAGE_ID)
    services.strange[path] = drip(part, done)
    with pytest.raises(Temporary, match=r"no whole answer within 1 s"):
        await QUESTIONS[question](cloud)
    del services.strange[path]
    # The one thread there is
    assert (await cloud.get_image(IMAGE_ID)).status == "active"


async def test_an_answer_that_drips_over_tls_holds_no_thread(
    services: Services, clouds: Callable[..., OpenStackCloud], done: threading.Event, tmp_path: Path
) -> None:
    cloud = clouds(cacert=str(services.encrypt(tmp_path)), timeout=1.0, concurrency=1)
    path = f"/image/v2/images/{IMAGE_ID}"
    await cloud.get_image(IMAGE_ID)
    services.strange[path] = drip("body", done)
    with pytest.raises(Temporary, match=r"no whole answer within 1 s"):
        await cloud.get_image(IMAGE_ID)
    del services.strange[path]
    assert (await cloud.get_image(IMAGE_ID)).status == "active"


async def test_a_handshake_that_never_ends_holds_no_thread(
    clouds: Callable[..., OpenStackCloud], services: Services
) -> None:
    """Its bytes come one by one, so that no time-out between two of them ever strikes."""
    listening = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=shake, args=(connection,), daemon=True).start()

    def shake(connection: socket.socket) -> None:
        # The head of a record of the handshake, and then its 16 KiB very slowly
        with contextlib.suppress(OSError), connection:
            connection.sendall(b"\x16\x03\x03\x3f\xff")
            while not done.wait(0.05):
                connection.sendall(b"\x00")

    threading.Thread(target=serve, daemon=True).start()
    services.url = f"https://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with pytest.raises(Temporary, match=r"no whole answer within 0\.5 s"):
            await clouds(timeout=0.5, concurrency=1).identity()
    finally:
        done.set()
        listening.close()


async def test_leaving_does_not_wait_for_an_answer(
    services: Services, clouds: Callable[..., OpenStackCloud], done: threading.Event
) -> None:
    cloud = clouds(timeout=600.0)
    asked = threading.Event()
    slow = drip("body", done)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        slow(handler)

    services.strange["/volume/v3/types"] = answer
    asking = asyncio.create_task(cloud.describe_volume_types())
    await asyncio.to_thread(asked.wait)
    used = tuple(cloud._threads._threads)
    assert used
    cloud.close()
    with pytest.raises(Temporary):
        await asking
    while any(thread.is_alive() for thread in used):
        await asyncio.sleep(0.01)


async def test_a_thread_that_waits_its_turn_has_its_whole_time(
    services: Services, clouds: Callable[..., OpenStackCloud]
) -> None:
    """The seconds count from when a request begins, not from when it was asked for."""
    cloud = clouds(timeout=1.5, concurrency=1)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.6)
        raw = json.dumps({"id": IMAGE_ID, "status": "active"}).encode()
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)

    await cloud.get_image(IMAGE_ID)
    services.strange[f"/image/v2/images/{IMAGE_ID}"] = answer
    found = await asyncio.gather(*(cloud.get_image(IMAGE_ID) for _ in range(4)))
    assert [image.status for image in found] == ["active"] * 4


async def test_all_requests_of_a_job_carry_its_request_id(
    services: Services, clouds: Callable[..., OpenStackCloud]
) -> None:
    cloud = clouds()
    with request_id.bound():
        one = request_id.current()
        await asyncio.gather(cloud.get_image(IMAGE_ID), cloud.describe_volume_types())
    # The token and the versions too
    assert {path for path, _ in services.request_ids} >= {
        "/v3/auth/tokens",
        "/image",
        f"/image/v2/images/{IMAGE_ID}",
        "/volume/v3/types",
    }
    assert {told for _, told in services.request_ids} == {one}
    assert re.fullmatch(r"req-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", one)
    services.request_ids.clear()
    with request_id.bound():
        await cloud.get_image(IMAGE_ID)
    ((_, other),) = services.request_ids
    assert other != one
