"""Deletions: the images whose deletion was announced, and how; half of the proof that an image is gone."""

from __future__ import annotations

import threading
from collections import OrderedDict

# Images remembered; the oldest are forgotten, and their deletion is then proven by looking
KEEP = 100_000
DELETED = "deleted"
PENDING = "pending_delete"
"""Glance's delayed deletion: the image is not found any more, but an administrator can restore it."""


class Deletions:
    """Statuses in the image.delete notifications that this process was given as jobs."""

    def __init__(self) -> None:
        self._statuses: OrderedDict[str, str] = OrderedDict()
        # Lanes deliver on threads of their own
        self._lock = threading.Lock()

    def note(self, image_id: str, status: str) -> None:
        """Remember the status that an image's deletion was announced with."""
        with self._lock:
            self._statuses[image_id] = status
            self._statuses.move_to_end(image_id)
            if len(self._statuses) > KEEP:
                self._statuses.popitem(last=False)

    def forget(self, image_id: str) -> None:
        """The image is there: what was announced is over."""
        with self._lock:
            self._statuses.pop(image_id, None)

    def status(self, image_id: str) -> str:
        """The status that the deletion was announced with; "" if none was heard of."""
        return self._statuses.get(image_id, "")
