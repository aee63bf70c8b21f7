"""Watch: the waits of one try of a job."""

from __future__ import annotations

import asyncio
import contextlib
import time

from worker.core.job import OPERATOR
from worker.engine.entry import Entry
from worker.engine.limits import Limits
from worker.engine.queue import Queue
from worker.observe.activity import Activity


class Held(Exception):
    """The job has held its delivery for long enough, or the process is leaving."""


class EntryWatch:
    """The waits of one try: for a notification, with polls that back off; raises Held at
    `until`, in monotonic seconds."""

    def __init__(
        self, *, entry: Entry, queue: Queue, limits: Limits, activity: Activity, until: float
    ) -> None:
        self._entry = entry
        self._queue = queue
        self._limits = limits
        self._activity = activity
        self._until = until
        self._poll = limits.poll_min

    async def changed(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0 or self._queue.closed or self._entry.lost:
            raise Held
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(self._poll, left)):
                await self._entry.awake.wait()
        if self._queue.closed or self._entry.lost:
            raise Held
        self._poll = min(self._poll * 1.5, self._limits.poll_max)
        self._entry.look()

    @property
    def by_operator(self) -> bool:
        return self._entry.job.cause == OPERATOR

    @property
    def wish(self) -> str:
        return self._entry.job.wish

    def tell(self, step: str) -> None:
        if self._entry.lost:
            raise Held
        self._activity.doing(self._entry.job.key, step)
