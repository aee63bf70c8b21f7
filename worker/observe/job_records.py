"""Job records: how each job of this worker stands, and what a document shows of it. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from worker.core.cloud import GIB
from worker.core.job import Job, Key

OVERDUE = 300.0
"""Seconds after which a job that was due and did not come has gone to another worker."""
# In the order in which jobs are shown: those that only wait for a slot are the first to be left out
IN_PROGRESS, WAITING, PARKED, HELD = STATES = ("in progress", "waiting", "parked", "held")
PREWARM = "prewarm"
UPLOAD = "upload"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A job and how it stands; `since` when that began, `due` when it is tried again, epoch
    seconds.

    `patient`: it waits for something that a user may or may not do.
    """

    job: Job
    state: str
    since: float
    due: float = 0.0
    doing: str = ""
    reason: str = ""
    patient: bool = False

    def is_current(self, now: float) -> bool:
        """Whether the job is still ours: not one that was due and did not come."""
        return self.state not in (WAITING, PARKED) or self.due > now - OVERDUE

    @property
    def rank(self) -> tuple[int, float, float]:
        """The place among the jobs that are shown."""
        return STATES.index(self.state), self.due, self.since


class Warmed(NamedTuple):
    """An image that became warm on a target at a time (epoch seconds), after so many seconds; its
    size in bytes."""

    at: float
    target: str
    seconds: float
    size: int


def named(key: Key) -> dict[str, str]:
    """Return a key as documents have it."""
    return {"handler": key.handler, "image_id": key.image_id, "target": key.target}


def shown(record: JobRecord, name: str, size: int, warmed: Iterable[Warmed]) -> dict[str, Any]:
    """Return a job as documents have it; `name` and `size` are its image's."""
    job = record.job
    return {
        **named(job.key),
        "name": name,
        "state": record.state,
        "cause": job.cause,
        "attempt": job.attempt,
        "first_at": job.first_at,
        "since": record.since,
        "due": record.due,
        "doing": record.doing,
        "reason": record.reason,
        "failure": job.failure,
        "expected": _expected(record, size, warmed),
    }


def lane_shown(lane: str, width: int, depth: int, records: list[JobRecord]) -> dict[str, Any]:
    """Return a lane as documents have it, with the jobs in it."""
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


def _expected(record: JobRecord, size: int, warmed: Iterable[Warmed]) -> float | None:
    """Return how many seconds a job in progress may take, from the times of others of its target;
    None if there are none."""
    key = record.job.key
    if record.state != IN_PROGRESS or key.handler != PREWARM or not size:
        return None
    rates = [
        one.seconds / (one.size / GIB) for one in warmed if one.target == key.target and one.size
    ]
    return statistics.median(rates) * size / GIB if rates else None
