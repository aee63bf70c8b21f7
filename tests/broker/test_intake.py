"""The intake from a real RabbitMQ: what it takes, what it leaves, and what it says it may have
missed."""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import amqp
import pytest
import structlog

from tests.broker import hostile
from tests.broker.hands import until
from tests.broker.intakes import rabbit_intake
from tests.broker.rabbitmq import RabbitMQ
from tests.broker.sink import RecordingSink
from worker.broker import pulse
from worker.broker.intake import RabbitIntake
from worker.core.dead_letter import MOST_BODY

INFO, ERROR = "notifications.info", "notifications.error"


def message(number: int | str) -> bytes:
    return json.dumps({"id": str(number)}).encode()


def numbers(count: int, *, first: int = 0) -> list[str]:
    return [str(number) for number in range(first, first + count)]


@pytest.fixture
def queue(rabbitmq: RabbitMQ) -> Iterator[str]:
    """Our own queue, which no other test uses."""
    name = f"intake-{uuid.uuid4().hex[:8]}"
    yield name
    rabbitmq.delete(name)


@pytest.fixture
def exchange(rabbitmq: RabbitMQ) -> Iterator[str]:
    """An exchange as a service makes it."""
    name = f"exchange-{uuid.uuid4().hex[:8]}"
    rabbitmq.declare_exchange(name)
    yield name
    rabbitmq.delete_exchange(name)


class Running:
    """An intake at work, and its sink."""

    def __init__(self, intake: RabbitIntake) -> None:
        self.sink = RecordingSink()
        self.intake = intake
        self._task = asyncio.create_task(intake.run(self.sink))

    async def stop(self) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task


Run = Callable[..., Awaitable[Running]]


@pytest.fixture
async def run(rabbitmq: RabbitMQ, queue: str, exchange: str) -> AsyncIterator[Run]:
    """Starts intakes on `queue` and waits until they consume; stops them at the end."""
    started: list[Running] = []

    async def start(
        *, ready: bool = True, exchanges: tuple[str, ...] = (exchange,), **options: Any
    ) -> Running:
        made = Running(
            rabbit_intake(
                **{"url": rabbitmq.url, "queue": queue, "exchanges": exchanges, **options}
            )
        )
        started.append(made)
        if ready:
            await until(lambda: made.intake.problem() is None)
        return made

    yield start
    for made in started:
        if made.intake.problem() != "the intake is not running":
            await made.stop()


async def test_notifications_of_all_priorities_arrive_and_are_acked(
    rabbitmq: RabbitMQ, run: Run, queue: str, exchange: str
) -> None:
    running = await run()
    rabbitmq.publish(*map(message, range(50)), exchange=exchange, routing_key=INFO)
    rabbitmq.publish(message("e"), exchange=exchange, routing_key=ERROR)
    rabbitmq.publish(message("d"), exchange=exchange, routing_key="notifications.debug")
    await until(lambda: running.sink.ids == [*numbers(50), "e"])
    await running.stop()
    assert rabbitmq.depth(queue) == 0


async def test_what_nobody_can_read_becomes_a_letter(
    rabbitmq: RabbitMQ, run: Run, exchange: str, queue: str
) -> None:
    running = await run()
    # The publisher says utf-8 of all of them
    bad = [b"\xff\xfe\x00", b"", b"{", b"x" * 300_000]
    rabbitmq.publish(message(0), *bad, message(1), exchange=exchange, routing_key=INFO)
    await until(lambda: running.sink.ids == ["0", "1"])
    assert running.sink.letters == [body[:MOST_BODY] for body in bad]
    await running.stop()
    assert rabbitmq.depth(queue) == 0


@pytest.mark.parametrize("odd", hostile.PROPERTIES)
async def test_odd_properties_of_a_message_stop_nothing(
    rabbitmq: RabbitMQ, run: Run, exchange: str, queue: str, odd: str
) -> None:
    """py-amqp raises on some; the message would be delivered again, and end the next connection,
    for ever."""
    running = await run()
    with rabbitmq.channel() as channel:
        for body, (flags, properties) in (
            (message(1), hostile.PROPERTIES[odd]),
            (message(2), (0, b"")),
        ):
            channel.basic_publish(
                hostile.Raw(body, flags, properties), exchange=exchange, routing_key=INFO
            )
    await until(lambda: running.sink.ids == ["1", "2"])
    await until(lambda: rabbitmq.depth(queue) == 0)
    assert running.sink.gaps == ["the queue was made"]


