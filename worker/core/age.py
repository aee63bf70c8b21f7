"""Age: the time since a moment by another clock than ours. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime

SKEW = 60.0
"""Seconds that the clocks of a cloud may differ by."""


def age(moment: float, now: float) -> float:
    """Seconds since a moment, both in epoch seconds; infinite if it is yet to come.

    For waits alone: to wait until a clock that was set back has caught up could take hours.
    """
    return math.inf if moment > now + SKEW else now - moment


def is_recent(moment: float, now: float, within: float) -> bool:
    """Whether a moment of our own clock was so many seconds ago at most. One that is yet to come is
    not: the clock was set back since, and nobody knows how long ago it was."""
    return 0.0 <= now - moment <= within


def lasts(until: float, now: float, span: float) -> bool:
    """Whether something that lasts for `span` seconds is not over yet.

    A moment further away was noted while the clock was ahead, and counts for nothing.
    """
    return now < until <= now + span + SKEW


def epoch(text: str) -> float:
    """Return the time in epoch seconds; 0 if the text is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
