"""The exchange of status between the replicas of a worker over RabbitMQ: each publishes its part
every few seconds, and hears those of all others. Nothing is kept on the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import structlog
from amqp import Message
from amqp.exceptions import AccessRefused, ChannelError

from worker.broker.connection import CLASSIC, content, words
from worker.broker.link import Link
from worker.broker.topology import Topology
from worker.broker.url import parse
from worker.core.compression import GZIP, plain
from worker.core.errors import Malformed

log = structlog.get_logger(__name__)

EVERY = 5.0
"""Seconds between two parts of a replica; more if one costs more than a fiftieth of that."""
SHARE = 50
LONGEST = 10.0
"""Seconds between two parts at most: who tells nothing for twice as long counts as silent."""
DEAF = 30.0
"""Seconds without a part of our own, which comes back to us as to all others, after which the
connection is made anew."""
FORGOTTEN = 600.0
"""Seconds after which a replica that tells nothing any more is forgotten."""
MOST = 64
"""Replicas that are remembered."""
GONE = "gone"


class Part(NamedTuple):
    """The last part that another replica has told, and how many seconds ago."""

    document: Mapping[str, Any]
    age: float


class Replicas:
    """The other replicas of this worker, as far as they are heard of."""

    def __init__(self, *, url: str, queue: str, document: Callable[[], Mapping[str, Any]]) -> None:
        """Misconfigured if `url` names no RabbitMQ. `queue` begins the names on the broker,
        `document` makes this replica's part, on the link's thread."""
        self._id = uuid.uuid4().hex
        self._topology = Topology(prefix=queue)
        self._url = url
        self._document = document
        self._channel: Any = None
        self._link: Link | None = None
        self._due = self._echo = 0.0
        self._lock = threading.Lock()
        self._heard: dict[str, tuple[Mapping[str, Any], float]] = {}

    async def run(self) -> None:
        """Tell and hear, for as long as the task runs."""
        link = Link(broker=parse(self._url), session=self, name="image-volume-worker replicas")
        link.start()
        self._link = link
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.to_thread(link.stop, grace=1.0)

    def others(self) -> list[Part]:
        """Return what the others have told last, in the order in which they were first heard of.
        May be called on any thread."""
        now = time.monotonic()
        with self._lock:
            for replica in [one for one, (_, at) in self._heard.items() if now - at > FORGOTTEN]:
                del self._heard[replica]
            return [Part(document, now - at) for document, at in self._heard.values()]

    def opened(self, connection: Any) -> None:
        """Declare and consume; the link calls this and what follows on its thread."""
        channel = connection.channel()
        # The broker may still hold the queue of a connection that broke
        queue = f"{self._topology.replicas}.{uuid.uuid4().hex}"
        try:
            channel.exchange_declare(
                self._topology.replicas, "fanout", durable=False, auto_delete=True
            )
            channel.queue_declare(
                queue,
                exclusive=True,
                auto_delete=True,
                arguments={**CLASSIC, "x-max-length": 2 * MOST},
            )
            channel.queue_bind(queue, exchange=self._topology.replicas)
            channel.basic_consume(queue, no_ack=True, callback=self._hear)
        except AccessRefused as error:
            # The page shows this replica alone
            log.warning("replicas_unknown", error=words(error))
            return
        self._channel, self._due, self._echo = channel, 0.0, time.monotonic()

    def turn(self) -> float:
        """Tell this replica's part when it is due."""
        now = time.monotonic()
        if self._channel is not None and now >= self._due:
            self._due = now + EVERY
            # A broker that is short of memory reads nothing: to write would wait
            if self._link and self._link.blocked:
                self._echo = now
            elif now - self._echo > DEAF:
                raise ConnectionError("the broker delivers nothing of what replicas tell")
            else:
                self._tell({"document": self._document()})
                cost = time.monotonic() - now
                self._due = now + min(LONGEST, max(EVERY, SHARE * cost))
        return max(0.1, self._due - now) if self._channel is not None else EVERY

    def lost(self) -> None:
        """Wait for another connection."""
        self._channel = None

    def finished(self) -> bool:
        """Say goodbye, so that the others do not take this replica to be silent."""
        if self._channel is not None and not (self._link and self._link.blocked):
            self._tell({GONE: True})
        self._channel = None
        return True

    def _tell(self, told: Mapping[str, Any]) -> None:
        body = zlib.compress(json.dumps({"replica": self._id, **told}).encode())
        message = Message(body, delivery_mode=1)
        with contextlib.suppress(ChannelError):
            self._channel.basic_publish(message, exchange=self._topology.replicas, routing_key="")

    def _hear(self, message: Any) -> None:
        try:
            told = json.loads(plain(content(message)[0], GZIP))
            replica = str(told["replica"])
        except (Malformed, ValueError, KeyError, TypeError) as error:
            log.debug("replica_unreadable", error=repr(error))
            return
        if replica == self._id:
            self._echo = time.monotonic()
            return
        with self._lock:
            if told.get(GONE):
                self._heard.pop(replica, None)
            elif isinstance(document := told.get("document"), dict):
                self._heard[replica] = document, time.monotonic()
                while len(self._heard) > MOST:
                    del self._heard[min(self._heard, key=lambda one: self._heard[one][1])]
