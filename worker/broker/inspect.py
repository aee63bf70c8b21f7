"""Questions to a RabbitMQ about its queues and exchanges, for doctor, status and the lanes. They
change nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from amqp import Message
from amqp.exceptions import AMQPError, ChannelError, NotFound
from kombu.transport.pyamqp import Connection

from worker.broker import delays
from worker.broker.connection import CLASSIC, connect, connected, content, words
from worker.broker.topology import Topology
from worker.broker.url import Broker, Host, parse
from worker.core.errors import Malformed
from worker.core.job import Job

DELAYED = "(next tries)"
"""The name of the queues in which jobs wait for their next try, taken together: all lanes share
them."""
DEAD = "dead"
HEAD_TIMEOUT = 2.0
"""Seconds that the broker has to hand out the job at the head of a lane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """A queue: messages that wait, consumers; or the `problem` it has, say that its node is down.

    `oldest` is when the job at its head was first asked for, in epoch seconds; 0 if there is none
    or nobody has looked, or if a worker is there, which has the oldest ones itself.
    """

    messages: int = 0
    consumers: int = 0
    problem: str = ""
    oldest: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The answers of one look at a broker.

    `away` has the hosts that don't answer, each with the reason; if that is all of them the rest is
    empty. `exchanges` and `queues` are those that exist, of those that were asked for. `refused` is
    the broker's answer to the trial, "" if it let us. `cluster` and `version` are the broker's own
    words.
    """

    broker: Broker
    away: Mapping[str, str] = field(default_factory=dict)
    cluster: str = ""
    version: str = ""
    exchanges: tuple[str, ...] = ()
    queues: Mapping[str, Depth] = field(default_factory=dict)
    refused: str = ""

    @property
    def problem(self) -> str:
        """Why nobody answers; "" if a host does."""
        if len(self.away) < len(self.broker.hosts):
            return ""
        return "; ".join(f"{host}: {reason}" for host, reason in self.away.items())


class Alarm(OSError):
    """The broker is short of memory or disk, and refuses a message for it."""


Trial = Callable[[Connection, Mapping[str, Depth]], object]
"""A dry run on a connection, given the queues that are there; AMQPError if the broker refuses."""


def look(
    url: str,
    *,
    exchanges: Iterable[str] = (),
    queues: Iterable[str] = (),
    trial: Trial | None = None,
) -> Look:
    """Connect to every host, and ask one that answers which queues and exchanges exist. Blocks;
    only `trial` changes anything."""
    broker = parse(url)
    with ThreadPoolExecutor(max_workers=len(broker.hosts)) as threads:
        tried = list(threads.map(lambda host: _open(broker, host), broker.hosts))
    pairs = list(zip(broker.hosts, tried, strict=True))
    away = {str(host): one for host, one in pairs if isinstance(one, str)}
    found = Look(broker=broker, away=away)
    for host, connection in pairs:
        if isinstance(connection, str):
            continue
        try:
            if not found.version:
                found = _ask(connection, found, tuple(exchanges), tuple(queues), trial)
        except (OSError, AMQPError) as error:
            away[str(host)] = words(error)
        finally:
            with contextlib.suppress(OSError, AMQPError):
                connection.close()
    return found


def scratch(connection: Connection, name: str) -> None:
    """Make a queue of our own, publish to it and read from it: whoever may do that may work here.

    The queue disappears with the connection at the latest. Raises AMQPError where the broker
    refuses, OSError where it takes no messages.
    """
    # Not closed by a `with`: a broker with an alarm would not answer to that either
    channel = connection.channel()
    channel.queue_declare(name, exclusive=True, auto_delete=True, durable=False, arguments=CLASSIC)
    channel.basic_publish(Message(b"doctor"), exchange="", routing_key=name)
    channel.basic_get(name, no_ack=True)
    channel.queue_delete(name)
    channel.close()


def _open(broker: Broker, host: Host) -> Connection | str:
    """Return a connection, or why there is none."""
    try:
        return connect(broker, host, name="doctor", on_blocked=_stop)
    except (OSError, AMQPError, ValueError) as error:
        # ValueError: a host that is no name, as `rabbit..example`
        return words(error)


def _stop(reason: str) -> None:
    # The broker reads nothing more from us until its alarm is over: to wait for an answer would
    # take until then
    raise Alarm(f"the broker takes no messages: {reason}")


def _ask(
    connection: Connection,
    found: Look,
    exchanges: tuple[str, ...],
    queues: tuple[str, ...],
    trial: Trial | None,
) -> Look:
    there = tuple(name for name in exchanges if exchange_is_there(connection, name))
    depths = {
        name: depth for name in queues if (depth := _depth_or_problem(connection, name)) is not None
    }
    refused = ""
    if trial is not None:
        try:
            trial(connection, depths)
        except Alarm as error:
            refused = words(error)
            connection.collect()
        except (OSError, AMQPError) as error:
            refused = words(error)
    properties = connection.server_properties
    return replace(
        found,
        version=str(properties.get("version") or "unknown"),
        cluster=str(properties.get("cluster_name") or ""),
        exchanges=there,
        queues=depths,
        refused=refused,
    )


def exchange_is_there(connection: Connection, exchange: str) -> bool:
    """Whether an exchange exists."""
    # A channel for the question alone, as the answer "not found" closes it
    with connection.channel() as channel:
        try:
            channel.exchange_declare(exchange, "topic", passive=True)
        except NotFound:
            return False
    return True


def look_at_lanes(url: str, *, queue: str, lanes: Iterable[str] = ()) -> dict[str, Depth]:
    """Return how full the lanes, the delays (DELAYED) and the dead letters (DEAD) are; Temporary if
    no host answers. Blocks."""
    topology = Topology(prefix=queue)
    with connected(url, name="status") as connection:
        found = {lane: _with_oldest(connection, topology.queue(lane)) for lane in lanes}
        found[DELAYED] = Depth(
            messages=sum(_there(connection, name).messages for name in delays.queues(queue))
        )
        found[DEAD] = Depth(messages=_there(connection, topology.dead).messages)
        return found


def _there(connection: Any, queue: str) -> Depth:
    return queue_depth(connection, queue) or Depth()


def _with_oldest(connection: Any, queue: str) -> Depth:
    depth = _there(connection, queue)
    if depth.messages and not depth.consumers:
        return replace(depth, oldest=_head(connection, queue))
    return depth


def queue_depth(connection: Any, queue: str) -> Depth | None:
    """Return how full a queue is; None if it is not there, or on a node that is not."""
    # A channel for the question alone, as the answer "not found" closes it
    with connection.channel() as channel:
        try:
            answer = channel.queue_declare(queue, passive=True)
        except NotFound:
            return None
    return Depth(messages=answer.message_count, consumers=answer.consumer_count)


def _depth_or_problem(connection: Any, queue: str) -> Depth | None:
    """Return how full a queue is, or the problem that it has; None if there is none of this name."""
    with connection.channel() as channel:
        try:
            answer = channel.queue_declare(queue, passive=True)
        except NotFound as error:
            # RabbitMQ says so, too, of a queue that is there, on a node that is not
            if "no queue" in str(error.reply_text):
                return None
            return Depth(problem=str(error.reply_text))
        except ChannelError as error:
            return Depth(problem=words(error))
    return Depth(messages=answer.message_count, consumers=answer.consumer_count)


def _head(connection: Any, name: str) -> float:
    """Return when the job at the head of a queue without consumers was first asked for; 0 if we
    can't tell.

    We consume, since RabbitMQ lets nobody get a message of a queue with a single active consumer;
    the message returns when the channel is closed.
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
