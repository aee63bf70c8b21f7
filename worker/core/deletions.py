"""Deletions: what Glance and Cinder have announced as deleted, and what was not found without
that."""

from __future__ import annotations

import threading

from worker.core.absence import NONE, Absence
from worker.core.newest import Newest

# Images and volumes remembered, each; the oldest are forgotten, and their deletion is then proven
# by looking
KEEP = 100_000
# Seconds after which a volume that nobody has looked for again is not counted as missing any more
FORGET_AFTER = 7_200.0
DELETED = "deleted"


class Deletions:
    """The image.delete and volume.delete.end notifications that this process was given as jobs, and
    its own looks."""

    def __init__(self) -> None:
        self._statuses: Newest[str, str] = Newest(KEEP)
        self._volumes: Newest[str, str] = Newest(KEEP)
        self._missing: dict[str, Absence] = {}
        # Lanes deliver on threads of their own
        self._lock = threading.Lock()

    def note(self, image_id: str, status: str) -> None:
        """Remember the status that an image's deletion was announced with."""
        with self._lock:
            self._statuses[image_id] = status

    def forget(self, image_id: str) -> None:
        """The image is there: what was announced is over."""
        with self._lock:
            self._statuses.pop(image_id, None)

    def status(self, image_id: str) -> str:
        """The status that the deletion was announced with; "" if none was heard of."""
        return self._statuses.get(image_id, "")

    def note_volume(self, volume_id: str) -> None:
        """Remember that Cinder has announced a volume's deletion, or that we have had it
        deleted."""
        with self._lock:
            self._missing.pop(volume_id, None)
            self._volumes[volume_id] = DELETED

    def is_volume_deleted(self, volume_id: str) -> bool:
        """Whether Cinder has announced the volume's deletion, or we have had it deleted."""
        return volume_id in self._volumes

    def look(self, volume_id: str, *, now: float, grace: float) -> Absence:
        """Count one more look at which Cinder did not find a volume, if it is time for it; how
        often it was not found.

        Unlike an image, it leaves nothing behind on which that could be noted.
        """
        with self._lock:
            noted = self._missing.get(volume_id, NONE).as_of(now, grace)
            if now >= noted.next_look(grace):
                noted = self._missing[volume_id] = noted.seen(now)
            return noted

    def found_volume(self, volume_id: str) -> None:
        """Take back the looks for a volume, and that its deletion was announced: it is there."""
        if volume_id in self._missing or volume_id in self._volumes:
            with self._lock:
                self._missing.pop(volume_id, None)
                self._volumes.pop(volume_id, None)

    def missing_volumes(self, *, now: float) -> int:
        """How many volumes Cinder has not found lately, though it did not announce their
        deletion."""
        with self._lock:
            for volume_id, noted in list(self._missing.items()):
                if noted.last < now - FORGET_AFTER:
                    del self._missing[volume_id]
            return len(self._missing)
