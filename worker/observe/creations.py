"""Creations: the volumes that users had made of images, and how Cinder made each."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from dataclasses import asdict
from typing import Any, NamedTuple

import structlog

from worker.core.creation import Creation, Made, Way
from worker.core.newest import Newest
from worker.core.notification import Notification
from worker.core.uses import Uses
from worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)

KEEP = 10_000
"""Volumes and images remembered at once; older ones were lost on the way."""
WAITING = 1000
"""Volumes of which it is still to be found out how they were made. More come only in a storm: then
the oldest counts as unknown."""
TIMED = frozenset(
    {
        "volume.create.start",
        "image.send",
        "image_volume_cache.hit",
        "image_volume_cache.evict",
        "volume.create.end",
    }
)
"""The event types that `Creations.see` takes note of."""
WARM = {Way.DOWNLOAD: "false", Way.UNKNOWN: "unknown"}
"""The metric's label `warm` of ways that are no clones."""


class _Heard(NamedTuple):
    """`order` counts what comes in; `when` is the sender's clock, `at` ours. Epoch seconds."""

    order: int
    when: float
    at: float


class Creations:
    """Pairs volume.create.start with .end, and counts how Cinder made the volume once that is
    found out.

    What happened in between is told by the order in which notifications come in: Glance and Cinder
    have clocks of their own. Only the duration comes from timestamps, which are both Cinder's.
    """

    def __init__(self, *, metrics: Metrics, uses: Uses) -> None:
        """`uses` knows which target serves a volume."""
        self._metrics = metrics
        self._uses = uses
        self._started: Newest[str, _Heard] = Newest(KEEP)
        self._read: Newest[str, _Heard] = Newest(KEEP)
        self._hits: Newest[tuple[str, str], _Heard] = Newest(KEEP)
        self._evictions: Newest[tuple[str, str], _Heard] = Newest(KEEP)
        self._waiting: deque[Creation] = deque()
        self._made: Newest[str, tuple[Creation, Made]] = Newest(KEEP)
        self._ended: Newest[str, None] = Newest(KEEP)
        self._order = itertools.count(1)
        # Several intakes feed this, each on its own thread
        self._lock = threading.Lock()

    def see(self, notification: Notification) -> None:
        """Take note of one notification; those of other kinds are ignored."""
        if notification.timestamp is None:
            return
        match notification.event_type:
            case "volume.create.start":
                # A create that is tried on another backend starts again: users wait since the first
                # time
                self._note(self._started, notification.volume_id, notification, first=True)
            case "image.send":
                self._note(self._read, notification.image_id, notification)
            case "image_volume_cache.hit":
                self._note(self._hits, (notification.image_id, notification.host), notification)
            case "image_volume_cache.evict":
                key = (notification.image_id, notification.host)
                self._note(self._evictions, key, notification)
            case "volume.create.end":
                self._end(notification, notification.timestamp)

    def take(self) -> Creation | None:
        """Return the oldest volume of which it is to be found out how it was made; None if there is
        none."""
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def put_back(self, creation: Creation) -> None:
        """Keep for later what cannot be found out now."""
        with self._lock:
            self._waiting.appendleft(creation)

    def settle(self, creation: Creation, made: Made) -> None:
        """Count how a volume was made, and remember it."""
        metrics, target = self._metrics, creation.target
        metrics.volume_creates.labels(target, made.way, made.reason).inc()
        if creation.seconds is not None:
            warm = WARM.get(made.way, "true")
            metrics.volume_create.labels(target, warm).observe(creation.seconds)
        metrics.activity.created(creation, made)
        if made.way is Way.DOWNLOAD:
            log.info(
                "volume_downloaded",
                volume_id=creation.volume_id,
                image_id=creation.image_id,
                target=target,
                pool=creation.host,
                seconds=creation.seconds,
                reasons=made.reasons,
                why=made.why,
            )
        with self._lock:
            self._made[creation.volume_id] = (creation, made)

    def document(self, volume_id: str) -> dict[str, Any]:
        """How a volume was made, as a JSON-able document; empty if that is not known here."""
        with self._lock:
            found = self._made.get(volume_id)
        if found is None:
            return {}
        creation, made = found
        return {**asdict(creation), "way": made.way, "reasons": made.reasons, "why": made.why}

    def _end(self, notification: Notification, when: float) -> None:
        at, image_id = time.time(), notification.source_image_id
        target = self._uses.target_of(notification)
        with self._lock:
            began = self._started.pop(notification.volume_id, None)
            # A notification may be delivered twice
            if not target or not notification.is_use or notification.volume_id in self._ended:
                return
            self._ended[notification.volume_id] = None
            read = self._read.get(image_id)
            hit = self._hits.get((image_id, notification.host))
            evicted = self._evictions.get((image_id, notification.host))
            seconds = max(0.0, when - began.when) if began else None
            creation = Creation(
                volume_id=notification.volume_id,
                image_id=image_id,
                target=target,
                project=notification.project,
                host=notification.host,
                began=began.at if began else at,
                ended=at,
                seconds=seconds,
                downloaded=notification.downloaded,
                read=_since(read, began),
                hit=_since(hit, began),
                evicted=_since(evicted, began),
            )
            self._waiting.append(creation)
            late = self._waiting.popleft() if len(self._waiting) > WAITING else None
        if late:
            self.settle(late, Made(Way.UNKNOWN, why="too many volumes were made at once"))

    def _note(
        self,
        heard: Newest[Any, _Heard],
        key: object,
        notification: Notification,
        *,
        first: bool = False,
    ) -> None:
        when = notification.timestamp
        assert when is not None
        with self._lock:
            if not (first and key in heard):
                heard[key] = _Heard(next(self._order), when, time.time())


def _since(heard: _Heard | None, began: _Heard | None) -> bool | None:
    """Whether something was heard after the beginning; None if the beginning was not heard of."""
    if began is None:
        return None
    return heard is not None and heard.order > began.order
