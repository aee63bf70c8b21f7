"""The proxy for a broker's connections does what fault tests and the soak rely on."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.cloud.proxy import Wire

SAID = b"hello"


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that says again what it hears."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(client: socket.socket) -> None:
            with client:
                while heard := client.recv(100):
                    client.sendall(heard)

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(client,), daemon=True).start()

        serving = threading.Thread(target=serve)
        serving.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        serving.join()


def talk(client: socket.socket) -> bytes:
    """What the server answers; empty once the connection is closed."""
    heard = b""
    try:
        client.sendall(SAID)
        while len(heard) < len(SAID) and (more := client.recv(100)):
            heard += more
    except ConnectionError:
        return b""
    return heard


def test_a_wire_passes_on_drips_delays_garbles_and_cuts(echo: int) -> None:
    with (
        Wire(echo) as wire,
        socket.create_connection(("127.0.0.1", wire.port), timeout=10) as client,
    ):
        assert talk(client) == SAID
        wire.fault = "garbage"
        assert talk(client) not in (SAID, b"")
        wire.fault = "drip"
        assert talk(client) == SAID
        wire.fault, wire.delay = "slow", 0.3
        began = time.monotonic()
        assert talk(client) == SAID
        assert time.monotonic() - began >= 2 * wire.delay
        wire.fault = "cut"
        assert talk(client) == b""
        with socket.create_connection(("127.0.0.1", wire.port), timeout=10) as another:
            assert talk(another) == b""
        wire.fault = None
        with socket.create_connection(("127.0.0.1", wire.port), timeout=10) as another:
            assert talk(another) == SAID
