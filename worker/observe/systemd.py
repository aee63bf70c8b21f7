"""sd_notify: readiness, watchdog and status, for systemd; nothing without it.

Source: sd_notify(3), systemd.service(5).
"""

from __future__ import annotations

import contextlib
import os
import socket

READY = "READY=1"
RELOADING = "RELOADING=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


def extend(seconds: float) -> str:
    """Return the message that asks systemd for more seconds before a start or a stop counts as
    failed."""
    return f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}"


def status(text: str) -> str:
    """Return the message that has systemd show this text, in one line: another line would be a
    command to it."""
    return f"STATUS={' '.join(text.split())}"


def notify(state: str) -> None:
    """Tell systemd, if it has started us; never raises, never waits."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    # A leading @ stands for the zero byte of an abstract socket
    path = "\0" + address[1:] if address.startswith("@") else address
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.setblocking(False)
        sock.sendto(state.encode(), path)
