"""History: what has happened lately, in bounded memory. Has no lock: its owner has."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from worker.core.creation import Creation, Made
from worker.core.job import Job
from worker.core.newest import Newest
from worker.core.outcome import Done, Outcome, Skip
from worker.core.state import State
from worker.observe.job_records import Warmed, named

# Events that are remembered
FAILURES = 50
TIMES = 200
UPLOADS = 100
HOURS = 24
HOUR = 3600


class Created(NamedTuple):
    """A volume that a user had made of an image. `seconds` are what the user waited, None if that
    is not known."""

    at: float
    target: str
    image_id: str
    path: str
    reason: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that was settled at a time, in epoch seconds: done, or refused for a reason."""

    image_id: str
    state: str
    reason: str
    at: float


class Past(NamedTuple):
    """A copy of everything that is remembered, the oldest first; only of failures the latest.

    `hours` is how many volumes were made in each of the last hours: the hour's beginning in epoch
    seconds, target, path, reason, number.
    """

    failures: list[dict[str, Any]]
    warmed: list[Warmed]
    created: list[Created]
    hours: list[tuple[int, str, str, str, int]]
    uploads: list[Upload]
    uploads_done: int


class History:
    """Failures, uploads, and how long images and volumes took."""

    def __init__(self) -> None:
        self.failures: deque[dict[str, Any]] = deque(maxlen=FAILURES)
        self.warmed: deque[Warmed] = deque(maxlen=TIMES)
        self.created: deque[Created] = deque(maxlen=TIMES)
        self.uploads: Newest[str, Upload] = Newest(UPLOADS)
        self.uploads_done = 0
        self._hours: deque[tuple[int, Counter[tuple[str, str, str]]]] = deque(maxlen=HOURS)

    def failed(self, job: Job, reason: str, *, parked: bool, now: float) -> None:
        """Note a try that failed."""
        told = {"reason": reason, "attempt": job.attempt, "parked": parked}
        self.failures.appendleft({"at": now, **named(job.key), **told})

    def upload_settled(self, image_id: str, outcome: Outcome, now: float) -> None:
        """Note what came of an upload: it was completed, or refused until its owner changes
        something."""
        match outcome:
            case Done(changed=True, state=None):
                self.uploads_done += 1
                self.uploads[image_id] = Upload(image_id, "done", "", now)
            case Skip(reason, State.UPLOAD):
                self.uploads[image_id] = Upload(image_id, "refused", reason, now)
            case _ if self.uploads.get(image_id, Upload("", "", "", 0.0)).state != "done":
                self.uploads.pop(image_id, None)

    def create(self, creation: Creation, made: Made, now: float) -> None:
        """Note a volume that a user had made of an image, and how Cinder made it."""
        self.created.append(
            Created(
                now,
                creation.target,
                creation.image_id,
                str(made.way),
                made.reason,
                creation.seconds,
            )
        )
        hour = int(now // HOUR) * HOUR
        if not self._hours or self._hours[-1][0] != hour:
            self._hours.append((hour, Counter()))
        self._hours[-1][1][creation.target, str(made.way), made.reason] += 1

    def past(self, now: float) -> Past:
        """Return a copy."""
        return Past(
            list(self.failures),
            list(self.warmed),
            list(self.created),
            list(self._latest_hours(now)),
            list(self.uploads.values()),
            self.uploads_done,
        )

    def _latest_hours(self, now: float) -> Iterator[tuple[int, str, str, str, int]]:
        for hour, counts in self._hours:
            if hour > now - HOURS * HOUR:
                for (target, path, reason), count in sorted(counts.items()):
                    yield hour, target, path, reason, count
