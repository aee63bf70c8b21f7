"""Activity: an in-memory model of the images, lanes and jobs of one worker at this moment. Asks
nobody.

The event loop writes it, and the threads of the probes read it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from worker.core.cloud import Image
from worker.core.creation import Creation, Made
from worker.core.job import Job, Key
from worker.core.outcome import Again, Done, Outcome, Park
from worker.core.state import State
from worker.observe.grid import Grid, cell_at, cell_of, overlay_of
from worker.observe.history import History
from worker.observe.image_volumes import ImageVolumes
from worker.observe.job_records import (
    HELD,
    IN_PROGRESS,
    PARKED,
    PREWARM,
    UPLOAD,
    WAITING,
    JobRecord,
    Warmed,
)
from worker.observe.listing import Listing, Present
from worker.observe.order import Choice, sorted_in_runs
from worker.observe.status_document import Known, Services, status_document

JOBS = 200
"""Jobs in a document unless more are asked for."""


class Activity:
    """Hears everything that happens to jobs and images; gives it back as documents for JSON.

    The event loop waits for the lock as well. So nobody holds it for longer than it takes to copy a
    list: whoever has to look at all jobs or images looks at a copy.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.time()
        self._jobs: dict[Key, JobRecord] = {}
        self._grid = Grid()
        self._listing = Listing(self._grid, self._present)
        self._history = History()
        self._sizes: Mapping[str, int] = {}
        self._volumes = ImageVolumes()
        self._revision = 0
        self._resynced = 0.0

    def forget(self, targets: Iterable[str]) -> None:
        """Forget all jobs, and all targets but these: the daemon begins anew."""
        with self._lock:
            self._jobs.clear()
            self._grid.keep_targets(frozenset(targets))
            self._revision += 1

    # Jobs

    def held(self, job: Job) -> None:
        """Note that a job is here and waits for a slot."""
        self._set(JobRecord(job=job, state=HELD, since=time.time()))

    def put_back(self, key: Key) -> None:
        """Note that a job that was held waits in its lane again."""
        with self._lock:
            self._jobs.pop(key, None)

    def began(self, job: Job) -> None:
        """Note that a job is being worked on."""
        self._set(JobRecord(job=job, state=IN_PROGRESS, since=time.time()))

    def doing(self, key: Key, step: str) -> None:
        """Note the step that a job begins, in one line."""
        with self._lock:
            if record := self._jobs.get(key):
                self._jobs[key] = replace(record, doing=step)

    def settled(self, job: Job, outcome: Outcome, *, due: float = 0.0) -> None:
        """Note the outcome of a job; `due` is when it is, or may be, tried again."""
        now, key = time.time(), job.key
        with self._lock:
            self._jobs.pop(key, None)
            if isinstance(outcome, Again | Park):
                parked = isinstance(outcome, Park)
                self._jobs[key] = JobRecord(
                    job=job,
                    state=PARKED if parked else WAITING,
                    since=now,
                    due=due,
                    reason=outcome.reason,
                    patient=isinstance(outcome, Again) and outcome.wake_on_notification,
                )
                if parked or outcome.counted:  # type: ignore[union-attr]
                    self._history.failed(job, outcome.reason, parked=parked, now=now)
            if key.handler == UPLOAD:
                self._history.upload_settled(key.image_id, outcome, now)
            if key.handler == PREWARM and not (isinstance(outcome, Again) and outcome.after == 0.0):
                self._grid.put(key, cell_of(outcome, now), now)
            elif isinstance(outcome, Done) and outcome.state is State.GONE:
                self._grid.drop(key.image_id)
            self._revision += 1

    def _set(self, record: JobRecord) -> None:
        with self._lock:
            self._jobs[record.job.key] = record
            self._revision += 1

    # Images

    def look(self, image: Image, states: Mapping[str, tuple[State, str]]) -> None:
        """Note an image that was seen: its state and why, by target."""
        with self._lock:
            self._revision += self._grid.look(image, states)

    def heard(self, image_id: str, visibility: str) -> None:
        """Note the visibility in an image's notification: we show no name that is not everybody's
        business any more.

        The job that comes of it may be another worker's, or wait. May be called on any thread.
        """
        with self._lock:
            self._revision += self._grid.hide(image_id, visibility)

    def comparing(self) -> None:
        """Note that a comparison begins."""
        with self._lock:
            self._grid.begin_comparison()

    def compared(self) -> None:
        """Note that the comparison has seen everything: images that it did not see are gone."""
        with self._lock:
            self._grid.end_comparison()
            self._resynced = time.time()
            self._revision += 1

    def weighed(self, sizes: Mapping[str, int]) -> None:
        """Note the bytes of Image-Volumes, by target."""
        with self._lock:
            self._sizes = dict(sizes)

    def listed(self, volumes: ImageVolumes) -> None:
        """Note all Image-Volumes, as they were listed."""
        with self._lock:
            self._volumes = volumes

    # Times

    def warmed(self, key: Key, seconds: float) -> None:
        """Note how many seconds after we heard of it an image has become warm on a target."""
        with self._lock:
            row = self._grid.row(key.image_id)
            size = row.size if row else 0
            self._history.warmed.append(Warmed(time.time(), key.target, seconds, size))

    def created(self, creation: Creation, made: Made) -> None:
        """Note a volume that a user had made of an image, and how Cinder made it."""
        with self._lock:
            self._history.create(creation, made, time.time())

    # Documents

    def status(self, services: Services, *, most: float = JOBS) -> dict[str, Any]:
        """Return targets, lanes, jobs, failures, uploads, dead letters and times."""
        return status_document(self._known(time.time()), services, most=most)

    def _known(self, now: float) -> Known:
        """Return a copy of what is known."""
        records = self._current(now)
        states = self._states(records)
        with self._lock:
            known = Known(
                started=self._started,
                now=now,
                resynced=self._resynced,
                revision=self._revision,
                records=records,
                states=states,
                sizes=self._sizes,
                volumes=self._volumes.counts,
                past=self._history.past(now),
                row=self._grid.row,
            )
        # Outside of the lock: there may be very many
        return replace(known, records=list(sorted_in_runs(records, lambda one: one.rank)))

    def states(self) -> dict[str, dict[str, int]]:
        """Return how many images are in each state, by target."""
        with self._lock:
            records = list(self._jobs.values())
        return self._states(records)

    def _states(self, records: Iterable[JobRecord]) -> dict[str, dict[str, int]]:
        overlay = overlay_of(records)
        with self._lock:
            found = self._grid.totals(overlay)
        counts: dict[str, dict[str, int]] = {}
        for (target, state), count in found.items():
            if count:
                counts.setdefault(target, {})[state] = count
        return counts

    def oldest(self) -> dict[str, float]:
        """Return when the oldest job of each lane was asked for, in epoch seconds.

        Parked jobs do not count, nor jobs that wait for a user.
        """
        found: dict[str, float] = {}
        for record in self._current(time.time()):
            if record.state != PARKED and not record.patient:
                lane = record.job.key.lane
                found[lane] = min(record.job.first_at, found.get(lane, math.inf))
        return found

    def _current(self, now: float) -> list[JobRecord]:
        """Return the jobs, and forget those that were due here and went to another worker."""
        with self._lock:
            records = list(self._jobs.values())
        if late := [record for record in records if not record.is_current(now)]:
            with self._lock:
                for record in late:
                    if self._jobs.get(record.job.key) is record:
                        del self._jobs[record.job.key]
            records = [record for record in records if record.is_current(now)]
        return records

    def has(self, image_id: str) -> bool:
        """Whether the image was seen and is not gone."""
        with self._lock:
            return self._grid.row(image_id) is not None

    def images(self, targets: Iterable[str], choice: Choice | None = None) -> dict[str, Any]:
        """Return some of the images with their cells: failed ones first, those that are warm on
        every target last.

        `total` counts all images, `found` those that match the choice; their order is that of
        `revision`.
        """
        return self._listing.document(targets, choice or Choice())

    def image(self, image_id: str, targets: Iterable[str]) -> dict[str, Any]:
        """Return an image with its cells and its Image-Volumes; empty if it is not known.

        `listed` is when its Image-Volumes were, in epoch seconds.
        """
        targets = tuple(targets)
        with self._lock:
            row, volumes = self._grid.row(image_id), self._volumes
            records = [
                record
                for target in targets
                if (record := self._jobs.get(Key(PREWARM, image_id, target)))
            ]
        if row is None:
            return {}
        overlay = overlay_of(records)
        cells = ((name, cell_at(image_id, row, name, overlay)) for name in targets)
        return {
            "id": image_id,
            "name": row.name,
            "project": row.project,
            "size": row.size,
            "targets": [
                {"target": name, "state": one.state, "why": one.why} for name, one in cells
            ],
            "volumes": [one._asdict() for one in volumes.of(image_id)],
            "listed": volumes.at,
        }

    def _present(self) -> Present:
        with self._lock:
            return Present(self._revision, self._grid.ids(), list(self._jobs.values()))
