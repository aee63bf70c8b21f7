"""The router: notification → jobs, by the handlers' route table. Pure but for the counting; safe
on any thread."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import structlog

from worker.core.compression import head
from worker.core.dead_letter import MOST_BODY, DeadLetter
from worker.core.errors import Malformed
from worker.core.handler import Handler
from worker.core.intake import Routed
from worker.core.job import Job, Key
from worker.core.masking import masked_bytes
from worker.core.notification import Notification, decode
from worker.observe import tracing
from worker.observe.creations import TIMED, Creations
from worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)


class Router:
    """Routes what an intake reads to the handlers that want to hear of it."""

    def __init__(
        self, *, handlers: Iterable[Handler], metrics: Metrics, creations: Creations
    ) -> None:
        routes: dict[str, tuple[Handler, ...]] = {}
        for handler in handlers:
            for event_type in handler.event_types:
                routes[event_type] = (*routes.get(event_type, ()), handler)
        self._routes: Mapping[str, tuple[Handler, ...]] = routes
        self._metrics = metrics
        self._creations = creations

    def route(self, body: bytes, compression: str = "") -> Routed:
        """Return the jobs of one message; a dead letter if nobody can read it; nothing if nobody
        wants it."""
        now = time.time()
        try:
            message = decode(body, compression)
        except Malformed as error:
            self._metrics.notification("", "malformed", known=False)
            return Routed(letter=_letter(head(body, compression, MOST_BODY), str(error), now=now))
        # Most notifications concern nobody here
        event_type = message["event_type"]
        if not self.routes(event_type) and event_type not in TIMED:
            self._metrics.notification(event_type, "ignored", known=False)
            return Routed()
        notification = Notification.of(message)
        self._creations.see(notification)
        jobs, fault = self._jobs(notification, now=now)
        return Routed(
            jobs=jobs,
            letter=_letter(head(body, compression, MOST_BODY), fault, now=now) if fault else None,
        )

    def routes(self, event_type: str) -> bool:
        """Whether any handler wants such notifications."""
        return event_type in self._routes

    def jobs(self, notification: Notification, *, now: float) -> tuple[Job, ...]:
        """Return the jobs of one notification."""
        return self._jobs(notification, now=now)[0]

    def _jobs(self, notification: Notification, *, now: float) -> tuple[tuple[Job, ...], str]:
        """Return the jobs of one notification, and the error of a handler that failed on it."""
        handlers = self._routes.get(notification.event_type)
        if handlers is None:
            self._metrics.notification(notification.event_type, "ignored", known=False)
            return (), ""
        if notification.visibility:
            self._metrics.activity.heard(notification.image_id, notification.visibility)
        keys, fault = list[Key](), ""
        for handler in handlers:
            try:
                keys += map(_checked, handler.keys(notification))
            except Exception as error:
                # A plug-in's bug: the others hear of the notification all the same
                fault = (
                    f"handler {handler.name} fails on a notification: "
                    f"{type(error).__name__}: {error}"
                )
                log.exception(
                    "handler_failed", handler=handler.name, event_type=notification.event_type
                )
        cause = f"{notification.event_type} {notification.message_id}"[:200]
        used = (notification.timestamp or now) if notification.is_use else 0.0
        used_by = notification.volume_id if used else ""
        deleted = notification.status if notification.event_type == "image.delete" else ""
        deleted_volume = (
            notification.volume_id if notification.event_type == "volume.delete.end" else ""
        )
        trace = _trace(notification) if keys else ""
        jobs = tuple(
            Job(
                key=key,
                cause=cause,
                first_at=now,
                used=used,
                used_by=used_by,
                deleted=deleted,
                deleted_volume=deleted_volume,
                project=notification.project,
                trace=trace,
            )
            for key in keys
        )
        self._metrics.notification(notification.event_type, "routed" if jobs else "ignored")
        if jobs and notification.timestamp is not None:
            self._metrics.notification_lag.observe(max(0.0, now - notification.timestamp))
        return jobs, fault


def _trace(notification: Notification) -> str:
    """Begin the trace of a notification that leads to jobs."""
    told = {
        "event_type": notification.event_type,
        "message_id": notification.message_id,
        "image_id": notification.image_id,
    }
    with tracing.span(f"notification {notification.event_type}", told):
        return tracing.current()


def _letter(body: bytes, reason: str, *, now: float) -> DeadLetter:
    return DeadLetter(
        lane="intake", reason=reason, last_at=now, body=masked_bytes(body)[:MOST_BODY]
    )


def _checked(key: object) -> Key:
    if not isinstance(key, Key):
        raise TypeError(f"{key!r} is no key")
    return key
