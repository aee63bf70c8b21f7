"""Lanes on RabbitMQ: one queue each, one active consumer each, every job confirmed before `publish`
returns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from worker.broker.consumer import Consumer
from worker.broker.outgoing import Written
from worker.broker.published_keys import PublishedKeys
from worker.broker.publisher import Publisher
from worker.broker.topology import Topology
from worker.broker.url import parse
from worker.core.dead_letter import DeadLetter
from worker.core.errors import Temporary
from worker.core.job import Job, Key
from worker.core.lanes import Delivery, ignore
from worker.engine.threads import call_on

BURY_WITHIN = 120.0
"""Seconds that the queue of dead letters may take none, as where a policy limits its length and
refuses the rest. Whoever has a letter to bury holds up others."""


class RabbitLanes:
    """Lanes that survive crashes and are shared by replicas. One replica at a time gets the jobs
    of a lane."""

    def __init__(
        self,
        *,
        url: str,
        queue: str,
        grace: float = 5.0,
        name: str = "image-volume-worker",
    ) -> None:
        """`queue` begins the name of every queue; `grace`: seconds that `close` waits for open
        confirms; `name`: of the connections, in the broker's listings. Misconfigured if `url` names
        no RabbitMQ."""
        self._broker = parse(url)
        self._topology = Topology(prefix=queue)
        self._grace = grace
        self._name = name
        self._publisher: Publisher | None = None
        self._consumer: Consumer | None = None
        self._pending: set[asyncio.Future[None]] = set()
        self._known: PublishedKeys | None = None

    async def open(
        self,
        prefetch: Mapping[str, int],
        deliver: Callable[[Delivery], None],
        lost: Callable[[str], None] = ignore,
    ) -> None:
        loop = asyncio.get_running_loop()
        publisher = self._started_publisher()

        def arrive(delivery: Delivery) -> None:
            # Between the thread and here the lanes may have been closed; then the job is the
            # broker's again.
            if self._consumer is consumer:
                known.arrived(delivery.job)
                deliver(delivery)

        def lose(lane: str) -> None:
            if self._consumer is consumer:
                lost(lane)

        def bury(letter: DeadLetter, done: Callable[[], None]) -> None:
            publisher.submit([(self._topology.dead, letter)], after=0.0, done=done)

        def bring_back(job: Job, done: Callable[[], None]) -> None:
            publisher.submit([(self._topology.queue(job.key.lane), job)], after=0.0, done=done)

        self._consumer = consumer = Consumer(
            broker=self._broker,
            topology=self._topology,
            name=f"{self._name} lanes",
            prefetch=prefetch,
            deliver=lambda delivery: call_on(loop, arrive, delivery),
            bury=bury,
            bring_back=bring_back,
            lost=lambda lane: call_on(loop, lose, lane),
        )
        self._known = known = PublishedKeys(
            activation=consumer.activation, empty_at=consumer.empty_at
        )
        consumer.start()

    async def publish(self, jobs: Iterable[Job], *, after: float = 0.0) -> None:
        jobs = tuple(jobs)
        if self._known is not None and not after:
            # Before it is sent: it may come back sooner than its confirm
            self._known.published(jobs)
        try:
            await self._confirmed(
                [(self._topology.queue(job.key.lane), job) for job in jobs], after=after
            )
        except asyncio.CancelledError:
            if self._known is not None and not after:
                self._known.withdrawn(jobs)
            raise

    async def bury(self, letters: Iterable[DeadLetter]) -> None:
        burying = asyncio.create_task(
            self._confirmed([(self._topology.dead, letter) for letter in letters], after=0.0)
        )
        try:
            while not (await asyncio.wait([burying], timeout=BURY_WITHIN))[0]:
                if self._publisher and self._publisher.is_stuck(self._topology.dead):
                    raise Temporary(f"the queue {self._topology.dead} takes no dead letters")
            burying.result()
        finally:
            burying.cancel()

    async def close(self) -> None:
        """Hand out nothing more, write the acks that were given, disconnect. A `publish` that
        still waits raises Temporary."""
        consumer, self._consumer, self._known = self._consumer, None, None
        publisher, self._publisher = self._publisher, None
        if consumer is not None:
            await asyncio.to_thread(consumer.stop, grace=self._grace)
        if publisher is not None:
            await asyncio.to_thread(publisher.stop, grace=self._grace)
        for pending in self._pending:
            if not pending.done():
                pending.set_exception(
                    Temporary("the lanes were closed before the broker confirmed")
                )

    def will_hand_out(self, key: Key) -> bool:
        """Whether a job of the key waits that this process has published while it was the lane's
        active consumer."""
        return self._known is not None and self._known.waits(key)

    def knows(self, lane: str) -> bool:
        """Whether all jobs in the lane were published by this process while it was the active
        consumer."""
        depth = self.depths().get(lane, 0)
        return not depth or (self._known is not None and self._known.count(lane) >= depth)

    def serves(self, lane: str) -> bool:
        return self._consumer is not None and self._consumer.activation(lane) > 0

    def is_stuck(self, lane: str) -> bool:
        """Whether its queue has confirmed nothing for too long, on more than one connection."""
        queue = self._topology.queue(lane)
        return self._publisher is not None and self._publisher.is_stuck(queue)

    def depths(self) -> Mapping[str, int]:
        """Messages waiting in each open lane and in `dead`, counted a few seconds ago at most; none
        when closed."""
        return {} if self._consumer is None else self._consumer.depths

    def problem(self) -> str | None:
        if self._consumer is None or self._publisher is None:
            return (self._publisher and self._publisher.problem) or "the lanes are closed"
        return self._consumer.problem or self._publisher.problem

    def _started_publisher(self) -> Publisher:
        if self._publisher is None:
            publisher = Publisher(
                broker=self._broker, topology=self._topology, name=f"{self._name} publisher"
            )
            # There may be no thread for it; then the next call tries again
            publisher.start()
            self._publisher = publisher
        return self._publisher

    async def _confirmed(self, messages: list[tuple[str, Written]], *, after: float) -> None:
        if not messages:
            return
        loop = asyncio.get_running_loop()
        confirmed: asyncio.Future[None] = loop.create_future()
        self._pending.add(confirmed)
        confirmed.add_done_callback(self._pending.discard)
        withdraw = self._started_publisher().submit(
            messages, after=after, done=lambda: call_on(loop, _resolve, confirmed)
        )
        try:
            await confirmed
        except asyncio.CancelledError:
            # The caller will publish again: otherwise each try would leave its messages here while
            # the broker is away
            withdraw()
            raise


def _resolve(confirmed: asyncio.Future[None]) -> None:
    # The caller may have been cancelled
    if not confirmed.done():
        confirmed.set_result(None)
