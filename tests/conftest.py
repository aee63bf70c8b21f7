"""What several kinds of tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import structlog

from tests.broker.rabbitmq import RabbitMQ, installed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless LONG=1 asks for it."""
    for item in items if not os.environ.get("LONG") else ():
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="LONG=1"))


@pytest.fixture(autouse=True)
def plain_tracebacks() -> Iterator[None]:
    """Tracebacks in logs as Python writes them: structlog's own with rich take a second for a
    hundred."""
    before = structlog.get_config()
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*before["processors"][:-1], console])
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A running RabbitMQ; a test that stops it starts it again."""
    scripts = installed()
    if scripts is None:
        pytest.fail("no RabbitMQ on this machine: scripts/test installs it")
    broker = RabbitMQ(folder=tmp_path_factory.mktemp("rabbitmq"), scripts=scripts)
    try:
        broker.start()
        yield broker
    finally:
        broker.remove()
