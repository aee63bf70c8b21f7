"""Activity: an in-memory model of the images, lanes and jobs of one worker at this moment. Asks
nobody.

The event loop writes it, and the threads of the probes read it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from worker.core.cloud import Image
from worker.core.job import Job, Key
from worker.core.outcome import Again, Done, Outcome, Park
from worker.core.state import State
from worker.core.target import Target
from worker.observe.grid import Grid, cell_at, cell_of, overlay_of
from worker.observe.job_records import (
    HELD,
    IN_PROGRESS,
    PARKED,
    PREWARM,
    WAITING,
    JobRecord,
    Warmed,
    lane_shown,
    named,
    shown,
)
from worker.observe.order import MOST_IMAGES, Choice, Order, arrange, sorted_in_runs

# Failures and times that we remember
FAILURES = 50
TIMES = 200
JOBS = 200
"""Jobs in a document unless more are asked for."""


class Activity:
    """Hears everything that happens to jobs and images; gives it back as documents for JSON.

    The event loop waits for the lock as well. So nobody holds it for longer than it takes to copy a
    list: whoever has to look at all jobs or images looks at a copy.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sorting = threading.Lock()
        self._order: Order | None = None
        self._started = time.time()
        self._jobs: dict[Key, JobRecord] = {}
        self._grid = Grid()
        self._failures: deque[dict[str, Any]] = deque(maxlen=FAILURES)
        self._warmed: deque[Warmed] = deque(maxlen=TIMES)
        self._created: deque[tuple[float, str, bool, float]] = deque(maxlen=TIMES)
        self._sizes: Mapping[str, int] = {}
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
                    self._failures.appendleft(
                        {
                            "at": now,
                            **named(key),
                            "reason": outcome.reason,
                            "attempt": job.attempt,
                            "parked": parked,
                        }
                    )
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

    # Times

    def warmed(self, key: Key, seconds: float) -> None:
        """Note how many seconds after we heard of it an image has become warm on a target."""
        with self._lock:
            row = self._grid.row(key.image_id)
            self._warmed.append(Warmed(time.time(), key.target, seconds, row.size if row else 0))

    def created(self, target: str, seconds: float, *, warm: bool) -> None:
        """Note how many seconds a user has waited for a volume of an image."""
        with self._lock:
            self._created.append((time.time(), target, warm, seconds))

    # Documents

    def status(
        self,
        *,
        targets: Iterable[Target],
        lanes: Mapping[str, int],
        depths: Mapping[str, int],
        most: float = JOBS,
        unusable: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Return targets, lanes, jobs, failures and times.

        `lanes` gives their widths, `depths` the jobs on the broker, `unusable` why targets can't be
        used.
        """
        now = time.time()
        records = self._current(now)
        states = self._states(records)
        with self._lock:
            failures, warmed, created = (
                list(self._failures),
                list(self._warmed),
                list(self._created),
            )
            revision, resynced, volumes = self._revision, self._resynced, self._sizes
        records = list(sorted_in_runs(records, lambda one: one.rank))
        found: dict[str, list[JobRecord]] = {lane: [] for lane in lanes}
        for record in records:
            found.setdefault(record.job.key.lane, []).append(record)
        shown_jobs = records if most >= len(records) else records[: int(most)]
        return {
            "started": self._started,
            "now": now,
            "last_resync": resynced,
            "targets": [
                {
                    "name": target.name,
                    "volume_type": target.volume_type,
                    "strategy": str(target.strategy),
                    "states": states.get(target.name, {}),
                    "bytes": volumes.get(target.name, 0),
                    "unusable": (unusable or {}).get(target.name, ""),
                }
                for target in targets
            ],
            "lanes": [
                lane_shown(lane, width, depths.get(lane, 0), found[lane])
                for lane, width in lanes.items()
            ],
            "jobs": [self._shown(one, warmed) for one in shown_jobs],
            "jobs_left_out": len(records) - len(shown_jobs),
            "failures": [{**one, "name": self._grid.name(one["image_id"])} for one in failures],
            "times": {
                "time_to_warm": [[one.at, one.target, one.seconds] for one in warmed],
                "volume_create": [list(one) for one in created],
            },
            "grid": revision,
        }

    def _shown(self, record: JobRecord, warmed: Iterable[Warmed]) -> dict[str, Any]:
        row = self._grid.row(record.job.key.image_id)
        return shown(record, row.name if row else "", row.size if row else 0, warmed)

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
        targets, choice = tuple(targets), choice or Choice()
        with self._sorting:
            order = self._sorted(targets)
        ids = order.matching(choice, self._grid.name)
        start = min(max(choice.start, 0), len(ids))
        rows = [
            (image_id, row)
            for image_id in ids[start : start + min(max(choice.count, 0), MOST_IMAGES)]
            if (row := self._grid.row(image_id))
        ]
        with self._lock:
            records = list(self._jobs.values())
        overlay = overlay_of(records)
        images = []
        for image_id, row in rows:
            cells = (cell_at(image_id, row, target, overlay) for target in targets)
            images.append([image_id, row.name, row.size, [[one.state, one.why] for one in cells]])
        return {
            "revision": order.revision,
            "targets": list(targets),
            "total": len(order.ids),
            "found": len(ids),
            "start": start,
            "images": images,
        }

    def _sorted(self, targets: tuple[str, ...]) -> Order:
        """Return the order of all images as it is now or, where that takes long, was a moment
        ago."""
        with self._lock:
            revision = self._revision
        if self._order and self._order.serves(targets, revision, time.monotonic()):
            return self._order
        with self._lock:
            ids, records = self._grid.ids(), list(self._jobs.values())
        self._order = arrange(self._grid, ids, records, targets=targets, revision=revision)
        return self._order
