"""A vhost whose queues are quorum queues unless one says otherwise: those that are ours alone can't
be."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import amqp
import pytest

from tests.broker.intakes import subscribed
from tests.broker.rabbitmq import RabbitMQ
from worker.broker.dead_letters import DeadQueue
from worker.broker.inspect import look, scratch
from worker.broker.lanes import RabbitLanes
from worker.broker.tap import tap
from worker.core.dead_letter import DeadLetter


@pytest.fixture
def url(rabbitmq: RabbitMQ) -> Iterator[str]:
    """A URL of such a vhost."""
    vhost = f"quorum-{uuid.uuid4().hex[:6]}"
    rabbitmq.ctl("add_vhost", vhost, "--default-queue-type", "quorum")
    rabbitmq.ctl("set_permissions", "-p", vhost, "worker", ".*", ".*", ".*")
    yield f"{rabbitmq.url}{vhost}"
    rabbitmq.ctl("delete_vhost", vhost)


def test_notifications_are_tapped(rabbitmq: RabbitMQ, url: str) -> None:
    with tap([url], subscribed(["glance"])) as take:
        listed = rabbitmq.ctl(
            "list_queues", "-p", url.rpartition("/")[2], "type", "--formatter=json"
        )
        assert [queue["type"] for queue in json.loads(listed)] == ["classic"]
        assert list(take()) == []


def test_the_doctor_may_work_there(url: str) -> None:
    found = look(url, trial=lambda connection, _there: scratch(connection, "doctor"))
    assert (found.problem, found.refused) == ("", "")


async def test_dead_letters_are_looked_at(url: str) -> None:
    lanes = RabbitLanes(url=url, queue="image-volume-worker")
    await lanes.bury([DeadLetter(lane="intake", reason="no JSON", last_at=1.0, body=b"{")])
    await lanes.close()
    with DeadQueue(url=url, queue="image-volume-worker") as queue:
        assert [kept.letter.reason for kept in queue if kept.letter] == ["no JSON"]


def test_whatever_is_ours_alone_says_that_it_is_classic(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """Some RabbitMQs take the vhost's type for exclusive queues as well, and refuse them; 3.10 does
    not."""
    declared: list[object] = []
    real = amqp.Channel.queue_declare

    def declare(channel: amqp.Channel, queue: str = "", *args: object, **options: object) -> object:
        if options.get("exclusive"):
            declared.append(options.get("arguments"))
        return real(channel, queue, *args, **options)

    monkeypatch.setattr(amqp.Channel, "queue_declare", declare)
    test_the_doctor_may_work_there(url)
    with (
        tap([url], subscribed([])),
        DeadQueue(url=url, queue="image-volume-worker"),
    ):
        pass
    assert declared == [{"x-queue-type": "classic"}] * 3
