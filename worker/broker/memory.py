"""Lanes of one process, in memory. The resync at start finds again what a crash loses."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from worker.core.dead_letter import DeadLetter
from worker.core.job import Job, Key
from worker.core.lanes import Delivery, ignore


@dataclass(slots=True)
class _Lane:
    """Waiting and handed-out jobs, oldest first, and how many of each key wait."""

    waiting: deque[Job] = field(default_factory=deque)
    keys: Counter[Key] = field(default_factory=Counter)
    unacked: dict[Delivery, None] = field(default_factory=dict)


class MemoryLanes:
    """Lanes that live as long as this object. Opened again they hand out all jobs that were not
    acked."""

    def __init__(self, *, keep_dead: int = 1000) -> None:
        """`keep_dead`: how many dead letters are kept; the oldest go first."""
        self._lanes: defaultdict[str, _Lane] = defaultdict(_Lane)
        self._dead: deque[DeadLetter] = deque(maxlen=keep_dead)
        self._prefetch: Mapping[str, int] = {}
        self._deliver: Callable[[Delivery], None] | None = None

    async def open(
        self,
        prefetch: Mapping[str, int],
        deliver: Callable[[Delivery], None],
        lost: Callable[[str], None] = ignore,  # noqa: ARG002
    ) -> None:
        """Begin to hand out; nothing is ever `lost`."""
        self._prefetch, self._deliver = dict(prefetch), deliver
        for name in self._prefetch:
            self._hand_out(name)

    async def publish(self, jobs: Iterable[Job], *, after: float = 0.0) -> None:
        jobs = tuple(jobs)
        if after > 0:
            asyncio.get_running_loop().call_later(after, self._add, jobs)
        else:
            self._add(jobs)

    async def bury(self, letters: Iterable[DeadLetter]) -> None:
        """Keep the newest dead letters."""
        self._dead.extend(letters)

    async def close(self) -> None:
        """Hand out nothing more; unacked jobs go back to the head of their lanes."""
        self._deliver = None
        for lane in self._lanes.values():
            lane.waiting.extendleft(delivery.job for delivery in reversed(lane.unacked))
            lane.keys.update(delivery.job.key for delivery in lane.unacked)
            lane.unacked.clear()

    def will_hand_out(self, key: Key) -> bool:
        return (
            self._deliver is not None
            and key.lane in self._prefetch
            and key in self._lanes[key.lane].keys
        )

    def knows(self, lane: str) -> bool:  # noqa: ARG002
        """True: nobody else publishes here."""
        return True

    def serves(self, lane: str) -> bool:
        """Whether the lane is open: nobody else takes jobs here."""
        return self._deliver is not None and lane in self._prefetch

    def is_stuck(self, lane: str) -> bool:  # noqa: ARG002
        """False: memory takes all."""
        return False

    def depths(self) -> Mapping[str, int]:
        return {name: len(lane.waiting) for name, lane in self._lanes.items()} | {
            "dead": len(self._dead)
        }

    def problem(self) -> str | None:
        return None if self._deliver is not None else "the lanes are closed"

    def dead_letters(self) -> tuple[DeadLetter, ...]:
        """Return the dead letters, oldest first."""
        return tuple(self._dead)

    def _add(self, jobs: Iterable[Job]) -> None:
        touched: dict[str, None] = {}
        for job in jobs:
            self._lanes[job.key.lane].waiting.append(job)
            self._lanes[job.key.lane].keys[job.key] += 1
            touched[job.key.lane] = None
        for name in touched:
            self._hand_out(name)

    def _hand_out(self, name: str) -> None:
        lane, limit = self._lanes[name], self._prefetch.get(name, 0)
        while self._deliver is not None and lane.waiting and len(lane.unacked) < limit:
            delivery = self._delivery(lane.waiting.popleft())
            lane.unacked[delivery] = None
            lane.keys[delivery.job.key] -= 1
            if not lane.keys[delivery.job.key]:
                del lane.keys[delivery.job.key]
            # Never from within a publish or an ack: their caller doesn't expect to be called back
            # in the middle
            asyncio.get_running_loop().call_soon(self._arrive, delivery)

    def _delivery(self, job: Job) -> Delivery:
        """Return the delivery of a job, which acks itself."""
        delivery = Delivery(job, lambda: self._ack(delivery))
        return delivery

    def _arrive(self, delivery: Delivery) -> None:
        if self._deliver is not None and delivery in self._lanes[delivery.job.key.lane].unacked:
            self._deliver(delivery)

    def _ack(self, delivery: Delivery) -> None:
        name = delivery.job.key.lane
        if delivery in self._lanes[name].unacked:
            del self._lanes[name].unacked[delivery]
            self._hand_out(name)
