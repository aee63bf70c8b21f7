"""The subscription that the settings ask for."""

from __future__ import annotations

from worker.broker.subscription import Subscription
from worker.settings.values import Settings


def subscription_of(settings: Settings) -> Subscription:
    """Our queue for notifications, and what goes into it."""
    return Subscription(
        queue=settings.queue,
        queue_type=settings.queue_type,
        max_length=settings.queue_max_length,
        expires=settings.queue_expires,
        exchanges=settings.exchanges,
        topics=settings.topics,
        priorities=settings.priorities,
    )
