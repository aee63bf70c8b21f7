"""Projects take turns in a lane on RabbitMQ, however long the queue before them is."""

from __future__ import annotations

import asyncio

import pytest

from tests.broker.hands import until
from tests.broker.rabbitmq import RabbitMQ
from tests.rig import Scripted, job
from worker.handler import Watch
from worker.job import Key
from worker.lanes.rabbit import RabbitLanes
from worker.metrics import Metrics
from worker.outcome import Done, Outcome
from worker.retry import Backoff
from worker.runner import Limits, Runner
from worker.uses import Uses


@pytest.mark.parametrize("projects", [1, 6, 30])
async def test_a_thousand_images_of_others_do_not_starve_a_project(rabbitmq: RabbitMQ, projects: int) -> None:
    async def work(key: Key, watch: Watch) -> Outcome:
        await asyncio.sleep(0.05)
        return Done()

    handler, lanes = Scripted(work, width=4), RabbitLanes(url=rabbitmq.url, queue="turns")
    limits, metrics = Limits(drain=1.0), Metrics()
    runner = Runner(
        lanes=lanes, handlers={"h": handler}, limits=limits, backoff=Backoff(), metrics=metrics, uses=Uses()
    )
    burst = [Key("h", f"burst-{number}") for number in range(1000)]
    other = Key("h", "other")
    try:
        await lanes.publish(job(key, project=f"a{number % projects}") for number, key in enumerate(burst))
        await lanes.publish([job(other, project="b")])
        await lanes.open(runner.prefetch, runner.deliver)
        await until(lambda: other in handler.tries)
        # As the queue has it, a thousand come first
        assert handler.tries.index(other) < 500
        await until(lambda: {*handler.tries} == {*burst, other} and runner.idle)
        assert len(handler.tries) == 1001
    finally:
        await runner.drain()
        await lanes.close()
        rabbitmq.delete("turns.h", "turns.dead")
