"""Paused targets, kept on a RabbitMQ as bindings: a message with the target's name as its routing
key comes to a queue if the target is paused, and comes back if it is not.

A binding survives restarts, there are no two opinions about it, and to ask takes nothing away and
leaves no error in the broker's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Set
from typing import Any

import structlog
from amqp import Message
from amqp.exceptions import (
    AccessRefused,
    ChannelError,
    MessageNacked,
    PreconditionFailed,
    ResourceLocked,
)

from worker.broker.connection import connected, words
from worker.broker.inspect import exchange_is_there
from worker.broker.link import Link
from worker.broker.topology import Topology
from worker.broker.url import parse
from worker.engine.threads import call_on

log = structlog.get_logger(__name__)

ANSWER_WITHIN = 10.0
"""Seconds that the broker has to confirm a question. A node that is cut off from the others does
not, and the link goes to the next one."""
ASK_AGAIN = 3600.0
"""Seconds until the next try where the broker refuses what is needed to ask: it logs each one."""
REFUSALS = (AccessRefused, PreconditionFailed, ResourceLocked)
"""No right to the exchange or its queue, or somebody else's queue of that name."""
EVERY = 3.0
"""Seconds between two questions which targets are paused."""


class PauseWatch:
    """Tells which targets are paused: at the start, and with each change."""

    def __init__(self, *, url: str, queue: str, targets: Iterable[str]) -> None:
        """Misconfigured if `url` names no RabbitMQ. `queue` begins the names on the broker."""
        self._topology = Topology(prefix=queue)
        self._targets = tuple(targets)
        self._url = url
        self._changed: Callable[[Set[str]], None] = lambda _: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ask: Callable[[], Set[str]] | None = None
        self._told: Set[str] | None = None
        self._known = asyncio.Event()
        self._link: Link | None = None
        self._refused = ""
        self._connection: Any = None
        self._try_at = 0.0

    async def run(self, changed: Callable[[Set[str]], None]) -> None:
        """Call `changed` on the event loop with the names of the paused targets, for as long as the
        task runs."""
        self._changed, self._loop, self._told = changed, asyncio.get_running_loop(), None
        self._link = link = Link(
            broker=parse(self._url), session=self, name="image-volume-worker pauses"
        )
        link.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.to_thread(link.stop, grace=0.0)

    @property
    def problem(self) -> str | None:
        """Why it is not known which targets are paused; None if it is."""
        if self._refused:
            return f"not known which targets are paused: {self._refused}"
        return self._link.problem if self._link else None

    async def known(self) -> None:
        """Return once it is known which targets are paused."""
        await self._known.wait()

    def opened(self, connection: Any) -> None:
        """Declare what is asked; the link calls this and what follows on its thread."""
        self._connection = connection
        channel = connection.channel()
        try:
            self._topology.declare_paused(channel)
        except REFUSALS as error:
            self._cannot(error)
            return
        self._refused = ""
        self._ask = functools.partial(_paused, channel, self._topology, self._targets)

    def turn(self) -> float:
        """Ask which targets are paused."""
        if self._refused and time.monotonic() >= self._try_at:
            self.opened(self._connection)
        if self._ask is not None:
            try:
                found = self._ask()
            except REFUSALS as error:
                self._cannot(error)
                return EVERY
            if found != self._told:
                self._told = found
                self._tell(found)
        return EVERY

    def _cannot(self, error: ChannelError) -> None:
        """Note that the broker refuses what is needed to ask. Only an operator can mend that: the
        worker works on, and is not ready."""
        self._ask = None
        self._try_at = time.monotonic() + ASK_AGAIN
        if not self._refused:
            log.error("pauses_unknown", error=words(error))
        self._refused = words(error)
        if self._told is None:
            self._told = frozenset()
            self._tell(self._told)

    def lost(self) -> None:
        """Keep what is paused until the broker tells otherwise."""
        self._ask = self._connection = None
        self._try_at = math.inf

    def finished(self) -> bool:
        """Nothing has to be finished."""
        return True

    def _tell(self, paused: Set[str]) -> None:
        if self._loop is not None:
            call_on(self._loop, self._set, paused)

    def _set(self, paused: Set[str]) -> None:
        self._changed(paused)
        self._known.set()


def read_pauses(url: str, *, queue: str, targets: Iterable[str]) -> Set[str]:
    """Those of the targets that are paused; Temporary if the broker can't be asked. Blocks."""
    topology = Topology(prefix=queue)
    with connected(url, name="pauses") as connection:
        # Whoever only looks makes nothing
        if not exchange_is_there(connection, topology.paused):
            return frozenset()
        return _paused(connection.channel(), topology, tuple(targets))


def set_paused(url: str, *, queue: str, target: str, paused: bool) -> None:
    """Pause or resume a target, in whatever state it is; Temporary if the broker can't be asked.
    Blocks."""
    topology = Topology(prefix=queue)
    with connected(url, name="pauses") as connection:
        channel = connection.channel()
        topology.declare_paused(channel)
        change = channel.queue_bind if paused else channel.queue_unbind
        change(topology.paused, exchange=topology.paused, routing_key=target)


def _paused(channel: Any, topology: Topology, targets: tuple[str, ...]) -> Set[str]:
    """Those of the targets for which there is a binding."""
    returned: set[str] = set()

    def came_back(_error: object, _exchange: str, routing_key: str, _message: object) -> None:
        returned.add(routing_key)

    channel.events["basic_return"] = {came_back}
    for target in targets:
        # The broker returns what has no queue before it confirms it. A full queue that refuses
        # more (a policy may say so) is a queue, too
        with contextlib.suppress(MessageNacked):
            channel.basic_publish_confirm(
                Message(b""),
                exchange=topology.paused,
                routing_key=target,
                mandatory=True,
                confirm_timeout=ANSWER_WITHIN,
            )
    return frozenset(targets) - returned
