"""Outgoing: messages on their way to queues, until the broker has confirmed them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

PATIENCE = 15.0
"""Seconds that a confirm may take, or that a queue may refuse; doubled each time that another
connection did not help. When the node that leads a quorum queue dies, RabbitMQ (seen with 3.10) can
lose what a channel has sent to that queue. From then on it confirms, or takes, nothing of what the
channel sends there."""
LONGEST_PATIENCE = 120.0
"""A queue that refuses is seen to take messages again by another connection only (RabbitMQ 3.10),
which costs the other queues a moment."""


class Written(Protocol):
    """Something that can be put into a message: a job or a dead letter."""

    def to_bytes(self) -> bytes:
        """The message's body."""


@dataclass(slots=True)
class Batch:
    """One caller's messages: `done` is called once, on the link's thread, with the last confirm."""

    missing: int
    done: Callable[[], None]
    withdrawn: bool = False

    def confirm(self) -> None:
        """Count one confirm."""
        self.missing -= 1
        if not self.missing:
            self.done()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message, to be delivered in `after` seconds."""

    item: Written
    after: float
    batch: Batch


@dataclass(slots=True)
class OutgoingQueue:
    """Messages on their way to one queue, with a window of its own: a queue without a leader delays
    no other.

    Delayed messages have a window of their own too, because RabbitMQ puts them into another queue
    first. `in_flight` are the delivery tags of messages without a confirm and when they were sent,
    the oldest first. `refusing_since` is when the queue began to refuse, infinite while it takes
    messages. `unheard` is how often in a row another connection did not help, `stuck_since` when
    the first of them was tried, infinite if none was. Times are monotonic.
    """

    name: str
    waiting: deque[Outgoing] = field(default_factory=deque)
    in_flight: dict[int, float] = field(default_factory=dict)
    declared: bool = False
    refusing_since: float = math.inf
    broken: int = 0
    unheard: int = 0
    stuck_since: float = math.inf
    not_before: float = 0.0

    @property
    def overdue_at(self) -> float:
        """When to try another connection; infinite if nothing is open."""
        patience = min(LONGEST_PATIENCE, PATIENCE * 2.0 ** min(self.unheard, 16))
        return min(self.refusing_since, next(iter(self.in_flight.values()), math.inf)) + patience

    def rest(self) -> None:
        """Forget that it took nothing: it has taken a message, or nobody waits for it any more."""
        self.refusing_since = self.stuck_since = math.inf
        self.unheard = 0

    def is_refusing_too_long(self, now: float) -> bool:
        """Whether the queue has refused what was sent to it until another connection is due."""
        return self.refusing_since + PATIENCE <= now
