"""Observe: read what the plan of an upload asks for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from handlers import image_volume
from handlers.actions import AwaitImage, LookAtLocations
from handlers.target_store import LATELY, TargetStores
from handlers.upload.actions import (
    AwaitClone,
    LookAgain,
    LookAtClones,
    LookAtSource,
    LookAtTasks,
    LookAtUsage,
    Observation,
)
from handlers.upload.clones import clones_of, older_of
from handlers.upload.seen import Seen, unlocated, with_clone, without
from worker.core.cloud import Cloud, Image
from worker.core.errors import NotFound
from worker.core.handler import Watch
from worker.core.target import UPLOADED_BY, Uploads


class Observer:
    """Makes observations, and waits for what Cinder and Glance are doing."""

    def __init__(
        self, *, cloud: Cloud, stores: TargetStores, rules: Uploads, now: Callable[[], float]
    ) -> None:
        self._cloud = cloud
        self._rules = rules
        self._stores = stores
        self._now = now

    async def begin(self, image_id: str) -> Seen:
        """Read the image, and Glance's stores if it is queued."""
        seen = Seen(image=await self._cloud.get_image(image_id), now=self._now())
        if seen.image.status == "queued":
            seen = replace(seen, stores=await self._stores.stores(within=LATELY))
        return seen

    async def observe(self, observation: Observation, seen: Seen, watch: Watch) -> Seen:
        """Make one observation, and add it to what was seen."""
        cloud, image_id = self._cloud, seen.image.id
        match observation:
            case LookAtClones(source_volid):
                looking = self._look_at_source(source_volid, seen) if source_volid else _same(seen)
                found, seen = await asyncio.gather(
                    cloud.find_volumes(image_volume.name_of(image_id)), looking
                )
                return replace(
                    seen,
                    clones=clones_of(seen.image, found, self._rules),
                    older=older_of(seen.image, found),
                )
            case LookAtSource(volume_id):
                return await self._look_at_source(volume_id, seen)
            case LookAtUsage():
                return replace(seen, used=await read_usage(cloud, seen.image))
            case LookAtTasks():
                return replace(seen, tasks=await cloud.list_tasks(image_id))
            case LookAtLocations():
                locations = await cloud.get_locations(image_id)
                return replace(seen, locations=locations, hidden=locations is None)
            case LookAgain(volume_id):
                return await self._look_again(volume_id, seen)
            case AwaitClone(volume_id, source_volid):
                await watch.changed()
                seen, again = await asyncio.gather(
                    self._look_at_clone(volume_id, seen), self._look_again(source_volid, seen)
                )
                return replace(again, clones=seen.clones)
            case AwaitImage():
                await watch.changed()
                image = await cloud.get_image(image_id)
                restless = seen.restless or image.updated_at != seen.image.updated_at
                return replace(seen, image=image, now=self._now(), tasks=None, restless=restless)
            case never:
                assert_never(never)

    async def copies(self, seen: Seen) -> set[str]:
        """Return our clones that can't be a location, and whose source is there: a 404 of the image
        is enough to delete them, as they hold nobody's only data."""
        kept = set[str]()
        mine = unlocated(seen)
        for clone in seen.clones or ():
            with contextlib.suppress(NotFound):
                if clone.id in mine and await self._cloud.get_volume(clone.source_volid):
                    kept.add(clone.id)
        return kept

    async def _look_at_source(self, volume_id: str, seen: Seen) -> Seen:
        try:
            source = await self._cloud.get_volume(volume_id)
        except NotFound:
            return replace(seen, source=None, missing=seen.missing | {volume_id})
        own = source.project_id == seen.image.owner
        return replace(seen, source=source, owned=(volume_id, self._now()) if own else ("", 0.0))

    async def _look_again(self, source_volid: str, seen: Seen) -> Seen:
        image, again = await asyncio.gather(
            self._cloud.get_image(seen.image.id),
            self._look_at_source(source_volid, replace(seen, source=None)),
        )
        # Its times are whole seconds: two readings show sooner that it is being changed
        changed = seen.changed or image != seen.image
        return replace(again, image=image, now=self._now(), sure=True, changed=changed)

    async def _look_at_clone(self, volume_id: str, seen: Seen) -> Seen:
        try:
            return with_clone(await self._cloud.get_volume(volume_id), seen)
        except NotFound:
            return without(volume_id, seen)


async def read_usage(cloud: Cloud, image: Image) -> int:
    """Return the GiB of the other images of the image's project that were made of volumes."""
    return sum(
        [
            volume.size
            async for volume in cloud.list_volumes(image.owner, key=UPLOADED_BY)
            # Marks that a clone has from its source may be a user's
            if not volume.inherited
            and volume.metadata.get("image_owner") == image.owner
            and volume.name != image_volume.name_of(image.id)
        ]
    )


async def _same(seen: Seen) -> Seen:
    return seen
