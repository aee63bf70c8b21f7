"""Last use: the time when a volume was last made of an Image-Volume, kept on it. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from worker.core.cloud import Volume
from worker.core.target import TAG

USED = f"{TAG}_used_at"
RECORD_EVERY = 3600.0
"""Seconds: an hour is near enough for what is least recently used."""


def recorded_use(volume: Volume) -> float:
    """The last use that is written on it, in epoch seconds; 0 if there is none."""
    try:
        return datetime.fromisoformat(volume.metadata.get(USED, "")).timestamp()
    except ValueError:
        return 0.0


def use_to_record(volume: Volume, used: float) -> dict[str, str]:
    """Return the metadata to write for a use at `used`, in epoch seconds; nothing if what is there
    is near enough."""
    if used - recorded_use(volume) < RECORD_EVERY:
        return {}
    return {USED: datetime.fromtimestamp(used, UTC).isoformat(timespec="seconds")}