async def test_deliveries_that_were_lost_are_delivered_through_another_connection(
    rabbitmq: RabbitMQ, run: Run, exchange: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As when RabbitMQ has lost as many as it hands out at once, and takes them to be with us
    deaf: list[object] = []
    consume = amqp.Channel.basic_consume

    def lose(self: amqp.Channel, *arguments: Any, **options: Any) -> Any:
        deaf.append(self)
        return consume(self, *arguments, **options) if len(deaf) > 1 else "none"

    monkeypatch.setattr(amqp.Channel, "basic_consume", lose)
    monkeypatch.setattr(pulse, "EVERY", 0.3)
    running = await run()
    rabbitmq.publish(*map(message, range(8)), exchange=exchange, routing_key=INFO)
    await until(lambda: set(running.sink.ids) == set(numbers(8)))
    assert running.sink.gaps == ["the queue was made", "connected again"]
    await running.stop()
    assert rabbitmq.depth(queue) == 0


async def test_what_comes_to_nothing_is_acked_without_the_sink(
    rabbitmq: RabbitMQ, run: Run, exchange: str, queue: str
) -> None:
    running = await run()
    rabbitmq.publish(*[b"null"] * 250, exchange=exchange, routing_key=INFO)
    await until(lambda: len(running.sink.bodies) == 250)
    await running.stop()
    assert rabbitmq.depth(queue) == 0
    assert not running.sink.accepted


async def test_nothing_is_acked_before_the_sink_has_it(
    rabbitmq: RabbitMQ, run: Run, exchange: str, queue: str
) -> None:
    running = await run(prefetch=20, group=5)
    running.sink.open.clear()
    rabbitmq.publish(*map(message, range(100)), exchange=exchange, routing_key=INFO)
    await until(lambda: len(running.sink.bodies) == 20 and rabbitmq.depth(queue) == 80)
    # Several groups are handed over at once, but never more than were let in
    assert 1 < running.sink.waiting <= 20
    assert running.sink.ids == []
    running.sink.open.set()
    await until(lambda: running.sink.ids == numbers(100))
    await running.stop()
    assert rabbitmq.depth(queue) == 0


async def test_what_the_sink_refuses_comes_again(
    rabbitmq: RabbitMQ, run: Run, exchange: str
) -> None:
    running = await run()
    running.sink.failures = 1
    rabbitmq.publish(message(0), exchange=exchange, routing_key=INFO)
    await until(lambda: running.sink.ids == ["0"])
    assert len(running.sink.bodies) == 2


async def test_a_stopped_intake_settles_what_the_sink_has_and_gives_back_the_rest(
    rabbitmq: RabbitMQ, run: Run, exchange: str, queue: str
) -> None:
    running = await run(prefetch=10, group=5)
    running.sink.open.clear()
    rabbitmq.publish(*map(message, range(30)), exchange=exchange, routing_key=INFO)
    await until(lambda: running.sink.waiting > 1)
    stopping = asyncio.create_task(running.stop())
    await until(lambda: running.intake.problem() is not None)
    running.sink.open.set()
    await stopping
    assert running.sink.ids
    left = [json.loads(body)["id"] for body in rabbitmq.bodies(queue)]
    # What goes back to a quorum queue need not keep its place in it; nothing is lost and nothing is
    # there twice
    assert sorted(running.sink.ids + left, key=int) == numbers(30)


async def test_a_stopped_intake_does_not_wait_for_ever_for_the_sink(
    rabbitmq: RabbitMQ, run: Run, exchange: str, queue: str
) -> None:
    running = await run(grace=0.1)
    running.sink.open.clear()
    rabbitmq.publish(message(0), exchange=exchange, routing_key=INFO)
    await until(lambda: running.sink.waiting == 1)
    await running.stop()
    await until(lambda: running.sink.waiting == 0)
    assert rabbitmq.bodies(queue) == [message(0)]


async def test_replicas_share_the_notifications(
    rabbitmq: RabbitMQ, run: Run, exchange: str
) -> None:
    one, two = await run(prefetch=10), await run(prefetch=10)
    one.sink.open.clear()
    rabbitmq.publish(*map(message, range(100)), exchange=exchange, routing_key=INFO)
    # The first takes no more than it may hold
    await until(lambda: len(two.sink.ids) >= 90)
    one.sink.open.set()
    await until(lambda: len(one.sink.ids + two.sink.ids) == 100)
    assert sorted(one.sink.ids + two.sink.ids, key=int) == numbers(100)


async def test_the_queue_is_bounded_and_expires(rabbitmq: RabbitMQ, run: Run, queue: str) -> None:
    await run(max_length=1234, expires=90.5)
    listed = await asyncio.to_thread(
        rabbitmq.ctl, "list_queues", "name", "durable", "arguments", "--formatter=json"
    )
    (row,) = [row for row in json.loads(listed) if row["name"] == queue]
    assert row["durable"]
    assert {name: value for name, _, value in row["arguments"]} == {
        "x-queue-type": "quorum",
        "x-max-length": 1234,
        "x-overflow": "drop-head",
        "x-expires": 90_500,
        "x-delivery-limit": 1_000_000,
    }


async def test_a_queue_that_an_older_version_made_is_good_enough(
    rabbitmq: RabbitMQ, run: Run, queue: str, exchange: str
) -> None:
    with rabbitmq.channel() as channel:
        arguments = {"x-queue-type": "quorum", "x-max-length": 100_000, "x-overflow": "drop-head"}
        channel.queue_declare(
            queue, durable=True, auto_delete=False, arguments={**arguments, "x-expires": 86_400_000}
        )
    running = await run()
    rabbitmq.publish(message(0), exchange=exchange, routing_key=INFO)
    await until(lambda: running.sink.ids == ["0"])


async def test_a_classic_queue_has_no_delivery_limit(
    rabbitmq: RabbitMQ, run: Run, exchange: str
) -> None:
    running = await run(queue_type="classic")
    rabbitmq.publish(message(0), exchange=exchange, routing_key=INFO)
    await until(lambda: running.sink.ids == ["0"])


async def test_an_exchange_is_never_declared_but_bound_once_it_is_there(
    rabbitmq: RabbitMQ, run: Run
) -> None:
    late = f"late-{uuid.uuid4().hex[:8]}"
    running = await run(exchanges=(late,))
    assert running.intake.unbound() == (late,)
    assert running.sink.gaps == ["the queue was made"]
    with rabbitmq.channel() as channel:
        # Not as we would have declared it; that nobody minds shows that it was not there
        channel.exchange_declare(late, "topic", durable=True, auto_delete=False)
    await until(lambda: running.intake.unbound() == ())
    assert running.sink.gaps == ["the queue was made", f"exchange {late} was bound"]
    rabbitmq.publish(message(0), exchange=late, routing_key=INFO)
    await until(lambda: running.sink.ids == ["0"])
    rabbitmq.delete_exchange(late)


async def test_exchanges_that_are_not_there_fill_no_log(
    rabbitmq: RabbitMQ, run: Run, exchange: str
) -> None:
    absent = [f"absent-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    began = time.monotonic()
    running = await run(exchanges=(exchange, *absent), look_every=0.02)

    def most() -> int:
        # Each is looked for at 0, 0.02, 0.06, 0.14 and so on, not fifty times a second
        return 2 * (1 + int(math.log2((time.monotonic() - began) / 0.02 + 1)))

    def lines() -> int:
        return sum(f"no exchange '{name}'" in line for line in rabbitmq.errors() for name in absent)

    await asyncio.sleep(5)
    assert running.intake.unbound() == tuple(absent)
    assert 2 <= lines() <= most()
    # Nor does a connection that breaks again and again become lines
    for _ in range(3):
        running.sink.gaps.clear()
        await asyncio.to_thread(rabbitmq.ctl, "close_all_connections", "the test says so")
        await until(lambda: "connected again" in running.sink.gaps)
    # Each may have cut off one answer, so that the question had to be asked once more
    assert lines() <= most() + 3
    # What is bound is looked at all the same
    rabbitmq.delete_exchange(exchange)
    await until(lambda: exchange in running.intake.unbound())
    rabbitmq.declare_exchange(exchange)
    await until(lambda: exchange not in running.intake.unbound())


async def test_a_service_that_begins_to_publish_has_the_other_looked_for_soon(
    rabbitmq: RabbitMQ, run: Run
) -> None:
    glance, cinder = (f"{name}-{uuid.uuid4().hex[:8]}" for name in ("glance", "cinder"))
    running = await run(exchanges=(glance, cinder), look_every=0.05)
    await asyncio.sleep(1)
    # By now the next look is more than a second away
    rabbitmq.declare_exchange(cinder)
    await until(lambda: running.intake.unbound() == (glance,))
    rabbitmq.declare_exchange(glance)
    await until(lambda: running.intake.unbound() == ())
    assert f"exchange {glance} was bound" in running.sink.gaps
    for name in (glance, cinder):
        rabbitmq.delete_exchange(name)


async def test_an_exchange_that_was_deleted_is_bound_again(
    rabbitmq: RabbitMQ, run: Run, exchange: str
) -> None:
    running = await run()
    rabbitmq.delete_exchange(exchange)
    await until(lambda: running.intake.unbound() == (exchange,))
    rabbitmq.declare_exchange(exchange)
    await until(lambda: f"exchange {exchange} was bound" in running.sink.gaps)
    rabbitmq.publish(message(0), exchange=exchange, routing_key=INFO)
    await until(lambda: running.sink.ids == ["0"])


async def test_a_restart_takes_the_exchange_away_and_it_is_bound_when_it_is_back(
    rabbitmq: RabbitMQ, run: Run, exchange: str
) -> None:
    running = await run()
    await asyncio.to_thread(rabbitmq.stop)
    await until(lambda: running.intake.problem() is not None)
    await asyncio.to_thread(rabbitmq.start)
    await until(lambda: "connected again" in running.sink.gaps)
    assert running.intake.unbound() == (exchange,)
    rabbitmq.declare_exchange(exchange)
    await until(lambda: f"exchange {exchange} was bound" in running.sink.gaps)
    rabbitmq.publish(message(0), exchange=exchange, routing_key=INFO)
    await until(lambda: running.sink.ids == ["0"])


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_an_outage_under_load_loses_nothing_of_the_queue(
    rabbitmq: RabbitMQ, run: Run, queue: str, kill: bool
) -> None:
    running = await run(prefetch=50, group=10)
    running.sink.open.clear()
    await asyncio.to_thread(rabbitmq.publish, *map(message, range(1000)), routing_key=queue)
    # RabbitMQ itself never gets over being killed within a second or two of making a quorum queue
    await asyncio.sleep(3)
    with structlog.testing.capture_logs() as logs:
        running.sink.open.set()
        await until(lambda: len(running.sink.ids) >= 100)
        running.sink.open.clear()
        await asyncio.to_thread(rabbitmq.stop, kill=kill)
        await until(lambda: running.intake.problem() is not None)
        running.sink.open.set()
        await asyncio.to_thread(rabbitmq.start)
        await until(lambda: set(running.sink.ids) == set(numbers(1000)))
    words = [entry["event"] for entry in logs]
    assert (words.count("broker_lost"), words.count("broker_back")) == (1, 1)
    assert rabbitmq.password not in str(logs)
    assert "connected again" in running.sink.gaps


async def test_a_deleted_queue_is_made_again_and_told_of(
    rabbitmq: RabbitMQ, run: Run, queue: str, exchange: str
) -> None:
    running = await run()
    running.sink.gaps.clear()
    rabbitmq.delete(queue)
    await until(lambda: running.sink.gaps == ["the queue was made"])
    rabbitmq.publish(message(0), exchange=exchange, routing_key=INFO)
    await until(lambda: running.sink.ids == ["0"])


async def test_connections_closed_by_the_broker_come_back(
    rabbitmq: RabbitMQ, run: Run, exchange: str
) -> None:
    running = await run()
    await asyncio.to_thread(rabbitmq.ctl, "close_all_connections", "the test says so")
    await until(lambda: "connected again" in running.sink.gaps)
    rabbitmq.publish(message(0), exchange=exchange, routing_key=INFO)
    await until(lambda: running.sink.ids == ["0"])


async def test_a_queue_that_is_there_otherwise_is_a_problem_until_it_is_gone(
    rabbitmq: RabbitMQ, run: Run, queue: str
) -> None:
    with rabbitmq.channel() as channel:
        channel.queue_declare(
            queue,
            durable=True,
            auto_delete=False,
            arguments={"x-queue-type": "quorum", "x-expires": 60_000},
        )
    running = await run(ready=False)
    await until(lambda: "declared otherwise" in (running.intake.problem() or ""))
    assert f"the queue {queue} was declared otherwise" in str(running.intake.problem())
    assert "x-expires is 60000 there, and 86400000 here" in str(running.intake.problem())
    rabbitmq.delete(queue)
    await until(lambda: running.intake.problem() is None)


async def test_a_host_that_is_dead_is_passed_over(
    rabbitmq: RabbitMQ, run: Run, exchange: str
) -> None:
    dead = f"worker:{rabbitmq.password}@127.0.0.1:1"
    running = await run(url=rabbitmq.url.replace("amqp://", f"rabbit://{dead},"))
    rabbitmq.publish(message(0), exchange=exchange, routing_key=INFO)
    await until(lambda: running.sink.ids == ["0"])


async def test_a_broker_that_is_not_there_is_a_problem_and_can_be_stopped() -> None:
    running = Running(
        rabbit_intake(
            url="rabbit://worker:secret@127.0.0.1:1/", queue="none", exchanges=("glance",)
        )
    )
    await until(lambda: "refused" in (running.intake.problem() or ""))
    assert "secret" not in str(running.intake.problem())
    await running.stop()
    assert running.sink.gaps == []
