"""Notifications of services that compress what they send ([oslo_messaging_rabbit]
kombu_compression)."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import amqp
import pytest

from tests.broker.hands import until
from tests.broker.intakes import oslo_intake, rabbit_intake, subscribed
from tests.broker.rabbitmq import RabbitMQ
from tests.broker.sink import RoutingSink
from tests.broker.test_oslo_intake import Service
from worker.broker.tap import tap
from worker.capture.forms import decoded
from worker.capture.record import Output, Recorder
from worker.core.intake import Intake

IMAGE = "7ba7087c-0000-4000-8000-000000000001"
PAYLOAD = {"id": IMAGE, "status": "active", "properties": {}}
BODY = json.dumps({"event_type": "image.update", "payload": PAYLOAD}).encode()
BOMB = zlib.compress(b"[" * (64 << 20))


@pytest.fixture
def exchange(rabbitmq: RabbitMQ) -> Iterator[str]:
    name = f"compressed-{uuid.uuid4().hex[:8]}"
    rabbitmq.declare_exchange(name)
    yield name
    rabbitmq.delete_exchange(name)
    rabbitmq.delete(name, "notifications.info", "notifications.error")


# oslo.messaging itself throws away what is compressed in a way that kombu does not know
@pytest.fixture(params=["rabbit", "oslo"])
async def sink(
    request: pytest.FixtureRequest, rabbitmq: RabbitMQ, exchange: str
) -> AsyncIterator[RoutingSink]:
    """Fed by each of the intakes."""
    intake: Intake
    if request.param == "rabbit":
        intake = rabbit_intake(url=rabbitmq.url, exchanges=[exchange], queue=exchange)
    else:
        url = rabbitmq.url.replace("amqp://", "rabbit://")
        intake = oslo_intake(url=url, exchanges=[exchange], queue=exchange)
    sink = RoutingSink()
    task = asyncio.create_task(intake.run(sink))
    await until(lambda: intake.problem() is None)
    yield sink
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def publish(rabbitmq: RabbitMQ, exchange: str, body: bytes, compression: str) -> None:
    with rabbitmq.channel() as channel:
        message = amqp.Message(
            body,
            content_type="application/json",
            content_encoding="utf-8",
            application_headers={"compression": compression},
        )
        channel.basic_publish(message, exchange=exchange, routing_key="notifications.info")


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma", "zstd"])
async def test_a_compressed_notification_becomes_jobs(
    rabbitmq: RabbitMQ, exchange: str, sink: RoutingSink, compression: str
) -> None:
    url = rabbitmq.url.replace("amqp://", "rabbit://")
    service = Service(url=url, exchange=exchange, kombu_compression=compression)
    await asyncio.to_thread(service.notify, PAYLOAD)
    service.close()
    await until(lambda: sink.accepted)
    assert (sink.images, sink.letters) == ({IMAGE}, [])


async def test_what_would_fill_the_memory_becomes_a_letter_with_the_reason(
    rabbitmq: RabbitMQ, exchange: str, sink: RoutingSink
) -> None:
    await asyncio.to_thread(publish, rabbitmq, exchange, BOMB, "application/x-gzip")
    await until(lambda: sink.letters)
    assert "larger than 16 MiB" in str(sink.letters)


async def test_what_cannot_be_decompressed_becomes_a_letter_with_the_reason(
    rabbitmq: RabbitMQ, exchange: str, sink: RoutingSink
) -> None:
    await asyncio.to_thread(publish, rabbitmq, exchange, b"no zlib at all", "application/x-gzip")
    cut = zlib.compress(BODY)[:-5]
    await asyncio.to_thread(publish, rabbitmq, exchange, cut, "application/x-gzip")
    await until(lambda: len(sink.letters) == 2)
    assert "not decompressible by application/x-gzip" in str(sink.letters)
    assert "cut short (application/x-gzip)" in str(sink.letters)


@pytest.mark.parametrize("sink", ["rabbit"], indirect=True)
async def test_a_compression_that_nobody_knows_is_named(
    rabbitmq: RabbitMQ, exchange: str, sink: RoutingSink
) -> None:
    await asyncio.to_thread(publish, rabbitmq, exchange, BODY, "application/x-unheard-of")
    await until(lambda: sink.letters)
    ((reason, body),) = sink.letters
    assert "application/x-unheard-of" in reason
    assert body is not None
    assert json.loads(body) == json.loads(BODY)


async def test_a_recording_has_compressed_notifications(
    rabbitmq: RabbitMQ, exchange: str, tmp_path: Path
) -> None:
    written: list[int] = []
    output = Output(str(tmp_path / "capture.jsonl"))
    recorder = Recorder(output, wrote=written.append, failed=lambda _: None)
    intake = rabbit_intake(url=rabbitmq.url, exchanges=[exchange], queue=exchange)
    task = asyncio.create_task(intake.run(recorder))
    await until(lambda: intake.problem() is None)
    await asyncio.to_thread(publish, rabbitmq, exchange, zlib.compress(BODY), "application/x-gzip")
    await until(lambda: written)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    output.close()
    assert json.loads((tmp_path / "capture.jsonl").read_bytes())["payload"] == PAYLOAD


def test_a_tap_takes_compressed_notifications(rabbitmq: RabbitMQ, exchange: str) -> None:
    with tap([rabbitmq.url], subscribed([exchange])) as take:
        publish(rabbitmq, exchange, zlib.compress(BODY), "application/x-gzip")
        assert [message["payload"] for message in take()] == [PAYLOAD]


def test_a_replay_takes_what_rabbitmqadmin_got_compressed() -> None:
    got = {
        "payload": base64.b64encode(zlib.compress(BODY)).decode(),
        "payload_encoding": "base64",
        "properties": {
            "headers": {"compression": "application/x-gzip"},
            "content_encoding": "utf-8",
        },
    }
    assert decoded(json.dumps(got).encode())["payload"] == PAYLOAD
