"""Dry runs of our declarations, and what brokers refuse of them. Blocks; changes nothing that
exists."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from worker.broker.inspect import Depth, Look, look, scratch
from worker.broker.topology import Topology
from worker.core.errors import Misconfigured
from worker.settings import Settings
from worker.settings.subscription import subscription_of


def of_notifications(url: str, settings: Settings, *, besides: Iterable[str] = ()) -> Look:
    """Look at a broker that services publish to, and dry-run our queue if it exists; `besides` are
    more queues."""
    subscription = subscription_of(settings)

    def declare(connection: Any, there: Mapping[str, Depth]) -> None:
        # Declared again as it is, it stays as it is; else the broker says what is different, as it
        # would to the daemon
        if settings.queue in there:
            subscription.declare(connection)

    return look(url, exchanges=settings.exchanges, queues=[settings.queue, *besides], trial=declare)


def of_intake(url: str, settings: Settings) -> tuple[Look, bool]:
    """Look at our queue on a broker that services publish to; whether it has our delivery limit, as
    far as it is there."""
    subscription = subscription_of(settings)
    limited = True

    def declare(connection: Any, there: Mapping[str, Depth]) -> None:
        nonlocal limited
        if settings.queue in there:
            subscription.declare(connection)
            limited = subscription.declare_limited(connection)

    return look(url, queues=[settings.queue], trial=declare), limited


def of_lanes(settings: Settings) -> Look:
    """Look at the broker of the lanes, and dry-run their queues and our rights there."""
    topology = Topology(prefix=settings.queue)
    names = [topology.queue(lane) for lane in settings.lanes]

    def work(connection: Any, there: Mapping[str, Depth]) -> None:
        for name in names:
            if name in there:
                with connection.channel() as channel:
                    topology.declare_lane(channel, name)
        scratch(connection, f"{settings.queue}.doctor-{uuid.uuid4().hex}")

    return look(settings.work_url, queues=[*names, topology.dead], trial=work)


def check(settings: Settings, *, proven: Settings) -> None:
    """Raise Misconfigured if brokers refuse a worker with these settings.

    A broker that does not answer is no fault if the worker with the `proven` settings waits for it
    already.
    """
    if faults := list(_faults(settings, proven)):
        raise Misconfigured(*faults)


def _faults(settings: Settings, proven: Settings) -> Iterator[str]:
    if settings.driver == "rabbit":
        for number, url in enumerate(settings.transport_urls):
            found = of_notifications(url, settings)
            unknown = proven.driver != "rabbit" or url not in proven.transport_urls
            for reason in (found.refused, unknown and found.problem):
                if reason:
                    yield (
                        f"[notifications] transport_urls, number {number + 1}: {found.broker}: "
                        f"{reason}"
                    )
    if not settings.in_memory:
        found = of_lanes(settings)
        for reason in (found.refused, settings.work_url != proven.work_url and found.problem):
            if reason:
                yield f"[work] url: {found.broker}: {reason}"
