"""A tap: notifications as they come in, for a command that watches for a while. It takes none
from the daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from worker.broker.connection import CLASSIC, bytes_channel, connected, content
from worker.broker.subscription import Subscription
from worker.core.errors import Malformed
from worker.core.notification import decode


@contextmanager
def tap(
    urls: Iterable[str], subscription: Subscription
) -> Iterator[Callable[[], Iterator[dict[str, Any]]]]:
    """A function that yields the notifications which have come in since its last call, without
    unreadable ones.

    They come from queues of the tap's own, one a broker, which disappear with their connections.
    All of it blocks; Temporary for a broker that does not answer.
    """
    with ExitStack() as opened:
        queues = [opened.enter_context(_queue(url, subscription)) for url in urls]

        def take() -> Iterator[dict[str, Any]]:
            for connection, channel, name in queues:
                # Whoever asks often enough keeps the connection alive by it
                connection.heartbeat_tick()
                while (message := channel.basic_get(name, no_ack=True)) is not None:
                    try:
                        yield decode(*content(message))
                    except Malformed:
                        continue

        yield take


@contextmanager
def _queue(url: str, subscription: Subscription) -> Iterator[tuple[Any, Any, str]]:
    with connected(url, name="probe") as connection:
        channel = bytes_channel(connection)
        name = channel.queue_declare("", exclusive=True, auto_delete=True, arguments=CLASSIC).queue
        for exchange in subscription.exchanges:
            replace(subscription, queue=name).bind(connection, exchange)
        yield connection, channel, name
