"""Seconds that users wait for volumes made from an image, and whether Cinder cloned or
downloaded it."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Mapping

from worker.core.notification import Notification
from worker.observe.metrics import Metrics

# Volumes and images remembered at once; older ones were lost on the way
KEEP = 10_000
# The event types that `VolumeTimes.see` takes note of
TIMED = frozenset({"volume.create.start", "image.send", "volume.create.end"})


class VolumeTimes:
    """Pairs volume.create.start with .end; an image.send in between means that the image was
    downloaded.

    "In between" goes by the order in which notifications come in, because Glance and Cinder have
    clocks of their own. The duration goes by timestamps, which are both Cinder's.
    """

    def __init__(self, *, metrics: Metrics) -> None:
        self._metrics = metrics
        self._targets: Mapping[str, str] = {}
        self._started: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._sent: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._order = itertools.count(1)
        # Several intakes feed this, each on its own thread
        self._lock = threading.Lock()

    def know(self, targets: Mapping[str, str]) -> None:
        """Take over the names of targets by volume type id; payloads name the type by its id."""
        self._targets = targets

    def see(self, notification: Notification) -> None:
        """Note one notification; other kinds are ignored."""
        when = notification.timestamp
        if when is None:
            return
        match notification.event_type:
            case "volume.create.start":
                # A create that is tried on another backend starts again: users wait since the first
                # time
                self._note(self._started, notification.volume_id, when, first=True)
            case "image.send":
                self._note(self._sent, notification.image_id, when)
            case "volume.create.end":
                self._end(notification, when)

    def _end(self, notification: Notification, when: float) -> None:
        with self._lock:
            began = self._started.pop(notification.volume_id, None)
            sent, _ = self._sent.get(notification.source_image_id, (0, 0.0))
        target = self._targets.get(notification.volume_type_id)
        if began is None or target is None or not notification.is_use:
            return
        order, since = began
        warm = "false" if sent > order else "true"
        seconds = max(0.0, when - since)
        self._metrics.volume_create.labels(target, warm).observe(seconds)
        self._metrics.activity.created(target, seconds, warm=warm == "true")

    def _note(
        self,
        times: OrderedDict[str, tuple[int, float]],
        key: str,
        when: float,
        *,
        first: bool = False,
    ) -> None:
        with self._lock:
            if not (first and key in times):
                times[key] = (next(self._order), when)
            while len(times) > KEEP:
                times.popitem(last=False)
