"""Upgrade: whether this version can take over from the one that runs. It reads, and leaves nothing
behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from handlers.resolve import missing_type, resolve
from worker.broker.inspect import DEAD, DELAYED, Depth, Look, look_at_lanes
from worker.broker.subscription import DELIVERY_LIMIT
from worker.core.cloud import Store
from worker.core.errors import Blocked
from worker.diagnose import broker_check
from worker.diagnose.check import Check
from worker.diagnose.doctor.untold import Untold, ask, untold
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.openstack.cloud import OpenStackCloud

RESTART = "stop the workers, rabbitmqctl delete_queue it, and start them: a resync follows"


async def examine(settings: Settings, cloud: OpenStackCloud) -> list[Check]:
    """Every check of what the running version has left."""
    brokers, targets = await asyncio.gather(
        asyncio.to_thread(look_at_brokers, settings), ask(lambda: _targets(cloud, settings))
    )
    found = [configuration(settings.warnings), *brokers]
    if isinstance(targets, Untold):
        return [*found, untold("Cloud", targets, "doctor tells more")]
    return [*found, *targets]


def configuration(warnings: Iterable[str]) -> Check:
    """Check a configuration that this version accepts; `warnings` are about what has no effect."""
    if told := "; ".join(warnings):
        return Check("Configuration", "warn", told, "correct it: a later version may refuse it")
    return Check("Configuration", "ok", "this version accepts it")


def look_at_brokers(settings: Settings) -> list[Check]:
    """Whether the queues of the running version can be used as they are. Blocks."""
    found = []
    for number, url in enumerate(settings.transport_urls):
        name = f"Notifications {number}"
        if settings.driver != "rabbit":
            found.append(Check(name, "skipped", f"driver {settings.driver} keeps its own queues"))
            continue
        look, limited = broker_check.of_intake(url, settings)
        found.append(notifications(name, look, settings.queue, limited=limited))
    if settings.in_memory:
        told = "jobs wait in memory and end with the process; the first resync finds them again"
        return [*found, Check("Lanes", "ok", told)]
    look = broker_check.of_lanes(settings)
    waiting = {} if look.problem else look_at_lanes(settings.work_url, queue=settings.queue)
    return [*found, lanes(look, waiting)]


def notifications(name: str, look: Look, queue: str, *, limited: bool) -> Check:
    """Check the queue on a services' broker; `limited`: it has the delivery limit that this version
    sets. Pure."""
    if look.problem:
        return Check(
            name, "warn", f"{look.broker}: {look.problem}", "run it again with the broker up"
        )
    if queue not in look.queues:
        return Check(name, "ok", f"{look.broker}: no queue {queue} yet")
    if look.refused:
        return Check(name, "fail", f"{look.broker}: queue {queue}: {look.refused}", RESTART)
    if not limited:
        told = (
            f"{look.broker}: queue {queue} has no x-delivery-limit of {DELIVERY_LIMIT}; RabbitMQ 4 "
            "drops a notification that was returned 20 times"
        )
        return Check(name, "warn", told, RESTART)
    return Check(name, "ok", f"{look.broker}: queue {queue} is used as it is")


def lanes(look: Look, waiting: Mapping[str, Depth]) -> Check:
    """Check the queues of the lanes; `waiting`: what the delays and the dead letters hold. Pure."""
    if look.problem:
        return Check(
            "Lanes", "warn", f"{look.broker}: {look.problem}", "run it again with the broker up"
        )
    if look.refused:
        advice = (
            "docs/upgrade.md tells how to replace a queue; the first resync finds its jobs again"
        )
        return Check("Lanes", "fail", f"{look.broker}: {look.refused}", advice)
    jobs = sum(depth.messages for depth in look.queues.values()) - waiting[DEAD].messages
    told = (
        f"{look.broker}: taken over: jobs in lanes: {jobs}, waiting for their next try: "
        f"{waiting[DELAYED].messages}, dead letters: {waiting[DEAD].messages}"
    )
    return Check("Lanes", "ok", told)


async def _targets(cloud: OpenStackCloud, settings: Settings) -> list[Check]:
    """Whether the cloud still has what the targets name."""
    types, stores = await asyncio.gather(cloud.describe_volume_types(), cloud.list_stores())
    return list(targets(settings, (one.name for one in types), stores))


def targets(settings: Settings, types: Iterable[str], stores: Iterable[Store]) -> Iterator[Check]:
    """Check the targets, by the cloud's volume types and Glance's stores. Pure."""
    names, known = tuple(types), tuple(stores)
    for target in settings.targets:
        name = f"Target {target.name}"
        if why := missing_type(target, names):
            yield Check(name, "warn", why, "this target is left out until then")
            continue
        try:
            strategy = resolve(target, known).strategy
        except Blocked as error:
            yield Check(name, "warn", str(error), "this target is left out until then")
            continue
        yield Check(name, "ok", f"strategy {strategy}")
