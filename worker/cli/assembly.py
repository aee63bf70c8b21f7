"""The assembly: settings to parts, handlers, clouds, lanes and intakes.

The only module that knows which handlers and which kinds of broker there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from worker.broker.intake import RabbitIntake
from worker.broker.lanes import RabbitLanes
from worker.broker.memory import MemoryLanes
from worker.broker.pauses import PauseWatch
from worker.broker.replicas import Replicas
from worker.core.deletions import Deletions
from worker.core.handler import Handler, HandlerFactory, Parts
from worker.core.intake import Intake
from worker.core.lanes import Lanes
from worker.core.uses import Uses
from worker.observe.metrics import Metrics
from worker.settings import Settings
from worker.settings.subscription import subscription_of

if TYPE_CHECKING:
    from worker.openstack.cloud import OpenStackCloud

HANDLERS = "image_volume_worker.handlers"
"""The group of entry points that names the installed handlers."""
RESERVED = 8
"""Requests at once that are kept for uploads, besides [cloud] api_concurrency."""


@dataclass(frozen=True, slots=True)
class Clouds:
    """The cloud, and the same one with threads of its own for requests that users wait for."""

    common: OpenStackCloud
    urgent: OpenStackCloud

    def close(self) -> None:
        """Let go of threads and connections."""
        self.common.close()
        self.urgent.close()


def build_parts(settings: Settings, clouds: Clouds, metrics: Metrics) -> Parts:
    """Return the parts that handlers are built from; nothing has been heard yet."""
    return Parts(
        cloud=clouds.common,
        urgent=clouds.urgent,
        targets=settings.targets,
        policy=settings.policy,
        uploads=settings.uploads,
        reclaiming=settings.reclaiming,
        uses=Uses(),
        deletions=Deletions(),
        now=time.time,
        report=metrics,
    )


def build_handlers(settings: Settings, parts: Parts) -> dict[str, Handler]:
    """Return the handlers that are installed and not switched off, by name."""
    factories: list[HandlerFactory] = [entry.load() for entry in entry_points(group=HANDLERS)]
    handlers = (factory(parts) for factory in factories)
    return {
        handler.name: handler for handler in handlers if handler.name not in settings.switched_off
    }


def build_clouds(settings: Settings, metrics: Metrics) -> Clouds:
    """Return the cloud of the settings; nothing has been asked of it yet."""
    # openstacksdk takes a fifth of a second to import: wrong options and a wrong configuration are
    # told before that
    from worker.openstack.cloud import OpenStackCloud  # noqa: PLC0415
    from worker.openstack.login import connect, count_keystone  # noqa: PLC0415

    connection = connect(
        name=settings.cloud_name,
        timeout=settings.api_timeout,
        concurrency=settings.api_concurrency + RESERVED,
    )
    count_keystone(connection, metrics)

    def cloud(concurrency: int) -> OpenStackCloud:
        return OpenStackCloud(
            connection=connection,
            metrics=metrics,
            concurrency=concurrency,
            timeout=settings.api_timeout,
        )

    return Clouds(cloud(settings.api_concurrency), cloud(RESERVED))


@contextmanager
def opened(settings: Settings) -> Iterator[tuple[OpenStackCloud, Parts, Metrics]]:
    """Yield the cloud of the settings, and the parts and metrics of handlers on it, for a command.
    Nothing has been asked of the cloud yet."""
    metrics = Metrics()
    with closing(build_clouds(settings, metrics)) as clouds:
        yield clouds.common, build_parts(settings, clouds, metrics), metrics


def build_lanes(settings: Settings) -> Lanes:
    """Return the lanes of the settings, not open yet."""
    if settings.in_memory:
        return MemoryLanes()
    return RabbitLanes(url=settings.work_url, queue=settings.queue)


def build_pauses(settings: Settings) -> PauseWatch | None:
    """Return who tells of paused targets; None where jobs wait in memory, as nobody can pause
    those."""
    if settings.in_memory:
        return None
    names = [target.name for target in settings.targets]
    return PauseWatch(url=settings.work_url, queue=settings.queue, targets=names)


def build_replicas(
    settings: Settings, document: Callable[[], Mapping[str, Any]]
) -> Replicas | None:
    """Return who tells and hears of the other replicas, with this one's `document`; None where
    jobs wait in memory, as there are no others."""
    if settings.in_memory:
        return None
    return Replicas(url=settings.work_url, queue=settings.queue, document=document)


def build_intakes(settings: Settings) -> list[Intake]:
    """Return one intake for each transport URL."""
    subscription = subscription_of(settings)
    if settings.driver == "oslo":
        # oslo.messaging takes a second and 30 MB to import, for nothing where the broker is
        # RabbitMQ
        from worker.broker.oslo import OsloIntake  # noqa: PLC0415

        return [
            OsloIntake(
                url=url,
                subscription=subscription,
                config_files=settings.config_files,
                config_dirs=settings.config_dirs,
            )
            for url in settings.transport_urls
        ]
    return [
        RabbitIntake(url=url, subscription=subscription, prefetch=settings.prefetch)
        for url in settings.transport_urls
    ]
