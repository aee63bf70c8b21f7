"""How full the lanes on a RabbitMQ are, for a person; with or without a worker. Takes nothing
away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from amqp.exceptions import AMQPError, NotFound
from kombu.transport.native_delayed_delivery import MAX_NUMBER_OF_BITS_TO_USE, level_name

from worker.broker.connect import connected
from worker.broker.connection import content
from worker.broker.topology import Topology
from worker.core.errors import Malformed
from worker.core.job import Job

DELAYED = "(next tries)"
"""What stands for the queues in which jobs wait for their next try: all lanes share them."""
DEAD = "dead"
# Seconds that the broker has to hand out the job at the head of a lane
HEAD_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """A lane on the broker: jobs that no worker has, workers that would take them.

    `oldest` is since when the job at its head is asked for, in epoch seconds; 0 if there is none,
    or if a worker is there, which has the oldest ones itself.
    """

    lane: str
    ready: int
    workers: int
    oldest: float = 0.0


def look(url: str, *, queue: str, lanes: Iterable[str]) -> list[Depth]:
    """The lanes, what waits for a next try, and the dead letters; Temporary if no host answers.
    Blocks."""
    topology = Topology(prefix=queue, queue_type="")
    with connected(url, name="status") as connection:
        found = [_depth(connection, lane, topology.queue(lane)) for lane in lanes]
        delayed = sum(
            ready
            for bit in range(MAX_NUMBER_OF_BITS_TO_USE)
            for ready, _ in _counts(connection, level_name(bit, topology.prefix))
        )
        found.append(Depth(lane=DELAYED, ready=delayed, workers=0))
        dead = sum(ready for ready, _ in _counts(connection, topology.dead))
        return [*found, Depth(lane=DEAD, ready=dead, workers=0)]


def _depth(connection: Any, lane: str, name: str) -> Depth:
    for ready, workers in _counts(connection, name):
        oldest = _head(connection, name) if ready and not workers else 0.0
        return Depth(lane=lane, ready=ready, workers=workers, oldest=oldest)
    return Depth(lane=lane, ready=0, workers=0)


def _counts(connection: Any, name: str) -> Iterator[tuple[int, int]]:
    """Messages and consumers of a queue; nothing if there is no such queue."""
    # A channel for the question alone, as the answer "not found" closes it
    with connection.channel() as channel, contextlib.suppress(NotFound):
        answer = channel.queue_declare(name, passive=True)
        yield answer.message_count, answer.consumer_count


def _head(connection: Any, name: str) -> float:
    """Since when the job at the head of a queue without consumers is asked for; 0 if that can't be
    told.

    By a consumer, since RabbitMQ lets nobody get a message of a queue with a single active one; the
    message goes back when the channel is closed.
    """
    jobs: list[Job] = []

    def taken(message: Any) -> None:
        with contextlib.suppress(Malformed):
            jobs.append(Job.from_bytes(content(message)[0]))

    with connection.channel() as channel:
        channel.basic_qos(0, 1, a_global=False)
        channel.basic_consume(name, callback=taken)
        with contextlib.suppress(TimeoutError, AMQPError):
            connection.drain_events(timeout=HEAD_TIMEOUT)
    return jobs[0].first_at if jobs else 0.0
