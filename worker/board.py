"""The board: what one worker knows of images, lanes and jobs at this moment, for people who look. Asks nobody.

It is told on the event loop and read by the threads of the probes.
"""

from __future__ import annotations

import math
import statistics
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any, assert_never

from worker.cloud import GIB, Image
from worker.job import Job, Key
from worker.notification import IMAGE_ID
from worker.outcome import Again, Done, Outcome, Park, Skip
from worker.target import Target

# What is remembered of the past
FAILURES = 50
TIMES = 200
# Jobs in a document unless more are asked for
JOBS = 200
# A job that is due for so many seconds and does not come has gone to another worker
OVERDUE = 300.0
# Names of other images are their projects' business
OPEN = frozenset({"public", "community"})
# In the order in which jobs are shown: those that only wait for a slot are the first to be left out
IN_PROGRESS, WAITING, PARKED, HELD = STATES = ("in progress", "waiting", "parked", "held")
PREWARM = "prewarm"
# What a person has to see comes first, among thousands that are not wanted
CELLS = ("failed", "lost", "making", "cold", "held back", "full", "unknown", "unused", "unwanted", "warm")
RANK = {state: number for number, state in enumerate(CELLS)}


@dataclass(frozen=True, slots=True)
class Cell:
    """An image on a target: its state, why, and when that was found, in epoch seconds."""

    state: str
    why: str = ""
    at: float = 0.0


@dataclass(slots=True)
class _Row:
    name: str
    size: int
    cells: dict[str, Cell]
    seen: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """A job and how it stands; `since` when that began, `due` when it is tried again, epoch seconds.

    `patient` tells that it waits for what a user may do or not.
    """

    job: Job
    state: str
    since: float
    due: float = 0.0
    doing: str = ""
    reason: str = ""
    patient: bool = False


