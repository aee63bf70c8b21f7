"""Observe: read what the plan of an image on a target asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

import structlog

from handlers import image_volume, volume_status
from handlers.actions import AwaitImage, LookAtLocations
from handlers.deletion import Deletion
from handlers.prewarm.actions import (
    AwaitEntry,
    AwaitVolume,
    LookAtVolume,
    LookAtVolumes,
    LookAtWarming,
    Observation,
)
from handlers.prewarm.copies import Copies
from handlers.prewarm.probes import Probes
from handlers.prewarm.seen import Seen, located, with_volume, without
from handlers.reservations import Reservations
from handlers.serving import unproven
from handlers.target_store import TargetStores
from worker.core.cloud import Image, Volume
from worker.core.errors import NotFound
from worker.core.handler import Parts, Watch
from worker.core.target import Target

log = structlog.get_logger(__name__)

COULD_NOT_MAKE = "Cinder could not make volume"


class Observer:
    """Makes observations, and waits for what others are doing."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._rules = parts.policy
        self._names = frozenset(target.name for target in parts.targets)
        self._uses = parts.uses
        self._deletions = parts.deletions
        self._learned = parts.learned
        self._now = parts.now
        self._may_delete = parts.shared(Deletion).may_delete
        self._stores = parts.shared(TargetStores)
        self._reservations = parts.shared(Reservations)
        self._copies = parts.shared(Copies)
        self._probes = parts.shared(Probes)

    async def begin(self, image: Image, target: Target) -> Seen:
        """Return what is known about an image on a target before the first observation."""
        stores = await self._stores.stores()
        return Seen(
            image=image,
            now=self._now(),
            stores=frozenset(one.glance_store for one in await self._stores.all()) - {""},
            known=frozenset(one.id for one in stores),
            targets=self._names,
            may_delete=self._may_delete,
            settle=self._rules.settle,
            rewarm_interval=self._rules.rewarm_interval,
            asked=self._copies.asked(image.id),
            used=self._uses.last(image.id, target.name),
            unproven=unproven(image, target, self._learned, stores, now=self._now()),
        )

    async def observe(
        self, observation: Observation, seen: Seen, target: Target, watch: Watch
    ) -> Seen:
        """Make one observation, and add it to what was seen."""
        image_id = seen.image.id
        match observation:
            case LookAtVolumes():
                return replace(seen, volumes=await self._find(image_volume.name_of(image_id), seen))
            case LookAtWarming():
                name = image_volume.warming_name_of(image_id)
                return replace(seen, warming=await self._find(name, seen))
            case LookAtLocations():
                return await self._look_at_locations(seen, watch)
            case LookAtVolume(volume_id):
                return await self._look_at(volume_id, seen)
            case AwaitVolume(volume_id):
                self._reservations.extend(image_id, target.name)
                return await self._await_volume(volume_id, seen, target, watch)
            case AwaitImage():
                self._reservations.extend(image_id, target.name)
                await watch.changed()
                image = await self._image(seen)
                _warn_if_undone(seen, image)
                return replace(seen, image=image, now=self._now(), was=seen.was or seen.image)
            case AwaitEntry():
                await watch.changed()
                return replace(seen, volumes=None, looks=seen.looks + 1)
            case never:
                assert_never(never)

    async def _look_at_locations(self, seen: Seen, watch: Watch) -> Seen:
        locations = await self._cloud.get_locations(seen.image.id)
        if locations is None:
            # For a moment there are none while an image is being deleted, and somebody's proxy may
            # answer so
            await watch.changed()
            locations = await self._cloud.get_locations(seen.image.id)
        return replace(seen, locations=locations, hidden=locations is None)

    async def _look_at(self, volume_id: str, seen: Seen) -> Seen:
        try:
            # Whatever its name is: a location may name any volume
            return located(await self._cloud.get_volume(volume_id), seen)
        except NotFound:
            return replace(seen, gone=seen.gone | {volume_id})

    async def _find(self, name: str, seen: Seen) -> tuple[Volume, ...]:
        """Return the image's volumes of this name. Those of an earlier image with the same id have
        the same name."""
        found = await self._cloud.find_volumes(name)
        for volume in found:
            self._deletions.found_volume(volume.id)
            if not image_volume.is_of(volume, seen.image):
                log.warning("volume_is_not_the_images", volume_id=volume.id, name=name)
        return tuple(volume for volume in found if image_volume.is_of(volume, seen.image))

    async def _await_volume(self, volume_id: str, seen: Seen, target: Target, watch: Watch) -> Seen:
        await watch.changed()
        try:
            volume = await self._cloud.get_volume(volume_id)
        except NotFound:
            return replace(without(volume_id, seen), image=await self._image(seen))
        noted = image_volume.was_downloaded(volume, seen.image)
        downloading = noted or volume.status == "downloading"
        seen = replace(with_volume(volume, seen), downloaded=seen.downloaded or downloading)
        if downloading:
            self._probes.note(seen, target, native=False)
        if volume_status.is_broken(volume):
            seen = replace(
                seen,
                failed=f"{COULD_NOT_MAKE} {volume_id} from the image (status {volume.status})",
            )
        if volume_status.is_usable(volume) or volume_status.is_broken(volume):
            # That took its time: the image may not be wanted any more, and there may be a cache
            # entry by now
            fresh = (
                None if volume.name == image_volume.warming_name_of(seen.image.id) else seen.volumes
            )
            seen = replace(seen, image=await self._image(seen), now=self._now(), volumes=fresh)
        return seen

    async def _image(self, seen: Seen) -> Image:
        return await self._cloud.get_image(seen.image.id)


def _warn_if_undone(seen: Seen, image: Image) -> None:
    """Log changes of the image during an import that are undone: Glance's import writes the whole
    image."""
    if seen.was is None:
        return
    names = [
        name
        for name in ("visibility", *sorted({*seen.image.properties, *seen.was.properties}))
        if _field(image, name) == _field(seen.was, name) != _field(seen.image, name)
        # Glance's own notes of the import
        and not name.startswith("os_glance_")
    ]
    if names:
        log.warning(
            "changes_undone_by_glance",
            names=names,
            advice="if it was not their owner, it was Glance's import that undid them: make them "
            "again",
        )


def _field(image: Image, name: str) -> str | None:
    return image.visibility if name == "visibility" else image.properties.get(name)
