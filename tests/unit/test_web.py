"""The HTTP server: what clients may do to it, and what it then does to them. Real sockets."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs

from worker.observe.address import shown
from worker.observe.web import HEAD, Answer, Bounds, Request, Server

SHORT = Bounds(connections=8, threads=2, asking=0.3, taking=0.3)
LONG = Bounds(connections=8, threads=2)
GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class Site:
    """Answers that tests want: quick, broken, large, and one that waits until it is let go."""

    def __init__(self) -> None:
        self.waiting = threading.Semaphore(0)
        self.go = threading.Event()

    def quick(self, request: Request) -> Answer | None:
        return Answer(body=str(request.local).encode()) if request.path == "/quick" else None

    def handle(self, request: Request) -> Answer:
        match request.path:
            case "/wait":
                self.waiting.release()
                self.go.wait()
            case "/broken":
                raise ValueError("a bug")
            case "/large":
                return Answer(body=b"x" * 50_000_000)
        return Answer(body=f"{request.path} {request.parameters()}".encode())


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.go.set()


Start = Callable[..., int]


@pytest.fixture
def start(site: Site) -> Iterator[Start]:
    servers = []

    def started(bounds: Bounds = LONG, host: str = "127.0.0.1") -> int:
        server = Server(quick=site.quick, handle=site.handle, bounds=bounds)
        servers.append(server)
        return server.start(host, 0)

    yield started
    site.go.set()
    for server in servers:
        server.stop()


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def client(port: int, sent: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), source_address=(source, 0))
    made.sendall(sent)
    return made


def wait_until_gone(one: socket.socket) -> None:
    """Return once the server has hung up."""
    poll = select.poll()
    poll.register(one, GONE)
    while not poll.poll():
        pass


def test_a_request_that_drips_is_cut_off_though_it_never_stops(start: Start) -> None:
    with client(start(SHORT), b"GET /quick HTTP/1.1\r\n") as one:
        poll = select.poll()
        poll.register(one, GONE)
        # Red if it is never cut off: then this goes on for ever
        with contextlib.suppress(ConnectionError):
            while not poll.poll(10):
                one.send(b"x")


def test_a_client_that_does_not_take_its_answer_is_cut_off(start: Start) -> None:
    with client(start(SHORT), b"GET /large HTTP/1.1\r\n\r\n") as one:
        wait_until_gone(one)


def test_too_many_connections_cost_those_who_have_the_most(start: Start) -> None:
    port = start()
    with client(port, b"GET /quick HTTP/1.1\r\n") as first:
        many = [client(port, b"GET /", source="127.0.0.2") for _ in range(LONG.connections)]
        wait_until_gone(many[0])
        # From one that has but one, and was there before all of them
        first.sendall(b"\r\n")
        assert first.makefile("rb").readline().split()[1] == b"200"
        assert get(port, "/quick") == (200, b"True")
        for one in many:
            one.close()


def test_answers_that_take_long_do_not_keep_a_quick_one_waiting(start: Start, site: Site) -> None:
    port = start()
    slow = [client(port, b"GET /wait HTTP/1.1\r\n\r\n") for _ in range(2 * LONG.threads)]
    for _ in range(LONG.threads):
        site.waiting.acquire()
    assert get(port, "/quick")[0] == 200
    assert (
        sum(thread.name.startswith("probes_") for thread in threading.enumerate()) == LONG.threads
    )
    site.go.set()
    for one in slow:
        assert one.makefile("rb").readline().split()[1] == b"200"
        one.close()


def test_what_was_dropped_is_not_answered_later(start: Start, site: Site) -> None:
    port = start()
    slow = [client(port, b"GET /wait HTTP/1.1\r\n\r\n") for _ in range(LONG.threads)]
    for _ in range(LONG.threads):
        site.waiting.acquire()
    # None of these is begun, so none has a right to a thread once nobody wants its answer
    queued = [client(port, b"GET /wait HTTP/1.1\r\n\r\n") for _ in range(20)]
    for one in (*slow, *queued[: 20 - LONG.connections]):
        wait_until_gone(one)
    site.go.set()
    for one in queued[20 - LONG.connections :]:
        assert one.makefile("rb").readline().split()[1] == b"200"
    begun = 0
    while site.waiting.acquire(blocking=False):
        begun += 1
    assert begun <= LONG.connections
    for one in (*slow, *queued):
        one.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET quick HTTP/1.1\r\n\r\n", b"400"),
        (b"GET http://127.0.0.1/quick HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /quick SSH-2.0\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\xff\r\n\r\n", b"400"),
        (b"POST /quick HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000, b"405"),
        (b"get /quick HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /quick HTTP/1.1\r\nX: " + b"x" * 2 * HEAD + b"\r\n\r\n", b"431"),
        (b"GET /broken HTTP/1.1\r\n\r\n", b"500"),
        (b"GET /quick HTTP/1.1\r\nno colon\r\n\xff\xfe: \x00\r\n\r\n", b"200"),
        (b"GET /a?%ff&&==&a=%zz&;=\xff HTTP/1.0\r\n\r\n", b"200"),
    ],
)
def test_what_clients_send(start: Start, sent: bytes, status: bytes) -> None:
    port = start()
    with client(port) as one, capture_logs() as lines:
        one.sendall(sent)
        assert one.makefile("rb").readline().split()[1] == status
    assert [line["path"] for line in lines] == (["/broken"] if status == b"500" else [])
    assert get(port, "/quick")[0] == 200


def test_half_a_request_that_ends_is_nothing(start: Start) -> None:
    port = start()
    with client(port, b"GET /quick HTTP/1.1\r\n") as one:
        one.shutdown(socket.SHUT_WR)
        wait_until_gone(one)
    assert get(port, "/quick")[0] == 200


def test_stopping_does_not_wait_for_clients(site: Site) -> None:
    server = Server(quick=site.quick, handle=site.handle, bounds=LONG)
    port = server.start("127.0.0.1", 0)
    with client(port, b"GET /wait HTTP/1.1\r\n\r\n") as one, client(port, b"GET /") as other:
        site.waiting.acquire()
        server.stop()
        wait_until_gone(one)
        wait_until_gone(other)
    with pytest.raises(ConnectionRefusedError):
        client(port)
    site.go.set()


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "::1"),
        ("::", "::1"),
        ("::", "127.0.0.1"),
        ("::", "127.0.0.2"),
        ("localhost", "localhost"),
    ],
)
def test_addresses(start: Start, host: str, asked: str) -> None:
    if ":" in host + asked and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    assert get(start(host=host), "/quick", asked) == (200, b"True")


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_how_an_address_is_shown() -> None:
    assert shown(("127.0.0.1", 9417)) == "127.0.0.1:9417"
    assert shown(("::1", 9417)) == "[::1]:9417"
