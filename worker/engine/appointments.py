"""Appointments: when a key is looked at next. Kept in memory; the jobs themselves wait in lanes."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Container, Mapping

from worker.core.age import lasts
from worker.core.job import Job, Key

LATE = 20.0
"""Seconds after which a try that was due, and waits in no lane, is stuck in the broker: once the
leader of a lane's queue has been killed, RabbitMQ (seen with 3.10) may forward nothing that has
expired to that queue any more."""
OVERDUE = 3600.0
"""Seconds after which a try that was due here has certainly gone to another worker."""


class Appointments:
    """Times of the next looks, in epoch seconds, and of parked keys until when to leave them
    alone."""

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._waking: set[Key] = set()
        self._parked: dict[Key, tuple[float, float]] = {}

    def make(self, key: Key, due: float, *, wake_on_notification: bool) -> None:
        """Note that the key is looked at when `due`; with `wake_on_notification`, a notification
        brings the look forward."""
        self._due[key] = due
        if wake_on_notification:
            self._waking.add(key)

    def park(self, key: Key, until: float) -> None:
        """Leave the key alone until then."""
        self._parked[key] = (until, until - time.time())

    def keep(self, key: Key) -> None:
        """Forget the appointment of a key that is looked at now."""
        self._due.pop(key, None)
        self._waking.discard(key)
        self._parked.pop(key, None)

    def answer(self, job: Job) -> bool:
        """Whether a look that is due later answers this job too, or the key is parked.

        The work of a failing job causes notifications itself (Cinder deletes its broken volume, its
        import ends). If these made us look at once, the job would fail in a hot loop.
        """
        if job.is_urgent:
            return False
        now, due = time.time(), self._due.get(job.key, 0.0)
        if not job.due and job.key in self._waking:
            return False
        return (due > now and job.due != due) or self._is_parked(job.key, now)

    def _is_parked(self, key: Key, now: float) -> bool:
        until, span = self._parked.get(key, (0.0, 0.0))
        return lasts(until, now, span)

    def waiting(self) -> Mapping[str, int]:
        """Keys of each lane that wait for another try. May be called on any thread."""
        now = time.time()
        # One copy at once, because the loop adds to them meanwhile
        return Counter(key.lane for key, due in tuple(self._due.items()) if due > now)

    def due(self, *, within: float = math.inf) -> int:
        """Number of keys that are due for another look within `within` seconds from now."""
        now = time.time()
        return sum(now < due <= now + within for due in self._due.values())

    def take_late(self, present: Container[Key], depths: Mapping[str, int]) -> dict[Key, float]:
        """Take out the keys whose look was due a while ago, and return when it was due.

        A key that is `present`, or whose lane has jobs by `depths`, is not late.
        """
        now = time.time()
        late = {
            key: due
            for key, due in self._due.items()
            if due + LATE < now and key not in present and depths.get(key.lane) == 0
        }
        for key in late:
            del self._due[key]
            self._waking.discard(key)
        return late

    def tidy(self) -> None:
        """Forget what is past, and keys that went to another worker."""
        now = time.time()
        self._parked = {key: it for key, it in self._parked.items() if self._is_parked(key, now)}
        self._due = {key: due for key, due in self._due.items() if due > now - OVERDUE}
        self._waking &= self._due.keys()
