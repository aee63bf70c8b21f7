"""The intake from RabbitMQ: a queue of our own, read and routed on a thread of its own, acked in
groups."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import Any

import structlog

from worker.broker.connection import bytes_channel, content
from worker.broker.exchanges import LOOK_EVERY, Exchanges
from worker.broker.link import Link
from worker.broker.pulse import Pulse
from worker.broker.subscription import Subscription
from worker.broker.url import Broker, parse
from worker.core.intake import Routed, Sink

log = structlog.get_logger(__name__)


MOST_OFFERS = 8
"""Groups of notifications that wait for their lanes at once."""
DEAF_AFTER = 3
"""Questions in a row that found a notification while none was delivered to us, before another
connection is tried. When the node that leads a quorum queue dies, RabbitMQ (seen with 3.10) can
lose what it delivers and take it to be with us; a question comes every few seconds."""


class RabbitIntake:
    """Notifications from one RabbitMQ. Replicas that name the same queue share them."""

    def __init__(
        self,
        *,
        url: str,
        subscription: Subscription,
        prefetch: int,
        group: int = 100,
        grace: float = 5.0,
        look_every: float = LOOK_EVERY,
    ) -> None:
        """`url`: an oslo.messaging transport URL, Misconfigured if it names no RabbitMQ;
        `prefetch`: messages taken at once; `group`: how many of them are read before they are
        settled; `grace`: seconds that a cancelled `run` waits for the sink; `look_every`: seconds
        between two looks at the exchanges that are there."""
        self._subscription = subscription
        self._grace = grace
        self._feed: _Feed | None = None
        self._make_feed = partial(
            _Feed,
            broker=parse(url),
            subscription=subscription,
            prefetch=prefetch,
            group=group,
            look_every=look_every,
        )

    async def run(self, sink: Sink) -> None:
        """Consume until cancelled."""
        feed = self._feed = self._make_feed(sink=sink, loop=asyncio.get_running_loop())
        feed.link.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._feed = None
            await asyncio.to_thread(feed.stop, grace=self._grace)

    def problem(self) -> str | None:
        """None while the intake consumes, else the problem. A missing exchange is none: see
        `unbound`."""
        return "the intake is not running" if self._feed is None else self._feed.link.problem

    def unbound(self) -> tuple[str, ...]:
        """The exchanges that are not bound now, most likely because no service has published to
        them yet."""
        return self._subscription.exchanges if self._feed is None else self._feed.exchanges.unbound


class _Feed:
    """The session of the intake's link: routes messages, offers groups to the sink, and acks a
    group once the sink has it."""

    def __init__(
        self,
        *,
        broker: Broker,
        subscription: Subscription,
        prefetch: int,
        group: int,
        look_every: float,
        sink: Sink,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.link = Link(
            broker=broker, session=self, name=f"{subscription.queue} intake", burst=group
        )
        self._subscription = subscription
        self._prefetch = prefetch
        self._sink = sink
        self._loop = loop
        self._ending = False
        self._again = False
        self._connection: Any = None
        self._channel: Any = None
        self._tag: str | None = None
        self._routed: list[Routed] = []
        self._newest = 0
        self._delivered = 0
        self._acked = 0
        self._starved = 0
        # Groups that the sink has, with the last tag of each, the oldest first
        self._offers: deque[tuple[Future[None], int]] = deque()
        self.exchanges = Exchanges(subscription.exchanges, every=look_every)
        self._pulse = Pulse(queue=subscription.queue, receive=self._found)

    def stop(self, *, grace: float) -> None:
        """Take nothing more, wait up to `grace` seconds for the sink, let go of the broker.
        Blocks."""
        self._ending = True
        self.link.stop(grace=grace)

    def opened(self, connection: Any) -> None:
        """Declare, bind and consume."""
        self._connection = connection
        created = self._subscription.declare(connection)
        self._bind(tell=False)
        self._channel = bytes_channel(connection)
        self._channel.basic_qos(prefetch_size=0, prefetch_count=self._prefetch, a_global=False)
        # Without `on_cancel` the deletion of our queue ends this session, and the next one makes
        # the queue again.
        self._tag = self._channel.basic_consume(self._subscription.queue, callback=self._deliver)
        self._pulse.opened(connection, self._channel)
        log.info("intake_opened", queue=self._subscription.queue, unbound=self.exchanges.unbound)
        # The bindings may be younger than the notifications that they have missed
        reason = (
            "the queue was made" if created else "connected again" if self._again else "connected"
        )
        self._again = True
        self._sink.gap(reason)

    def turn(self) -> float:
        """Settle groups that the sink has accepted, offer it the next one, and look for
        exchanges now and then."""
        while self._offers and self._offers[0][0].done():
            offer, tag = self._offers.popleft()
            # Its error ends the session, and the broker delivers again
            offer.result()
            self._ack(tag)
        if self._ending:
            self._leave()
            return LOOK_EVERY
        # A lane that takes nothing holds up its own group; the others go on
        if self._newest and len(self._offers) < MOST_OFFERS:
            self._settle()
        self._bind(tell=True)
        return min(self._pulse.turn(), self.exchanges.next_look - time.monotonic())

    def lost(self) -> None:
        """Forget the messages that the broker delivers again."""
        for offer, _ in self._offers:
            # Where the sink still waits for its lanes, it would wait once more for the same
            # messages.
            offer.cancel()
        self._offers.clear()
        self._connection = self._channel = self._tag = None
        self._routed = []
        self._newest = self._delivered = self._acked = self._starved = 0
        self._pulse.lost()
        self.exchanges.disconnected()

    def finished(self) -> bool:
        """Whether the sink has nothing of ours any more."""
        return not self._offers

    def _deliver(self, message: Any) -> None:
        self._starved, self._delivered = 0, message.delivery_tag
        self._receive(message)

    def _found(self, message: Any) -> None:
        """Take a message that we asked for; OSError if RabbitMQ has delivered nothing by itself
        for too long."""
        holding = self._delivered > self._acked
        self._starved = 0 if holding else self._starved + 1
        if self._starved >= DEAF_AFTER:
            raise OSError(
                f"messages wait in the queue {self._subscription.queue} and none is delivered"
            )
        self._receive(message)

    def _receive(self, message: Any) -> None:
        routed = self._sink.route(*content(message))
        if routed:
            self._routed.append(routed)
        self._newest = message.delivery_tag

    def _settle(self) -> None:
        """Hand messages with jobs to the sink, and ack the others once all before them are;
        meanwhile the next group comes in."""
        if self._routed:
            offer = asyncio.run_coroutine_threadsafe(self._sink.accept(self._routed), self._loop)
            offer.add_done_callback(lambda _offer: self.link.wake())
            self._offers.append((offer, self._newest))
        elif self._offers:
            # An ack is for all before it, too
            self._offers[-1] = (self._offers[-1][0], self._newest)
        else:
            self._ack(self._newest)
        self._routed = []
        self._newest = 0

    def _ack(self, tag: int) -> None:
        self._channel.basic_ack(tag, multiple=True)
        self._acked = tag

    def _leave(self) -> None:
        """Stop consuming. Messages that are not offered yet go back when the channel closes."""
        if self._tag is not None:
            tag, self._tag = self._tag, None
            self._channel.basic_cancel(tag)

    def _bind(self, *, tell: bool) -> None:
        """Bind the exchanges that are due, also bound ones: they may have been deleted and made
        again since."""
        for exchange in self.exchanges.due(time.monotonic()):
            reason = self._subscription.bind(self._connection, exchange)
            if reason is not None:
                if self.exchanges.missing(exchange, reason, time.monotonic()):
                    log.info("exchange_not_bound", exchange=exchange, reason=reason)
            elif self.exchanges.found(exchange, time.monotonic()) and tell:
                log.info("exchange_bound", exchange=exchange)
                self._sink.gap(f"exchange {exchange} was bound")
