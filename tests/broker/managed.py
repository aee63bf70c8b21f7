"""A RabbitMQ with its management API."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest

from tests.broker.rabbitmq import RabbitMQ, free_ports, installed


class Managed(RabbitMQ):
    """A RabbitMQ with the management API."""

    management_port = 0

    @property
    def management(self) -> str:
        """The URL of its management API."""
        return f"http://worker:{self.password}@127.0.0.1:{self.management_port}"

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Return the answer of the management API, which is much faster than rabbitmqctl."""
        token = b64encode(f"worker:{self.password}".encode()).decode()
        request = Request(
            f"http://127.0.0.1:{self.management_port}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {token}", "Content-Type": "application/json"},
            method=method,
        )
        with urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def at(self, vhost: str, *, user: str = "worker", password: str = "") -> str:
        """The URL of a vhost."""
        return f"amqp://{user}:{password or self.password}@127.0.0.1:{self.port}/{quote(vhost, safe='')}"


@contextmanager
def managed(folder: Path) -> Iterator[Managed]:
    """One in this folder that runs; removed at the end."""
    scripts = installed()
    if scripts is None:
        pytest.fail("no RabbitMQ on this machine: scripts/test installs it")
    (port,) = free_ports(1)
    config = f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port}\n"
    made = Managed(folder=folder, scripts=scripts, config=config)
    made.management_port = port
    (folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
    try:
        made.start()
        yield made
    finally:
        made.remove()
