"""What commands see of a real RabbitMQ: lanes and their oldest jobs, notifications for a while.
Nothing is taken."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.broker.hands import PATIENCE, Hands, jobs, until
from tests.broker.intakes import subscribed
from tests.broker.rabbitmq import RabbitMQ, free_ports
from worker.broker.inspect import DEAD, DELAYED, Depth, look_at_lanes
from worker.broker.lanes import RabbitLanes
from worker.broker.tap import tap
from worker.core.dead_letter import DeadLetter
from worker.core.errors import Temporary


@pytest.fixture
def queue(rabbitmq: RabbitMQ) -> Iterator[str]:
    """A prefix of queues that no other test uses."""
    name = f"look-{uuid.uuid4().hex[:8]}"
    yield name
    rabbitmq.delete(f"{name}.fast", f"{name}.slow", f"{name}.dead")


def seen(rabbitmq: RabbitMQ, queue: str) -> dict[str, Depth]:
    return look_at_lanes(rabbitmq.url, queue=queue, lanes=("fast", "slow"))


def test_lanes_that_were_never_needed(rabbitmq: RabbitMQ, queue: str) -> None:
    assert seen(rabbitmq, queue) == {lane: Depth() for lane in ("fast", "slow", DELAYED, DEAD)}
    assert rabbitmq.depth(f"{queue}.fast") is None, "looking declares nothing"


async def test_jobs_without_a_worker(
    rabbitmq: RabbitMQ, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.broker.inspect.HEAD_TIMEOUT", 60.0)
    lanes = RabbitLanes(url=rabbitmq.url, queue=queue)
    older, newer = (
        replace(job, first_at=at) for job, at in zip(jobs("fast", 2), (100.0, 200.0), strict=True)
    )
    await lanes.publish([older, newer])
    await lanes.publish(jobs("slow", 3), after=600.0)
    await lanes.bury([DeadLetter(lane="fast", reason="x", last_at=1.0, job=older)])
    for _ in range(2):
        found = await asyncio.to_thread(seen, rabbitmq, queue)
        assert found["fast"] == Depth(messages=2, consumers=0, oldest=100.0)
        assert found["slow"] == Depth(messages=0, consumers=0)
        assert (found[DELAYED].messages, found[DEAD].messages) == (3, 1)
        await until(lambda: rabbitmq.depth(f"{queue}.fast") == 2)
    await lanes.close()


async def test_lanes_with_a_worker(rabbitmq: RabbitMQ, queue: str) -> None:
    hands, lanes = Hands(), RabbitLanes(url=rabbitmq.url, queue=queue)
    await lanes.open({"fast": 1}, hands)
    await lanes.publish(jobs("fast", 3))
    await hands.have(1)
    await until(lambda: rabbitmq.depth(f"{queue}.fast") == 2)
    found = await asyncio.to_thread(seen, rabbitmq, queue)
    assert found["fast"] == Depth(messages=2, consumers=1), "the oldest one is the worker's"
    hands.ack()
    assert await hands.have(1) == ["1"]
    await lanes.close()


async def test_what_lies_there_and_is_no_job(rabbitmq: RabbitMQ, queue: str) -> None:
    lanes = RabbitLanes(url=rabbitmq.url, queue=queue)
    await lanes.publish(jobs("fast", 1))
    await lanes.close()
    rabbitmq.ctl("purge_queue", f"{queue}.fast")
    rabbitmq.publish(b"\xff no job", routing_key=f"{queue}.fast")
    assert (await asyncio.to_thread(seen, rabbitmq, queue))["fast"] == Depth(
        messages=1, consumers=0
    )


def test_nobody_is_there() -> None:
    (port,) = free_ports(1)
    with pytest.raises(Temporary, match="Connection refused"):
        look_at_lanes(f"amqp://u:secret@127.0.0.1:{port}/", queue="x", lanes=("fast",))


def test_a_refused_login_shows_no_password(rabbitmq: RabbitMQ) -> None:
    with pytest.raises(Temporary) as caught:
        look_at_lanes(f"amqp://u:secret@127.0.0.1:{rabbitmq.port}/", queue="x", lanes=("fast",))
    assert "ACCESS_REFUSED" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_tap_hears_what_comes_while_it_is_open(rabbitmq: RabbitMQ) -> None:
    exchange = f"exchange-{uuid.uuid4().hex[:8]}"
    rabbitmq.declare_exchange(exchange)

    def send(event_type: str, key: str = "notifications.info") -> None:
        rabbitmq.publish(
            json.dumps({"event_type": event_type}).encode(), exchange=exchange, routing_key=key
        )

    send("before")
    with tap([rabbitmq.url], subscribed([exchange, "not-there"])) as take:
        send("one")
        rabbitmq.publish(b"{ half a", exchange=exchange, routing_key="notifications.info")
        send("two", "notifications.error")
        send("debug", "notifications.debug")
        heard: list[str] = []
        deadline = time.monotonic() + PATIENCE
        while len(heard) < 2 and time.monotonic() < deadline:
            heard += [str(message["event_type"]) for message in take()]
        assert heard == ["one", "two"]
        assert list(take()) == []
    queues = rabbitmq.ctl("list_queues", "name")
    assert "amq.gen" not in queues, "its queue goes with it"
    rabbitmq.delete_exchange(exchange)
