"""The runner: one job a key at a time, as many at once as a lane allows, and the only place that
settles."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

import structlog
from structlog.contextvars import bound_contextvars

from worker.core.dead_letter import DeadLetter
from worker.core.deletions import Deletions
from worker.core.errors import Blocked, Malformed, Misconfigured, NotFound, Temporary
from worker.core.handler import Handler
from worker.core.job import OPERATOR, RESYNC, Job, Key
from worker.core.lanes import Delivery, Lanes
from worker.core.outcome import Again, Done, Outcome, Park, Skip
from worker.core.uses import Uses
from worker.engine.retry import Backoff
from worker.engine.turns import Sweep, Turns
from worker.observe.activity import Activity
from worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long things may take and how often they may fail; times in seconds.

    `job` bounds one try of a job; `hold` is for how long a job in progress holds its delivery
    before that goes back into its lane, a third of it for how long one that waits for a slot does:
    a broker allows 30 minutes for both. `poll_min` and `poll_max` bound the polls of a job that
    waits; `drain` is what jobs in progress have left when the process is told to stop;
    `park_retry_after` for how long a parked key is left alone.
    """

    max_attempts: int = 20
    job: float = 3600.0
    hold: float = 900.0
    poll_min: float = 0.5
    poll_max: float = 15.0
    drain: float = 30.0
    park_retry_after: float = 21600.0


TIDY_EVERY = 60.0
"""Seconds between two looks at what is remembered of keys that went to another worker."""
LOOK_FOR_LATE_EVERY = 10.0
"""Seconds between two looks for tries that were due and did not come."""
LATE = 20.0
"""Seconds after which a try that was due, and waits in no lane, is stuck in the broker: once the
leader of a lane's queue has been killed, RabbitMQ (seen with 3.10) may forward nothing that has
expired to that queue any more."""
OVERDUE = 3600.0
"""Seconds after which a try that was due here has gone to another worker for certain."""
OUTCOMES = ("done", "skip", "again", "wait", "park")
"""As they are counted: `wait` is an `Again` that is no failure."""


class Held(Exception):
    """The job has held its delivery for long enough, or the process is leaving."""


@dataclass(slots=True)
class _Entry:
    """A key that is waiting for its turn or being worked on, with the delivery that keeps it safe.

    `deliveries` are more than that one while it is `settling`: the copy for the next try may be
    among them. `since` is when it came, in monotonic seconds. `notified` tells that something was
    heard of it since it last looked; `awake` is what its waits listen to. `lost`: the broker has
    taken the delivery back, and another worker may have the key now.
    """

    job: Job
    deliveries: list[Delivery]
    since: float = field(default_factory=time.monotonic)
    settling: bool = False
    lost: bool = False
    notified: bool = False
    awake: asyncio.Event = field(default_factory=asyncio.Event)

    def join(self, delivery: Delivery) -> None:
        """One more delivery of the key. The newest one keeps it safe: those before may be of a lost
        connection."""
        before, self.deliveries = self.deliveries, [delivery]
        self.lost = False
        if self.settling:
            self.deliveries = [*before, delivery]
        else:
            for one in before:
                one.ack()
        self.hear()

    def hear(self) -> None:
        """Something has happened that concerns the key."""
        self.notified = True
        self.awake.set()

    def look(self) -> None:
        """It looks now: what was heard until now is answered by that."""
        self.notified = False
        self.awake.clear()


class _Watch:
    """Waits on behalf of one try: for a poke, with polls that back off; Held at `until`, in
    monotonic seconds."""

    def __init__(
        self,
        *,
        entry: _Entry,
        limits: Limits,
        leaving: asyncio.Event,
        activity: Activity,
        until: float,
    ) -> None:
        self._entry = entry
        self._activity = activity
        self._limits = limits
        self._leaving = leaving
        self._until = until
        self._poll = limits.poll_min

    async def changed(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0 or self._leaving.is_set() or self._entry.lost:
            raise Held
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(self._poll, left)):
                await self._entry.awake.wait()
        if self._leaving.is_set() or self._entry.lost:
            raise Held
        self._poll = min(self._poll * 1.5, self._limits.poll_max)
        self._entry.look()

    @property
    def by_operator(self) -> bool:
        return self._entry.job.cause == OPERATOR

    def tell(self, step: str) -> None:
        if self._entry.lost:
            raise Held
        self._activity.doing(self._entry.job.key, step)


