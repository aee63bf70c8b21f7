"""Keys that we have published and not received back. Keeps us from publishing one twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from worker.core.job import Job, Key

MOST = 100_000
"""Keys of one lane that are remembered, about 20 MB; of more than that some wait there twice."""
FOR = 900.0
"""For so long at most, in seconds: nobody is told of what an operator takes out of a queue, nor
that a cluster which fell apart and came together again hands out the lane to another worker."""


@dataclass(slots=True)
class _Lane:
    """How many jobs of each key wait, and since when, while we are the active consumer."""

    activation: int = 0
    keys: dict[Key, tuple[int, float]] = field(default_factory=dict)


class PublishedKeys:
    """Keys that certainly wait in a lane, to be handed out to this process.

    We are certain of jobs that we have published while we are the active consumer, until they
    arrive here: nobody else gets them meanwhile. We know nothing of jobs that another process has
    published, and nothing depends on them.
    """

    def __init__(
        self, *, activation: Callable[[str], int], empty_at: Callable[[str], float]
    ) -> None:
        """`activation(lane)`: changes whenever we become the lane's active consumer, 0 while we are
        not; `empty_at(lane)`: when the broker last said that nothing waits there, in monotonic
        seconds."""
        self._activation = activation
        self._empty_at = empty_at
        self._lanes: dict[str, _Lane] = {}

    def published(self, jobs: Iterable[Job]) -> None:
        """Note that jobs of these keys are about to be in their lanes."""
        now = time.monotonic()
        for job in jobs:
            keys = self._keys(job.key.lane)
            if keys is not None:
                count, _ = keys.get(job.key, (0, 0.0))
                if count or len(keys) < MOST:
                    keys[job.key] = (count + 1, now)

    def arrived(self, job: Job) -> None:
        """Note that a job of the key was handed out."""
        keys = self._keys(job.key.lane) or {}
        count, since = keys.pop(job.key, (0, 0.0))
        if count > 1:
            keys[job.key] = (count - 1, since)

    def withdrawn(self, jobs: Iterable[Job]) -> None:
        """Note that jobs of these keys may or may not have come to their lanes."""
        for job in jobs:
            self.arrived(job)

    def waits(self, key: Key) -> bool:
        """Whether a job of the key waits in its lane."""
        keys = self._keys(key.lane) or {}
        if key not in keys:
            return False
        _, since = keys[key]
        if self._empty_at(key.lane) > since or time.monotonic() - since > FOR:
            del keys[key]
            return False
        return True

    def count(self, lane: str) -> int:
        """Return how many jobs certainly wait in a lane."""
        oldest = max(time.monotonic() - FOR, self._empty_at(lane))
        return sum(count for count, since in (self._keys(lane) or {}).values() if since >= oldest)

    def _keys(self, name: str) -> dict[Key, tuple[int, float]] | None:
        """Return the keys of a lane; None while we are not its active consumer."""
        activation = self._activation(name)
        lane = self._lanes.setdefault(name, _Lane())
        if lane.activation != activation:
            lane.activation, lane.keys = activation, {}
        return lane.keys if activation else None
