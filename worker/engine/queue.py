"""The queue: which job is next, and the only place that acks.

Between the lanes and the runner. Deliveries of one key join; projects take turns; a key that has
an appointment is left alone until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import replace

import structlog

from worker.core.dead_letter import DeadLetter
from worker.core.deletions import Deletions
from worker.core.job import NOTIFIED, Job, Key
from worker.core.lanes import Delivery, Lanes
from worker.core.uses import Uses
from worker.core.wishes import Wishes
from worker.engine.appointments import Appointments
from worker.engine.entry import Entry
from worker.engine.giving_back import GivingBack
from worker.engine.late import LateTries
from worker.engine.turns import Turns
from worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)


class Queue:
    """Jobs of all lanes that wait here or are worked on, one for each key.

    `lanes` are where jobs come from and go back to, `widths` how many keys of each lane to work on
    at once. `ready(lane)` is called whenever `begin` may have a job. A job that waits here for
    longer than `patience` seconds goes back into its lane.
    """

    def __init__(
        self,
        *,
        lanes: Lanes,
        widths: Mapping[str, int],
        ready: Callable[[str], None],
        patience: float,
        metrics: Metrics,
        uses: Uses,
        deletions: Deletions,
        wishes: Wishes,
    ) -> None:
        self._lanes = lanes
        self._widths = widths
        self._ready = ready
        self._patience = patience
        self._metrics = metrics
        self._activity = metrics.activity
        self._uses = uses
        self._deletions = deletions
        self._wishes = wishes
        self._turns: dict[str, Turns[Entry]] = {lane: Turns() for lane in widths}
        self._giving_back = GivingBack(
            lanes=lanes, widths=widths, turns=self._turns, remove=self._remove
        )
        self._busy = dict.fromkeys(widths, 0)
        self._entries: dict[Key, Entry] = {}
        self._appointments = Appointments()
        self._late = LateTries(lanes=lanes, appointments=self._appointments)
        self._closed = False
        self._paused = frozenset[str]()

    @property
    def lanes(self) -> Mapping[str, int]:
        """The lanes that jobs come from, and how many keys of each to work on at once."""
        return self._widths

    @property
    def prefetch(self) -> Mapping[str, int]:
        """Number of deliveries of each lane to hand us at once.

        Enough that a freed slot never waits for the broker, and that deliveries of one key can
        join.
        """
        return {lane: 2 * width + 16 for lane, width in self._widths.items()}

    @property
    def in_progress(self) -> int:
        """Number of jobs that are being worked on."""
        return sum(self._busy.values())

    @property
    def idle(self) -> bool:
        """Whether nothing waits here or is being worked on."""
        return not self._entries

    @property
    def closed(self) -> bool:
        """Whether the process is leaving: nothing more is begun, and waits are over."""
        return self._closed

    def waiting(self) -> Mapping[str, int]:
        """Keys of each lane that wait for another try. May be called on any thread."""
        return self._appointments.waiting()

    def due(self, *, within: float = float("inf")) -> int:
        """Number of keys that are due for another look within `within` seconds from now."""
        return self._appointments.due(within=within)

    # For the lanes and the intake

    def deliver(self, delivery: Delivery) -> None:
        """Take a job from its lane; it joins a job of the same key that is here already."""
        if self._closed:
            return
        job = delivery.job
        self._note(job)
        if job.wish and self._wishes.is_over(job.key, job.wish_id):
            # Another try of a wish before
            job = replace(job, cause=NOTIFIED, wish="", wish_id="")
        if self._appointments.answer(job):
            delivery.ack()
            return
        if entry := self._entries.get(job.key):
            entry.join(delivery)
            if job.is_urgent:
                self._hurry(entry, job)
            else:
                self._move_up(entry, job.project)
            return
        lane = job.key.lane
        if lane not in self._turns:
            # Its target was taken out of the configuration; resync would not ask for it either
            log.info("job_dropped", key=job.key, why="no such lane is configured any more")
            delivery.ack()
            return
        self._appointments.keep(job.key)
        entry = Entry(job=job, deliveries=[delivery])
        self._entries[job.key] = entry
        self._turns[lane].add(job.project, entry)
        self._activity.held(job)
        self._ready(lane)
        if lane not in self._paused:
            # It would only go round and round
            self._giving_back.sweep(lane)

    def pause(self, lanes: Set[str]) -> None:
        """Begin no job of these lanes, and those of all others again. Jobs in progress go on."""
        before, self._paused = self._paused, frozenset(lanes)
        for lane in (before - self._paused) & self._widths.keys():
            self._ready(lane)

    def _hurry(self, entry: Entry, job: Job) -> None:
        """Have a job that is here already do what a person asks for: in that project's turn, if it
        is not in progress yet."""
        entry.job = entry.job.joined(job)
        turns = self._turns[job.key.lane]
        if turns.take(lambda one: one is entry):
            entry.job = replace(entry.job, project=job.project)
            turns.add(job.project, entry)

    def _move_up(self, entry: Entry, project: str) -> None:
        """Have a job that waits here take its turn with another project's, if that comes sooner:
        else whoever claims an image of others has its job wait behind all of his own."""
        if self._turns[entry.job.key.lane].move_up(entry, entry.job.project, project):
            entry.job = replace(entry.job, project=project)

    def lose(self, lane: str) -> None:
        """Let go of a lane's jobs: the broker hands them out anew, maybe to another worker.

        Those in progress end before their next step, unless they are delivered here again before
        that.
        """
        for entry in self._turns[lane].take(lambda _: True):
            self._remove(entry)
        for key, entry in self._entries.items():
            if key.lane == lane and not entry.settling:
                entry.lost = True
                entry.awake.set()

    def poke(self, job: Job) -> bool:
        """Whether the key is looked at again here anyway; if not, the job has to go into its
        lane."""
        entry = self._entries.get(job.key)
        if entry and not entry.settling:
            entry.notify()
            self._move_up(entry, job.project)
        elif not self._appointments.answer(job) and not self._waits(job):
            # An outcome that is being written down answers nothing that comes in now
            return False
        self._note(job)
        return True

    def _note(self, job: Job) -> None:
        """Remember uses, deletions and wishes in the process that works on the lane: others hear
        other notifications."""
        if job.used:
            self._uses.claim(job.key.image_id, job.key.target, job.used, job.used_by)
        if job.deleted:
            self._deletions.note(job.key.image_id, job.deleted)
        if job.deleted_volume:
            self._deletions.note_volume(job.deleted_volume)
        if job.wish and self._wishes.note(
            job.key,
            job.wish,
            job.wish_id,
            now=time.time(),
            inherited=job.wished_at if job.was_tried else 0.0,
        ):
            log.info(
                "operator_wishes", wish=job.wish, image_id=job.key.image_id, target=job.key.target
            )

    def _waits(self, job: Job) -> bool:
        """Whether a job of the key that waits in the lane answers this one: its look is later than
        now."""
        return not job.is_urgent and self._lanes.will_hand_out(job.key)

    # For the runner

    def begin(self, lane: str) -> Entry | None:
        """Return the job of the lane whose turn it is; it is in progress until `end`. None if
        nothing waits, enough is in progress, or the lane is paused."""
        turns = self._turns[lane]
        if lane in self._paused or not turns or self._busy[lane] >= self._widths[lane]:
            return None
        entry = turns.begin()
        self._count(lane, 1)
        return entry

    def end(self, entry: Entry) -> None:
        """Free the job's slot. Deliveries that were not settled are delivered again: the copy for
        the next try may have come while the outcome was written down."""
        key, lane = entry.job.key, entry.job.key.lane
        self._entries.pop(key, None)
        self._count(lane, -1)
        self._turns[lane].end(entry.job.project)
        if self._closed:
            return
        # Deliveries of a lost lane are for whoever has the key now
        for delivery in [] if entry.lost else entry.deliveries:
            self.deliver(delivery)
        self._ready(lane)

    @contextlib.contextmanager
    def settling(self, entry: Entry) -> Iterator[None]:
        """Ack the job once the block has put into a lane all that must survive; not if the block
        raises."""
        entry.settling = True
        deliveries, entry.deliveries = entry.deliveries, []
        try:
            yield
        except BaseException:
            entry.deliveries = [*deliveries, *entry.deliveries]
            raise
        for delivery in deliveries:
            delivery.ack()

    async def add_after(self, job: Job, after: float, *, wake_on_notification: bool) -> None:
        """Put the job into its lane, to be looked at in `after` seconds; see `Again` for
        `wake_on_notification`."""
        due = time.time() + after
        if after > 0:
            self._appointments.make(job.key, due, wake_on_notification=wake_on_notification)
        await self._lanes.publish([replace(job, due=due)], after=after)

    async def park(self, letter: DeadLetter, *, key: Key, until: float) -> None:
        """Keep the dead letter, and leave the key alone until then (epoch seconds). Temporary if
        the letter can't be kept."""
        await self._lanes.bury([letter])
        self._appointments.park(key, until)

    def close(self) -> Set[asyncio.Task[None]]:
        """Begin nothing more and end all waits. Returns publications that should be waited for."""
        self._closed = True
        for turns in self._turns.values():
            turns.clear()
        self._giving_back.close()
        for entry in self._entries.values():
            entry.awake.set()
        return self._late.tasks

    def _count(self, lane: str, change: int) -> None:
        self._busy[lane] += change
        self._metrics.jobs_in_progress.labels(lane).set(self._busy[lane])

    # Upkeep

    def tidy(self) -> None:
        """Return jobs that have waited for a slot too long to their lane, bring tries that are
        late, and forget what is past. Called every second or so."""
        if self._closed:
            return
        self._giving_back.give_late(time.monotonic() - self._patience)
        self._late.tidy(self._entries)

    def _remove(self, entry: Entry) -> None:
        del self._entries[entry.job.key]
        self._activity.put_back(entry.job.key)
