"""Settling: what becomes of a job after a try."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import assert_never

import structlog

from worker.core.dead_letter import DeadLetter
from worker.core.errors import Temporary
from worker.core.job import NOTIFIED, RESYNC, Job
from worker.core.outcome import Again, Done, Outcome, Park, Skip
from worker.engine.entry import Entry
from worker.engine.limits import Limits
from worker.engine.queue import Queue
from worker.engine.retry import Backoff
from worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)


class Settler:
    """Writes outcomes down where they survive: a job again in its lane, a dead letter, or nothing
    more."""

    def __init__(self, *, queue: Queue, limits: Limits, backoff: Backoff, metrics: Metrics) -> None:
        self._queue = queue
        self._limits = limits
        self._backoff = backoff
        self._metrics = metrics
        self._activity = metrics.activity

    async def settle(
        self, entry: Entry, outcome: Outcome, *, look_again: float | None = None
    ) -> None:
        """Tell the lane the outcome, then ack.

        With `look_again` the key is looked at once more in so many seconds, after any outcome.
        """
        with self._queue.settling(entry):
            await self._write_down(entry.job, outcome, look_again=look_again)

    async def _write_down(self, job: Job, outcome: Outcome, *, look_again: float | None) -> None:
        if look_again is not None:
            if isinstance(outcome, Again):
                outcome = replace(outcome, after=look_again, counted=False)
            else:
                # What a person has asked for is done
                following = replace(
                    job,
                    cause=NOTIFIED if job.is_urgent else job.cause,
                    attempt=0,
                    first_at=time.time(),
                    reason="notified again",
                    wish="",
                    wish_id="",
                )
                await self._again(following, look_again, wake_on_notification=False, quietly=True)
        match outcome:
            case Done(detail, changed, warmed):
                (log.info if changed else log.debug)("job_done", detail=detail, changed=changed)
                if warmed:
                    self._metrics.images_warmed.labels(job.key.target).inc()
                if warmed and job.cause != RESYNC:
                    seconds = time.time() - job.first_at
                    self._metrics.time_to_warm.labels(job.key.target).observe(seconds)
                    self._activity.warmed(job.key, seconds)
                self._activity.settled(job, outcome)
            case Skip(reason):
                log.info("job_skipped", reason=reason)
                self._activity.settled(job, outcome)
            case Again(reason, after, counted, wake):
                known = job.reason == reason
                job = (
                    job.failed(reason, now=time.time()) if counted else replace(job, reason=reason)
                )
                if job.attempt >= self._limits.max_attempts:
                    await self._park(job, reason, "")
                else:
                    after = self._backoff.after(job.attempt - 1) if after is None else after
                    self._activity.settled(
                        job, replace(outcome, after=after), due=time.time() + after
                    )
                    await self._again(
                        job, after, wake_on_notification=wake, quietly=known and not counted
                    )
            case Park(reason, trace):
                await self._park(job.failed(reason, now=time.time()), reason, trace)
            case never:
                assert_never(never)

    async def _again(
        self, job: Job, after: float, *, wake_on_notification: bool, quietly: bool
    ) -> None:
        # A wait that is no failure is worth a line when it begins, not each time it goes on
        level = log.debug if quietly else log.info if job.attempt == 0 else log.warning
        level("job_again", reason=job.reason, after=round(after, 1), attempt=job.attempt)
        await self._queue.add_after(job, after, wake_on_notification=wake_on_notification)

    async def _park(self, job: Job, reason: str, trace: str) -> None:
        log.error("job_parked", reason=reason, attempt=job.attempt, traceback=trace)
        now = time.time()
        until = now + self._limits.park_retry_after
        self._activity.settled(job, Park(reason, trace), due=until)
        letter = DeadLetter(lane=job.key.lane, reason=reason, last_at=now, job=job, traceback=trace)
        try:
            await self._queue.park(letter, key=job.key, until=until)
        except Temporary as error:
            if self._queue.closed:
                raise
            after = self._backoff.longest
            log.error("job_not_parked", why=str(error), after=after)
            self._activity.settled(job, Again(reason, after=after), due=time.time() + after)
            await self._queue.add_after(job, after, wake_on_notification=False)
