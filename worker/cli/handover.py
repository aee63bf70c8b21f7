"""The way of a command's jobs: to the workers that run, or to a runner of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Set
from types import TracebackType

from worker.broker.inspect import look_at_lanes
from worker.broker.memory import MemoryLanes
from worker.cli import progress
from worker.cli.assembly import build_lanes
from worker.core.errors import Temporary
from worker.core.handler import Handler, Parts
from worker.core.job import Job
from worker.core.lanes import Lanes
from worker.engine.runner import Runner
from worker.observe.metrics import Metrics
from worker.settings import Settings

# Seconds that a command waits for another try of a job at the most
PATIENCE = 60.0
# Outcomes after which a job does not come back
SETTLED = frozenset({"done", "skip", "park"})


class Handover:
    """Takes jobs into the lanes of the settings, or with `local` works on them itself."""

    def __init__(
        self,
        settings: Settings,
        handlers: Mapping[str, Handler],
        *,
        metrics: Metrics,
        parts: Parts,
        local: bool,
    ) -> None:
        self._local = MemoryLanes() if local else None
        self._settings = settings
        self._given: set[str] = set()
        self._lanes = self._local or build_lanes(settings)
        self._timeout = settings.api_timeout
        self._metrics = metrics
        self._runner = Runner(
            lanes=self._lanes,
            handlers=handlers,
            limits=settings.limits,
            backoff=settings.backoff,
            metrics=metrics,
            uses=parts.uses,
            deletions=parts.deletions,
            wishes=parts.wishes,
        )

    async def __aenter__(self) -> Handover:
        if self._local:
            await self._local.open(self._runner.queue.prefetch, self._runner.queue.deliver)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if self._local and kind is not None:
            await self._runner.drain()
        await self._lanes.close()

    async def submit(self, jobs: Iterable[Job]) -> None:
        """Put jobs into their lanes, unless a lane is not configured; Temporary if nobody takes
        them."""
        known = self._runner.queue.lanes
        wanted = [job for job in jobs if job.key.lane in known]
        self._given |= {job.key.lane for job in wanted}
        await publish(self._lanes, wanted, within=None if self._local else self._timeout)

    @property
    def done(self) -> int:
        """Number of jobs that this command has done itself, or parked."""
        samples = (sample for metric in self._metrics.jobs.collect() for sample in metric.samples)
        return sum(
            int(one.value)
            for one in samples
            if one.labels["outcome"] in SETTLED and one.name.endswith("_total")
        )

    async def warnings(self) -> list[str]:
        """Return warnings about jobs that no worker takes now."""
        return [] if self._local else await asyncio.to_thread(unserved, self._settings, self._given)

    async def settled(self) -> None:
        """Return when all jobs are done, if that is this command's task; Temporary once those left
        keep failing."""
        if self._local is None:
            return
        calm = 0
        while calm < 2:
            # Twice in a row, as a job on its way from a lane to the runner is in neither for a
            # moment
            await asyncio.sleep(0.2)
            waiting = any(self._local.depths().get(lane) for lane in self._runner.queue.lanes)
            calm = (
                calm + 1
                if self._runner.queue.idle
                and not waiting
                and not self._runner.queue.due(within=PATIENCE)
                else 0
            )
        if failing := self._runner.queue.due() + len(self._local.dead_letters()):
            raise Temporary(f"{failing} jobs keep failing; the warnings above say why")


async def hand_over(
    settings: Settings,
    handlers: Mapping[str, Handler],
    jobs: Collection[Job],
    *,
    metrics: Metrics,
    parts: Parts,
) -> list[str]:
    """Have jobs done: by the workers that run, or here where jobs wait in memory. Return warnings
    about those that no worker takes now."""
    local = settings.in_memory
    async with Handover(settings, handlers, metrics=metrics, parts=parts, local=local) as handover:
        await handover.submit(jobs)
        async with progress.shown(lambda: handover.done, unit=" jobs", total=len(jobs)):
            await handover.settled()
        return await handover.warnings()


async def publish(lanes: Lanes, jobs: Iterable[Job], *, within: float | None) -> None:
    """Put jobs into their lanes; Temporary if the broker has not confirmed them `within` so many
    seconds."""
    try:
        async with asyncio.timeout(within):
            await lanes.publish(jobs)
    except TimeoutError as error:
        raise Temporary(f"the lanes' broker is away: {lanes.problem()}") from error


def unserved(settings: Settings, given: Set[str]) -> list[str]:
    """Return warnings about lanes with jobs that no worker serves now. Blocks."""
    try:
        depths = (
            look_at_lanes(settings.work_url, queue=settings.queue, lanes=sorted(given))
            if given
            else {}
        )
    except Temporary:
        # The jobs are on it all the same
        return []
    idle = [lane for lane, depth in depths.items() if lane in given and not depth.consumers]
    return (
        [f"no worker takes jobs of {', '.join(idle)} now: they wait on the broker for one"]
        if idle
        else []
    )
