"""An entry of the queue: one key, and the deliveries that keep its job safe."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from worker.core.job import Job
from worker.core.lanes import Delivery


@dataclass(slots=True)
class Entry:
    """A key that waits for its turn or is worked on, with the delivery that keeps its job safe.

    While it is `settling` there are several deliveries: the copy for the next try may be among
    them. `since` is when it came, in monotonic seconds. `notified` says that we heard of the key
    after its last look; `awake` wakes its waits. `lost`: the broker has taken the delivery back,
    and another worker may have the key now.
    """

    job: Job
    deliveries: list[Delivery]
    since: float = field(default_factory=time.monotonic)
    settling: bool = False
    lost: bool = False
    notified: bool = False
    awake: asyncio.Event = field(default_factory=asyncio.Event)

    def join(self, delivery: Delivery) -> None:
        """Add a delivery of the key. The newest one keeps the job safe: those before may be of a
        lost connection."""
        before, self.deliveries = self.deliveries, [delivery]
        self.lost = False
        if self.settling:
            self.deliveries = [*before, delivery]
        else:
            for one in before:
                one.ack()
        self.notify()

    def notify(self) -> None:
        """Wake the job: something has happened that concerns its key."""
        self.notified = True
        self.awake.set()

    def look(self) -> None:
        """Note that a look begins, which answers all notifications until now."""
        self.notified = False
        self.awake.clear()
