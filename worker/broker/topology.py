"""The queues of the lanes on a RabbitMQ: their names, and how they are declared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from worker.broker import delays

LONGEST_BROKEN_PAUSE = 300.0

MOST_DEAD = 100_000
"""Dead letters that are kept, the newest: where nobody looks, what fails for good is given up again
every few hours."""


def broken_pause(times: int) -> float:
    """Return the seconds to leave a queue alone on which the connection has broken `times` times.

    It may have no leader, and each try costs the other queues a moment. Short at first, because the
    broker may just have gone down.
    """
    return min(LONGEST_BROKEN_PAUSE, 2.0 ** min(times, 16))


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The queues whose names begin with `prefix`: `<prefix>.<lane>`, `.dead`, `.stray`, `.pulse`,
    `.paused`, and those that delay.

    Delayed messages go to the exchange `<prefix>.due`, which the lanes are bound to. If a lane has
    no queue, because it was deleted, they end in `.stray`. Otherwise they would stay in the delays,
    which all lanes share, until nothing else gets through (RabbitMQ's at-least-once dead lettering
    keeps 32 on the way).
    """

    prefix: str

    @property
    def dead(self) -> str:
        """The queue of the dead letters."""
        return f"{self.prefix}.dead"

    def queue(self, lane: str) -> str:
        """Return the queue of a lane."""
        return f"{self.prefix}.{lane}"

    def address(self, queue: str, *, after: float) -> tuple[str, str]:
        """Return the exchange and routing key of a message that is to reach `queue` in `after`
        seconds: whole seconds, rounded up, never too early."""
        if not after > 0:
            # NaN is no time to wait for
            return "", queue
        delay = math.ceil(min(after, delays.LONGEST))
        return delays.entrance(self.prefix), delays.routing_key(delay, queue)

    @property
    def stray(self) -> str:
        """The queue of messages that were delayed for a lane without a queue, and the exchange
        that leads there."""
        return f"{self.prefix}.stray"

    @property
    def pulse(self) -> str:
        """The queue that is always empty. We ask it for messages to hear whether a majority of
        the nodes answers."""
        return f"{self.prefix}.pulse"

    @property
    def paused(self) -> str:
        """The exchange with a binding for each paused target, and the queue that they lead to."""
        return f"{self.prefix}.paused"

    @property
    def replicas(self) -> str:
        """The exchange by which replicas tell each other of themselves; begins the names of their
        queues."""
        return f"{self.prefix}.replicas"

    def declare_paused(self, channel: Any) -> None:
        """Declare what tells which targets are paused."""
        channel.exchange_declare(self.paused, "direct", durable=True, auto_delete=False)
        self._declare(channel, self.paused, {"x-max-length": 1})

    def declare_pulse(self, channel: Any) -> None:
        """Declare the queue of the pulse."""
        self._declare(channel, self.pulse, {"x-max-length": 1})

    def declare_delays(self, connection: Any) -> None:
        """Declare the queues and exchanges that delay, and the exchange behind them."""
        with connection.channel() as channel:
            delays.declare(channel, self.prefix)
            self.declare_stray(channel)
            self._declare_due(channel)
            channel.exchange_bind(self._due, delays.exit_of(self.prefix), routing_key="#")

    def declare_stray(self, channel: Any) -> None:
        """Declare the queue of messages that were delayed for a lane without a queue."""
        channel.exchange_declare(self.stray, "fanout", durable=True, auto_delete=False)
        self._declare(channel, self.stray, {"x-single-active-consumer": True})
        channel.queue_bind(queue=self.stray, exchange=self.stray)

    def declare_lane(self, channel: Any, queue: str) -> None:
        """Declare the queue of a lane, fed directly or by the delays. PreconditionFailed if it
        exists with other arguments."""
        self._declare_due(channel)
        self._declare(channel, queue, {"x-single-active-consumer": True})
        channel.queue_bind(queue, self._due, delays.binding_key(queue))

    def declare_dead(self, channel: Any) -> None:
        """Declare the queue of the dead letters."""
        self._declare(channel, self.dead, {"x-max-length": MOST_DEAD})

    @property
    def _due(self) -> str:
        return f"{self.prefix}.due"

    def _declare_due(self, channel: Any) -> None:
        arguments = {"alternate-exchange": self.stray}
        channel.exchange_declare(
            self._due, "topic", durable=True, auto_delete=False, arguments=arguments
        )

    def _declare(self, channel: Any, queue: str, arguments: dict[str, Any]) -> None:
        channel.queue_declare(
            queue=queue,
            durable=True,
            auto_delete=False,
            # From RabbitMQ 4 on a job that came back 20 times would be dropped; every outage gives
            # all of them back.
            arguments={"x-queue-type": "quorum", "x-delivery-limit": 1_000_000, **arguments},
        )
