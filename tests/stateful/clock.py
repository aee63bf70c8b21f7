"""Time that costs none: an event loop whose clock goes straight to the next timer, and which ends
up the same each run.

A module that looks at the clock gets `Clock` in the place of its `time`.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping

START = 1_800_000_000.0


class Clock:
    """What these tests need of the module `time`; `now` is everybody's."""

    def __init__(self) -> None:
        self.now = START

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


class _Leap(selectors.BaseSelector):
    """Nothing is ever read or written: to wait is to set the clock ahead, by `turn` seconds at
    least."""

    def __init__(self, clock: Clock, turn: float) -> None:
        self._clock = clock
        self._turn = turn

    def register(self, fileobj: object, events: int, data: object = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, events, data)  # type: ignore[arg-type]

    def unregister(self, fileobj: object) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, 0, None)  # type: ignore[arg-type]

    def get_key(self, fileobj: object) -> selectors.SelectorKey:
        raise KeyError(fileobj)

    def get_map(self) -> Mapping[object, selectors.SelectorKey]:  # type: ignore[override]
        return {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        self._clock.now += max(self._turn, timeout)
        return []


class Loop(asyncio.SelectorEventLoop):
    """An event loop on such a clock. Each turn takes `turn` seconds, so that asking without a wait
    ends too."""

    def __init__(self, clock: Clock, *, turn: float = 0.0) -> None:
        super().__init__(_Leap(clock, turn))
        self._clock = clock
        # An epoch in seconds has no finer float
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._clock.now
