"""The exchanges that an intake binds its queue to: which are missing, and when to look for them
again. No IO.

The services' exchanges are not durable: they appear when a service first publishes, and disappear
when the broker restarts. RabbitMQ logs an error whenever we ask for an exchange that is not there.
"""

from __future__ import annotations

from collections.abc import Iterable

LOOK_EVERY = 5.0
"""Seconds between two looks at an exchange that is there, which nobody logs; the shortest pause for
one that is not."""
LONGEST_PAUSE = 3600.0
"""Seconds between two looks for one that is not there. The pause doubles up to this, so that one
which comes back is bound after no more than twice the time that it was away."""

NOT_CONNECTED = "not connected"
NOT_LOOKED_FOR = "not looked for yet"


class Exchanges:
    """When to look for each exchange; the pause doubles while it is missing.

    Written on one thread; `unbound` may be read on any. Times are of one monotonic clock, which the
    caller reads.
    """

    def __init__(self, names: Iterable[str], *, every: float = LOOK_EVERY) -> None:
        self._names = tuple(names)
        self._every = every
        # Never changed in place: other threads read it
        self._reasons = dict.fromkeys(self._names, NOT_LOOKED_FOR)
        self._pauses = dict.fromkeys(self._names, every)
        self._due = dict.fromkeys(self._names, float("-inf"))
        self._known: set[str] = set()

    @property
    def unbound(self) -> tuple[str, ...]:
        """The exchanges that are not bound, as far as we know."""
        return tuple(self._reasons)

    @property
    def next_look(self) -> float:
        """When the next exchange is due; inf if there are none."""
        return min(self._due.values(), default=float("inf"))

    def due(self, now: float) -> tuple[str, ...]:
        """Return the exchanges to look for now."""
        return tuple(name for name in self._names if self._due[name] <= now)

    def found(self, name: str, now: float) -> bool:
        """Note that an exchange is there and bound; return whether it was not bound before."""
        before = self._reasons.get(name)
        self._reasons = {other: reason for other, reason in self._reasons.items() if other != name}
        self._known.add(name)
        self._pauses[name] = self._every
        self._due[name] = now + self._every
        if before not in (None, NOT_CONNECTED, NOT_LOOKED_FOR):
            # A service has begun to publish. The others were most likely started together with it.
            for other in self._reasons:
                self._pauses[other] = self._every
                self._due[other] = min(self._due[other], now + self._every)
        return before is not None

    def missing(self, name: str, reason: str, now: float) -> bool:
        """Note why an exchange can't be bound; return whether the reason is a new one."""
        before = self._reasons.get(name)
        if before is None:
            self._pauses[name] = self._every
        self._reasons = {**self._reasons, name: reason}
        self._due[name] = now + self._pauses[name]
        self._pauses[name] = min(LONGEST_PAUSE, 2 * self._pauses[name])
        return before != reason

    def disconnected(self) -> None:
        """Forget all bindings. Exchanges that were there are due at once. The others keep their
        pause, so that a connection that breaks time and again does not lead to a look each time."""
        self._reasons = dict.fromkeys(self._names, NOT_CONNECTED)
        for name in self._known:
            self._pauses[name] = self._every
            self._due[name] = float("-inf")
