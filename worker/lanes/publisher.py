"""The publishing half of the RabbitMQ lanes: what it takes stays here until the broker has confirmed it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

import structlog
from amqp import Message
from amqp.exceptions import PreconditionFailed

from worker.broker import Broker
from worker.lanes.topology import Topology
from worker.link import Link

log = structlog.get_logger(__name__)

WINDOW = 1000
"""Messages on their way without a confirm: enough to keep the broker busy, few enough to fit the socket's buffers."""
REFUSED_PAUSE = 1.0
"""Seconds before what the broker refused (a full or leaderless queue, no queue at all) is sent again."""
NEVER = 3600.0


class Written(Protocol):
    """Something that can be put into a message: a job or a dead letter."""

    def to_bytes(self) -> bytes:
        """The message's body."""


@dataclass(slots=True)
class _Batch:
    """What one caller waits for: `done` is called once, on the link's thread, with the last confirm."""

    missing: int
    done: Callable[[], None]

    def confirm(self) -> None:
        self.missing -= 1
        if not self.missing:
            self.done()


@dataclass(frozen=True, slots=True)
class _Outgoing:
    queue: str
    after: float
    item: Written
    batch: _Batch


class Publisher:
    """Publishes persistent, mandatory messages and collects their confirms; sends again what an outage left open.

    A connection of its own, because a broker that is short of memory stops reading from those that publish.
    """

    def __init__(self, *, broker: Broker, topology: Topology, name: str) -> None:
        self._topology = topology
        self._link = Link(broker=broker, session=self, name=name)
        self._lock = threading.Lock()
        self._submitted: deque[_Outgoing] = deque()
        self._waiting: deque[_Outgoing] = deque()
        self._unconfirmed: dict[int, _Outgoing] = {}
        self._returned: set[int] = set()
        self._declared: set[str] = set()
        self._not_before = 0.0
        self._tag = 0
        self._connection: Any = None
        self._channel: Any = None

    @property
    def problem(self) -> str | None:
        """None while messages can be published, else why not."""
        return self._link.problem

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._link.start()

    def submit(self, messages: Iterable[tuple[str, Written]], *, after: float, done: Callable[[], None]) -> None:
        """Publish each item to its queue, at once or `after` seconds later. May be called on any thread."""
        pairs = tuple(messages)
        batch = _Batch(len(pairs), done)
        # One caller's messages stay together and in order, also when another calls at the same time.
        with self._lock:
            self._submitted.extend(_Outgoing(queue, after, item, batch) for queue, item in pairs)
        self._link.wake()

    def stop(self, *, grace: float) -> None:
        """Wait up to `grace` seconds for the confirms that are open, then let go of the broker. Blocks."""
        self._link.stop(grace=grace)

    def opened(self, connection: Any) -> None:
        """Declare what delays, and a channel that confirms."""
        self._topology.declare_delays(connection)
        self._connection = connection
        self._channel = connection.channel()
        self._channel.confirm_select()
        self._channel.events["basic_ack"].add(self._on_ack)
        self._channel.events["basic_nack"].add(self._on_nack)
        self._channel.events["basic_return"].add(self._on_return)
        # Delivery tags of a channel count from 1.
        self._tag = 0

    def turn(self) -> float:
        """Publish what waits, as far as the window and the broker allow."""
        with self._lock:
            self._waiting.extend(self._submitted)
            self._submitted.clear()
        wait = self._not_before - time.monotonic()
        if wait > 0:
            return wait
        # All queues before the first message: once a broker blocks a connection, it answers nothing on it any more.
        if not self._link.blocked:
            for queue in {outgoing.queue for outgoing in self._waiting} - self._declared:
                self._declare(queue)
        while self._waiting and len(self._unconfirmed) < WINDOW and not self._link.blocked:
            self._publish(self._waiting.popleft())
        return NEVER

    def lost(self) -> None:
        """Put what was not confirmed back to the front, in order: it may arrive twice, but it arrives."""
        self._waiting.extendleft(reversed(self._unconfirmed.values()))
        self._unconfirmed.clear()
        self._returned.clear()
        self._declared.clear()
        self._connection = self._channel = None

    def finished(self) -> bool:
        """Whether everything is confirmed."""
        return not (self._submitted or self._waiting or self._unconfirmed)

    def _declare(self, queue: str) -> None:
        channel = self._connection.channel()
        try:
            if queue == self._topology.dead:
                self._topology.declare_dead(channel)
            else:
                self._topology.declare_lane(channel, queue)
        except PreconditionFailed as error:
            # It is there, if not as we want it: the message is safe in it, and who consumes it says what is wrong.
            log.warning("queue_declared_otherwise", queue=queue, reason=error.reply_text)
        finally:
            channel.close()
        self._declared.add(queue)

    def _publish(self, outgoing: _Outgoing) -> None:
        address = self._topology.address(outgoing.queue, after=outgoing.after)
        self._tag += 1
        # Before it is sent: sending also reads, and the confirm of this one may be among what is read.
        self._unconfirmed[self._tag] = outgoing
        self._channel.basic_publish(
            # The id tells which message a basic.return is about, as it carries no delivery tag.
            Message(
                outgoing.item.to_bytes(),
                content_type="application/json",
                delivery_mode=2,
                message_id=str(self._tag),
            ),
            exchange=address.exchange,
            routing_key=address.routing_key,
            mandatory=True,
        )

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for number, outgoing in self._settled(tag, multiple):
            if number in self._returned:
                self._returned.discard(number)
                self._refuse(outgoing)
            else:
                outgoing.batch.confirm()

    def _on_nack(self, tag: int, multiple: bool) -> None:
        for number, outgoing in self._settled(tag, multiple):
            self._returned.discard(number)
            self._refuse(outgoing)

    def _on_return(self, _error: Exception, _exchange: str, _routing_key: str, message: Any) -> None:
        """No queue took it: its queue was deleted. The confirm, which comes all the same, sends it again."""
        number = int(message.properties["message_id"])
        self._returned.add(number)
        if (outgoing := self._unconfirmed.get(number)) is not None:
            self._declared.discard(outgoing.queue)

    def _refuse(self, outgoing: _Outgoing) -> None:
        self._waiting.append(outgoing)
        if self._not_before < time.monotonic():
            log.warning("message_refused", queue=outgoing.queue)
        self._not_before = time.monotonic() + REFUSED_PAUSE

    def _settled(self, tag: int, multiple: bool) -> Iterable[tuple[int, _Outgoing]]:
        tags = tuple(takewhile(lambda number: number <= tag, self._unconfirmed)) if multiple else (tag,)
        return [(number, self._unconfirmed.pop(number)) for number in tags if number in self._unconfirmed]
