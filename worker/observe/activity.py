"""Activity: an in-memory model of the images, lanes and jobs of one worker at this moment. Asks
nobody.

It is told on the event loop and read by the threads of the probes.
"""

from __future__ import annotations

import heapq
import math
import statistics
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar, assert_never

from worker.core.cloud import GIB, Image
from worker.core.job import Job, Key
from worker.core.outcome import Again, Done, Outcome, Park, Skip
from worker.core.state import State
from worker.core.target import Target

T = TypeVar("T")

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
BITS: Mapping[str, int] = {state: 1 << number for number, state in enumerate(State)}
# Images in a document, and at most
IMAGES = 200
MOST_IMAGES = 1000
# Images that are sorted in one go: the interpreter lets nobody else run meanwhile
RUN = 4096
# Images that take longer to sort than so many seconds are sorted anew only for a share of the time
LONG = 0.05
SHARE = 20


@dataclass(frozen=True, slots=True)
class Cell:
    """An image on a target: its state, why, and when that was found, in epoch seconds."""

    state: State
    why: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Row:
    """An image as it was found. Frozen, so that whoever has got hold of it needs no lock."""

    name: str
    size: int
    cells: dict[str, Cell]
    seen: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """A job and how it stands; `since` when that began, `due` when it is tried again, epoch
    seconds.

    `patient` tells that it waits for what a user may do or not.
    """

    job: Job
    state: str
    since: float
    due: float = 0.0
    doing: str = ""
    reason: str = ""
    patient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which images a document is to have: `count` from number `start` on, of those that match.

    They match by a part of their id or name, without regard to case, and by their state on any
    target; "" for all.
    """

    start: int = 0
    count: int = IMAGES
    text: str = ""
    state: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """All images in the order in which they are shown, as of a revision.

    `bits` are the states that each has, `seconds` how long it took to find out, `at` when that was.
    """

    revision: int
    targets: tuple[str, ...]
    ids: list[str]
    bits: list[int]
    at: float
    seconds: float


class Activity:
    """Told of everything that happens to jobs and images; gives it back as JSON-able documents.

    The event loop waits for the lock as well. So nobody holds it for longer than it takes to copy a
    list: what has to look at all jobs or images looks at a copy.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sorting = threading.Lock()
        self._order: _Order | None = None
        self._totals: Counter[tuple[str, str]] = Counter()
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
        """No job is here any more, and there are no other targets than these: the daemon begins
        anew."""
        targets = frozenset(targets)
        with self._lock:
            self._jobs.clear()
            self._rows = {
                image_id: replace(
                    row, cells={name: cell for name, cell in row.cells.items() if name in targets}
                )
                for image_id, row in self._rows.items()
            }
            self._totals = Counter(
                {key: count for key, count in self._totals.items() if key[0] in targets}
            )
            self._revision += 1

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
        """A job has come to this step, told in one line."""
        with self._lock:
            if record := self._jobs.get(key):
                self._jobs[key] = replace(record, doing=step)

    def settled(self, job: Job, outcome: Outcome, *, due: float = 0.0) -> None:
        """A job has ended with this outcome; `due` is when it is, or may be, tried again."""
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
                    patient=isinstance(outcome, Again) and outcome.wake_on_notification,
                )
                if parked or outcome.counted:  # type: ignore[union-attr]
                    self._failures.appendleft(
                        {
                            "at": now,
                            **_named(key),
                            "reason": outcome.reason,
                            "attempt": job.attempt,
                            "parked": parked,
                        }
                    )
            if key.handler == PREWARM and not (isinstance(outcome, Again) and outcome.after == 0.0):
                self._found(key, _cell(outcome, now), now)
            elif isinstance(outcome, Done) and outcome.state is State.GONE:
                self._drop(key.image_id)
            self._revision += 1

    # Images

    def look(self, image: Image, states: Mapping[str, tuple[State, str]]) -> None:
        """An image was seen: its state and why, by target. What a job has found during a comparison
        is newer."""
        with self._lock:
            cells = {target: _as_listed(state, why) for target, (state, why) in states.items()}
            old = self._rows.get(image.id)
            if old:
                newer = {
                    name: cell for name, cell in old.cells.items() if cell.at > self._comparing > 0
                }
                cells = {**old.cells, **cells, **newer}
            name = image.name if image.visibility in OPEN else ""
            if old is None or (old.name, old.size, old.cells) != (name, image.size, cells):
                self._count(old.cells if old else {}, cells)
                self._revision += 1
            self._rows[image.id] = _Row(name, image.size, cells, time.time())

    def heard(self, image_id: str, visibility: str) -> None:
        """An image's notification tells its visibility: what is not everybody's business any more
        is not told on.

        The job that comes of it may be another worker's, or wait. May be called on any thread.
        """
        with self._lock:
            row = self._rows.get(image_id)
            if row and row.name and visibility not in OPEN:
                self._rows[image_id] = replace(row, name="")
                self._revision += 1

    def comparing(self) -> None:
        """A comparison begins."""
        with self._lock:
            self._comparing = time.time()

    def compared(self) -> None:
        """The comparison has seen everything: what it did not see is gone."""
        with self._lock:
            since = self._comparing
            gone = [
                image_id
                for image_id, row in self._rows.items()
                if row.seen < since and not any(cell.at > since for cell in row.cells.values())
            ]
            for image_id in gone:
                self._drop(image_id)
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

        `lanes` gives their widths, `depths` what lies on the broker, `unusable` why targets can't
        be used.
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
        records = list(
            _sorted_in_runs(records, lambda one: (STATES.index(one.state), one.due, one.since))
        )
        found: dict[str, list[_Record]] = {lane: [] for lane in lanes}
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
                _lane(lane, width, depths.get(lane, 0), found[lane])
                for lane, width in lanes.items()
            ],
            "jobs": [self._shown(one, warmed) for one in shown_jobs],
            "jobs_left_out": len(records) - len(shown_jobs),
            "failures": [{**one, "name": self._name(one["image_id"])} for one in failures],
            "times": {
                "time_to_warm": [[at, target, seconds] for at, target, seconds, _ in warmed],
                "volume_create": [list(one) for one in created],
            },
            "grid": revision,
        }

    def states(self) -> dict[str, dict[str, int]]:
        """How many images are in each state, by target."""
        with self._lock:
            records = list(self._jobs.values())
        return self._states(records)

    def oldest(self) -> dict[str, float]:
        """Since when the oldest job of each lane is asked for, in epoch seconds.

        What was given up does not count, nor what waits for a user.
        """
        found: dict[str, float] = {}
        for record in self._current(time.time()):
            if record.state != PARKED and not record.patient:
                lane = record.job.key.lane
                found[lane] = min(record.job.first_at, found.get(lane, math.inf))
        return found

    def has(self, image_id: str) -> bool:
        """Whether the image is one that was seen and is not gone."""
        with self._lock:
            return image_id in self._rows

    def images(self, targets: Iterable[str], choice: Choice | None = None) -> dict[str, Any]:
        """Some of the images with their cells; what failed comes first, what is warm on every
        target last.

        `total` counts all images, `found` those that match the choice; their order is that of
        `revision`.
        """
        targets, choice = tuple(targets), choice or Choice()
        with self._sorting:
            order = self._sorted(targets)
        ids = self._matching(order, choice)
        start = min(max(choice.start, 0), len(ids))
        rows = [
            (image_id, row)
            for image_id in ids[start : start + min(max(choice.count, 0), MOST_IMAGES)]
            if (row := self._rows.get(image_id))
        ]
        with self._lock:
            records = list(self._jobs.values())
        overlay = self._overlay(records)
        return {
            "revision": order.revision,
            "targets": list(targets),
            "total": len(order.ids),
            "found": len(ids),
            "start": start,
            "images": [
                [
                    image_id,
                    row.name,
                    row.size,
                    [
                        [cell.state, cell.why]
                        for cell in self._cells(image_id, row, targets, overlay)
                    ],
                ]
                for image_id, row in rows
            ],
        }

    def _sorted(self, targets: tuple[str, ...]) -> _Order:
        """The order of all images, as it is now or, where that takes long, was a moment ago."""
        began, old = time.monotonic(), self._order
        with self._lock:
            revision = self._revision
        if old and old.targets == targets:
            late = began - old.at
            if old.revision == revision or (old.seconds > LONG and late < SHARE * old.seconds):
                return old
        with self._lock:
            everything, records = list(self._rows), list(self._jobs.values())
        overlay = self._overlay(records)
        concerned = {image_id for image_id, _ in overlay}
        # What has the lowest bit in common is shown together. Texts and numbers only: a hundred
        # thousand tuples would make the garbage collector look at the whole process, in one go
        groups: dict[int, list[str]] = {}
        found: dict[str, int] = {}
        unknown = BITS[UNKNOWN.state]
        for image_id in everything:
            if (row := self._rows.get(image_id)) is None:
                continue
            bits, cells = 0, row.cells
            for target in targets:
                if image_id in concerned:
                    bits |= BITS.get(self._at(image_id, row, target, overlay).state, 1)
                else:
                    cell = cells.get(target)
                    bits |= BITS.get(cell.state, 1) if cell else unknown
            groups.setdefault(bits & -bits, []).append(f"{row.name}\0{image_id}")
            found[image_id] = bits
        ids = [
            key.rpartition("\0")[2]
            for _, keys in sorted(groups.items())
            for key in _sorted_in_runs(keys, str)
        ]
        bits_of = [found[image_id] for image_id in ids]
        now = time.monotonic()
        self._order = _Order(
            revision=revision, targets=targets, ids=ids, bits=bits_of, at=now, seconds=now - began
        )
        return self._order

    def _matching(self, order: _Order, choice: Choice) -> list[str]:
        """The ids of the images that match, in order."""
        text, ids = choice.text.strip().lower(), order.ids
        if choice.state:
            bit = BITS.get(choice.state, 0)
            ids = [image_id for image_id, bits in zip(ids, order.bits, strict=True) if bits & bit]
        if text:
            ids = [
                image_id
                for image_id in ids
                if text in image_id or text in self._name(image_id).lower()
            ]
        return ids

    def _name(self, image_id: str) -> str:
        """The image's name, if it is everybody's business."""
        row = self._rows.get(image_id)
        return row.name if row else ""

    def _found(self, key: Key, cell: Cell | None, now: float) -> None:
        row = self._rows.get(key.image_id) or _Row("", 0, {}, now)
        cells = {name: one for name, one in row.cells.items() if name != key.target}
        if cell:
            cells[key.target] = cell
        self._count(row.cells, cells)
        if cells:
            self._rows[key.image_id] = replace(row, cells=cells)
        else:
            self._rows.pop(key.image_id, None)

    def _drop(self, image_id: str) -> None:
        if row := self._rows.pop(image_id, None):
            self._count(row.cells, {})

    def _count(self, before: Mapping[str, Cell], after: Mapping[str, Cell]) -> None:
        """Keep the totals right when an image's cells change."""
        for target, new in after.items():
            old = before.get(target)
            if old is None or old.state != new.state:
                self._totals[target, new.state] += 1
                if old:
                    self._totals[target, old.state] -= 1
        for target, old in before.items():
            if target not in after:
                self._totals[target, old.state] -= 1

    def _current(self, now: float) -> list[_Record]:
        """The jobs; those that were due here and went to another worker are forgotten."""
        with self._lock:
            records = list(self._jobs.values())
        if late := [record for record in records if not _is_current(record, now)]:
            with self._lock:
                for record in late:
                    if self._jobs.get(record.job.key) is record:
                        del self._jobs[record.job.key]
            records = [record for record in records if _is_current(record, now)]
        return records

    def _set(self, record: _Record) -> None:
        with self._lock:
            self._jobs[record.job.key] = record
            self._revision += 1

    def _states(self, records: Iterable[_Record]) -> dict[str, dict[str, int]]:
        """How many images are in each state, by target: as they were found, and what jobs say of
        some put right."""
        overlay = self._overlay(records)
        with self._lock:
            found = self._totals.copy()
            for image_id, target in overlay:
                if row := self._rows.get(image_id):
                    if target in row.cells:
                        found[target, row.cells[target].state] -= 1
                    found[target, self._at(image_id, row, target, overlay).state] += 1
        counts: dict[str, dict[str, int]] = {}
        for (target, state), count in found.items():
            if count:
                counts.setdefault(target, {})[state] = count
        return counts

    def _shown(
        self, record: _Record, warmed: Iterable[tuple[float, str, float, int]]
    ) -> dict[str, Any]:
        job, row = record.job, self._rows.get(record.job.key.image_id)
        return {
            **_named(job.key),
            "name": row.name if row else "",
            "state": record.state,
            "cause": job.cause,
            "attempt": job.attempt,
            "first_at": job.first_at,
            "since": record.since,
            "due": record.due,
            "doing": record.doing,
            "reason": record.reason,
            "expected": _expected(record, row.size if row else 0, warmed),
        }

    @staticmethod
    def _overlay(records: Iterable[_Record]) -> dict[tuple[str, str], Cell]:
        """Return the cells that jobs in progress, or failed, change."""
        found = {}
        for record in records:
            key = record.job.key
            if key.handler != PREWARM:
                continue
            if record.state == IN_PROGRESS:
                found[key.image_id, key.target] = Cell(State.MAKING, record.doing)
            elif record.state == PARKED or (record.state == WAITING and record.job.attempt):
                found[key.image_id, key.target] = Cell(State.FAILED, record.reason)
        return found

    def _cells(
        self,
        image_id: str,
        row: _Row,
        targets: Iterable[str],
        overlay: Mapping[tuple[str, str], Cell],
    ) -> Iterator[Cell]:
        return (self._at(image_id, row, target, overlay) for target in targets)

    @staticmethod
    def _at(image_id: str, row: _Row, target: str, overlay: Mapping[tuple[str, str], Cell]) -> Cell:
        cell = row.cells.get(target, UNKNOWN)
        # A warm one that is looked at again stays warm
        return cell if cell.state is State.WARM else overlay.get((image_id, target), cell)


