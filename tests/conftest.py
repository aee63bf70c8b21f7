"""What several kinds of tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.broker.rabbitmq import RabbitMQ, installed


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
