"""The dispatcher: wakes jobs whose keys are here already, and puts the others into their lanes."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import structlog

from worker.core.dead_letter import DeadLetter
from worker.core.errors import Temporary
from worker.core.intake import Routed
from worker.core.job import Job
from worker.core.lanes import Lanes
from worker.engine.queue import Queue
from worker.engine.router import Router

log = structlog.get_logger(__name__)

GIVE_UP = 120.0
"""Seconds that a lane may take no job while it is given one. A broker whose nodes find each other
again is back by then; a queue without a leader, or one that a policy has closed, is not."""


class Dispatcher:
    """`worker.core.intake.Sink` of every intake. It calls `on_gap` on the event loop when
    notifications may have been missed.

    A lane that is stuck for `give_up` seconds holds up nobody from then on: its jobs are dropped,
    and once it takes one again a gap is reported, whose resync finds what they were about.
    """

    def __init__(
        self,
        *,
        router: Router,
        queue: Queue,
        lanes: Lanes,
        on_gap: Callable[[str], None],
        give_up: float = GIVE_UP,
    ) -> None:
        self._router = router
        self._queue = queue
        self._lanes = lanes
        self._on_gap = on_gap
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        # Lanes that were given up, and who finds out that they take jobs again
        self._probing: dict[str, asyncio.Task[None]] = {}

    def route(self, body: bytes, compression: str = "") -> Routed:
        return self._router.route(body, compression)

    async def accept(self, routed: Sequence[Routed]) -> None:
        letters: list[DeadLetter] = [one.letter for one in routed if one.letter]
        for letter in letters:
            log.error("message_unreadable", reason=letter.reason)
        submitting = self.submit(job for one in routed for job in one.jobs)
        await (asyncio.gather(submitting, self._bury(letters)) if letters else submitting)

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
        new: defaultdict[str, list[Job]] = defaultdict(list)
        for job in distinct.values():
            if not self._queue.poke(job):
                new[job.key.lane].append(job)
        await asyncio.gather(*(self._publish(lane, some) for lane, some in new.items()))

    def gap(self, reason: str) -> None:
        self._loop.call_soon_threadsafe(self._on_gap, reason)

    async def close(self) -> None:
        """Wait for no lane any more."""
        probing = tuple(self._probing.values())
        for task in probing:
            task.cancel()
        await asyncio.gather(*probing, return_exceptions=True)

    async def _publish(self, lane: str, jobs: list[Job]) -> None:
        """Put the jobs into their lane, unless it is given up."""
        if lane in self._probing:
            return
        patience = asyncio.timeout(None)
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            if self._lanes.is_stuck(lane):
                patience.reschedule(self._loop.time())
            else:
                # A broker that is away is waited for: what comes in is safe where it is
                timer = self._loop.call_later(self._give_up, look)

        timer = self._loop.call_later(self._give_up, look)
        try:
            async with patience:
                await self._lanes.publish(jobs)
        except TimeoutError:
            if lane not in self._probing:
                log.error("lane_given_up", lane=lane, seconds=self._give_up, jobs=len(jobs))
                self._probing[lane] = asyncio.create_task(
                    self._probe(lane, jobs[-1]), name=f"probe of {lane}"
                )
        finally:
            timer.cancel()

    async def _probe(self, lane: str, job: Job) -> None:
        """Give the lane one job, however long that takes; then it takes the others again."""
        try:
            await self._lanes.publish([job])
        except Temporary:
            # The lanes were closed
            return
        finally:
            del self._probing[lane]
        log.info("lane_takes_jobs_again", lane=lane)
        self._on_gap(f"the lane {lane} takes jobs again")

    async def _bury(self, letters: list[DeadLetter]) -> None:
        try:
            await self._lanes.bury(letters)
        except Temporary as error:
            # Nothing else would come in any more. What can be said of the messages is in the log
            for letter in letters:
                log.error(
                    "dead_letter_dropped", why=str(error), reason=letter.reason, body=letter.body
                )
