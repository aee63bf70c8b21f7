"""Doctor: does everything that a worker needs work? It reads, and leaves nothing behind.

It asks everything first, each question on its own (`facts`, `broker_check`, `management`,
`daemon`). Pure functions judge the answers, so a question that fails is one line of the result and
hides nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import partial
from typing import TYPE_CHECKING

from worker.broker.inspect import Look
from worker.broker.pauses import read_pauses
from worker.broker.topology import Topology
from worker.diagnose import broker_check
from worker.diagnose.check import Check
from worker.diagnose.doctor import brokers, cinder, configuration, daemon, glance, login
from worker.diagnose.doctor.facts import gather
from worker.diagnose.doctor.management import Managed, Management
from worker.diagnose.doctor.untold import Untold, ask, tell, untold
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.openstack.cloud import OpenStackCloud

MEMORY = Check(
    "lanes",
    "warn",
    "in memory",
    "fine for one process; set [work] url to share the work and to survive restarts",
)


async def examine(settings: Settings, cloud: OpenStackCloud, files: Iterable[str]) -> list[Check]:
    """Every check; `files` are those that the settings were read from."""
    of_brokers, facts, heard = await asyncio.gather(
        asyncio.to_thread(look_at_brokers, settings),
        ask(partial(gather, cloud, settings)),
        asyncio.to_thread(daemon.listen, settings.bind),
    )
    found = [
        *configuration.checks(settings, files),
        daemon.check(settings.bind, heard),
        *of_brokers,
    ]
    if isinstance(facts, Untold):
        return [*found, untold("cloud", facts, "run it again with --debug", verdict="fail")]
    return [
        *found,
        *daemon.notifications(heard, facts.images, facts.volumes),
        *login.checks(facts, settings),
        *glance.checks(facts, settings),
        *cinder.checks(facts, settings, heard.events if heard else None),
    ]


def look_at_brokers(settings: Settings) -> list[Check]:
    """All that brokers and their management APIs tell. Blocks."""
    managements = [Management(url) for url in settings.management_urls]
    clusters = {api: tell(api.cluster) for api in managements}
    found = [
        untold(
            f"management {api.name}", name, "check management_urls: host, port, user and password"
        )
        for api, name in clusters.items()
        if isinstance(name, Untold)
    ]
    for number, url in enumerate(settings.transport_urls):
        name = f"notifications {number}"
        if settings.driver != "rabbit":
            found.append(
                Check(
                    name,
                    "warn",
                    f"driver {settings.driver}",
                    "only RabbitMQ can be looked at; see /readyz",
                )
            )
            continue
        found += _notifications(name, url, settings, clusters)
    return [*found, *_lanes(settings, clusters)]


def _notifications(
    name: str, url: str, settings: Settings, clusters: Mapping[Management, str | Untold]
) -> Iterator[Check]:
    undrained = brokers.undrained_names(settings)
    queues = [settings.queue, *undrained]
    seen = broker_check.of_notifications(url, settings, besides=undrained)
    managed = _managed(
        seen, clusters, queues, bound_to=settings.queue if settings.queue in seen.queues else ""
    )
    yield from brokers.notifications(name, seen, settings, managed)


def _lanes(settings: Settings, clusters: Mapping[Management, str | Untold]) -> Iterator[Check]:
    if settings.in_memory:
        yield MEMORY
        return
    topology = Topology(prefix=settings.queue)
    names = [topology.queue(lane) for lane in settings.lanes]

    queues = [*names, topology.dead]
    seen = broker_check.of_lanes(settings)
    yield from brokers.lanes(seen, settings, names, topology.dead, _managed(seen, clusters, queues))
    if not seen.problem:
        targets = [target.name for target in settings.targets]
        look = partial(read_pauses, settings.work_url, queue=settings.queue, targets=targets)
        found = tell(look)
        if isinstance(found, Untold):
            yield untold("paused targets", found, "see the log of RabbitMQ")
        else:
            yield from paused(found)


def paused(targets: Set[str]) -> Iterator[Check]:
    """Name the targets that are paused. Pure."""
    for name in sorted(targets):
        told = "an operator has paused it: no job is begun there"
        yield Check(f"target {name} paused", "warn", told, f"image-volume-worker resume {name}")


def _managed(
    seen: Look,
    clusters: Mapping[Management, str | Untold],
    queues: Iterable[str],
    *,
    bound_to: str = "",
) -> Managed | Untold | None:
    """Ask the management API of the broker's own cluster; None if none is configured."""
    if seen.problem:
        return None
    api = next((api for api, name in clusters.items() if name and name == seen.cluster), None)
    if api is None:
        return None
    return tell(lambda: api.look(seen.broker.virtual_host, queues, bound_to=bound_to))
