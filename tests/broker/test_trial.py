"""What a reload asks of a real RabbitMQ before it lets go of a worker that works."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from tests.broker.rabbitmq import RabbitMQ, free_ports
from tests.configurations import GOOD, load
from worker.core.errors import Misconfigured
from worker.diagnose import broker_check
from worker.settings import Settings

SERVICES, LANES = "[notifications] transport_urls, number 1: ", "[work] url: "


@pytest.fixture
def settings(rabbitmq: RabbitMQ, tmp_path: Path) -> Settings:
    notifications = {"transport_urls": rabbitmq.url, "queue": f"trial-{uuid.uuid4().hex[:6]}"}
    return load(tmp_path, {**GOOD, "notifications": notifications, "work": {"url": rabbitmq.url}})


def refused(settings: Settings, *, proven: Settings) -> tuple[str, ...]:
    with pytest.raises(Misconfigured) as raised:
        broker_check.check(settings, proven=proven)
    return raised.value.faults


def test_what_works_is_let_pass_and_leaves_nothing(rabbitmq: RabbitMQ, settings: Settings) -> None:
    # In no order
    before = sorted(rabbitmq.ctl("list_queues", "name").splitlines())
    broker_check.check(settings, proven=replace(settings, work_url="memory://", transport_urls=()))
    assert sorted(rabbitmq.ctl("list_queues", "name").splitlines()) == before


def test_a_queue_that_was_made_otherwise_is_refused(rabbitmq: RabbitMQ, settings: Settings) -> None:
    with rabbitmq.channel() as channel:
        channel.queue_declare(settings.queue, durable=True, auto_delete=False)
    (fault,) = refused(settings, proven=settings)
    assert fault.startswith(SERVICES)
    assert f"the queue {settings.queue} was declared otherwise: x-" in fault
    assert "is not set there, and " in fault


def test_a_password_that_is_wrong_is_refused(rabbitmq: RabbitMQ, settings: Settings) -> None:
    wrong = rabbitmq.url.replace(rabbitmq.password, "wrong")
    faults = refused(replace(settings, work_url=wrong, transport_urls=(wrong,)), proven=settings)
    assert [
        fault.startswith(where) for fault, where in zip(faults, (SERVICES, LANES), strict=True)
    ] == [True, True]
    assert all("wrong@" not in fault and "ACCESS_REFUSED" in fault for fault in faults)


def test_a_broker_that_is_away_is_no_reason_if_it_is_waited_for_already(settings: Settings) -> None:
    nobody = f"amqp://worker:secret@127.0.0.1:{free_ports(1)[0]}/"
    away = replace(settings, transport_urls=(nobody,), work_url=nobody)
    broker_check.check(away, proven=away)
    assert len(refused(away, proven=settings)) == 2
    # One that is added to it is asked after
    more = replace(away, transport_urls=(nobody, *settings.transport_urls))
    broker_check.check(more, proven=away)


def test_other_brokers_cannot_be_asked(settings: Settings) -> None:
    other = replace(settings, driver="oslo", transport_urls=("kafka://h/",), work_url="memory://")
    broker_check.check(other, proven=settings)
