"""Resync: one bulk comparison of Glance and Cinder. Keys that look incomplete become jobs."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from worker.core.cloud import GIB, LISTED, Cloud, Volume
from worker.core.errors import NotFound
from worker.core.handler import Handler, Missing
from worker.core.job import RESYNC, Job
from worker.core.target import TAG
from worker.engine.packed import Packed
from worker.observe.image_volumes import ImageVolumes
from worker.observe.metrics import OTHER

log = structlog.get_logger(__name__)

BATCH = 500
"""Jobs that are put into their lanes together."""


@dataclass(slots=True)
class Census:
    """Counts of a comparison: images, and Image-Volumes by (target, status) with their bytes by
    target. With `kept`, the Image-Volumes themselves are put there."""

    images: int = 0
    volumes: Counter[tuple[str, str]] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    kept: ImageVolumes | None = None

    def add(self, image_id: str, volume: Volume) -> None:
        """Count one Image-Volume."""
        target = volume.metadata.get(TAG, OTHER)
        self.volumes[target, volume.status] += 1
        self.sizes[target] += volume.size * GIB
        if self.kept is not None:
            self.kept.add(image_id, volume)


async def by_image(volumes: AsyncIterator[Volume], image_of: Callable[[Volume], str]) -> Packed:
    """Return the volumes that were made for an image, by image id."""
    found = Packed()
    async for volume in volumes:
        if image_id := image_of(volume):
            found.add(image_id, volume)
    return found


async def count(cloud: Cloud, *, image_of: Callable[[Volume], str], census: Census) -> None:
    """Count the Image-Volumes by one listing; see `compare` for `image_of`."""
    async for volume in cloud.list_volumes():
        if image_id := image_of(volume):
            census.add(image_id, volume)


async def compare(
    cloud: Cloud, handlers: Iterable[Handler], *, image_of: Callable[[Volume], str], census: Census
) -> AsyncIterator[Missing]:
    """Yield everything that looks incomplete. Two listings, page by page; volumes are held in
    memory, images are not.

    `image_of` returns the image that a volume of the internal project was made for, "" if none.
    Volumes are read before images, so that an image whose volume is made in between is looked at
    once too often, never too seldom.
    """

    async def counted() -> AsyncIterator[Volume]:
        async for volume in cloud.list_volumes():
            if image_id := image_of(volume):
                census.add(image_id, volume)
            yield volume

    volumes = await by_image(counted(), image_of)
    handlers = tuple(handlers)
    for handler in handlers:
        await handler.prepare(volumes)
    async for image in cloud.list_images():
        census.images += 1
        own = volumes.take(image.id)
        for handler in handlers:
            for missing in handler.incomplete(image.id, image, own):
                yield replace(missing, project=image.owner, name=image.name)
    if volumes and not census.images:
        # An empty list is no proof that everything was deleted: it may be a database that was just
        # set up anew
        log.warning(
            "nothing_reclaimed", why="Glance lists no image at all", images_missing=len(volumes)
        )
        return
    for image_id, left in volumes.items():
        for handler in handlers:
            for missing in handler.incomplete(image_id, None, left):
                yield missing


async def compare_images(
    cloud: Cloud,
    handlers: Iterable[Handler],
    image_ids: Iterable[str],
    *,
    volumes_of: Callable[[str], Awaitable[tuple[Volume, ...]]],
    lying: Mapping[str, tuple[Volume, ...]],
) -> AsyncIterator[Missing]:
    """Yield everything that looks incomplete of these images, which are asked for one by one.

    `volumes_of` finds the volumes that were made for an image; `lying` are the volumes on targets
    with a budget.
    """
    handlers = tuple(handlers)
    for handler in handlers:
        await handler.prepare(lying)
    for image_id in image_ids:
        volumes = await volumes_of(image_id)
        image = None
        with contextlib.suppress(NotFound):
            image = await cloud.get_image(image_id)
        if image and image.status not in LISTED:
            # Somebody works on it, and will be heard of
            continue
        for handler in handlers:
            for missing in handler.incomplete(image_id, image, volumes):
                yield replace(
                    missing,
                    project=image.owner if image else "",
                    name=image.name if image else "",
                )


async def enqueue(
    found: AsyncIterator[Missing],
    *,
    submit: Callable[[list[Job]], Awaitable[None]],
    knows: Callable[[str], bool],
) -> tuple[int, Counter[str]]:
    """Enqueue the keys of a comparison; return how many there are, and how many of each lane were
    left out.

    We leave a lane out while jobs of another worker wait there: most likely they are the same jobs,
    and each comparison of each replica would add them once more. Once the lane is empty it can be
    compared again.
    """
    total, left, asked, jobs = 0, Counter[str](), dict[str, bool](), list[Job]()
    async for missing in found:
        total += 1
        lane = missing.key.lane
        # As it was before this comparison added anything
        if lane not in asked:
            asked[lane] = knows(lane)
        if not asked[lane]:
            left[lane] += 1
            continue
        jobs.append(job_of(missing))
        if len(jobs) >= BATCH:
            await submit(jobs)
            jobs = []
    await submit(jobs)
    return total, left


def job_of(missing: Missing, *, cause: str = RESYNC) -> Job:
    """Return the job for something that a resync found missing."""
    return Job(
        key=missing.key,
        cause=cause,
        first_at=time.time(),
        reason=missing.why,
        project=missing.project,
    )
