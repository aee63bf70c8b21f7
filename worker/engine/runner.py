"""The runner: tries jobs, as many at once as a lane allows, and settles their outcomes."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

import structlog
from structlog.contextvars import bound_contextvars

from worker.core import request_id
from worker.core.dead_letter import DeadLetter
from worker.core.deletions import Deletions
from worker.core.errors import Blocked, Malformed, Misconfigured, NotFound, Temporary
from worker.core.handler import Handler
from worker.core.job import NOTIFIED, RESYNC, Job
from worker.core.lanes import Lanes
from worker.core.outcome import Again, Done, Outcome, Park, Skip
from worker.core.uses import Uses
from worker.core.wishes import Wishes
from worker.engine.entry import Entry
from worker.engine.limits import Limits
from worker.engine.queue import Queue
from worker.engine.retry import Backoff
from worker.engine.watch import EntryWatch, Held
from worker.observe import tracing
from worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)


OUTCOMES = ("done", "skip", "again", "wait", "park")
"""As they are counted: `wait` is an `Again` that is no failure."""


class Runner:
    """Has handlers reconcile the keys of its `queue`, and settles."""

    def __init__(
        self,
        *,
        lanes: Lanes,
        handlers: Mapping[str, Handler],
        limits: Limits,
        backoff: Backoff,
        metrics: Metrics,
        uses: Uses,
        deletions: Deletions,
        wishes: Wishes | None = None,
    ) -> None:
        self._activity = metrics.activity
        self._handlers = handlers
        self._limits = limits
        self._backoff = backoff
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()
        self.queue = Queue(
            lanes=lanes,
            widths={lane: n for one in handlers.values() for lane, n in one.lanes().items()},
            ready=self._start,
            patience=limits.hold / 3,
            metrics=metrics,
            uses=uses,
            deletions=deletions,
            wishes=wishes or Wishes(),
        )
        for handler in handlers.values():
            for lane in handler.lanes():
                # From the beginning, or nobody sees the first of them happen
                target = lane.partition(".")[2]
                for outcome in OUTCOMES:
                    metrics.jobs.labels(handler.name, target, outcome)
                if target:
                    metrics.images_warmed.labels(target)

    async def drain(self) -> None:
        """Start nothing more; give jobs in progress their time to end. Those that have not ended
        stay in their lane."""
        if pending := self._tasks | self.queue.close():
            _, late = await asyncio.wait(pending, timeout=self._limits.drain)
            for task in late:
                task.cancel()
            if late:
                log.warning("drain_timed_out", jobs=len(late))
                await asyncio.wait(late)

    def _start(self, lane: str) -> None:
        while entry := self.queue.begin(lane):
            task = asyncio.create_task(self._work(entry), name=f"job {entry.job.key}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self, entry: Entry) -> None:
        key = entry.job.key
        self._activity.began(entry.job)
        try:
            told = {
                "handler": key.handler,
                "image_id": key.image_id,
                "target": key.target,
                "cause": entry.job.cause,
                "request_id": request_id.new(),
            }
            name = f"job {key.handler}"
            with (
                bound_contextvars(**told),
                tracing.span(name, told, parent=entry.job.trace),
            ):
                tracing.note("attempt", entry.job.attempt)
                await self._guarded(entry)
        finally:
            self.queue.end(entry)

    async def _guarded(self, entry: Entry) -> None:
        """Work on a key. No fault of its job or its outcome holds up another one."""
        try:
            await self._work_until_quiet(entry)
        except Temporary:
            # The lanes were closed: the deliveries, which nobody has acked, are theirs again
            log.debug("job_given_back")
        except Exception as error:
            log.exception("outcome_not_written")
            with contextlib.suppress(Temporary):
                await self._settle(
                    entry, Park(f"{type(error).__name__}: {error}", traceback.format_exc())
                )

    async def _work_until_quiet(self, entry: Entry) -> None:
        """Try. If the key was notified meanwhile, try once more; then settle."""
        changed = warmed = again = False
        key, until = entry.job.key, time.monotonic() + self._limits.hold
        while True:
            entry.look()
            job, began = entry.job, time.monotonic()
            outcome = await self._try(entry, until)
            if entry.lost:
                # Whoever has the key now settles it
                self._activity.put_back(key)
                log.info("job_lost", reason="the broker hands the lane out anew")
                return
            self._metrics.job_seconds.labels(key.handler, key.target).observe(
                time.monotonic() - began
            )
            self._metrics.jobs.labels(key.handler, key.target, _counted_as(outcome)).inc()
            tracing.note("outcome", _counted_as(outcome))
            if isinstance(outcome, Done):
                changed, warmed = changed or outcome.changed, warmed or outcome.warmed
                outcome = replace(outcome, changed=changed, warmed=warmed)
            if entry.job is not job and not self.queue.closed:
                # A person has asked for it meanwhile: this try has not looked at that
                continue
            over = (
                not outcome.wake_on_notification
                if isinstance(outcome, Again)
                else isinstance(outcome, Park)
            )
            if over or not entry.notified:
                break
            if again or self.queue.closed:
                # An image that changes all the time must not keep a slot for it
                await self._settle(
                    entry,
                    outcome,
                    look_again=0.0 if self.queue.closed else self._limits.poll_min,
                )
                return
            # The first time it was most likely the job's own work: not worth a trip through the
            # lane
            again = True
        await self._settle(entry, outcome)

    async def _try(self, entry: Entry, until: float) -> Outcome:
        """Try once, with waits `until` then at most; every error becomes an outcome here."""
        job = entry.job
        watch = EntryWatch(
            entry=entry,
            queue=self.queue,
            limits=self._limits,
            activity=self._activity,
            until=until,
        )
        try:
            async with asyncio.timeout(self._limits.job):
                outcome: object = await self._handlers[job.key.handler].reconcile(job.key, watch)
            if not isinstance(outcome, Outcome):
                return Park(f"handler {job.key.handler} answered {outcome!r}, which is no outcome")
            return outcome
        except Held:
            return Again("held for long enough, or leaving", after=0.0, counted=False)
        except Temporary as error:
            # A service may ask for more patience, not for less: some answer Retry-After: 0 for an
            # hour
            asked = (
                None if error.after is None else max(error.after, self._backoff.after(job.attempt))
            )
            return Again(str(error), after=asked)
        except NotFound as error:
            return Again(f"gone while it was looked at: {error}")
        except (Blocked, Misconfigured) as error:
            return Again(str(error), after=self._backoff.longest)
        except TimeoutError:
            return Again(f"took longer than {self._limits.job:g} s")
        except Malformed as error:
            return Park(f"an answer of the cloud makes no sense: {error}", traceback.format_exc())
        except Exception as error:
            # The root of a job's task: a bug in a handler must not end the daemon, nor be silent
            return Park(f"{type(error).__name__}: {error}", traceback.format_exc())

    async def _settle(
        self, entry: Entry, outcome: Outcome, *, look_again: float | None = None
    ) -> None:
        """Tell the lane the outcome, then ack.

        With `look_again` the key is looked at once more in so many seconds, after any outcome.
        """
        with self.queue.settling(entry):
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
        await self.queue.add_after(job, after, wake_on_notification=wake_on_notification)

    async def _park(self, job: Job, reason: str, trace: str) -> None:
        log.error("job_parked", reason=reason, attempt=job.attempt, traceback=trace)
        now = time.time()
        until = now + self._limits.park_retry_after
        self._activity.settled(job, Park(reason, trace), due=until)
        letter = DeadLetter(lane=job.key.lane, reason=reason, last_at=now, job=job, traceback=trace)
        try:
            await self.queue.park(letter, key=job.key, until=until)
        except Temporary as error:
            if self.queue.closed:
                raise
            after = self._backoff.longest
            log.error("job_not_parked", why=str(error), after=after)
            self._activity.settled(job, Again(reason, after=after), due=time.time() + after)
            await self.queue.add_after(job, after, wake_on_notification=False)


def _counted_as(outcome: Outcome) -> str:
    if isinstance(outcome, Again) and not outcome.counted:
        return "wait"
    return type(outcome).__name__.lower()
