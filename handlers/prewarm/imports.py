"""Imports: the copies that Glance is making, store by store, by the images' notifications."""

from __future__ import annotations

import threading

from worker.core.newest import Newest
from worker.core.notification import Notification

# Images whose copies are remembered; the oldest are forgotten
KEEP = 10_000


class Imports:
    """The stores that copies of images have not reached yet.

    Glance takes a store off its list when the copy is there, and sends a notification each time. A
    look at every target each time would be the square of their number, so such a notification
    concerns the targets on that store alone. The one at the end of the import is for all.
    """

    def __init__(self) -> None:
        self._coming: Newest[str, frozenset[str]] = Newest(KEEP)
        # Several intakes ask, each on its own thread
        self._lock = threading.Lock()

    def arrived(self, notification: Notification) -> frozenset[str] | None:
        """Return the stores that an image's notification is about; None if that can be all of
        them."""
        image_id, coming = notification.image_id, notification.importing
        with self._lock:
            before = self._coming.pop(image_id, None)
            if not coming:
                return None
            self._coming[image_id] = coming
        if before is None:
            return None
        if arrived := before - coming:
            return arrived
        # Glance says that the data is there and then takes the store off its list; an update is
        # somebody's change
        return frozenset() if notification.event_type == "image.upload" else None
