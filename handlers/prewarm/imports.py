"""Imports: what an image's notifications tell of a copy that Glance is making, store by store."""

from __future__ import annotations

import threading
from collections import OrderedDict

from worker.core.notification import Notification

# Images whose copies are remembered; the oldest are forgotten
KEEP = 10_000


class Imports:
    """Into which stores the copies of images are still to come.

    Glance takes a store off its list when the copy is there, and says so each time. Looked at on
    every target that would be the square of their number, so it concerns the targets on that store
    alone. When the import ends there is one more notification, and that is for all.
    """

    def __init__(self) -> None:
        self._coming: OrderedDict[str, frozenset[str]] = OrderedDict()
        # Several intakes ask, each on its own thread
        self._lock = threading.Lock()

    def arrived(self, notification: Notification) -> frozenset[str] | None:
        """The stores that an image's notification tells something new about; None if that can be
        all of them."""
        image_id, coming = notification.image_id, notification.importing
        with self._lock:
            before = self._coming.pop(image_id, None)
            if not coming:
                return None
            self._coming[image_id] = coming
            if len(self._coming) > KEEP:
                self._coming.popitem(last=False)
        if before is None:
            return None
        if arrived := before - coming:
            return arrived
        # Glance says that the data is there and then takes the store off its list; an update is
        # somebody's change
        return frozenset() if notification.event_type == "image.upload" else None
