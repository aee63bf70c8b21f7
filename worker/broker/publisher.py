"""The publishing half of the RabbitMQ lanes: it keeps each message until the broker has
confirmed it."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Any

import structlog
from amqp import Message
from amqp.exceptions import PreconditionFailed

from worker.broker.connection import words
from worker.broker.link import Link
from worker.broker.outgoing import Batch, Outgoing, OutgoingQueue, Written
from worker.broker.pulse import Pulse
from worker.broker.topology import Topology, broken_pause
from worker.broker.url import Broker

log = structlog.get_logger(__name__)

WINDOW = 100
"""Messages on their way to a queue without a confirm: enough to keep the broker busy. Where a queue
has no leader, RabbitMQ reads no more from a connection once 400 wait in its channel (credit flow):
then no other queue gets any."""
REFUSED_PAUSE = 1.0
"""Seconds before what the broker refused (a full queue, no queue) is sent again."""
NEVER = 3600.0


class Publisher:
    """Publishes persistent, mandatory messages and collects their confirms; sends messages again
    that an outage left open.

    It has a connection of its own, because a broker that is short of memory stops reading from
    publishers.
    """

    def __init__(self, *, broker: Broker, topology: Topology, name: str) -> None:
        self._topology = topology
        self._link = Link(broker=broker, session=self, name=name)
        self._pulse = Pulse(queue=topology.pulse)
        self._lock = threading.Lock()
        self._submitted: deque[tuple[str, Outgoing]] = deque()
        self._withdrawn = False
        self._queues: dict[tuple[str, bool], OutgoingQueue] = {}
        self._unconfirmed: dict[int, tuple[OutgoingQueue, Outgoing]] = {}
        self._returned: set[int] = set()
        self._declaring: OutgoingQueue | None = None
        self._delays_declared = False
        self._tag = 0
        self._connection: Any = None
        self._channel: Any = None

    @property
    def problem(self) -> str | None:
        """None while messages can be published, else the problem."""
        if problem := self._link.problem:
            return problem
        # Read on another thread than the link's
        for queue in tuple(self._queues.values()):
            if not math.isinf(queue.stuck_since):
                seconds = time.monotonic() - queue.stuck_since
                return f"the queue {queue.name} has taken no message for {seconds:.0f} s"
        return None

    def is_stuck(self, name: str) -> bool:
        """Whether a queue has taken no message for too long while the broker was there. May be
        called on any thread."""
        queues = (self._queues.get((name, delayed)) for delayed in (False, True))
        return any(queue and not math.isinf(queue.stuck_since) for queue in queues)

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._link.start()

    def submit(
        self, messages: Iterable[tuple[str, Written]], *, after: float, done: Callable[[], None]
    ) -> Callable[[], None]:
        """Publish each item to its queue, at once or `after` seconds later. May be called on any
        thread.

        Call the function that it returns when nobody waits for the items any more: it withdraws
        those that are not on their way yet.
        """
        pairs = tuple(messages)
        batch = Batch(len(pairs), done)
        # One caller's messages stay together and in order, also when another calls at the same
        # time.
        with self._lock:
            self._submitted.extend((queue, Outgoing(item, after, batch)) for queue, item in pairs)
        self._link.wake()

        def withdraw() -> None:
            with self._lock:
                batch.withdrawn = self._withdrawn = True
                # While the broker is away nothing leaves it otherwise
                self._submitted = deque(one for one in self._submitted if one[1].batch is not batch)
            self._link.wake()

        return withdraw

    def stop(self, *, grace: float) -> None:
        """Wait up to `grace` seconds for the confirms that are open, then let go of the broker.
        Blocks."""
        self._link.stop(grace=grace)

    def opened(self, connection: Any) -> None:
        """Declare the delays, and open a channel that confirms."""
        self._topology.declare_delays(connection)
        self._delays_declared = True
        self._connection = connection
        channel = connection.channel()
        self._topology.declare_pulse(channel)
        self._pulse.opened(connection, channel)
        self._channel = connection.channel()
        self._channel.confirm_select()
        self._channel.events["basic_ack"].add(self._on_ack)
        self._channel.events["basic_nack"].add(self._on_nack)
        self._channel.events["basic_return"].add(self._on_return)
        # Delivery tags of a channel count from 1.
        self._tag = 0

    def turn(self) -> float:
        """Publish waiting messages, as far as the windows and the broker allow."""
        with self._lock:
            submitted, self._submitted = self._submitted, deque()
            withdrawn, self._withdrawn = self._withdrawn, False
        for name, outgoing in submitted:
            self._queues.setdefault((name, outgoing.after > 0), OutgoingQueue(name)).waiting.append(
                outgoing
            )
        if withdrawn:
            for queue in self._queues.values():
                queue.waiting = deque(one for one in queue.waiting if not one.batch.withdrawn)
        for queue in self._queues.values():
            if not (queue.waiting or queue.in_flight):
                queue.rest()
        now = time.monotonic()
        self._check_confirms(now)
        waiting = [queue for queue in self._queues.values() if queue.waiting]
        due = [queue for queue in waiting if queue.not_before <= now]
        # All queues before the first message: once a broker blocks a connection, it answers nothing
        # on it any more.
        if due and not self._delays_declared and not self._link.blocked:
            self._topology.declare_delays(self._connection)
            self._delays_declared = True
        for queue in due:
            if not queue.declared and not self._link.blocked:
                self._declare(queue)
        for queue in due:
            while (
                queue.waiting
                and queue.declared
                and len(queue.in_flight) < WINDOW
                and not self._link.blocked
            ):
                self._publish(queue, queue.waiting.popleft())
        # A broker that blocks the connection answers nothing on it
        pulse = NEVER if self._link.blocked else self._pulse.turn()
        due_at = (queue.not_before for queue in waiting if queue.not_before > now)
        overdue_at = (queue.overdue_at for queue in self._queues.values())
        return min([pulse, *(at - now for at in (*due_at, *overdue_at))])

    def lost(self) -> None:
        """Put messages without a confirm back to the front, in order: they may arrive twice, but
        they arrive."""
        for queue, outgoing in reversed(self._unconfirmed.values()):
            if not outgoing.batch.withdrawn:
                queue.waiting.appendleft(outgoing)
        self._unconfirmed.clear()
        self._returned.clear()
        for queue in self._queues.values():
            queue.declared, queue.refusing_since = False, math.inf
            queue.in_flight.clear()
        if self._declaring is not None:
            # It may have broken the connection: next time the others come first
            self._declaring.broken += 1
            self._declaring.not_before = time.monotonic() + broken_pause(self._declaring.broken)
            self._declaring = None
        self._pulse.lost()
        self._connection = self._channel = None

    def _check_confirms(self, now: float) -> None:
        """Raise OSError if a queue takes nothing for too long: another connection then sends the
        open messages again."""
        for queue in self._queues.values():
            if self._link.blocked:
                # The broker has not read all of them
                queue.in_flight = dict.fromkeys(queue.in_flight, now)
            elif queue.overdue_at <= now:
                refused = queue.is_refusing_too_long(now)
                queue.unheard += 1
                queue.stuck_since = min(queue.stuck_since, now)
                how = "refused" if refused else "neither confirmed nor refused"
                raise OSError(f"what was sent to the queue {queue.name} is {how} for too long")

    def finished(self) -> bool:
        """Whether everything is confirmed."""
        return not (
            self._submitted
            or self._unconfirmed
            or any(queue.waiting for queue in self._queues.values())
        )

    def _declare(self, queue: OutgoingQueue) -> None:
        self._declaring = queue
        with self._connection.channel() as channel:
            try:
                if queue.name == self._topology.dead:
                    self._topology.declare_dead(channel)
                else:
                    self._topology.declare_lane(channel, queue.name)
            except PreconditionFailed as error:
                # The queue exists with other arguments: a message is safe in it, and its consumer
                # reports the difference
                log.warning("queue_declared_otherwise", queue=queue.name, reason=words(error))
        self._declaring = None
        queue.declared, queue.broken = True, 0

    def _publish(self, queue: OutgoingQueue, outgoing: Outgoing) -> None:
        exchange, routing_key = self._topology.address(queue.name, after=outgoing.after)
        # Before it is sent: sending also reads, maybe the confirm of this message
        self._tag += 1
        self._unconfirmed[self._tag] = (queue, outgoing)
        queue.in_flight[self._tag] = time.monotonic()
        self._channel.basic_publish(
            # The id tells which message a basic.return is about, as it carries no delivery tag.
            Message(
                outgoing.item.to_bytes(),
                content_type="application/json",
                delivery_mode=2,
                message_id=str(self._tag),
            ),
            exchange=exchange,
            routing_key=routing_key,
            mandatory=True,
        )

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for number, queue, outgoing in self._settled(tag, multiple):
            if number in self._returned:
                self._returned.discard(number)
                queue.declared = False
                if outgoing.after > 0:
                    # The deleted queue may be one that delays it
                    self._delays_declared = False
                self._refused(queue, outgoing)
            else:
                queue.rest()
                outgoing.batch.confirm()

    def _on_nack(self, tag: int, multiple: bool) -> None:
        for _, queue, outgoing in self._settled(tag, multiple):
            self._refused(queue, outgoing)

    def _on_return(
        self, _error: Exception, _exchange: str, _routing_key: str, message: Any
    ) -> None:
        """Note that no queue took a message, because its queue was deleted. The broker confirms
        it all the same, and we send it again."""
        self._returned.add(int(message.properties["message_id"]))

    def _refused(self, queue: OutgoingQueue, outgoing: Outgoing) -> None:
        now = time.monotonic()
        if math.isinf(queue.refusing_since):
            log.warning("queue_refuses", queue=queue.name)
        queue.refusing_since = min(queue.refusing_since, now)
        if not outgoing.batch.withdrawn:
            queue.waiting.append(outgoing)
        queue.not_before = now + REFUSED_PAUSE

    def _settled(self, tag: int, multiple: bool) -> list[tuple[int, OutgoingQueue, Outgoing]]:
        """Return the messages that a confirm is about; they are no longer on their way."""
        tags = (
            tuple(takewhile(lambda number: number <= tag, self._unconfirmed))
            if multiple
            else (tag,)
        )
        settled = [
            (number, *self._unconfirmed.pop(number))
            for number in tags
            if number in self._unconfirmed
        ]
        for number, queue, _ in settled:
            del queue.in_flight[number]
        return settled
