"""The HTTP that monitors see."""

from __future__ import annotations

import gzip
import http.client
import json
import math
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from tests.unit.test_web import has_ipv6
from worker.core.job import Job, Key
from worker.observe import live
from worker.observe.activity import Activity
from worker.observe.assets import FILES
from worker.observe.http import Page, Probes
from worker.observe.metrics import Metrics
from worker.observe.order import Choice
from worker.observe.status_document import Services

PAGE = Page(status=lambda most: {"jobs": []}, images=lambda choice: {"images": []})


@pytest.fixture
def problems() -> dict[str, str]:
    return {}


@pytest.fixture
def url(problems: dict[str, str]) -> Iterator[str]:
    probes = Probes(
        registry=Metrics().registry, sick=dict, unready=lambda: problems, page=PAGE, hidden=True
    )
    yield f"http://127.0.0.1:{probes.start('127.0.0.1', 0)}"
    probes.stop()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_ready_only_without_problems(url: str, problems: dict[str, str]) -> None:
    assert get(f"{url}/readyz") == (200, '{"ok": true, "problems": {}}\n')
    problems["lanes"] = "broker away"
    status, body = get(f"{url}/readyz")
    assert status == 503
    assert json.loads(body)["problems"] == {"lanes": "broker away"}
    assert get(f"{url}/healthz")[0] == 200


def test_metrics_have_our_names(url: str) -> None:
    status, body = get(f"{url}/metrics")
    assert status == 200
    assert 'image_volume_worker_build_info{version="' in body


def test_anything_else_is_not_found(url: str) -> None:
    assert get(f"{url}/admin")[0] == 404


@pytest.mark.parametrize(
    "path",
    ["/", "/status.json", "/images.json", "/image.json", "/metrics", "/healthz", "/readyz", "/no"],
)
def test_other_sites_in_a_browser_can_read_nothing(paged: str, path: str) -> None:
    host, port = paged.removeprefix("http://").split(":")
    asked = {"Origin": "http://hostile.example", "Access-Control-Request-Method": "GET"}
    for method in ("GET", "HEAD", "OPTIONS", "POST"):
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request(method, path, headers=asked)
        answer = connection.getresponse()
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        # What would be needed to ask for more than a plain GET
        assert (answer.status == 405) == (method in ("OPTIONS", "POST"))
        connection.close()


def test_a_port_that_is_taken_is_an_error(url: str) -> None:
    with pytest.raises(OSError, match="in use"):
        Probes(registry=Metrics().registry, sick=dict, unready=dict, page=PAGE).start(
            "127.0.0.1", int(url.rpartition(":")[2])
        )


@pytest.fixture
def asked() -> list[float]:
    return []


@pytest.fixture
def chosen() -> list[Choice]:
    return []


@pytest.fixture
def paged(problems: dict[str, str], asked: list[float], chosen: list[Choice]) -> Iterator[str]:
    """The same with a page, of a cloud with many images."""
    page = Page(
        status=lambda most: asked.append(most) or {"jobs": []},  # type: ignore[func-returns-value]
        images=lambda choice: chosen.append(choice) or {"images": [["id", "name", 1, []]] * 1000},  # type: ignore[func-returns-value]
        image=lambda image_id: {"id": "i1", "volumes": []} if image_id == "i1" else {},
    )
    probes = Probes(registry=Metrics().registry, sick=dict, unready=lambda: problems, page=page)
    yield f"http://127.0.0.1:{probes.start('127.0.0.1', 0)}"
    probes.stop()


def test_without_a_page_there_is_nothing_for_people(url: str) -> None:
    for path in (*FILES, "/images.json", "/image.json?id=i1", "/page.html"):
        assert get(f"{url}{path}")[0] == 404


def test_without_a_page_the_commands_on_this_host_are_told_how_jobs_stand() -> None:
    probes = Probes(registry=Metrics().registry, sick=dict, unready=dict, page=PAGE, hidden=True)
    port = probes.start("0.0.0.0", 0)
    try:
        assert get(f"http://127.0.0.1:{port}/status.json")[0] == 200
        for path in (*FILES, "/images.json", "/image.json?id=i1"):
            assert get(f"http://127.0.0.1:{port}{path}")[0] == 404
        # From elsewhere, as far as the address tells: any but 127.0.0.1 of the same network
        with socket.create_connection(
            ("127.0.0.1", port), source_address=("127.0.0.2", 0), timeout=10
        ) as elsewhere:
            elsewhere.sendall(b"GET /status.json HTTP/1.0\r\n\r\n")
            assert elsewhere.makefile("rb").readline().split()[1] == b"404"
    finally:
        probes.stop()


def test_who_asks_by_this_hosts_own_address_is_on_this_host() -> None:
    """As with `bind` on the address of a management network: 127.0.0.2 stands for it here."""
    page = Page(
        status=lambda most: {"jobs": []}, images=lambda choice: {}, volume=lambda one: {"id": one}
    )
    probes = Probes(registry=Metrics().registry, sick=dict, unready=dict, page=page, hidden=True)
    port = probes.start("127.0.0.2", 0)

    def asked(path: str, client: str) -> str:
        with socket.create_connection(
            ("127.0.0.2", port), source_address=(client, 0), timeout=10
        ) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            return connection.makefile("rb").readline().split()[1].decode()

    try:
        for path in ("/status.json", "/volume.json?id=x"):
            assert [asked(path, client) for client in ("127.0.0.2", "127.0.0.3")] == ["200", "404"]
    finally:
        probes.stop()


