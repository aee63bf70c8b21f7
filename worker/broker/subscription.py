"""The declarations of an intake on a broker that others own: its own queue, bindings to exchanges
that exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from amqp import spec
from amqp.exceptions import AccessRefused, NotFound, PreconditionFailed

from worker.broker.inspect import queue_depth

log = structlog.get_logger(__name__)

DELIVERY_LIMIT = 1_000_000
"""Returns after which RabbitMQ drops a notification. From RabbitMQ 4 on it would be 20, and every
outage returns all that are read ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """One queue, and the notifications that go into it.

    `max_length`: messages; the broker drops the oldest first. `expires`: seconds without a consumer
    after which the broker removes the queue. Because of both, a worker that is gone for good never
    fills somebody else's broker.
    """

    queue: str
    queue_type: str
    max_length: int
    expires: float
    exchanges: tuple[str, ...]
    topics: tuple[str, ...]
    priorities: tuple[str, ...]

    def declare(self, connection: Any) -> bool:
        """Declare the queue; return whether it had to be made. PreconditionFailed if it exists with
        other arguments."""
        missing = queue_depth(connection, self.queue) is None
        if not self.declare_limited(connection):
            # Made by an older version, and good for all but that: no reason to hear nothing until
            # somebody deletes it
            self._declare(connection, {})
            log.info("queue_without_delivery_limit", queue=self.queue)
        return missing

    def declare_limited(self, connection: Any) -> bool:
        """Declare the queue with its delivery limit; return False if it exists without one, and is left
        so."""
        limit = {"x-delivery-limit": DELIVERY_LIMIT} if self.queue_type == "quorum" else {}
        try:
            self._declare(connection, limit)
        except PreconditionFailed as error:
            if "'x-delivery-limit'" not in str(error.reply_text):
                raise
            return False
        return True

    def _declare(self, connection: Any, more: Mapping[str, Any]) -> None:
        with connection.channel() as channel:
            channel.queue_declare(
                self.queue,
                durable=True,
                auto_delete=False,
                arguments={
                    "x-queue-type": self.queue_type,
                    "x-max-length": self.max_length,
                    "x-overflow": "drop-head",
                    "x-expires": round(self.expires * 1000),
                    **more,
                },
            )

    def bind(self, connection: Any, exchange: str) -> str | None:
        """Bind the queue to an exchange; return None if it is bound, else the reason. May be done
        twice.

        We only ever look for the exchange and never declare it: if our durability differed from the
        services', the broker would refuse our declaration, or later theirs.
        """
        with connection.channel() as channel:
            try:
                channel.exchange_declare(exchange, "topic", passive=True)
                for topic in self.topics:
                    for priority in self.priorities:
                        channel.queue_bind(self.queue, exchange, f"{topic}.{priority}")
            except (NotFound, AccessRefused) as error:
                if error.method_sig not in (spec.Exchange.Declare, spec.Queue.Bind):
                    # About another channel, whose message came in while we waited
                    raise
                return str(error.reply_text)
        return None