class Runner:
    """Takes deliveries, has handlers reconcile their keys, settles."""

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
    ) -> None:
        self._activity = metrics.activity
        self._lanes = lanes
        self._handlers = handlers
        self._limits = limits
        self._backoff = backoff
        self._metrics = metrics
        self._uses = uses
        self._deletions = deletions
        self._width = {
            lane: n for handler in handlers.values() for lane, n in handler.lanes().items()
        }
        self._turns: dict[str, Turns[_Entry]] = {lane: Turns() for lane in self._width}
        self._sweeps = {lane: Sweep() for lane in self._width}
        self._sweeping: dict[str, asyncio.Task[None]] = {}
        self._busy = dict.fromkeys(self._width, 0)
        self._entries: dict[Key, _Entry] = {}
        self._appointments: dict[Key, float] = {}
        self._waking: set[Key] = set()
        self._parked: dict[Key, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = asyncio.Event()
        self._tidied = self._looked = time.monotonic()
        for handler in handlers.values():
            for lane in handler.lanes():
                # From the beginning, or nobody sees the first of them happen
                target = lane.partition(".")[2]
                for outcome in OUTCOMES:
                    metrics.jobs.labels(handler.name, target, outcome)
                if target:
                    metrics.images_warmed.labels(target)

    @property
    def lanes(self) -> Mapping[str, int]:
        """The lanes it works on, and how many keys at once."""
        return self._width

    @property
    def prefetch(self) -> Mapping[str, int]:
        """How many deliveries of each lane to hand it at once.

        Enough that a freed slot never waits for the broker, and that what belongs together can
        join.
        """
        return {lane: 2 * width + 16 for lane, width in self._width.items()}

    @property
    def in_progress(self) -> int:
        """How many jobs are being worked on."""
        return sum(self._busy.values())

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting here or being worked on."""
        return not self._entries

    def waiting(self) -> Mapping[str, int]:
        """How many keys of each lane wait for another try. May be called on any thread."""
        now = time.time()
        # A copy at one go: the loop adds to them meanwhile
        return Counter(key.lane for key, due in tuple(self._appointments.items()) if due > now)

    def due(self, *, within: float = math.inf) -> int:
        """How many keys are due for another look between now and `within` seconds from now."""
        now = time.time()
        return sum(now < due <= now + within for due in self._appointments.values())

    def deliver(self, delivery: Delivery) -> None:
        """Take a job from its lane; it joins a job of the same key that is here already."""
        if self._leaving.is_set():
            return
        job = delivery.job
        self._note(job)
        if self._is_superseded(job):
            delivery.ack()
            return
        if entry := self._entries.get(job.key):
            entry.join(delivery)
            return
        lane = job.key.lane
        if lane not in self._turns:
            # Its target was taken out of the configuration; resync would not ask for it either
            log.info("job_dropped", key=job.key, why="no such lane is configured any more")
            delivery.ack()
            return
        self._appointments.pop(job.key, None)
        self._waking.discard(job.key)
        self._parked.pop(job.key, None)
        entry = _Entry(job=job, deliveries=[delivery])
        self._entries[job.key] = entry
        self._turns[lane].add(job.project, entry)
        self._activity.held(job)
        self._start(lane)
        self._sweep(lane)

    def lose(self, lane: str) -> None:
        """Let go of a lane's jobs: the broker hands them out anew, maybe to another worker.

        Those in progress end before their next step, unless they are delivered here again until
        then.
        """
        for entry in self._turns[lane].take(lambda _: True):
            del self._entries[entry.job.key]
            self._activity.put_back(entry.job.key)
        for key, entry in self._entries.items():
            if key.lane == lane and not entry.settling:
                entry.lost = True
                entry.awake.set()

    def poke(self, job: Job) -> bool:
        """Whether the key is looked at again here anyway; if not, the job has to go into its
        lane."""
        entry = self._entries.get(job.key)
        if entry and not entry.settling:
            entry.hear()
        elif not self._is_superseded(job) and not self._waits(job):
            # While an outcome is written down nothing that comes in is answered by it any more
            return False
        self._note(job)
        return True

    def tidy(self) -> None:
        """Now and then: what has waited for a slot for too long goes back into its lane, what is
        past is forgotten."""
        if self._leaving.is_set():
            return
        now = time.monotonic()
        for lane, turns in self._turns.items():
            if turns and lane not in self._sweeping:
                late = turns.take(lambda entry: now - entry.since > self._limits.hold / 3)
                if late:
                    self._sweeping[lane] = asyncio.create_task(
                        self._put_back(lane, late), name=f"return to {lane}"
                    )
        if now - self._looked > LOOK_FOR_LATE_EVERY:
            self._looked = now
            if missing := self._take_late():
                task = asyncio.create_task(self._bring(missing), name="bring late tries")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        if now - self._tidied > TIDY_EVERY:
            self._tidied, clock = now, time.time()
            self._parked = {key: due for key, due in self._parked.items() if due > clock}
            self._appointments = {
                key: due for key, due in self._appointments.items() if due > clock - OVERDUE
            }
            self._waking &= self._appointments.keys()

    def _take_late(self) -> dict[Key, float]:
        """Keys whose next try was due a while ago, and is neither here nor in a lane, and when;
        each is named once."""
        clock, depths = time.time(), self._lanes.depths()
        late = {
            key: due
            for key, due in self._appointments.items()
            if due + LATE < clock and key not in self._entries and depths.get(key.lane) == 0
        }
        for key in late:
            del self._appointments[key]
            self._waking.discard(key)
        return late

    async def _bring(self, late: Mapping[Key, float]) -> None:
        """Put new jobs for these keys into their lanes. If the stuck ones come after all, they find
        nothing to do.

        A lane that has gone to another worker, and what was due with it, can't be told from one
        that is stuck. So the job says when it was due: who has looked at the key and waits since
        does not look again for this.
        """
        for lane, count in Counter(key.lane for key in late).items():
            log.warning("late_tries_brought", lane=lane, jobs=count)
        with contextlib.suppress(Temporary):
            # The lanes were closed otherwise, and what is stuck there is still theirs
            now = time.time()
            await self._lanes.publish(
                [Job(key=key, cause="late", first_at=now, due=due) for key, due in late.items()]
            )

    async def drain(self) -> None:
        """Start nothing more; give jobs in progress their time to end; what has not ended stays in
        its lane."""
        self._leaving.set()
        for turns in self._turns.values():
            turns.clear()
        # What they took out is still the lane's, too
        for sweep in self._sweeping.values():
            sweep.cancel()
        for entry in self._entries.values():
            entry.awake.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._limits.drain)
            for task in late:
                task.cancel()
            if late:
                log.warning("drain_timed_out", jobs=len(late))
                await asyncio.wait(late)

    def _note(self, job: Job) -> None:
        """Remember uses and deletions here, where the lane is worked on: other processes hear other
        notifications."""
        if job.used:
            self._uses.claim(job.key.image_id, job.key.target, job.used, job.used_by)
        if job.deleted:
            self._deletions.note(job.key.image_id, job.deleted)
        if job.deleted_volume:
            self._deletions.note_volume(job.deleted_volume)

    def _is_superseded(self, job: Job) -> bool:
        """Whether a look at the key is due later, and that one is enough; or it was given up for
        now.

        What a failing job does makes notifications too (its broken volume goes, its import ends):
        if these made it look again at once, it would fail in a hot loop.
        """
        if job.cause == OPERATOR:
            return False
        now, due = time.time(), self._appointments.get(job.key, 0.0)
        if not job.due and job.key in self._waking:
            return False
        return (due > now and job.due != due) or self._parked.get(job.key, 0.0) > now

    def _waits(self, job: Job) -> bool:
        """Whether a job that waits in the lane is as good: it will be looked at later than now."""
        return job.cause != OPERATOR and self._lanes.will_hand_out(job.key)

    def _start(self, lane: str) -> None:
        while self._turns[lane] and self._busy[lane] < self._width[lane]:
            entry = self._turns[lane].begin()
            self._busy[lane] += 1
            self._metrics.jobs_in_progress.labels(lane).set(self._busy[lane])
            task = asyncio.create_task(self._work(entry, lane), name=f"job {entry.job.key}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _sweep(self, lane: str) -> None:
        """Look behind what was handed out for the jobs of projects whose turn comes sooner."""
        depth = self._lanes.depths().get(lane, 0)
        if lane in self._sweeping or not self._sweeps[lane].due(depth, now=time.monotonic()):
            return
        if surplus := self._turns[lane].surplus(self._width[lane]):
            self._sweeping[lane] = asyncio.create_task(
                self._pass_on(lane, surplus), name=f"sweep of {lane}"
            )

    async def _pass_on(self, lane: str, surplus: list[_Entry]) -> None:
        try:
            await self._put_back(lane, surplus)
        finally:
            self._sweeps[lane].passed(len(surplus), now=time.monotonic())

    async def _put_back(self, lane: str, entries: list[_Entry]) -> None:
        """Put jobs that nobody has begun at the end of their lane, and take the next."""
        for entry in entries:
            del self._entries[entry.job.key]
            self._activity.put_back(entry.job.key)
        try:
            # What was due is so no more: a copy of the key may have another appointment by then
            await self._lanes.publish([replace(entry.job, due=0.0) for entry in entries])
        except Temporary:
            # The lanes were closed: the deliveries, which nobody has acked, are theirs again
            return
        finally:
            del self._sweeping[lane]
        for entry in entries:
            for delivery in entry.deliveries:
                delivery.ack()

    async def _work(self, entry: _Entry, lane: str) -> None:
        key, project = entry.job.key, entry.job.project
        self._activity.began(entry.job)
        try:
            with bound_contextvars(
                handler=key.handler, image_id=key.image_id, target=key.target, cause=entry.job.cause
            ):
                await self._guarded(entry)
        finally:
            self._entries.pop(key, None)
            self._busy[lane] -= 1
            self._turns[lane].end(project)
            self._metrics.jobs_in_progress.labels(lane).set(self._busy[lane])
            if not self._leaving.is_set():
                # What came in while the outcome was written down: the copy for the next try may be
                # among it
                for delivery in entry.deliveries:
                    self.deliver(delivery)
                self._start(lane)

    async def _guarded(self, entry: _Entry) -> None:
        """Work on a key; whatever is wrong with its job or its outcome, it holds up no other
        one."""
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

    async def _work_until_quiet(self, entry: _Entry) -> None:
        """Try, and once again if something came in meanwhile that the outcome is no answer to; then
        settle."""
        changed = warmed = again = False
        key, until = entry.job.key, time.monotonic() + self._limits.hold
        while True:
            entry.look()
            began = time.monotonic()
            outcome = await self._try(entry, until)
            if entry.lost:
                # Whoever has the key now settles it
                log.info("job_lost", reason="the broker hands the lane out anew")
                entry.deliveries.clear()
                return
            self._metrics.job_seconds.labels(key.handler, key.target).observe(
                time.monotonic() - began
            )
            self._metrics.jobs.labels(key.handler, key.target, _counted_as(outcome)).inc()
            if isinstance(outcome, Done):
                changed, warmed = changed or outcome.changed, warmed or outcome.warmed
                outcome = replace(outcome, changed=changed, warmed=warmed)
            over = (
                not outcome.wake_on_notification
                if isinstance(outcome, Again)
                else isinstance(outcome, Park)
            )
            if over or not entry.notified:
                break
            if again or self._leaving.is_set():
                # What changes all the time must not keep a slot for it
                await self._settle(
                    entry,
                    outcome,
                    look_again=0.0 if self._leaving.is_set() else self._limits.poll_min,
                )
                return
            # The first time it is most likely what the job itself has done: not worth a trip
            # through the lane
            again = True
        await self._settle(entry, outcome)

    async def _try(self, entry: _Entry, until: float) -> Outcome:
        """One try, which may wait `until` then; every error becomes an outcome here."""
        job = entry.job
        watch = _Watch(
            entry=entry,
            limits=self._limits,
            leaving=self._leaving,
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
        self, entry: _Entry, outcome: Outcome, *, look_again: float | None = None
    ) -> None:
        """Tell the lane what came of it. Whatever must survive is in a lane before the delivery is
        let go.

        `look_again`: in so many seconds the key is to be looked at once more, whatever the outcome.
        """
        job = entry.job
        entry.settling = True
        deliveries, entry.deliveries = entry.deliveries, []
        try:
            await self._write_down(job, outcome, look_again=look_again)
        except BaseException:
            entry.deliveries = [*deliveries, *entry.deliveries]
            raise
        for delivery in deliveries:
            delivery.ack()

    async def _write_down(self, job: Job, outcome: Outcome, *, look_again: float | None) -> None:
        if look_again is not None:
            if isinstance(outcome, Again):
                outcome = replace(outcome, after=look_again, counted=False)
            else:
                following = replace(job, attempt=0, first_at=time.time(), reason="heard of again")
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
                job = job.tried(reason, counted=counted)
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
                await self._park(job.tried(reason), reason, trace)
            case never:
                assert_never(never)

    async def _again(
        self, job: Job, after: float, *, wake_on_notification: bool, quietly: bool
    ) -> None:
        # A wait that is no failure is worth a line when it begins, not each time it goes on
        level = log.debug if quietly else log.info if job.attempt == 0 else log.warning
        level("job_again", reason=job.reason, after=round(after, 1), attempt=job.attempt)
        due = time.time() + after
        if after > 0:
            self._appointments[job.key] = due
            if wake_on_notification:
                self._waking.add(job.key)
        await self._lanes.publish([replace(job, due=due)], after=after)

    async def _park(self, job: Job, reason: str, trace: str) -> None:
        log.error("job_parked", reason=reason, attempt=job.attempt, traceback=trace)
        self._parked[job.key] = due = time.time() + self._limits.park_retry_after
        self._activity.settled(job, Park(reason, trace), due=due)
        letter = DeadLetter(
            lane=job.key.lane, reason=reason, last_at=time.time(), job=job, traceback=trace
        )
        await self._lanes.bury([letter])


def _counted_as(outcome: Outcome) -> str:
    if isinstance(outcome, Again) and not outcome.counted:
        return "wait"
    return type(outcome).__name__.lower()
