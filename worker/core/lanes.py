"""Lanes: where jobs wait, one queue for each handler and target. Behind one Protocol: RabbitMQ or
memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from worker.core.dead_letter import DeadLetter
from worker.core.job import Job, Key


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A job handed out by a lane. It stays the lane's until `ack`: a process that dies gives it
    back.

    `ack` lets the lane forget the job. It returns at once, and is without effect if the lane has
    taken the job back already.
    """

    job: Job
    ack: Callable[[], None]


def ignore(_lane: str) -> None:
    """Nobody works on what was delivered."""


class Lanes(Protocol):
    """Publish, hand out, delay, bury. All methods are called on the event loop's thread."""

    async def open(
        self,
        prefetch: Mapping[str, int],
        deliver: Callable[[Delivery], None],
        lost: Callable[[str], None] = ignore,
    ) -> None:
        """Begin to hand out the jobs of each lane to `deliver` (on the event loop), at most
        `prefetch[lane]` unacked.

        `lost(lane)` is called there when the broker hands its jobs out anew, maybe to another
        worker: what was delivered is no longer ours. Returns at once when the broker can't be
        reached: the lanes open as soon as it can, and again after each outage.
        """

    async def publish(self, jobs: Iterable[Job], *, after: float = 0.0) -> None:
        """Put jobs into their lanes, to be handed out after `after` seconds. Once it returns they
        survive a crash (as far as the kind of lane can). Waits for as long as the broker is
        away."""

    async def bury(self, letters: Iterable[DeadLetter]) -> None:
        """Keep dead letters, as safely as `publish` keeps jobs; Temporary if there is no room for
        them for minutes."""

    async def close(self) -> None:
        """Hand out nothing more, write the acks that were given, let go of the broker. Unacked jobs
        stay in a lane."""

    def will_hand_out(self, key: Key) -> bool:
        """Whether a job of the key, without a time of its own, waits in its lane for certain, to be
        handed out here."""

    def knows(self, lane: str) -> bool:
        """Whether `will_hand_out` tells of everything that waits in a lane; if not, somebody else's
        jobs do."""

    def serves(self, lane: str) -> bool:
        """Whether the lane hands out its jobs here, and not to another worker. False until the
        first one has come."""

    def is_stuck(self, lane: str) -> bool:
        """Whether the lane takes no jobs though the broker is there: its queue has no leader, or a
        policy has it refuse them."""

    def depths(self) -> Mapping[str, int]:
        """Jobs waiting in each lane and, as `dead`, dead letters; as last counted, a few seconds
        ago at the most."""

    def problem(self) -> str | None:
        """None when every lane is open, else what is wrong in one line."""
