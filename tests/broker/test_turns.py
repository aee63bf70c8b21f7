"""Projects take turns in a lane on RabbitMQ, however long the queue before them is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.broker.hands import until
from tests.broker.rabbitmq import RabbitMQ
from worker.broker.consumer import COUNT_EVERY
from worker.broker.lanes import RabbitLanes
from worker.core.deletions import Deletions
from worker.core.handler import Missing, Watch
from worker.core.job import Key
from worker.core.lanes import Delivery
from worker.core.outcome import Done, Outcome
from worker.core.uses import Uses
from worker.engine.dispatcher import Dispatcher
from worker.engine.limits import Limits
from worker.engine.resync import enqueue
from worker.engine.retry import Backoff
from worker.engine.router import Router
from worker.engine.runner import Runner
from worker.observe.creations import Creations
from worker.observe.metrics import Metrics
from worker.testing.rig import Scripted, job


@pytest.mark.parametrize("projects", [1, 6, 30])
async def test_a_thousand_images_of_others_do_not_starve_a_project(
    rabbitmq: RabbitMQ, projects: int
) -> None:
    async def work(key: Key, watch: Watch) -> Outcome:
        # Slow until the other's turn has come: the lane takes a while to read what waits behind
        await asyncio.sleep(0.0 if other in handler.tries else 0.3)
        return Done()

    other = Key("h", "other")
    handler, lanes = Scripted(work, width=4), RabbitLanes(url=rabbitmq.url, queue="turns")
    limits, metrics = Limits(drain=1.0), Metrics()
    runner = Runner(
        lanes=lanes,
        handlers={"h": handler},
        limits=limits,
        backoff=Backoff(),
        metrics=metrics,
        uses=Uses(),
        deletions=Deletions(),
    )
    burst = [Key("h", f"burst-{number}") for number in range(1000)]
    try:
        await lanes.publish(
            job(key, project=f"a{number % projects}") for number, key in enumerate(burst)
        )
        await lanes.publish([job(other, project="b")])
        await lanes.open(runner.queue.prefetch, runner.queue.deliver)
        await until(lambda: other in handler.tries)
        # As the queue has it, a thousand come first
        assert handler.tries.index(other) < 500
        await until(lambda: {*handler.tries} == {*burst, other} and runner.queue.idle)
        assert len(handler.tries) == 1001
    finally:
        await runner.drain()
        await lanes.close()
        rabbitmq.delete("turns.h", "turns.dead")


async def test_what_is_heard_again_and_again_does_not_pile_up(rabbitmq: RabbitMQ) -> None:
    free = asyncio.Event()

    async def work(key: Key, watch: Watch) -> Outcome:
        await free.wait()
        return Done()

    handler, lanes = Scripted(work, width=1), RabbitLanes(url=rabbitmq.url, queue="again")
    runner = Runner(
        lanes=lanes, handlers={"h": handler}, limits=Limits(drain=1.0), backoff=Backoff(), metrics=Metrics(),
        uses=Uses(), deletions=Deletions(),
    )  # fmt: skip
    router = Router(
        handlers=[handler], metrics=Metrics(), creations=Creations(metrics=Metrics(), uses=Uses())
    )
    dispatcher = Dispatcher(router=router, queue=runner.queue, lanes=lanes, on_gap=lambda _: None)
    keys = [Key("h", str(number)) for number in range(200)]
    try:
        await lanes.open(runner.queue.prefetch, runner.queue.deliver)
        await until(lambda: lanes.problem() is None)
        await dispatcher.submit([job(keys[0])])
        await until(lambda: handler.tries)
        for _ in range(50):
            await dispatcher.submit(job(key) for key in keys)
        # 10,000 of 200 keys, as of images that change while the backend is slow
        await until(lambda: 0 < lanes.depths().get("h", 0) < len(keys))
        await asyncio.sleep(2 * COUNT_EVERY)
        assert lanes.depths()["h"] < len(keys)
        free.set()
        await until(lambda: {*handler.tries} == {*keys} and runner.queue.idle)
    finally:
        free.set()
        await runner.drain()
        await lanes.close()
        rabbitmq.delete("again.h", "again.dead")


async def test_what_waits_for_a_slot_goes_back_and_what_joins_takes_no_room(
    rabbitmq: RabbitMQ,
) -> None:
    free = asyncio.Event()
    handed_out: list[Key] = []

    async def work(key: Key, watch: Watch) -> Outcome:
        await free.wait()
        return Done()

    handler, lanes = Scripted(work, width=1), RabbitLanes(url=rabbitmq.url, queue="back")
    runner = Runner(
        lanes=lanes, handlers={"h": handler}, limits=Limits(hold=0.6, drain=1.0), backoff=Backoff(), metrics=Metrics(),
        uses=Uses(), deletions=Deletions(),
    )  # fmt: skip

    def deliver(delivery: Delivery) -> None:
        handed_out.append(delivery.job.key)
        runner.queue.deliver(delivery)

    first, *others = keys = [Key("h", str(number)) for number in range(5)]
    try:
        await lanes.open(runner.queue.prefetch, deliver)
        await lanes.publish(job(key) for key in keys)
        await until(lambda: len(handed_out) == 5)
        await asyncio.sleep(0.3)
        runner.queue.tidy()
        # Published anew, the old ones let go: all that waited come again, and none of them twice
        await until(lambda: len(handed_out) == 9)
        assert sorted(handed_out[5:]) == others
        # More copies of what is in progress than are handed out at once, and behind them another
        # key
        last = Key("h", "last")
        await lanes.publish([*(job(first) for _ in range(60)), job(last)])
        await until(lambda: last in handed_out)
        free.set()
        await until(lambda: {*handler.tries} == {*keys, last} and runner.queue.idle)
        await until(lambda: not lanes.depths().get("h"))
        assert sorted(handler.tries) == sorted([first, *keys, last])
    finally:
        free.set()
        await runner.drain()
        await lanes.close()
        rabbitmq.delete("back.h", "back.dead")


async def test_a_lane_that_went_to_another_replica_is_worked_on_by_that_one_alone(
    rabbitmq: RabbitMQ,
) -> None:
    steps: list[tuple[str, str]] = []
    stop = asyncio.Event()

    def replica(name: str) -> tuple[RabbitLanes, Runner]:
        async def work(key: Key, watch: Watch) -> Outcome:
            while not stop.is_set():
                watch.tell("a write")
                steps.append((name, key.image_id))
                await asyncio.sleep(0.02)
            return Done()

        lanes = RabbitLanes(url=rabbitmq.url, queue="fence", name=name)
        runner = Runner(
            lanes=lanes, handlers={"h": Scripted(work, width=4)}, limits=Limits(drain=1.0), backoff=Backoff(),
            metrics=Metrics(), uses=Uses(), deletions=Deletions(),
        )  # fmt: skip
        return lanes, runner

    def connection_of(name: str) -> str:
        rows = rabbitmq.ctl("list_connections", "pid", "client_properties").splitlines()
        return next(row.split("\t")[0] for row in rows if f'"{name} lanes"' in row)

    replicas = {name: replica(name) for name in ("one", "other")}
    keys = {str(number) for number in range(4)}
    try:
        for lanes, runner in replicas.values():
            await lanes.open(runner.queue.prefetch, runner.queue.deliver, runner.queue.lose)
            await until(lambda lanes=lanes: lanes.problem() is None)
        await replicas["one"][0].publish(job(Key("h", number)) for number in sorted(keys))
        await until(lambda: {key for _, key in steps} == keys)
        (active,) = {name for name, _ in steps}
        (waiting,) = replicas.keys() - {active}
        await asyncio.to_thread(
            rabbitmq.ctl, "close_connection", connection_of(active), "the test says so"
        )
        await until(lambda: {key for name, key in steps if name == waiting} == keys)
        await until(lambda: replicas[active][1].queue.idle)
        steps.clear()
        await until(lambda: len(steps) > 50)
        assert {name for name, _ in steps} == {waiting}
        stop.set()
        await until(lambda: all(runner.queue.idle for _, runner in replicas.values()))
        await until(lambda: rabbitmq.depth("fence.h") == 0)
    finally:
        stop.set()
        for lanes, runner in replicas.values():
            await runner.drain()
            await lanes.close()
        rabbitmq.delete("fence.h", "fence.dead", "fence.stray")


async def test_a_backlog_is_not_put_into_its_lane_again(rabbitmq: RabbitMQ) -> None:
    """However many replicas compare, and however often, while the backend stands still."""
    free = asyncio.Event()

    async def work(key: Key, watch: Watch) -> Outcome:
        await free.wait()
        return Done()

    def replica() -> tuple[RabbitLanes, Runner, Dispatcher]:
        handler, lanes = Scripted(work, width=1), RabbitLanes(url=rabbitmq.url, queue="backlog")
        runner = Runner(
            lanes=lanes, handlers={"h": handler}, limits=Limits(drain=1.0), backoff=Backoff(), metrics=Metrics(),
            uses=Uses(), deletions=Deletions(),
        )  # fmt: skip
        router = Router(
            handlers=[handler],
            metrics=Metrics(),
            creations=Creations(metrics=Metrics(), uses=Uses()),
        )
        return (
            lanes,
            runner,
            Dispatcher(router=router, queue=runner.queue, lanes=lanes, on_gap=lambda _: None),
        )

    async def missing() -> AsyncIterator[Missing]:
        for number in range(500):
            yield Missing(Key("h", str(number)), "not there")

    replicas = [replica() for _ in range(3)]
    try:
        for lanes, runner, _ in replicas:
            await lanes.open(runner.queue.prefetch, runner.queue.deliver)
            await until(lambda lanes=lanes: lanes.problem() is None)
        for number in range(3):
            for lanes, _, dispatcher in replicas:
                found, left = await enqueue(missing(), submit=dispatcher.submit, knows=lanes.knows)
                assert found == 500
                await until(lambda: all(lanes.depths().get("h") for lanes, *_ in replicas))
            assert rabbitmq.depth("backlog.h") <= 500, number
        # One that starts now finds a backlog that it knows nothing of
        late = replica()
        replicas.append(late)
        await late[0].open(late[1].queue.prefetch, late[1].queue.deliver)
        await until(lambda: late[0].depths().get("h"))
        _, left = await enqueue(missing(), submit=late[2].submit, knows=late[0].knows)
        assert left == {"h": 500}
        free.set()
        await until(lambda: late[0].knows("h"))
    finally:
        free.set()
        for lanes, runner, _ in replicas:
            await runner.drain()
            await lanes.close()
        rabbitmq.delete("backlog.h", "backlog.dead", "backlog.stray")
