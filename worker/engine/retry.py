"""Retries: of single calls, by tenacity; of jobs, by a backoff of their own."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import tenacity

from worker.core.errors import Conflict, Temporary, TooLarge


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential waits between the tries of a job, in seconds, with jitter so that a herd spreads
    out."""

    shortest: float = 5.0
    longest: float = 900.0
    jitter: Callable[[], float] = field(default=random.random)

    def after(self, attempt: int) -> float:
        """Return the wait before the try that follows `attempt` failed ones: between half and
        all of its exponential bound."""
        bound = min(self.longest, self.shortest * 2.0 ** min(attempt, 32))
        return bound * (0.5 + 0.5 * self.jitter())


@dataclass(slots=True)
class Pace:
    """The pace of something that others may ask for at any time: at once, then with growing pauses.

    Times are of a monotonic clock, in seconds.
    """

    backoff: Backoff
    _next: float = -math.inf
    _times: int = 0

    def wait(self, now: float) -> float:
        """Return the seconds until it may begin."""
        return max(0.0, self._next - now)

    def began(self, now: float) -> None:
        """Note that it begins; after a long quiet the next time is like the first."""
        self._times = 0 if now > self._next + self.backoff.longest else self._times + 1
        self._next = now + self.backoff.after(self._times)


def reading(
    on_retry: Callable[[str], None], *, sleep: Callable[[float], Awaitable[None]], tries: int = 4
) -> tenacity.AsyncRetrying:
    """Return the retries for one call that only reads: a few tries within seconds, longer if the
    answer's Retry-After says so."""

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.after if isinstance(error, Temporary) and error.after is not None else 0.0
        return max(asked, tenacity.wait_random_exponential(multiplier=0.2, max=5.0)(state))

    def told(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        on_retry(type(error).__name__)

    def again(error: BaseException) -> bool:
        # A conflict and a large object are answers, and a service that asks for minutes gets a job
        # that waits, not a held slot
        return (
            isinstance(error, Temporary)
            and not isinstance(error, Conflict | TooLarge)
            and (error.after or 0.0) <= 10.0
        )

    return tenacity.AsyncRetrying(
        sleep=sleep,
        retry=tenacity.retry_if_exception(again),
        wait=wait,
        stop=tenacity.stop_after_attempt(tries),
        before_sleep=told,
        reraise=True,
    )
