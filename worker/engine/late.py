"""Late tries: jobs that were due and did not come out of their lane are brought by new ones."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Container, Mapping

import structlog

from worker.core.errors import Temporary
from worker.core.job import Job, Key
from worker.core.lanes import Lanes
from worker.engine.appointments import Appointments

LOOK_EVERY = 10.0
"""Seconds between two looks for tries that were due and did not come."""
TIDY_EVERY = 60.0
"""Seconds between two looks for appointments of keys that went to another worker."""

log = structlog.get_logger(__name__)


class LateTries:
    """Looks for appointments that have passed without a job; `tasks` are publications that should
    be waited for at the end."""

    def __init__(self, *, lanes: Lanes, appointments: Appointments) -> None:
        self._lanes = lanes
        self._appointments = appointments
        self.tasks: set[asyncio.Task[None]] = set()
        self._looked = self._tidied = time.monotonic()

    def tidy(self, present: Container[Key]) -> None:
        """Bring what is late and not `present`, and forget what is past. Called every second or
        so."""
        now = time.monotonic()
        if now - self._looked > LOOK_EVERY:
            self._looked = now
            if late := self._appointments.take_late(present, self._lanes.depths()):
                task = asyncio.create_task(self._bring(late), name="bring late tries")
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
        if now - self._tidied > TIDY_EVERY:
            self._tidied = now
            self._appointments.tidy()

    async def _bring(self, late: Mapping[Key, float]) -> None:
        """Put new jobs for these keys into their lanes. If the stuck ones come after all, they find
        nothing to do.

        We cannot tell a stuck lane from one that has gone to another worker together with what was
        due. So the job says when it was due: a worker that has looked at the key and waits since
        does not look again for this.
        """
        for lane, count in Counter(key.lane for key in late).items():
            log.warning("late_tries_brought", lane=lane, jobs=count)
        with contextlib.suppress(Temporary):
            # If the lanes are closed, the stuck jobs are still theirs
            now = time.time()
            await self._lanes.publish(
                [Job(key=key, cause="late", first_at=now, due=due) for key, due in late.items()]
            )
