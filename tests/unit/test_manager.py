"""What the service manager is told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.broker import link
from worker.broker.link import HUNG_AFTER, Link
from worker.broker.url import parse
from worker.observe.systemd import READY, extend, notify


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def test_it_is_told(manager: socket.socket) -> None:
    notify(f"{READY}\nSTATUS=ready")
    assert manager.recv(100) == b"READY=1\nSTATUS=ready"
    notify(extend(1.5))
    assert manager.recv(100) == b"EXTEND_TIMEOUT_USEC=1500000"


def test_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0image-volume-worker-test")
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@image-volume-worker-test")
        notify(READY)
        assert sock.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "nowhere", "/nowhere/at/all"])
def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify(READY)
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify(READY)


class Stuck:
    """A session whose turn does not end before it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def opened(self, connection: object) -> None:
        """Never called."""

    def turn(self) -> float:
        """Never called."""
        return 1.0

    def finished(self) -> bool:
        """At once."""
        return True

    def lost(self) -> None:
        """Hang."""
        self.go.wait(60)


def test_a_thread_that_hangs_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Stuck()
    one = Link(broker=parse("amqp://u:p@127.0.0.1:1/"), session=session, name="a link that hangs")
    assert "a link that hangs" not in link.hung()
    one.start()
    assert "a link that hangs" not in link.hung(), "it has just begun"
    monkeypatch.setattr(link, "HUNG_AFTER", -1.0)
    assert link.hung()["a link that hangs"] == "has not turned for 0 s"
    session.go.set()
    one.stop(grace=1.0)
    assert "a link that hangs" not in link.hung(), "it was stopped"
    assert HUNG_AFTER > 100