class Board:
    """Told of everything that happens to jobs and images; gives it back as JSON-able documents."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.time()
        self._jobs: dict[Key, _Record] = {}
        self._rows: dict[str, _Row] = {}
        self._failures: deque[dict[str, Any]] = deque(maxlen=FAILURES)
        self._warmed: deque[tuple[float, str, float, int]] = deque(maxlen=TIMES)
        self._created: deque[tuple[float, str, bool, float]] = deque(maxlen=TIMES)
        self._sizes: Mapping[str, int] = {}
        self._revision = 0
        self._comparing = self._resynced = 0.0

    # Jobs

    def forget(self, targets: Iterable[str]) -> None:
        """No job is here any more, and there are no other targets than these: the daemon begins anew."""
        targets = frozenset(targets)
        with self._lock:
            self._jobs.clear()
            for row in self._rows.values():
                row.cells = {target: cell for target, cell in row.cells.items() if target in targets}

    def held(self, job: Job) -> None:
        """A job is here and waits for a slot."""
        self._set(_Record(job=job, state=HELD, since=time.time()))

    def put_back(self, key: Key) -> None:
        """A job that was held waits in its lane again."""
        with self._lock:
            self._jobs.pop(key, None)

    def began(self, job: Job) -> None:
        """A job is being worked on."""
        self._set(_Record(job=job, state=IN_PROGRESS, since=time.time()))

    def doing(self, key: Key, step: str) -> None:
        """What is being done about it right now, in one line."""
        with self._lock:
            if record := self._jobs.get(key):
                self._jobs[key] = replace(record, doing=step)

    def settled(self, job: Job, outcome: Outcome, *, due: float = 0.0) -> None:
        """What came of it; `due` is when it is tried again, or may be."""
        now, key = time.time(), job.key
        with self._lock:
            self._jobs.pop(key, None)
            if isinstance(outcome, Again | Park):
                parked = isinstance(outcome, Park)
                state = PARKED if parked else WAITING
                self._jobs[key] = _Record(
                    job=job,
                    state=state,
                    since=now,
                    due=due,
                    reason=outcome.reason,
                    patient=isinstance(outcome, Again) and outcome.news,
                )
                if parked or outcome.counted:  # type: ignore[union-attr]
                    self._failures.appendleft(
                        {"at": now, **_named(key), "reason": outcome.reason, "attempt": job.attempt, "parked": parked}
                    )
            if key.handler == PREWARM and not (isinstance(outcome, Again) and outcome.after == 0.0):
                self._found(key, _cell(outcome, now), now)
            elif isinstance(outcome, Done) and job.cause.startswith("image.delete"):
                self._rows.pop(key.image_id, None)
            self._revision += 1

    # Images

    def look(self, image: Image, states: Mapping[str, tuple[str, str]]) -> None:
        """What is seen of an image: a state and why, by target. What a job has found during a comparison is newer."""
        with self._lock:
            cells = {target: _as_listed(state, why) for target, (state, why) in states.items()}
            if old := self._rows.get(image.id):
                newer = {name: cell for name, cell in old.cells.items() if cell.at > self._comparing > 0}
                cells = {**old.cells, **cells, **newer}
            name = image.name if image.visibility in OPEN else ""
            self._rows[image.id] = _Row(name, image.size, cells, time.time())

    def comparing(self) -> None:
        """A comparison begins."""
        with self._lock:
            self._comparing = time.time()

    def compared(self) -> None:
        """The comparison has seen everything: what it did not see is gone."""
        with self._lock:
            since = self._comparing
            self._rows = {
                image_id: row
                for image_id, row in self._rows.items()
                if row.seen >= since or any(cell.at > since for cell in row.cells.values())
            }
            self._resynced = time.time()
            self._revision += 1

    def weighed(self, sizes: Mapping[str, int]) -> None:
        """How many bytes of Image-Volumes there are, by target."""
        with self._lock:
            self._sizes = dict(sizes)

    # Times

    def warmed(self, key: Key, seconds: float) -> None:
        """An image has become warm on a target so many seconds after it was heard of."""
        with self._lock:
            row = self._rows.get(key.image_id)
            self._warmed.append((time.time(), key.target, seconds, row.size if row else 0))

    def created(self, target: str, seconds: float, *, warm: bool) -> None:
        """A user has waited so long for a volume of an image."""
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
        """Targets, lanes, jobs, failures and times.

        `lanes` gives their widths, `depths` what lies on the broker, `unusable` why targets can't be used.
        """
        now = time.time()
        with self._lock:
            self._prune(now)
            records = list(self._jobs.values())
            sizes = {record.job.key: row.size for record in records if (row := self._rows.get(record.job.key.image_id))}
            failures, warmed, created = list(self._failures), list(self._warmed), list(self._created)
            revision, resynced, volumes = self._revision, self._resynced, self._sizes
            states = self._counts(records)
        records.sort(key=lambda one: (STATES.index(one.state), one.due, one.since))
        found: dict[str, list[_Record]] = {lane: [] for lane in lanes}
        for record in records:
            found.setdefault(record.job.key.lane, []).append(record)
        count = None if math.isinf(most) else int(most)
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
            "lanes": [_lane(lane, width, depths.get(lane, 0), found[lane]) for lane, width in lanes.items()],
            "jobs": [_shown(one, _expected(one, sizes, warmed)) for one in islice(records, count)],
            "jobs_left_out": max(0, len(records) - count) if count is not None else 0,
            "failures": failures,
            "times": {
                "time_to_warm": [[at, target, seconds] for at, target, seconds, _ in warmed],
                "volume_create": [list(one) for one in created],
            },
            "grid": revision,
        }

    def states(self) -> dict[str, dict[str, int]]:
        """How many images are in each state, by target."""
        with self._lock:
            return self._counts(self._jobs.values())

    def oldest(self) -> dict[str, float]:
        """Since when the oldest job of each lane is asked for, in epoch seconds.

        What was given up does not count, nor what waits for a user.
        """
        found: dict[str, float] = {}
        with self._lock:
            self._prune(time.time())
            for key, record in self._jobs.items():
                if record.state != PARKED and not record.patient:
                    found[key.lane] = min(record.job.first_at, found.get(key.lane, math.inf))
        return found

    def has(self, image_id: str) -> bool:
        """Whether the image is one that was seen and is not gone."""
        with self._lock:
            return image_id in self._rows

    def images(self, targets: Iterable[str]) -> dict[str, Any]:
        """Every image with its cells; what failed comes first, what is warm on every target last."""
        targets = tuple(targets)
        with self._lock:
            overlay = self._overlay(self._jobs.values())
            rows = [
                (image_id, row.name, row.size, [self._at(image_id, row, target, overlay) for target in targets])
                for image_id, row in self._rows.items()
            ]
            revision = self._revision
        rows.sort(key=lambda row: (min((RANK.get(cell.state, 0) for cell in row[3]), default=0), row[1], row[0]))
        return {
            "revision": revision,
            "targets": list(targets),
            "images": [
                [image_id, name, size, [[cell.state, cell.why] for cell in cells]]
                for image_id, name, size, cells in rows
            ],
        }

    def _found(self, key: Key, cell: Cell | None, now: float) -> None:
        row = self._rows.setdefault(key.image_id, _Row("", 0, {}, now))
        if cell:
            row.cells[key.target] = cell
        else:
            row.cells.pop(key.target, None)
        if not row.cells:
            del self._rows[key.image_id]

    def _prune(self, now: float) -> None:
        """Forget jobs that were due here and went to another worker."""
        for key in [key for key, record in self._jobs.items() if not _is_current(record, now)]:
            del self._jobs[key]

    def _set(self, record: _Record) -> None:
        with self._lock:
            self._jobs[record.job.key] = record
            self._revision += 1

    def _counts(self, records: Iterable[_Record]) -> dict[str, dict[str, int]]:
        """How many images are in each state, by target."""
        # Of a million cells nearly all are what was found: what jobs say of the others is put right afterwards
        found = Counter((target, cell.state) for row in self._rows.values() for target, cell in row.cells.items())
        overlay = self._overlay(records)
        for image_id, target in overlay:
            if (row := self._rows.get(image_id)) and target in row.cells:
                found[target, row.cells[target].state] -= 1
                found[target, self._at(image_id, row, target, overlay).state] += 1
        counts: dict[str, dict[str, int]] = {}
        for (target, state), count in found.items():
            if count:
                counts.setdefault(target, {})[state] = count
        return counts

    @staticmethod
    def _overlay(records: Iterable[_Record]) -> dict[tuple[str, str], Cell]:
        """What the jobs of cells say of them."""
        found = {}
        for record in records:
            key = record.job.key
            if key.handler != PREWARM:
                continue
            if record.state == IN_PROGRESS:
                found[key.image_id, key.target] = Cell("making", record.doing)
            elif record.state == PARKED or (record.state == WAITING and record.job.attempt):
                found[key.image_id, key.target] = Cell("failed", record.reason)
        return found

    @staticmethod
    def _at(image_id: str, row: _Row, target: str, overlay: Mapping[tuple[str, str], Cell]) -> Cell:
        cell = row.cells.get(target, UNKNOWN)
        # A warm one that is looked at again stays warm
        return cell if cell.state == "warm" else overlay.get((image_id, target), cell)


UNKNOWN = Cell("unknown", "no resync has seen it yet")


@lru_cache(maxsize=1024)
def _as_listed(state: str, why: str) -> Cell:
    """The one object for all cells that a listing finds like this: most of a large cloud is warm."""
    return Cell(state, why)


def _cell(outcome: Outcome, now: float) -> Cell | None:
    """What an outcome of pre-warming says of its cell; None if it is empty, as the image is gone."""
    match outcome:
        case Done(detail):
            # What is warm is named by its volume; all else that can be done is to delete
            return Cell("warm", at=now) if IMAGE_ID.fullmatch(detail) else None
        case Skip(reason, state):
            return Cell(state, sys.intern(reason), now)
        case Again(reason) | Park(reason):
            return Cell("cold", sys.intern(reason), now)
        case never:
            assert_never(never)


def _is_current(record: _Record, now: float) -> bool:
    return record.state not in (WAITING, PARKED) or record.due > now - OVERDUE


def _named(key: Key) -> dict[str, str]:
    return {"handler": key.handler, "image_id": key.image_id, "target": key.target}


def _shown(record: _Record, expected: float | None) -> dict[str, Any]:
    job = record.job
    return {
        **_named(job.key),
        "state": record.state,
        "cause": job.cause,
        "attempt": job.attempt,
        "first_at": job.first_at,
        "since": record.since,
        "due": record.due,
        "doing": record.doing,
        "reason": record.reason,
        "expected": expected,
    }


def _lane(lane: str, width: int, depth: int, records: list[_Record]) -> dict[str, Any]:
    count = Counter(record.state for record in records)
    return {
        "lane": lane,
        "width": width,
        "in_progress": count[IN_PROGRESS],
        "held": count[HELD],
        "waiting": count[WAITING],
        "depth": depth,
        "oldest": min((record.job.first_at for record in records if record.state != PARKED), default=None),
    }


def _expected(
    record: _Record, sizes: Mapping[Key, int], warmed: Iterable[tuple[float, str, float, int]]
) -> float | None:
    """Seconds that a job in progress may take, by how long others of its target took; None if nothing tells."""
    key = record.job.key
    size = sizes.get(key, 0)
    if record.state != IN_PROGRESS or key.handler != PREWARM or not size:
        return None
    rates = [seconds / (other / GIB) for _, target, seconds, other in warmed if target == key.target and other]
    return statistics.median(rates) * size / GIB if rates else None
