"""Last use: the time when a volume was last made of an Image-Volume, kept on it. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from worker.core.age import SKEW, epoch
from worker.core.cloud import Volume
from worker.core.target import TAG

USED = f"{TAG}_used_at"
RECORD_EVERY = 3600.0
"""Seconds: an hour is near enough for what is least recently used."""


def recorded_use(volume: Volume, now: float) -> float:
    """The last use that is written on it, in epoch seconds; 0 if there is none, or one that is yet
    to come: a clock was ahead."""
    at = epoch(volume.metadata.get(USED, ""))
    return at if at <= now + SKEW else 0.0


def use_to_record(volume: Volume, used: float, now: float) -> dict[str, str]:
    """Return the metadata to write for a use at `used`, in epoch seconds; nothing if what is there
    is near enough, or if the use is yet to come."""
    if used > now + SKEW or used - recorded_use(volume, now) < RECORD_EVERY:
        return {}
    return {USED: datetime.fromtimestamp(used, UTC).isoformat(timespec="seconds")}
