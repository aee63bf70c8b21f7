"""The dispatcher: wakes jobs whose keys are here already, and puts the others into their lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import structlog

from worker.core.dead_letter import DeadLetter
from worker.core.intake import Routed
from worker.core.job import Job
from worker.core.lanes import Lanes
from worker.engine.queue import Queue
from worker.engine.router import Router

log = structlog.get_logger(__name__)


class Dispatcher:
    """`worker.core.intake.Sink` of every intake. It calls `on_gap` on the event loop when
    notifications may have been missed."""

    def __init__(
        self, *, router: Router, queue: Queue, lanes: Lanes, on_gap: Callable[[str], None]
    ) -> None:
        self._router = router
        self._queue = queue
        self._lanes = lanes
        self._on_gap = on_gap
        self._loop = asyncio.get_running_loop()

    def route(self, body: bytes, compression: str = "") -> Routed:
        """See `Sink`."""
        return self._router.route(body, compression)

    async def accept(self, routed: Sequence[Routed]) -> None:
        """See `Sink`."""
        await self.submit(job for one in routed for job in one.jobs)
        letters: list[DeadLetter] = [one.letter for one in routed if one.letter]
        for letter in letters:
            log.error("message_unreadable", reason=letter.reason)
        if letters:
            await self._lanes.bury(letters)

    async def submit(self, jobs: Iterable[Job]) -> None:
        """Have these jobs done: at once if their key is here already, else through their lanes."""
        known = self._queue.lanes
        # Two uses are counted as two, and a deletion is not lost in a comparison that found the
        # same
        distinct = {
            (job.key, job.used, job.deleted, job.deleted_volume): job
            for job in jobs
            if job.key.lane in known
        }
        if new := [job for job in distinct.values() if not self._queue.poke(job)]:
            await self._lanes.publish(new)

    def gap(self, reason: str) -> None:
        """See `Sink`."""
        self._loop.call_soon_threadsafe(self._on_gap, reason)
