"""Wishes: what an operator has asked for about an image on a target; one process's memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Set
from enum import StrEnum

from worker.core.job import Key

KEEP = 100_000
"""Keys whose wish is remembered; the oldest are forgotten."""
HOLD_FOR = 86_400.0
"""Seconds for which an image that was evicted is not made warm again."""


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
        self._wishes: OrderedDict[Key, tuple[float, str]] = OrderedDict()
        # Lanes deliver on threads of their own
        self._lock = threading.Lock()

    def note(self, key: Key, wish: str, *, at: float) -> bool:
        """Remember a wish of the time `at`, in epoch seconds; whether it is a new one.

        The job of a wish comes again with each of its tries, also after that of a later wish.
        """
        with self._lock:
            if wish not in (Wish.WARM, Wish.EVICT) or at <= self._wishes.get(key, (0.0, ""))[0]:
                return False
            self._wishes[key] = at, wish
            self._wishes.move_to_end(key)
            if len(self._wishes) > KEEP:
                self._wishes.popitem(last=False)
            return True

    def is_evicted(self, key: Key, *, now: float) -> bool:
        """Whether an operator has evicted the image from the target lately."""
        at, wish = self._wishes.get(key, (0.0, ""))
        return wish == Wish.EVICT and now - at < HOLD_FOR

    def evicted(self, *, now: float) -> tuple[Key, ...]:
        """The keys that an operator has evicted lately."""
        with self._lock:
            keys = tuple(self._wishes)
        return tuple(key for key in keys if self.is_evicted(key, now=now))
