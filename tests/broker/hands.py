"""Where lanes deliver to in tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from worker.core.job import Job, Key
from worker.core.lanes import Delivery

PATIENCE = 120.0
"""Seconds after which something that has to happen counts as not happening; generous, as machines
are busy."""


class Hands:
    """Takes deliveries, in order; acks nothing by itself."""

    def __init__(self) -> None:
        self.held: list[Delivery] = []
        self._arrived = asyncio.Event()

    def __call__(self, delivery: Delivery) -> None:
        self.held.append(delivery)
        self._arrived.set()

    @property
    def images(self) -> list[str]:
        """The image ids of what was delivered."""
        return [delivery.job.key.image_id for delivery in self.held]

    async def have(self, count: int, *, within: float = PATIENCE) -> list[str]:
        """Wait until `count` jobs have been delivered in all; their image ids."""
        async with asyncio.timeout(within):
            while len(self.held) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.images

    def ack(self) -> None:
        """Ack everything that was delivered, once, and forget it."""
        held, self.held = self.held, []
        for delivery in held:
            delivery.ack()


def jobs(lane: str, count: int, *, first: int = 0) -> list[Job]:
    """Jobs of one lane, with the numbers from `first` on as image ids."""
    return [
        Job(key=Key(lane, str(number)), cause="test", first_at=1.0)
        for number in range(first, first + count)
    ]


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "it does not become true"
        await asyncio.sleep(0.02)
