"""Notification → jobs, by the handlers' route table. Pure but for the counting; safe on any thread."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from worker.dead_letter import DeadLetter
from worker.errors import Malformed
from worker.handler import Handler
from worker.intake import Routed
from worker.job import Job
from worker.masking import masked_bytes
from worker.metrics import Metrics
from worker.notification import Notification, decode
from worker.volume_times import TIMED, VolumeTimes

# Bytes of an unreadable message that are kept: a broker has limits for a message, and a person has too
KEPT = 65_536


class Router:
    """Routes what an intake reads to the handlers that want to hear of it."""

    def __init__(self, *, handlers: Iterable[Handler], metrics: Metrics, times: VolumeTimes) -> None:
        routes: dict[str, tuple[Handler, ...]] = {}
        for handler in handlers:
            for event_type in handler.event_types:
                routes[event_type] = (*routes.get(event_type, ()), handler)
        self._routes: Mapping[str, tuple[Handler, ...]] = routes
        self._metrics = metrics
        self._times = times

    def route(self, body: bytes) -> Routed:
        """The jobs that come of one message; a dead letter if nobody can read it; nothing if nobody wants it."""
        now = time.time()
        try:
            message = decode(body)
        except Malformed as error:
            self._metrics.notification("", "malformed", known=False)
            return Routed(
                letter=DeadLetter(lane="intake", reason=str(error), last_at=now, body=masked_bytes(body[:KEPT])[:KEPT])
            )
        # Most of what services announce concerns nobody here
        event_type = message["event_type"]
        if not self.routes(event_type) and event_type not in TIMED:
            self._metrics.notification(event_type, "ignored", known=False)
            return Routed()
        notification = Notification.of(message)
        self._times.see(notification)
        return Routed(jobs=self.jobs(notification, now=now))

    def routes(self, event_type: str) -> bool:
        """Whether any handler wants to hear of such notifications."""
        return event_type in self._routes

    def jobs(self, notification: Notification, *, now: float) -> tuple[Job, ...]:
        """The jobs that come of one notification."""
        handlers = self._routes.get(notification.event_type)
        if handlers is None:
            self._metrics.notification(notification.event_type, "ignored", known=False)
            return ()
        if notification.visibility:
            self._metrics.board.heard(notification.image_id, notification.visibility)
        cause = f"{notification.event_type} {notification.message_id}"[:200]
        used = (notification.timestamp or now) if notification.is_use else 0.0
        used_by = notification.volume_id if used else ""
        deleted = notification.status if notification.event_type == "image.delete" else ""
        jobs = tuple(
            Job(
                key=key,
                cause=cause,
                first_at=now,
                used=used,
                used_by=used_by,
                deleted=deleted,
                project=notification.project,
            )
            for handler in handlers
            for key in handler.keys(notification)
        )
        self._metrics.notification(notification.event_type, "routed" if jobs else "ignored")
        if jobs and notification.timestamp is not None:
            self._metrics.notification_lag.observe(max(0.0, now - notification.timestamp))
        return jobs
