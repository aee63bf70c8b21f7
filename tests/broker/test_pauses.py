"""Paused targets, on a real RabbitMQ."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager

import pytest

from tests.broker.hands import until
from tests.broker.rabbitmq import RabbitMQ
from worker.broker import pauses
from worker.broker.pauses import PauseWatch, read_pauses, set_paused
from worker.core.errors import Temporary

TARGETS = ("fast", "slow")


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(pauses, "EVERY", 0.1)
    return f"pauses-{uuid.uuid4().hex[:8]}"


@asynccontextmanager
async def watching(rabbitmq: RabbitMQ, queue: str) -> AsyncIterator[list[Set[str]]]:
    """All that a worker is told, one after the other; it knows which targets are paused."""
    told: list[Set[str]] = []
    watch = PauseWatch(url=rabbitmq.url, queue=queue, targets=TARGETS)
    running = asyncio.create_task(watch.run(told.append))
    try:
        async with asyncio.timeout(60):
            await watch.known()
        yield told
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_all_workers_hear_of_it_and_those_that_start_later(
    rabbitmq: RabbitMQ, queue: str
) -> None:
    url = rabbitmq.url
    async with watching(rabbitmq, queue) as one, watching(rabbitmq, queue) as two:
        assert (one, two) == ([set()], [set()])
        set_paused(url, queue=queue, target="fast", paused=True)
        await until(lambda: one[-1] == two[-1] == {"fast"})
        set_paused(url, queue=queue, target="slow", paused=True)
        # Of another configuration
        set_paused(url, queue=queue, target="tape", paused=True)
        assert read_pauses(url, queue=queue, targets=TARGETS) == {"fast", "slow"}
        async with watching(rabbitmq, queue) as late:
            assert late == [{"fast", "slow"}]
        set_paused(url, queue=queue, target="fast", paused=False)
        set_paused(url, queue=queue, target="fast", paused=False)
        await until(lambda: one[-1] == two[-1] == {"slow"})
        # Each change once, however often it was asked for
        assert one[0] == set()
        assert all(before != after for before, after in itertools.pairwise(one))


@pytest.mark.parametrize("kill", [False, True])
async def test_a_restart_of_the_broker_changes_nothing(
    rabbitmq: RabbitMQ, queue: str, kill: bool
) -> None:
    async with watching(rabbitmq, queue) as told:
        set_paused(rabbitmq.url, queue=queue, target="fast", paused=True)
        await until(lambda: told[-1] == {"fast"})
        if kill:
            # RabbitMQ has bindings on its disk after a moment only
            await asyncio.sleep(5)
        await asyncio.to_thread(rabbitmq.stop, kill=kill)
        with pytest.raises(Temporary):
            read_pauses(rabbitmq.url, queue=queue, targets=TARGETS)
        await asyncio.to_thread(rabbitmq.start)

        def slow_too() -> bool:
            # For a moment the queue has no leader
            with contextlib.suppress(Temporary):
                set_paused(rabbitmq.url, queue=queue, target="slow", paused=True)
            return told[-1] == {"fast", "slow"}

        await until(slow_too)
        assert told == [set(), {"fast"}, {"fast", "slow"}]


def test_whoever_only_looks_makes_nothing_and_leaves_nothing(
    rabbitmq: RabbitMQ, queue: str
) -> None:
    assert read_pauses(rabbitmq.url, queue=queue, targets=TARGETS) == set()
    assert queue not in rabbitmq.ctl("list_queues", "name")
    assert queue not in rabbitmq.ctl("list_exchanges", "name")


async def test_asking_again_and_again_fills_nothing_and_no_log(
    rabbitmq: RabbitMQ, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "EVERY", 0.01)
    async with watching(rabbitmq, queue):
        set_paused(rabbitmq.url, queue=queue, target="fast", paused=True)
        await asyncio.sleep(2)
        assert (rabbitmq.depth(f"{queue}.paused") or 0) <= 1
        assert not [line for line in rabbitmq.errors() if queue in line]


async def test_a_queue_that_refuses_more_is_of_a_paused_target(
    rabbitmq: RabbitMQ, queue: str
) -> None:
    rule = '{"overflow": "reject-publish", "max-length": 1}'
    rabbitmq.ctl("set_policy", queue, f"^{queue}", rule, "--apply-to", "queues")
    try:
        set_paused(rabbitmq.url, queue=queue, target="fast", paused=True)
        async with watching(rabbitmq, queue) as told:
            await asyncio.sleep(1)
            assert told == [{"fast"}]
            set_paused(rabbitmq.url, queue=queue, target="fast", paused=False)
            await until(lambda: told[-1] == set())
    finally:
        rabbitmq.ctl("clear_policy", queue)


@pytest.mark.parametrize(
    "rights", [("^other", "^other", "^other"), (".*", "^other", ".*")], ids=["none", "no write"]
)
async def test_a_worker_that_may_not_ask_works_on_and_says_so(
    rabbitmq: RabbitMQ, queue: str, monkeypatch: pytest.MonkeyPatch, rights: tuple[str, str, str]
) -> None:
    monkeypatch.setattr(pauses, "ASK_AGAIN", 0.5)
    rabbitmq.ctl("add_user", queue, "secret")
    rabbitmq.ctl("set_permissions", queue, *rights)
    host = rabbitmq.url.rpartition("@")[2]
    watch = PauseWatch(url=f"amqp://{queue}:secret@{host}", queue=queue, targets=TARGETS)
    told: list[Set[str]] = []
    running = asyncio.create_task(watch.run(told.append))
    try:
        async with asyncio.timeout(60):
            await watch.known()
        assert told == [set()]
        assert "access" in (watch.problem or "")
        # Until somebody lets it
        rabbitmq.ctl("set_permissions", queue, ".*", ".*", ".*")
        set_paused(rabbitmq.url, queue=queue, target="fast", paused=True)
        await until(lambda: told[-1] == {"fast"})
        assert watch.problem is None
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        rabbitmq.ctl("delete_user", queue)
