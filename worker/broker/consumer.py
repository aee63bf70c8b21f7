"""The consuming half of the RabbitMQ lanes: a channel for each lane; the thread that consumes
writes the acks."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from amqp import spec
from amqp.exceptions import ChannelError, PreconditionFailed

from worker.broker.connection import bytes_channel, content, declared_otherwise_pause, words
from worker.broker.consumed_lane import ConsumedLane
from worker.broker.inspect import queue_depth
from worker.broker.link import Link
from worker.broker.pulse import Pulse
from worker.broker.topology import Topology, broken_pause
from worker.broker.url import Broker
from worker.core.dead_letter import MOST_BODY, DeadLetter
from worker.core.errors import Malformed
from worker.core.job import Job
from worker.core.lanes import Delivery
from worker.core.masking import masked_bytes

log = structlog.get_logger(__name__)

COUNT_EVERY = 3.0
"""Seconds between two looks at how long the queues are."""
STRAY_AT_ONCE = 100
"""Jobs without a lane that are brought back at once."""
OPEN_AGAIN = 5.0
"""Seconds before the next try to open a lane that the broker refused."""

_OPENING = frozenset(
    {spec.Exchange.Declare, spec.Queue.Declare, spec.Queue.Bind, spec.Basic.Qos, spec.Basic.Consume}
)
"""The methods that open a lane, as a refusal names them."""


class Consumer:
    """Consumes every lane through a channel of its own, so that a fault of one queue leaves the
    others alone."""

    def __init__(
        self,
        *,
        broker: Broker,
        topology: Topology,
        name: str,
        prefetch: Mapping[str, int],
        deliver: Callable[[Delivery], None],
        bury: Callable[[DeadLetter, Callable[[], None]], None],
        bring_back: Callable[[Job, Callable[[], None]], None],
        lost: Callable[[str], None],
    ) -> None:
        """All callables are called on the link's thread; `bury` and `bring_back` call back once
        their job is safe.

        `bring_back` puts a job into its lane whose queue was not there when the job was due. `lost`
        is called for a lane whose deliveries the broker hands out anew.
        """
        self._topology = topology
        self._deliver = deliver
        self._bury = bury
        self._bring_back = bring_back
        self._on_lost = lost
        self._lanes = [
            ConsumedLane(name=lane, queue=topology.queue(lane), prefetch=limit)
            for lane, limit in prefetch.items()
        ]
        self._named = {lane.name: lane for lane in self._lanes}
        self._stray = ConsumedLane(name="stray", queue=topology.stray, prefetch=STRAY_AT_ONCE)
        self._lanes.append(self._stray)
        self._link = Link(broker=broker, session=self, name=name)
        self._pulse = Pulse(queue=topology.pulse)
        self._opening: ConsumedLane | None = None
        self._acks: deque[tuple[ConsumedLane, Any, int]] = deque()
        self._connection: Any = None
        self._count_at = 0.0
        self._depths: Mapping[str, int] = {}

    @property
    def problem(self) -> str | None:
        """None while every lane is open, else the problem."""
        closed = (f"{lane.queue}: {lane.problem}" for lane in self._lanes if lane.problem)
        return self._link.problem or next(closed, None)

    @property
    def depths(self) -> Mapping[str, int]:
        """Messages waiting in each open lane and, as `dead`, dead letters, as last counted."""
        return self._depths

    def activation(self, lane: str) -> int:
        """A number that changes whenever we become the lane's active consumer; 0 while we are not.

        A queue has one active consumer. That is us from our first delivery until our channel
        closes.
        """
        one = self._named.get(lane)
        return one.activations if one and one.active else 0

    def empty_at(self, lane: str) -> float:
        """Return when the lane was last counted empty, in monotonic seconds; 0 if it never was."""
        one = self._named.get(lane)
        return one.empty_at if one else 0.0

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._link.start()

    def stop(self, *, grace: float) -> None:
        """Write the acks that were given and let go of the broker. Blocks."""
        self._link.stop(grace=grace)

    def opened(self, connection: Any) -> None:
        """Open every lane that can be opened."""
        self._connection = connection
        channel = connection.channel()
        self._topology.declare_pulse(channel)
        self._pulse.opened(connection, channel)
        self._open_lanes(time.monotonic())

    def turn(self) -> float:
        """Write acks, open lanes that are closed, count waiting jobs."""
        while self._acks:
            lane, channel, tag = self._acks.popleft()
            if lane.channel is channel and tag in lane.unacked:
                lane.unacked.discard(tag)
                channel.basic_ack(tag)
        now = time.monotonic()
        self._open_lanes(now)
        if now >= self._count_at:
            self._count_at = now + COUNT_EVERY
            self._depths = self._count()
            for lane in self._named.values():
                self._check_deliveries(lane, time.monotonic())
        pulse = self._pulse.turn()
        due = [self._count_at, *(lane.open_at for lane in self._lanes if lane.channel is None)]
        return min(pulse, min(due) - time.monotonic())

    def lost(self) -> None:
        """Forget the deliveries of the lost connection: the broker hands them out again."""
        self._connection = None
        self._pulse.lost()
        self._count_at = 0.0
        for lane in self._lanes:
            if lane.unacked and lane is not self._stray:
                self._on_lost(lane.name)
            if lane is self._opening:
                # It may have broken the connection: next time the others come first
                lane.broken += 1
                log.warning(
                    "lane_broke_connection", lane=lane.name, queue=lane.queue, times=lane.broken
                )
                lane.closed(
                    "the connection broke on it",
                    open_at=time.monotonic() + broken_pause(lane.broken),
                )
            elif lane.channel is not None:
                lane.closed("not open yet", open_at=0.0)
        self._opening = None

    def finished(self) -> bool:
        """Whether every ack is written."""
        return not self._acks

    def _check_deliveries(self, lane: ConsumedLane, now: float) -> None:
        """Close a lane that delivers nothing although jobs wait there; the next turn opens it
        again."""
        if lane.channel is None or lane.unacked or not self._depths.get(lane.name):
            lane.starved_since = math.inf
            return
        lane.starved_since = min(lane.starved_since, now)
        if lane.deaf_at <= now:
            waited = round(now - lane.starved_since)
            log.info(
                "lane_opened_again",
                lane=lane.name,
                seconds=waited,
                why="jobs wait there and none was delivered",
            )
            lane.starved += 1
            channel = lane.channel
            lane.closed("jobs wait there and none is delivered", open_at=0.0)
            channel.close()

    def _open_lanes(self, now: float) -> None:
        due = [lane for lane in self._lanes if lane.channel is None and lane.open_at <= now]
        for lane in due:
            self._open_lane(lane)
        if opened := [lane.name for lane in due if lane.channel is not None]:
            log.info("lanes_opened", lanes=opened)

    def _open_lane(self, lane: ConsumedLane) -> None:
        self._opening = lane
        channel = bytes_channel(self._connection)
        try:
            if lane is self._stray:
                self._topology.declare_stray(channel)
            else:
                self._topology.declare_lane(channel, lane.queue)
            channel.basic_qos(prefetch_size=0, prefetch_count=lane.prefetch, a_global=False)
            lane.channel = channel
            channel.basic_consume(
                lane.queue,
                callback=lambda message: self._receive(lane, channel, message),
                on_cancel=lambda _tag: self._cancelled(lane, channel),
            )
        except ChannelError as error:
            if error.method_sig not in _OPENING:
                # It came in while we waited, and is about another channel: only a new connection
                # brings that one back.
                raise
            reason = words(error)
            if lane.problem != reason:
                log.warning("lane_not_opened", lane=lane.name, queue=lane.queue, reason=reason)
            lane.refused = lane.refused + 1 if isinstance(error, PreconditionFailed) else 0
            pause = declared_otherwise_pause(lane.refused) if lane.refused else OPEN_AGAIN
            lane.closed(reason, open_at=time.monotonic() + pause)
            channel.close()
        else:
            lane.problem, lane.broken, lane.refused = None, 0, 0
        self._opening = None

    def _cancelled(self, lane: ConsumedLane, channel: Any) -> None:
        """Note that the broker has ended our consumer, most likely because the queue was
        deleted. The next turn declares it again."""
        if lane.channel is channel:
            log.warning("lane_cancelled", lane=lane.name, queue=lane.queue)
            lane.closed("its queue was deleted", open_at=0.0)
            channel.close()

    def _receive(self, lane: ConsumedLane, channel: Any, message: Any) -> None:
        if lane.channel is not channel:
            return
        tag = message.delivery_tag
        lane.unacked.add(tag)
        lane.starved_since, lane.starved = math.inf, 0
        if not lane.active:
            lane.activations += 1
            lane.active = True

        def ack() -> None:
            self._acks.append((lane, channel, tag))
            self._link.wake()

        body, _ = content(message)
        try:
            job = Job.from_bytes(body)
        except Malformed as error:
            log.warning("lane_message_malformed", lane=lane.name, reason=str(error))
            kept = masked_bytes(body[:MOST_BODY])
            letter = DeadLetter(lane=lane.name, reason=str(error), last_at=time.time(), body=kept)
            self._bury(letter, ack)
        else:
            if lane is not self._stray:
                self._deliver(Delivery(job, ack))
            elif job.key.lane in self._named:
                log.info("stray_job_brought_back", lane=job.key.lane, key=job.key)
                self._bring_back(job, ack)
            else:
                # Its target was taken out of the configuration; a resync would not ask for it
                # either
                log.info("stray_job_dropped", lane=job.key.lane, key=job.key)
                ack()

    def _count(self) -> Mapping[str, int]:
        names = {name: lane.queue for name, lane in self._named.items() if lane.channel is not None}
        names["dead"] = self._topology.dead
        counts = {}
        for name, queue in names.items():
            now = time.monotonic()
            depth = queue_depth(self._connection, queue)
            counts[name] = depth.messages if depth else 0
            if depth is None and queue == self._topology.dead:
                # Made before the first dead letter: the broker logs each question about a queue
                # that is not there
                with self._connection.channel() as channel:
                    self._topology.declare_dead(channel)
            if name in self._named and not counts[name]:
                self._named[name].empty_at = now
        return counts
