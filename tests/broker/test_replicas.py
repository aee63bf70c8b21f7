"""What replicas tell each other, on a real RabbitMQ."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.broker.hands import until
from tests.broker.load import groups
from tests.broker.load import until as wait
from tests.broker.rabbitmq import RabbitMQ
from tests.deploy.debian import SmallCloud
from tests.worker_process import WorkerProcess
from worker.broker import replicas
from worker.broker.connection import connected
from worker.broker.inspect import exchange_is_there
from worker.broker.replicas import Replicas


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(replicas, "EVERY", 0.2)
    return f"replicas-{uuid.uuid4().hex[:8]}"


def document(host: str, **more: Any) -> dict[str, Any]:
    return {"host": host, "version": "1", "started": 1.0, "lanes": [], **more}


@asynccontextmanager
async def telling(rabbitmq: RabbitMQ, queue: str, host: str) -> AsyncIterator[Replicas]:
    one = Replicas(
        url=rabbitmq.url, queue=queue, document=lambda: document(host, jobs=["x" * 100_000])
    )
    running = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def hosts(one: Replicas) -> set[str]:
    return {part.document["host"] for part in one.others()}


async def test_each_hears_of_all_others_until_they_stop(rabbitmq: RabbitMQ, queue: str) -> None:
    async with telling(rabbitmq, queue, "a") as a, telling(rabbitmq, queue, "b") as b:
        await until(lambda: (hosts(a), hosts(b)) == ({"b"}, {"a"}))
        async with telling(rabbitmq, queue, "c") as c:
            await until(lambda: hosts(a) == {"b", "c"})
            await until(lambda: hosts(c) == {"a", "b"})
        # One that stops in order says so
        await until(lambda: hosts(a) == {"b"})
    with connected(rabbitmq.url, name="look") as connection:
        assert not exchange_is_there(connection, f"{queue}.replicas")


async def test_one_that_dies_is_silent_for_a_while_and_then_forgotten(
    rabbitmq: RabbitMQ, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with telling(rabbitmq, queue, "a") as a, telling(rabbitmq, queue, "b") as b:
        await until(lambda: hosts(a) == {"b"})
        monkeypatch.setattr(b, "_tell", lambda _: None)
        await until(lambda: a.others()[0].age > 1.0)
        monkeypatch.setattr(replicas, "FORGOTTEN", 0.5)
        assert a.others() == []


async def test_one_that_hears_nothing_any_more_connects_anew(
    rabbitmq: RabbitMQ, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "DEAF", 1.0)
    async with telling(rabbitmq, queue, "a") as a, telling(rabbitmq, queue, "b"):
        await until(lambda: hosts(a) == {"b"} and a._channel is not None)
        channel = a._channel
        # As of a broker that has forgotten its consumer
        channel.callbacks = dict.fromkeys(channel.callbacks, lambda _: None)
        await until(lambda: a._channel is not None and a._channel is not channel)
        await until(lambda: a.others()[0].age < 0.9)


async def test_after_a_restart_of_the_broker_they_hear_each_other_again(
    rabbitmq: RabbitMQ, queue: str
) -> None:
    async with telling(rabbitmq, queue, "a") as a, telling(rabbitmq, queue, "b"):
        await until(lambda: hosts(a) == {"b"})
        await asyncio.to_thread(rabbitmq.stop, kill=True)
        await until(lambda: a.others()[0].age > 1.0)
        await asyncio.to_thread(rabbitmq.start)
        await until(lambda: a.others()[0].age < 0.9)


@pytest.mark.parametrize(
    "body", [b"", b"\0", b"{}", b"[]", b'{"replica": "x", "document": {"host": "y"}}']
)
async def test_what_nobody_understands_is_passed_over(
    rabbitmq: RabbitMQ, queue: str, body: bytes
) -> None:
    async with telling(rabbitmq, queue, "a") as a, telling(rabbitmq, queue, "b"):
        await until(lambda: hosts(a) == {"b"})
        rabbitmq.publish(body, exchange=f"{queue}.replicas", routing_key="")
        await until(lambda: a.others()[0].age < 0.1)
        assert hosts(a) == {"b"}


def test_any_worker_tells_what_all_do_and_which_is_silent(
    rabbitmq: RabbitMQ, queue: str, tmp_path: Path
) -> None:
    cloud = SmallCloud()
    clouds = tmp_path / "clouds.yaml"
    clouds.write_text(cloud.clouds_yaml)
    first, second = (
        WorkerProcess(tmp_path, groups(rabbitmq.url, queue), clouds=clouds) for _ in range(2)
    )

    def silent(process: WorkerProcess) -> list[bool]:
        """Of each replica, this one first, whether it is silent."""
        shown = process.probe("/status.json")[1].get("replicas", ())
        return [bool(one["silent"]) for one in shown]

    try:
        with first, second:
            first.wait_ready()
            second.wait_ready()
            wait(lambda: silent(first) == silent(second) == [False, False], lambda: silent(first))
            second.kill()
            wait(lambda: silent(first) == [False, True], lambda: silent(first))
            second.start()
            second.wait_ready()
            wait(lambda: silent(first) == [False, True, False], lambda: silent(first))
            # One that stops in order is not missed
            assert second.stop() == 0
            wait(lambda: silent(first) == [False, True], lambda: silent(first))
    finally:
        cloud.close()
        rabbitmq.delete(*(name for name in rabbitmq.ctl("list_queues", "-s", "name").split()
                          if name.startswith(queue) and ".replicas." not in name))  # fmt: skip
