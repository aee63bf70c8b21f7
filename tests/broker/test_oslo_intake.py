"""The intake by oslo.messaging's listener: over its own in-memory transport, and over RabbitMQ."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import amqp
import pytest
from oslo_config import cfg

from tests.broker.hands import until
from tests.broker.intakes import oslo_intake
from tests.broker.rabbitmq import RabbitMQ
from tests.broker.sink import RecordingSink, RoutingSink
from tests.configurations import GOOD, load
from worker.broker import oslo

# oslo_messaging from there, as it is imported there without its warnings
from worker.broker.oslo import OsloIntake, oslo_messaging, wire
from worker.cli.assembly import build_intakes
from worker.core.errors import Misconfigured
from worker.core.intake import Routed
from worker.core.job import Job, Key


class PayloadSink(RecordingSink):
    """Makes a job of each notification whose payload has an id."""

    def route(self, body: bytes, compression: str = "") -> Routed:
        self.bodies.append(body)
        image_id = json.loads(body)["payload"].get("id")
        return (
            Routed(jobs=(Job(key=Key("test", image_id), cause="test", first_at=0.0),))
            if image_id
            else Routed()
        )


class Service:
    """A service that notifies, as Glance and Cinder do it."""

    def __init__(self, *, url: str, exchange: str, **options: object) -> None:
        """`options` of [oslo_messaging_rabbit]."""
        conf = cfg.ConfigOpts()
        # Registers the option that the transport looks at when it is made
        parsed = oslo_messaging.TransportURL.parse(conf, url)
        conf.set_override("control_exchange", exchange)
        if options:
            # Registers them
            oslo_messaging.get_notification_transport(conf, url=parsed).cleanup()
            for name, value in options.items():
                conf.set_override(name, value, group="oslo_messaging_rabbit")
        self._transport = oslo_messaging.get_notification_transport(conf, url=parsed)
        self._notifier = oslo_messaging.Notifier(
            self._transport,
            driver="messagingv2",
            publisher_id="image.host",
            topics=["notifications"],
        )

    def notify(self, payload: dict[str, Any], *, priority: str = "info") -> None:
        getattr(self._notifier, priority)({"auth_token": "hidden"}, "image.update", payload)

    def close(self) -> None:
        self._transport.cleanup()


@pytest.fixture
def exchange() -> str:
    return f"oslo-{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["fake", "rabbit"])
def url(request: pytest.FixtureRequest, exchange: str) -> Iterator[str]:
    if request.param == "fake":
        yield "fake://"
        return
    broker = request.getfixturevalue("rabbitmq")
    yield broker.url.replace("amqp://", "rabbit://")
    broker.delete(
        *(f"notifications.{priority}" for priority in ("info", "error")), f"pool-{exchange}"
    )


@contextlib.asynccontextmanager
async def running(intake: OsloIntake, sink: RecordingSink | RoutingSink) -> Any:
    """The intake at work."""
    task = asyncio.create_task(intake.run(sink))
    try:
        await until(lambda: intake.problem() is None)
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert intake.problem() is not None


async def test_notifications_arrive_without_their_context(url: str, exchange: str) -> None:
    sink = PayloadSink()
    intake = oslo_intake(url=url, exchanges=[exchange], queue=f"pool-{exchange}", group=5)
    async with running(intake, sink):
        service = Service(url=url, exchange=exchange)
        for number in range(12):
            await asyncio.to_thread(service.notify, {"id": str(number)})
        await asyncio.to_thread(service.notify, {"id": "e"}, priority="error")
        await asyncio.to_thread(service.notify, {"nothing": "to do"})
        await until(
            lambda: (
                sorted(sink.ids) == sorted([*map(str, range(12)), "e"]) and len(sink.bodies) == 14
            )
        )
        service.close()
    assert sink.gaps == ["connected"]
    fields = [json.loads(body) for body in sink.bodies]
    assert {each["priority"] for each in fields} == {"INFO", "ERROR"}
    assert all(
        each["event_type"] == "image.update" and each["publisher_id"] == "image.host"
        for each in fields
    )
    assert all(each["message_id"] and each["timestamp"] for each in fields)
    assert b"hidden" not in b"".join(sink.bodies)


async def test_what_the_sink_refuses_comes_again(url: str, exchange: str) -> None:
    sink = PayloadSink()
    sink.failures = 1
    async with running(oslo_intake(url=url, exchanges=[exchange], queue=f"pool-{exchange}"), sink):
        service = Service(url=url, exchange=exchange)
        await asyncio.to_thread(service.notify, {"id": "1"})
        await until(lambda: sink.ids == ["1"])
        service.close()
    assert len(sink.bodies) == 2


async def test_it_does_not_wait_for_ever_for_the_sink(exchange: str) -> None:
    sink = PayloadSink()
    sink.open.clear()
    async with running(oslo_intake(url="fake://", exchanges=[exchange], grace=0.1), sink):
        service = Service(url="fake://", exchange=exchange)
        service.notify({"id": "1"})
        await until(lambda: sink.waiting == 1)
    await until(lambda: sink.waiting == 0)


async def test_a_broker_that_is_not_there_can_be_stopped() -> None:
    intake = oslo_intake(url="rabbit://worker:hidden@127.0.0.1:1/", exchanges=["glance"])
    task = asyncio.create_task(intake.run(PayloadSink()))
    await until(lambda: intake.problem() == "connecting")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_url_without_a_transport_is_refused_without_showing_it() -> None:
    with pytest.raises(Misconfigured) as refused:
        await oslo_intake(url="carrier://pigeon:hidden@roof/", exchanges=["glance"]).run(
            PayloadSink()
        )
    assert "hidden" not in str(refused.value)


BAD = [
    {"priority": None, "event_type": "image.update", "publisher_id": "p", "payload": {}},
    {"priority": ["info"], "publisher_id": "p", "payload": {}},
    {"priority": "INFO", "event_type": 5, "payload": {}},
    {"args": {}, "method": "a call that lost its way"},
]
UNREADABLE = BAD[1:]


async def test_a_bad_notification_keeps_none_of_its_batch_back(
    rabbitmq: RabbitMQ, exchange: str
) -> None:
    sink, pool = RoutingSink(), f"pool-{exchange}"
    images = {f"7ba7087c-0000-4000-8000-{number:012}" for number in range(96)}
    good = [
        {
            "priority": "INFO",
            "event_type": "image.activate",
            "payload": {"id": image, "status": "active"},
        }
        for image in images
    ]
    url = rabbitmq.url.replace("amqp://", "rabbit://")
    async with running(oslo_intake(url=url, exchanges=[exchange], queue=pool), sink):
        with rabbitmq.channel() as channel:
            for message in [*good[:50], *BAD, *good[50:]]:
                body = json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(message)})
                wrapped = amqp.Message(
                    body, content_type="application/json", content_encoding="utf-8"
                )
                channel.basic_publish(wrapped, exchange=exchange, routing_key="notifications.info")
        await until(lambda: sink.images == images and len(sink.letters) >= len(UNREADABLE))
    assert len(sink.letters) == len(UNREADABLE)
    assert rabbitmq.depth(pool) == 0
    rabbitmq.delete(pool, "notifications.info", "notifications.error")


async def test_the_options_of_oslo_messaging_are_read_from_our_file(
    rabbitmq: RabbitMQ, exchange: str, tmp_path: Path
) -> None:
    url = rabbitmq.url.replace("amqp://", "rabbit://")
    pool = f"pool-{exchange}"
    settings = load(tmp_path, {
        **GOOD,
        "notifications": {"transport_urls": url, "driver": "oslo", "queue": pool, "exchanges": exchange},
        "oslo_messaging_rabbit": {"rabbit_quorum_queue": "true"},
    })  # fmt: skip
    (intake,) = build_intakes(settings)
    assert isinstance(intake, OsloIntake)
    sink = PayloadSink()
    async with running(intake, sink):
        listed = json.loads(rabbitmq.ctl("list_queues", "name", "arguments", "--formatter=json"))
        (arguments,) = (row["arguments"] for row in listed if row["name"] == pool)
        assert ["x-queue-type", "longstr", "quorum"] in arguments
        service = Service(url=url, exchange=exchange, rabbit_quorum_queue=True)
        await asyncio.to_thread(service.notify, {"id": "1"})
        await until(lambda: sink.ids == ["1"])
        service.close()
    rabbitmq.delete(pool, "notifications.info", "notifications.error")
    rabbitmq.delete_exchange(exchange)


async def test_an_option_of_oslo_messaging_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    file = tmp_path / "worker.conf"
    file.write_text("[oslo_messaging_rabbit]\nssl = perhaps\n")
    intake = oslo_intake(
        url="rabbit://worker:hidden@127.0.0.1:1/", exchanges=["glance"], config_files=[str(file)]
    )
    with pytest.raises(Misconfigured, match=r"ssl.*perhaps") as refused:
        await intake.run(PayloadSink())
    assert "hidden" not in str(refused.value)


async def test_one_that_the_sink_refuses_keeps_no_other_back(
    rabbitmq: RabbitMQ, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oslo, "REFUSED_PAUSE", 1.0)

    class Choosy(PayloadSink):
        """Does not take the image 7 before it is told to."""

        closed = True
        alone: ClassVar[list[float]] = []

        async def accept(self, routed: Sequence[Routed]) -> None:
            if self.closed and any(job.key.image_id == "7" for one in routed for job in one.jobs):
                if len(routed) == 1:
                    self.alone.append(time.monotonic())
                raise RuntimeError("refused by the test")
            await super().accept(routed)

    sink, pool = Choosy(), f"pool-{exchange}"
    url = rabbitmq.url.replace("amqp://", "rabbit://")
    async with running(
        oslo_intake(url=url, exchanges=[exchange], queue=pool, group_wait=1.0), sink
    ):
        service = Service(url=url, exchange=exchange)
        for number in range(12):
            await asyncio.to_thread(service.notify, {"id": str(number)})
        others = sorted(map(str, {*range(12)} - {7}))
        await until(lambda: sorted(sink.ids) == others and len(sink.alone) > 3)
        # Nor does it come again without a pause
        assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(sink.alone))
        sink.closed = False
        await until(lambda: sorted(sink.ids) == sorted([*others, "7"]))
        service.close()
    assert rabbitmq.depth(pool) == 0
    rabbitmq.delete(pool, "notifications.info", "notifications.error")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"event_type": "e", "payload": {"when": object}}, "\"<class 'object'>\""),
        ({"event_type": "e", "payload": {(1, 2): "a key of a transport's own"}}, "keys must be"),
        (["no", "object"], "not list"),
        (None, "not NoneType"),
    ],
)
def test_whatever_a_transport_hands_over_becomes_a_message(message: object, told: str) -> None:
    assert told in wire(message).decode().replace("\\", "")
