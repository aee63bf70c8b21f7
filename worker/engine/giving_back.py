"""Giving back: jobs that nobody has begun go to the end of their lane, for others to come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from worker.core.errors import Temporary
from worker.core.lanes import Lanes
from worker.engine.entry import Entry
from worker.engine.turns import Sweep, Turns


class GivingBack:
    """Gives back what has waited for too long, and what keeps other projects from their turn.

    One task a lane at a time. `remove` forgets an entry before its job is published again.
    """

    def __init__(
        self,
        *,
        lanes: Lanes,
        widths: Mapping[str, int],
        turns: Mapping[str, Turns[Entry]],
        remove: Callable[[Entry], None],
    ) -> None:
        self._lanes = lanes
        self._widths = widths
        self._turns = turns
        self._remove = remove
        self._sweeps = {lane: Sweep() for lane in widths}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def give_late(self, before: float) -> None:
        """Give back jobs that wait since `before`, in monotonic seconds."""
        for lane, turns in self._turns.items():
            if not turns or lane in self._tasks:
                continue
            if late := turns.take(lambda entry: entry.since < before):
                self._tasks[lane] = asyncio.create_task(
                    self._put_back(lane, late), name=f"return to {lane}"
                )

    def sweep(self, lane: str) -> None:
        """Look behind what was handed out for the jobs of projects whose turn comes sooner."""
        depth = self._lanes.depths().get(lane, 0)
        if lane in self._tasks or not self._sweeps[lane].due(depth, now=time.monotonic()):
            return
        if surplus := self._turns[lane].surplus(self._widths[lane]):
            self._tasks[lane] = asyncio.create_task(
                self._pass_on(lane, surplus), name=f"sweep of {lane}"
            )

    def close(self) -> None:
        """Give back nothing more: jobs that were taken out are still the lane's, too."""
        for task in self._tasks.values():
            task.cancel()

    async def _pass_on(self, lane: str, surplus: list[Entry]) -> None:
        try:
            await self._put_back(lane, surplus)
        finally:
            self._sweeps[lane].passed(len(surplus), now=time.monotonic())

    async def _put_back(self, lane: str, entries: list[Entry]) -> None:
        """Put jobs at the end of their lane, and take the next."""
        for entry in entries:
            self._remove(entry)
        try:
            # Without the time when it was due: a copy of the key may have another appointment now
            await self._lanes.publish([replace(entry.job, due=0.0) for entry in entries])
        except Temporary:
            # The lanes were closed: the deliveries, which nobody has acked, are theirs again
            return
        finally:
            del self._tasks[lane]
        for entry in entries:
            for delivery in entry.deliveries:
                delivery.ack()