UNKNOWN = Cell(State.UNKNOWN, "no resync has seen it yet")


@lru_cache(maxsize=1024)
def _as_listed(state: State, why: str) -> Cell:
    """The one object for all cells that a listing finds like this: most of a large cloud is
    warm."""
    return Cell(state, why)


def _cell(outcome: Outcome, now: float) -> Cell | None:
    """Return the cell of an outcome of pre-warming; None if the image has none on that target any
    more."""
    match outcome:
        case Done(detail, state=state):
            if state is None or state is State.GONE:
                return None
            return Cell(state, "" if state is State.WARM else sys.intern(detail), now)
        case Skip(reason, state):
            return Cell(state, sys.intern(reason), now)
        case Again(reason) | Park(reason):
            return Cell(State.COLD, sys.intern(reason), now)
        case never:
            assert_never(never)


def _is_current(record: _Record, now: float) -> bool:
    return record.state not in (WAITING, PARKED) or record.due > now - OVERDUE


def _named(key: Key) -> dict[str, str]:
    return {"handler": key.handler, "image_id": key.image_id, "target": key.target}


def _sorted_in_runs(items: list[T], key: Callable[[T], Any]) -> Iterator[T]:
    """The items in the order of their keys, sorted in runs, between which others get their turn."""
    return heapq.merge(
        *(sorted(items[at : at + RUN], key=key) for at in range(0, len(items), RUN)), key=key
    )


def _lane(lane: str, width: int, depth: int, records: list[_Record]) -> dict[str, Any]:
    count = Counter(record.state for record in records)
    return {
        "lane": lane,
        "width": width,
        "in_progress": count[IN_PROGRESS],
        "held": count[HELD],
        "waiting": count[WAITING],
        "depth": depth,
        "oldest": min(
            (record.job.first_at for record in records if record.state != PARKED), default=None
        ),
    }


def _expected(
    record: _Record, size: int, warmed: Iterable[tuple[float, str, float, int]]
) -> float | None:
    """Seconds that a job in progress may take, by how long others of its target took; None if
    nothing tells."""
    key = record.job.key
    if record.state != IN_PROGRESS or key.handler != PREWARM or not size:
        return None
    rates = [
        seconds / (other / GIB)
        for _, target, seconds, other in warmed
        if target == key.target and other
    ]
    return statistics.median(rates) * size / GIB if rates else None
