"""The runner: tries jobs, as many at once as a lane allows, and settles their outcomes."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace

import structlog
from structlog.contextvars import bound_contextvars

from worker.core import request_id
from worker.core.deletions import Deletions
from worker.core.errors import Blocked, Malformed, Misconfigured, NotFound, Temporary
from worker.core.handler import Handler
from worker.core.job import OPERATOR
from worker.core.lanes import Lanes
from worker.core.outcome import Again, Done, Outcome, Park
from worker.core.uses import Uses
from worker.core.wishes import Wishes
from worker.engine.entry import Entry
from worker.engine.limits import Limits
from worker.engine.queue import Queue
from worker.engine.retry import Backoff
from worker.engine.settling import Settler
from worker.observe import tracing
from worker.observe.activity import Activity
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
        self._settler = Settler(queue=self.queue, limits=limits, backoff=backoff, metrics=metrics)
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
                await self._settler.settle(
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
                await self._settler.settle(
                    entry,
                    outcome,
                    look_again=0.0 if self.queue.closed else self._limits.poll_min,
                )
                return
            # The first time it was most likely the job's own work: not worth a trip through the
            # lane
            again = True
        await self._settler.settle(entry, outcome)

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


class Held(Exception):
    """The job has held its delivery for long enough, or the process is leaving."""


class EntryWatch:
    """The waits of one try: for a notification, with polls that back off; raises Held at
    `until`, in monotonic seconds."""

    def __init__(
        self, *, entry: Entry, queue: Queue, limits: Limits, activity: Activity, until: float
    ) -> None:
        self._entry = entry
        self._queue = queue
        self._limits = limits
        self._activity = activity
        self._until = until
        self._poll = limits.poll_min

    async def changed(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0 or self._queue.closed or self._entry.lost:
            raise Held
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(self._poll, left)):
                await self._entry.awake.wait()
        if self._queue.closed or self._entry.lost:
            raise Held
        self._poll = min(self._poll * 1.5, self._limits.poll_max)
        self._entry.look()

    @property
    def by_operator(self) -> bool:
        return self._entry.job.cause == OPERATOR

    @property
    def wish(self) -> str:
        return self._entry.job.wish

    def tell(self, step: str) -> None:
        if self._entry.lost:
            raise Held
        self._activity.doing(self._entry.job.key, step)


def _counted_as(outcome: Outcome) -> str:
    if isinstance(outcome, Again) and not outcome.counted:
        return "wait"
    return type(outcome).__name__.lower()
