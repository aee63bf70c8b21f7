"""The daemon: starts everything, and ends it in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Set
from dataclasses import replace
from functools import partial

import structlog

from worker.broker.link import hung
from worker.cli.assembly import (
    build_clouds,
    build_handlers,
    build_intakes,
    build_lanes,
    build_parts,
    build_pauses,
    build_replicas,
)
from worker.cli.cloud_watch import CloudWatch
from worker.cli.comparisons import CENSUS, START, Comparisons
from worker.cli.page_source import PageSource
from worker.cli.preflight import not_bound
from worker.core.handler import Targeted
from worker.core.job import Key
from worker.engine.creations import find_ways
from worker.engine.dispatcher import Dispatcher
from worker.engine.router import Router
from worker.engine.runner import Runner
from worker.engine.tasks import Tasks, after
from worker.observe.creations import Creations
from worker.observe.http import Page, Probes
from worker.observe.metrics import Metrics
from worker.observe.systemd import READY, WATCHDOG, extend, notify, status
from worker.settings import Settings

log = structlog.get_logger(__name__)

TICK = 1.0
"""Seconds between two looks at depths."""
COUNT = 15.0
"""Seconds between two counts of images by state, at least."""
COUNT_SHARE = 50
"""Counts may take a fiftieth of the time."""
STUCK = 30.0
"""Seconds for which the loop has not turned when we call it hung."""
PATIENCE = 15.0
"""Seconds that we ask systemd for, again at each look, while jobs in progress end."""


class Daemon:
    """One running worker."""

    def __init__(
        self,
        *,
        settings: Settings,
        metrics: Metrics,
        census_every: float = CENSUS,
        refused: str = "",
    ) -> None:
        """`refused`: why the last reload was refused, which systemd shows."""
        self._settings = settings
        self._refused = refused
        self._metrics = metrics
        self._clouds = build_clouds(settings, metrics)
        parts = replace(build_parts(settings, self._clouds, metrics), keeps_order=True)
        self._handlers = build_handlers(settings, parts)
        self._lanes = build_lanes(settings)
        self._intakes = build_intakes(settings)
        self._pause_watch = build_pauses(settings)
        self._wishes = parts.wishes
        self._creations = Creations(metrics=metrics, uses=parts.uses)
        self._runner = Runner(
            lanes=self._lanes,
            handlers=self._handlers,
            limits=settings.limits,
            backoff=settings.backoff,
            metrics=metrics,
            uses=parts.uses,
            deletions=parts.deletions,
            wishes=parts.wishes,
        )
        self._queue = self._runner.queue
        self._tasks = Tasks(metrics=metrics)
        self._comparisons = Comparisons(
            cloud=self._clouds.common,
            handlers=self._handlers,
            lanes=self._lanes,
            settings=settings,
            metrics=metrics,
            census_every=census_every,
        )
        self._watch = CloudWatch(
            cloud=self._clouds.common,
            settings=settings,
            metrics=metrics,
            uses=parts.uses,
            want_resync=self._comparisons.want,
        )
        self._page = PageSource(
            settings=settings,
            activity=metrics.activity,
            targeted=[one for one in self._handlers.values() if isinstance(one, Targeted)],
            queue=self._queue,
            lanes=self._lanes,
            watch=self._watch,
            uses=parts.uses,
            wishes=parts.wishes,
        )
        self._replicas = build_replicas(settings, self._page.part)
        if self._replicas:
            self._page.others = self._replicas.others
        self._lanes_opened = asyncio.Event()
        self._ticked = time.monotonic()
        self._draining = False
        self._told = ""
        metrics.begin((target.name for target in settings.targets), settings.lanes)

    async def run(self, leave: asyncio.Event) -> None:
        """Work until `leave` is set, then drain. Misconfigured if the cloud is there and says that
        the configuration can't work."""
        probes = Probes(
            registry=self._metrics.registry,
            sick=self._sick,
            unready=self._unready,
            page=Page(
                status=self._page.status,
                images=self._page.images,
                image=self._page.image,
                volume=self._creations.document,
            ),
            hidden=not self._settings.page,
        )
        # From the beginning to the end: a cloud that does not answer, and jobs that take long to
        # end, are no loop that hangs
        ticking = self._tasks.begin("tick", self._tick)
        measuring = self._tasks.begin("measure", self._measure)
        try:
            if self._settings.bind:
                try:
                    # Not on the event loop: it may look up a name
                    await asyncio.to_thread(probes.start, *self._settings.bind)
                except OSError as error:
                    raise not_bound(self._settings.bind, error) from error
            await self._watch.first_look(leave)
            if not leave.is_set():
                await self._work(leave, ticking)
        finally:
            ticking.cancel()
            measuring.cancel()
            await asyncio.gather(ticking, measuring, return_exceptions=True)
            await asyncio.to_thread(probes.stop)
            self._clouds.close()
            log.info("stopped")

    async def _work(self, leave: asyncio.Event, ticking: asyncio.Task[None]) -> None:
        router = Router(
            handlers=self._handlers.values(), metrics=self._metrics, creations=self._creations
        )
        dispatcher = Dispatcher(
            router=router, queue=self._queue, lanes=self._lanes, on_gap=self._comparisons.want
        )
        if self._settings.resync_on_start:
            self._comparisons.want(START)
        seen, opened = self._watch.seen_once, self._lanes_opened
        # Until the cloud has answered, notifications would only pile up as jobs in the lanes, and a
        # worker that can't log in would park all jobs. The comparison that follows each opening of
        # an intake finds what we missed
        intakes = [
            self._tasks.begin(f"intake-{number}", after(seen, partial(intake.run, dispatcher)))
            for number, intake in enumerate(self._intakes)
        ]
        others = [
            self._tasks.begin("cloud", self._watch.keep_looking),
            self._tasks.begin("lanes", after(seen, self._serve)),
            self._tasks.begin("resync", after(opened, partial(self._comparisons.run, dispatcher))),
            self._tasks.begin("census", after(seen, self._comparisons.keep_census)),
            self._tasks.begin(
                "creations", after(seen, partial(find_ways, self._creations, self._page.targeted))
            ),
        ]
        if self._pause_watch:
            watching = after(seen, partial(self._pause_watch.run, self._pause))
            others.append(self._tasks.begin("pauses", watching))
        # Until the last job has ended: the others show it
        telling = (
            [self._tasks.begin("replicas", after(seen, self._replicas.run))]
            if self._replicas
            else []
        )
        stop = asyncio.create_task(leave.wait())
        log.info(
            "started",
            targets=[target.name for target in self._settings.targets],
            lanes=list(self._queue.lanes),
        )
        try:
            # A task that fails begins again; one that ends has found a configuration that can't
            # work
            done, _ = await asyncio.wait(
                [stop, ticking, *intakes, *others, *telling], return_when=asyncio.FIRST_COMPLETED
            )
            for task in done - {stop}:
                task.result()
        finally:
            self._draining = True
            log.info("draining", in_progress=self._queue.in_progress)
            for tasks in (intakes, [*others, stop]):
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await dispatcher.close()
            await self._runner.drain()
            await self._lanes.close()
            for task in telling:
                task.cancel()
            await asyncio.gather(*telling, return_exceptions=True)

    async def _serve(self) -> None:
        """Take jobs, once it is known which targets are paused."""
        if self._pause_watch:
            # It asks the broker of the lanes: without that no job would come either
            await self._pause_watch.known()
        await self._lanes.open(self._queue.prefetch, self._queue.deliver, self._queue.lose)
        self._lanes_opened.set()
        await asyncio.get_running_loop().create_future()

    def _pause(self, paused: Set[str]) -> None:
        """Begin no jobs on these targets, and on all others again."""
        before, self._wishes.paused = self._wishes.paused, paused
        for target in self._settings.targets:
            self._metrics.target_paused.labels(target.name).set(target.name in paused)
        for name in sorted(paused - before):
            log.warning("target_paused", target=name)
        for name in sorted(before - paused):
            log.info("target_resumed", target=name)
        self._queue.pause({Key("prewarm", "", name).lane for name in paused})

    async def _tick(self) -> None:
        """Note every second that the loop turns."""
        while True:
            self._ticked = time.monotonic()
            self._tell_systemd()
            self._queue.tidy()
            await asyncio.sleep(TICK)

    async def _measure(self) -> None:
        """Take over depths every second, and count images by state now and then.

        What looks at all jobs does so on a thread, because the loop has others to serve.
        """
        count_at = time.monotonic() + COUNT
        while True:
            await asyncio.to_thread(self._count_jobs, self._lanes.depths())
            self._comparisons.want_for_free_lanes()
            if (began := time.monotonic()) > count_at:
                await asyncio.to_thread(self._metrics.states)
                count_at = time.monotonic() + max(COUNT, COUNT_SHARE * (time.monotonic() - began))
            await asyncio.sleep(TICK)

    def _count_jobs(self, depths: Mapping[str, int]) -> None:
        self._metrics.depths(depths, self._queue.waiting())

    def _tell_systemd(self) -> None:
        """Tell systemd whether all loops turn, and what is missing."""
        if not hung():
            notify(WATCHDOG)
        problems = self._unready()
        self._metrics.ready.set(not problems)
        if self._draining:
            # For as long as [work] drain_timeout allows; whoever has ended us tells the status
            notify(extend(PATIENCE))
            return
        parts = [f"{part}: {problem}" for part, problem in problems.items()] or ["ready"]
        told = status("; ".join([*parts, self._refused] if self._refused else parts))
        if told != self._told:
            self._told = told
            notify(told if problems else f"{READY}\n{told}")

    def _sick(self) -> Mapping[str, str]:
        late = time.monotonic() - self._ticked
        return hung() | ({"loop": f"has not turned for {late:.0f} s"} if late > STUCK else {})

    def _unready(self) -> Mapping[str, str]:
        problems = {**self._tasks.problems(), **self._sick(), **self._watch.problems()}
        if self._watch.seen_once.is_set():
            # Until then these wait for the cloud
            for number, intake in enumerate(self._intakes):
                if problem := intake.problem():
                    problems[f"intake-{number}"] = problem
            if problem := self._lanes.problem():
                problems["lanes"] = problem
            if self._pause_watch and (problem := self._pause_watch.problem):
                problems["pauses"] = problem
        return problems