def test_the_page_lets_nothing_in_from_elsewhere(paged: str) -> None:
    with urllib.request.urlopen(f"{paged}/", timeout=10) as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert "http" not in policy
    for path in FILES:
        with urllib.request.urlopen(f"{paged}{path}", timeout=10) as answer:
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            text = answer.read().decode()
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text


def test_the_page_has_no_file_that_is_not_served_and_none_is_missing(paged: str) -> None:
    served = {name for name, _ in FILES.values()}
    folder = files("worker.observe").joinpath("page")
    assert served == {file.name for file in folder.iterdir()}
    text = folder.joinpath("page.html").read_text()
    named = re.findall(r'(?:src|href)="([\w.]+)"', text)
    assert {f"/{name}" for name in named} | {"/"} == set(FILES)
    kinds = {".css": "text/css", ".js": "text/javascript"}
    for path in FILES:
        with urllib.request.urlopen(f"{paged}{path}", timeout=10) as answer:
            kind = answer.headers["Content-Type"]
        assert kind == f"{kinds.get(Path(path).suffix, 'text/html')}; charset=utf-8"


def test_how_many_jobs(paged: str, asked: list[float], problems: dict[str, str]) -> None:
    problems["cloud"] = "away"
    for query in ("", "?jobs=7", "?jobs=all", "?jobs=-1", "?jobs=x"):
        status, body = get(f"{paged}/status.json{query}")
        assert (status, json.loads(body)) == (200, {"jobs": [], "problems": {"cloud": "away"}})
    assert asked == [200, 7, math.inf, 200, 200]


@pytest.mark.parametrize("jobs", ["99999999999999999999", "9" * 5000, "0", "all"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
def test_commands_are_told_of_as_many_jobs_as_they_want_on_any_address(
    jobs: str, host: str
) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    activity = Activity()
    activity.held(Job(key=Key("prewarm", "i1", "fast"), cause="x", first_at=5.0))
    services = Services(targets=(), lanes={"prewarm.fast": 2}, depths={})
    page = Page(
        status=lambda most: activity.status(services, most=most),
        images=lambda choice: {},
    )
    probes = Probes(registry=Metrics().registry, sick=dict, unready=dict, page=page, hidden=True)
    port = probes.start(host, 0)
    try:
        status, body = live.get((host, port), f"/status.json?jobs={jobs}")
        assert (status, len(json.loads(body)["jobs"])) == (200, 0 if jobs == "0" else 1)
        told = live.ask((host, port))
        assert told
        assert [job.key.image_id for job in told.jobs.values()] == ["i1"]
    finally:
        probes.stop()


def test_which_images(paged: str, chosen: list[Choice]) -> None:
    for query in (
        "",
        "?from=400&count=50&text=a%20%26b&state=held%20back",
        "?from=-1&count=all",
        f"?from={'9' * 5000}",
        "?target=fast&project=p1&reason=over%20quota&sort=size",
    ):
        assert get(f"{paged}/images.json{query}")[0] == 200
    assert chosen[:3] == [
        Choice(),
        Choice(start=400, count=50, text="a &b", state="held back"),
        Choice(),
    ]
    assert chosen[3].start > 10**9
    assert chosen[4] == Choice(target="fast", project="p1", reason="over quota", sort="size")


def test_one_image(paged: str, url: str) -> None:
    status, body = get(f"{paged}/image.json?id=i1")
    assert (status, json.loads(body)) == (200, {"id": "i1", "volumes": []})
    assert get(f"{paged}/image.json?id=other")[0] == 404
    assert get(f"{paged}/image.json")[0] == 404
    assert get(f"{url}/image.json?id=i1")[0] == 404, "there is no page"


def test_a_long_list_is_the_same_json(paged: str) -> None:
    assert json.loads(get(f"{paged}/images.json")[1]) == {"images": [["id", "name", 1, []]] * 1000}


def test_what_is_large_is_compressed(paged: str) -> None:
    request = urllib.request.Request(f"{paged}/images.json", headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        packed = answer.read()
    plain = get(f"{paged}/images.json")[1]
    assert gzip.decompress(packed).decode() == plain
    assert len(packed) < len(plain) / 10


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("GZIP", True), ("br, gzip;q=0.5", True), ("gzip;q=0", False), ("br, gzip; q=0.00", False)],
)
def test_who_refuses_compression_gets_none(paged: str, accepted: str, packed: bool) -> None:
    request = urllib.request.Request(f"{paged}/images.json", headers={"Accept-Encoding": accepted})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert (answer.headers["Content-Encoding"] == "gzip") is packed


@pytest.mark.parametrize("version", ["abc", "1.x", ";;=", "99.9;escaping=what"])
def test_metrics_whatever_is_accepted(url: str, version: str) -> None:
    accepted = f"application/openmetrics-text;version={version}"
    request = urllib.request.Request(f"{url}/metrics", headers={"Accept": accepted})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert b"image_volume_worker_build_info" in answer.read()


@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics", "/readyz", "/nothing"])
def test_nothing_can_be_changed(paged: str, path: str) -> None:
    for method in ("POST", "PUT", "DELETE"):
        request = urllib.request.Request(f"{paged}{path}", data=b"{}", method=method)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        with caught.value as answer:
            assert (answer.code, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_a_head_has_no_body(paged: str) -> None:
    request = urllib.request.Request(f"{paged}/images.json", method="HEAD")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
        assert int(answer.headers["Content-Length"]) > 10_000
        assert answer.read() == b""
