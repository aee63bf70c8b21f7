"""A pulse: notices that the node we are connected to is cut off from the other nodes of its
cluster.

Such a node keeps its clients and says nothing: with `cluster_partition_handling = ignore`,
RabbitMQ's default, for as long as it is cut off; with `pause_minority` until it has noticed, which
takes it a minute. So now and then we ask a question that only a majority of the nodes can answer:
for a message of a quorum queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from worker.broker.connection import IO_TIMEOUT

EVERY = 5.0
"""Seconds between two questions. This and PATIENCE are over before the other nodes count ours as
down and hand out our jobs to somebody else: 45 s at the earliest, as RabbitMQ's `net_ticktime` is
60 by default."""
PATIENCE = 10.0
"""Seconds that an answer may take: as long as a cluster takes to elect new leaders, and more."""
LONGEST_PAUSE = 320.0
"""Seconds to the next question where no node answers: no other connection is better then."""


class Pulse:
    """Asks a queue for a message through the connection of a link's session, on its thread."""

    def __init__(self, *, queue: str, receive: Callable[[Any], None] | None = None) -> None:
        """`receive` is given a message, if there was one, and has to ack it; without `receive`
        the message is dropped."""
        self._queue = queue
        self._receive = receive
        self._connection: Any = None
        self._channel: Any = None
        self._due = 0.0
        self._asking = False
        self._unanswered = 0

    def opened(self, connection: Any, channel: Any) -> None:
        """Use this connection and channel from now on."""
        self._connection, self._channel = connection, channel
        self._due = time.monotonic() + min(LONGEST_PAUSE, EVERY * 2.0 ** min(self._unanswered, 16))

    def turn(self) -> float:
        """Ask if that is due; return the seconds until the next time. OSError if there is no
        answer."""
        if time.monotonic() >= self._due:
            self._ask()
            self._due = time.monotonic() + EVERY
        return self._due - time.monotonic()

    def lost(self) -> None:
        """Note that the connection is gone, maybe because there was no answer."""
        self._unanswered += self._asking
        self._asking = False

    def _ask(self) -> None:
        self._asking = True
        sock = self._connection.sock
        sock.settimeout(PATIENCE)
        try:
            message = self._channel.basic_get(self._queue, no_ack=self._receive is None)
        except TimeoutError as error:
            raise OSError(
                f"no answer about the queue {self._queue} for {PATIENCE:.0f} s: the node may be "
                f"cut off from the others"
            ) from error
        sock.settimeout(IO_TIMEOUT)
        self._asking, self._unanswered = False, 0
        if message is not None and self._receive is not None:
            self._receive(message)
