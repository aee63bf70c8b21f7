"""The dead letters on a RabbitMQ, for an operator: shown and taken away, none lost on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from amqp.exceptions import ResourceLocked

from worker.broker.connection import CLASSIC, bytes_channel, connected, content
from worker.broker.inspect import queue_depth
from worker.broker.topology import Topology
from worker.core.dead_letter import DeadLetter
from worker.core.errors import Malformed, Temporary


@dataclass(frozen=True, slots=True)
class Kept:
    """One message in the queue. `id` is made of its bytes, so that it is the same each time;
    `letter` is None if unreadable."""

    id: str
    raw: bytes
    letter: DeadLetter | None
    tag: int


class DeadQueue:
    """The queue of the dead letters, opened as a context. Letters that are not taken return to
    it afterwards."""

    def __init__(self, *, url: str, queue: str) -> None:
        self._url = url
        self._name = Topology(prefix=queue).dead
        self._connected = ExitStack()
        self._connection: Any = None
        self._channel: Any = None

    def __enter__(self) -> DeadQueue:
        connection = self._connected.enter_context(connected(self._url, name="dead-letters"))
        try:
            # Whoever looks has all of them; a second one at the same time would see the rest, and
            # take it for all
            connection.channel().queue_declare(
                f"{self._name}.looked-at", exclusive=True, auto_delete=True, arguments=CLASSIC
            )
        except ResourceLocked as error:
            self._connected.close()
            raise Temporary(
                "somebody else is looking at the dead letters: try again when that has ended"
            ) from error
        self._connection, self._channel = connection, bytes_channel(connection)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connected.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[Kept]:
        """Yield the letters that are there now, oldest first; none if the queue was never needed."""
        depth = queue_depth(self._connection, self._name)
        for _ in range(depth.messages if depth else 0):
            message = self._channel.basic_get(self._name, no_ack=False)
            if message is None:
                return
            raw, _ = content(message)
            try:
                letter = DeadLetter.from_bytes(raw)
            except Malformed:
                letter = None
            yield Kept(hashlib.sha256(raw).hexdigest()[:12], raw, letter, message.delivery_tag)

    def take(self, kept: Kept) -> None:
        """Take a letter away for good."""
        self._channel.basic_ack(kept.tag)
