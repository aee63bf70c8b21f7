"""A tap: notifications as they come in, for a command that watches for a while. It takes none
from the daemon."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from worker.broker.connection import CLASSIC, connected, content
from worker.broker.subscription import Subscription
from worker.core.errors import Malformed
from worker.core.notification import decode


class Tap:
    """Queues of its own on each broker, opened as a context; they disappear with their
    connections. All methods block."""

    def __init__(
        self,
        urls: Iterable[str],
        *,
        exchanges: Iterable[str],
        topics: Iterable[str],
        priorities: Iterable[str],
    ) -> None:
        self._urls = tuple(urls)
        self._exchanges = tuple(exchanges)
        self._topics = tuple(topics)
        self._priorities = tuple(priorities)
        self._visits = ExitStack()
        self._queues: list[tuple[Any, Any, str]] = []

    def __enter__(self) -> Tap:
        with ExitStack() as opening:
            for url in self._urls:
                connection = opening.enter_context(connected(url, name="probe"))
                channel = connection.channel()
                # We want bytes, even if a message claims to be text
                channel.auto_decode = False
                name = channel.queue_declare(
                    "", exclusive=True, auto_delete=True, arguments=CLASSIC
                ).queue
                subscription = Subscription(
                    queue=name,
                    queue_type="classic",
                    max_length=0,
                    expires=0.0,
                    exchanges=self._exchanges,
                    topics=self._topics,
                    priorities=self._priorities,
                )
                for exchange in self._exchanges:
                    subscription.bind(connection, exchange)
                self._queues.append((connection, channel, name))
            self._visits = opening.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._visits.__exit__(kind, error, trace)

    def take(self) -> Iterator[dict[str, Any]]:
        """Yield the notifications that have come in since the last call, without unreadable
        ones."""
        for connection, channel, name in self._queues:
            # Whoever asks often enough keeps the connection alive by it
            connection.heartbeat_tick()
            while (message := channel.basic_get(name, no_ack=True)) is not None:
                try:
                    yield decode(*content(message))
                except Malformed:
                    continue
