"""Readings of `status`: from Glance and Cinder, the broker, and a worker that runs here."""

from __future__ import annotations

import asyncio
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from handlers.prewarm import Prewarm
from worker.broker.dead_letters import DeadQueue
from worker.broker.inspect import Depth, look_at_lanes
from worker.cli import names, pauses
from worker.cli.assembly import build_handlers, opened
from worker.cli.preflight import check_cloud
from worker.core.errors import NotFound, Temporary
from worker.core.job import Job, Key
from worker.diagnose import explain, status
from worker.diagnose.status import Row, Summary
from worker.observe import live
from worker.observe.address import shown
from worker.observe.live import Live
from worker.settings import Settings


@dataclass(slots=True)
class Readings:
    """All readings; `notes` say which failed."""

    rows: list[Row] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    depths: dict[str, Depth] = field(default_factory=dict)
    live: Live | None = None
    notes: list[str] = field(default_factory=list)
    paused: Set[str] = frozenset()


def read(settings: Settings, image_id: str, *, lanes_only: bool, summary_only: bool) -> Readings:
    """Read everything that can be read: without the cloud there is no status, without the rest
    there is."""
    seen = Readings()
    given_up: dict[Key, Job] = {}
    if settings.bind:
        seen.live = live.ask(settings.bind)
    if seen.live is None and not summary_only:
        where = f"at {shown(settings.bind)}" if settings.bind else "([probes] bind is empty)"
        seen.notes.append(
            f"no worker tells {where} what it is doing: next tries are not known here"
        )
    for host in seen.live.left_out if seen.live else ():
        seen.notes.append(f"the worker on {host} tells nothing now: its jobs are not shown")
    if not settings.in_memory:
        try:
            seen.depths = look_at_lanes(
                settings.work_url, queue=settings.queue, lanes=settings.lanes
            )
            seen.paused = pauses.look(settings)
            with DeadQueue(url=settings.work_url, queue=settings.queue) as queue:
                given_up = {
                    kept.letter.job.key: kept.letter.job
                    for kept in queue
                    if kept.letter and kept.letter.job
                }
        except Temporary as error:
            if lanes_only:
                raise
            seen.notes.append(f"the lanes can't be seen: {error}")
    if not lanes_only:
        asyncio.run(_look_at_cloud(settings, image_id, seen, given_up))
    return seen


async def _look_at_cloud(
    settings: Settings, image_id: str, seen: Readings, given_up: dict[Key, Job]
) -> None:
    with opened(settings) as (cloud, parts, _):
        seen.notes += (await check_cloud(cloud, settings)).warnings
        if seen.live:
            parts.learned.take_over(seen.live.cloned_from, now=parts.now())
        prewarm = Prewarm(parts)
        others = tuple(
            handler
            for handler in build_handlers(settings, parts).values()
            if handler.name != prewarm.name
        )
        held: dict[str, tuple[int, int]] = {}
        if image_id:
            image_id = await names.image_id(cloud, image_id)
            rows = await _of_image(settings, cloud, prewarm, others, image_id)
        else:
            rows = [row async for row in status.overview(cloud, prewarm, others, held)]
    jobs = seen.live.jobs if seen.live else {}
    seen.rows = [status.with_work(row, jobs, given_up) for row in rows]
    if seen.live:
        held_back, full = seen.live.held_back, seen.live.cache_full
        seen.rows = [status.with_holds(row, held_back, full) for row in seen.rows]
    seen.rows = [status.with_pause(row, seen.paused) for row in seen.rows]
    resolved = {target.name: target for target in prewarm.resolved}
    seen.summaries = status.summaries(
        [resolved.get(target.name, target) for target in settings.targets], seen.rows, held
    )


async def _of_image(
    settings: Settings, cloud: Any, prewarm: Prewarm, others: tuple[Any, ...], image_id: str
) -> list[Row]:
    """Return the rows of one image; NotFound if there is neither the image nor a volume of it."""
    volumes = await explain.volumes_of(cloud, image_id)
    try:
        image = await cloud.get_image(image_id)
    except NotFound:
        if volumes:
            return [status.of_gone(image_id, volume) for volume in volumes]
        raise
    lying = await explain.lying(cloud, settings.targets)
    for handler in (prewarm, *others):
        await handler.prepare(lying)
    return [row async for row in status.of_image(cloud, prewarm, others, image, volumes)]
