"""Stuck: volumes that Cinder does not delete before an administrator has acted are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog

from handlers import volume_status
from worker.core.cloud import Volume

# Seconds after which a volume that is in use is reported: a Glance that was killed while it read
# leaves its attachment behind, and Cinder keeps it for ever
ATTACHED_FOR = 900.0

log = structlog.get_logger(__name__)


def report_stuck(volume: Volume, *, located: bool) -> None:
    """Log a volume that Cinder does not delete before an administrator has acted; `located` if it
    is a location."""
    advice = volume_status.stuck_advice(volume, located=located)
    log.warning("volume_stuck", volume_id=volume.id, status=volume.status, advice=advice)


class Attached:
    """Reports volumes that have been attached at every try to delete them for so long that only an
    administrator may help."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._since: dict[str, float] = {}

    def report(self, left: Iterable[Volume]) -> None:
        """Log those of the volumes that could not be deleted which have been attached for too
        long."""
        now = self._now()
        for volume in left:
            if (
                volume.status in volume_status.ATTACHED
                and now - self._since.setdefault(volume.id, now) >= ATTACHED_FOR
            ):
                report_stuck(volume, located=False)
                self._since[volume.id] = now
        # What nobody has tried to delete lately is forgotten
        self._since = {
            volume_id: since
            for volume_id, since in self._since.items()
            if now - since < 2 * ATTACHED_FOR
        }
