"""Consumed lane: a lane on the current connection."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

DEAF_AFTER = 15.0
"""Seconds for which jobs wait in a lane and none comes, before the lane is opened again; longer
each time in a row. When the node that leads a quorum queue dies, RabbitMQ (seen with 3.10) can lose
what it delivers and take it to be with us. To a worker that only stands by for the lane it looks
the same, and does not matter."""
LONGEST_DEAF = 320.0


@dataclass(slots=True, eq=False)
class ConsumedLane:
    """A lane on the current connection."""

    name: str
    queue: str
    prefetch: int
    channel: Any = None
    unacked: set[int] = field(default_factory=set)
    problem: str | None = "not open yet"
    open_at: float = 0.0
    broken: int = 0
    refused: int = 0
    activations: int = 0
    active: bool = False
    empty_at: float = 0.0
    starved_since: float = math.inf
    starved: int = 0

    @property
    def deaf_at(self) -> float:
        """When to open the lane again, in monotonic seconds; infinite unless jobs wait and none
        comes."""
        return self.starved_since + min(LONGEST_DEAF, DEAF_AFTER * 2.0 ** min(self.starved, 16))

    def closed(self, problem: str, *, open_at: float) -> None:
        """Forget the channel and its deliveries: the broker takes them back."""
        self.active, self.starved_since = False, math.inf
        self.channel, self.problem, self.open_at = None, problem, open_at
        self.unacked = set()
