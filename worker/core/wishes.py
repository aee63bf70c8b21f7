"""Wishes: what an operator has asked for about an image on a target; one process's memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Set
from enum import StrEnum

from worker.core.age import lasts
from worker.core.job import Key
from worker.core.newest import Newest

KEEP = 100_000
"""Keys whose wish is remembered, and wishes that are known; the oldest are forgotten."""
HOLD_FOR = 86_400.0
"""Seconds for which an image that was evicted is not made warm again."""


EVICTED = "an operator has evicted it; the command warm makes it again, else it waits for a day"
"""Why an image is not made warm, for people."""


class Wish(StrEnum):
    """A wish, as it travels in a job."""

    NONE = ""
    WARM = "warm"
    """Make the image warm now."""
    EVICT = "evict"
    """Delete what was made for the image on the target, and do not make it again for a day."""


class Wishes:
    """The last wish of an operator about each key, and the names of paused targets (`paused`)."""

    def __init__(self) -> None:
        self.paused: Set[str] = frozenset()
        self._evicted: Newest[Key, float] = Newest(KEEP)
        self._inherited: Newest[Key, float] = Newest(KEEP)
        self._known: Newest[str, None] = Newest(KEEP)
        self._last: Newest[Key, str] = Newest(KEEP)
        # Lanes deliver on threads of their own
        self._lock = threading.Lock()

    def note(
        self, key: Key, wish: str, wish_id: str, *, now: float, inherited: float = 0.0
    ) -> bool:
        """Remember a wish; whether it is a new one.

        `wish_id` tells it from others: its job comes again with each of its tries, also after that
        of a later wish. `inherited`: when it was made (epoch seconds), if another process has tried
        its job: this one does not know what was asked for since.
        """
        with self._lock:
            if wish not in (Wish.WARM, Wish.EVICT) or wish_id in self._known:
                return False
            self._known[wish_id] = None
            self._last[key] = wish_id
            if wish == Wish.EVICT:
                self._evicted[key] = now + HOLD_FOR
                self._inherited[key] = inherited or math.inf
            else:
                self._evicted.pop(key, None)
            return True

    def is_over(self, key: Key, wish_id: str) -> bool:
        """Whether a later wish about the key has come."""
        return self._last.get(key, wish_id) != wish_id

    def hold(self, key: Key, *, now: float) -> None:
        """Begin the day for which an image is not made again: what was made of it is deleted."""
        with self._lock:
            self._evicted[key] = now + HOLD_FOR

    def counts_until(self, key: Key) -> float:
        """When a volume has to be made (epoch seconds) so that the evict may have meant it.

        A worker that died may have made the image warm again, as a later wish asked for.
        """
        return self._inherited.get(key, math.inf)

    def drop(self, key: Key) -> None:
        """Forget that the image was evicted: it was asked for again since."""
        with self._lock:
            self._evicted.pop(key, None)

    def is_evicted(self, key: Key, *, now: float) -> bool:
        """Whether an operator has evicted the image from the target lately."""
        return lasts(self._evicted.get(key, 0.0), now, HOLD_FOR)

    def evicted(self, *, now: float) -> tuple[Key, ...]:
        """The keys that an operator has evicted lately."""
        with self._lock:
            return tuple(key for key, until in self._evicted.items() if lasts(until, now, HOLD_FOR))
