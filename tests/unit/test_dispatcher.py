"""The dispatcher: a lane that takes nothing holds up nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from structlog.testing import capture_logs

from worker.broker.memory import MemoryLanes
from worker.core.dead_letter import DeadLetter
from worker.core.deletions import Deletions
from worker.core.errors import Temporary
from worker.core.intake import Routed
from worker.core.job import Job, Key
from worker.core.outcome import Done, Outcome
from worker.core.uses import Uses
from worker.engine.dispatcher import Dispatcher
from worker.engine.limits import Limits
from worker.engine.retry import Backoff
from worker.engine.router import Router
from worker.engine.runner import Runner
from worker.observe.creations import Creations
from worker.observe.metrics import Metrics
from worker.testing.rig import Scripted, job


class Closable(MemoryLanes):
    """Lanes of which some take nothing for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: dict[str, asyncio.Event] = {}
        self.tried: list[str] = []
        self.buries = True
        self.away = False

    async def publish(self, jobs: Iterable[Job], *, after: float = 0.0) -> None:
        jobs = tuple(jobs)
        self.tried += [one.key.image_id for one in jobs]
        for lane in {one.key.lane for one in jobs} & self.closed.keys():
            await self.closed[lane].wait()
        await super().publish(jobs, after=after)

    def is_stuck(self, lane: str) -> bool:
        return lane in self.closed and not self.away

    async def bury(self, letters: Iterable[DeadLetter]) -> None:
        if not self.buries:
            raise Temporary("the queue q.dead takes no dead letters")
        await super().bury(letters)


class Two(Scripted):
    """A handler with a lane for each of two targets."""

    def lanes(self) -> dict[str, int]:
        return {"h.east": 2, "h.west": 2}


class Bed:
    def __init__(self, *, give_up: float = 0.05) -> None:
        self.lanes = Closable()
        self.gaps: list[str] = []
        self.done: list[Key] = []
        metrics = Metrics()
        handler = Two(self.work)
        uses = Uses()
        self.runner = Runner(
            lanes=self.lanes,
            handlers={"h": handler},
            limits=Limits(),
            backoff=Backoff(),
            metrics=metrics,
            uses=uses,
            deletions=Deletions(),
        )
        self.dispatcher = Dispatcher(
            router=Router(
                handlers=[handler],
                metrics=metrics,
                creations=Creations(metrics=metrics, uses=uses),
            ),
            queue=self.runner.queue,
            lanes=self.lanes,
            on_gap=self.gaps.append,
            give_up=give_up,
        )

    async def work(self, key: Key, _: object) -> Outcome:
        self.done.append(key)
        return Done()

    async def open(self) -> None:
        await self.lanes.open(self.runner.queue.prefetch, self.runner.queue.deliver)

    async def accept(self, image_id: str) -> None:
        jobs = tuple(job(Key("h", image_id, target)) for target in ("east", "west"))
        await self.dispatcher.accept([Routed(jobs=jobs)])


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not check():
            await asyncio.sleep(0.002)


async def test_the_jobs_of_other_lanes_are_done_while_one_takes_nothing() -> None:
    bed = Bed(give_up=30.0)
    await bed.open()
    bed.lanes.closed["h.west"] = asyncio.Event()
    accepting = [asyncio.create_task(bed.accept(f"{number}")) for number in range(3)]
    await until(lambda: len(bed.done) == 3)
    assert {key.target for key in bed.done} == {"east"}
    assert not any(task.done() for task in accepting), "a message is acked once all jobs are safe"
    bed.lanes.closed["h.west"].set()
    await asyncio.gather(*accepting)
    await until(lambda: len(bed.done) == 6)
    assert not bed.gaps


async def test_a_lane_that_takes_nothing_for_long_is_given_up_until_it_does() -> None:
    bed = Bed()
    await bed.open()
    bed.lanes.closed["h.west"] = asyncio.Event()
    with capture_logs() as logs:
        await bed.accept("first")
        await bed.accept("second")
    # One job finds out when it takes jobs again, and the others cost it nothing
    assert [line["lane"] for line in logs if line["event"] == "lane_given_up"] == ["h.west"]
    assert bed.lanes.tried.count("second") == 1
    await until(lambda: len(bed.done) == 2)
    assert {key.target for key in bed.done} == {"east"}
    bed.lanes.closed.pop("h.west").set()
    await until(lambda: bed.gaps)
    assert bed.gaps == ["the lane h.west takes jobs again"]
    await bed.accept("third")
    await until(lambda: Key("h", "third", "west") in bed.done)
    assert Key("h", "first", "west") in bed.done, "the one that found out"


async def test_a_broker_that_is_away_is_waited_for() -> None:
    bed = Bed(give_up=0.02)
    await bed.open()
    bed.lanes.away = True
    for lane in ("h.west", "h.east"):
        bed.lanes.closed[lane] = asyncio.Event()
    accepting = asyncio.create_task(bed.accept("first"))
    await asyncio.sleep(0.2)
    assert not accepting.done()
    for event in bed.lanes.closed.values():
        event.set()
    await accepting
    await until(lambda: len(bed.done) == 2)
    assert not bed.gaps


async def test_it_ends_though_a_lane_takes_nothing() -> None:
    bed = Bed()
    await bed.open()
    bed.lanes.closed["h.west"] = asyncio.Event()
    await bed.accept("first")
    async with asyncio.timeout(5):
        await bed.dispatcher.close()
    assert not bed.gaps


async def test_a_full_queue_of_dead_letters_stops_nothing_and_the_log_has_them() -> None:
    bed = Bed()
    await bed.open()
    bed.lanes.buries = False
    letter = DeadLetter(lane="intake", reason="not JSON", last_at=1.0, body=b"garbage")
    with capture_logs() as logs:
        await bed.dispatcher.accept(
            [Routed(letter=letter), Routed(jobs=(job(Key("h", "one", "east")),))]
        )
    await until(lambda: bed.done)
    (line,) = [line for line in logs if line["event"] == "dead_letter_dropped"]
    assert (line["reason"], line["body"]) == ("not JSON", b"garbage")
