"""Reclaim: what was kept for an image that is gone goes too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

from handlers import ROUTES, image_volume
from worker.cloud import Cloud, Image, Volume
from worker.errors import Blocked, Conflict, NotFound
from worker.handler import Missing, Parts, Watch
from worker.job import Key
from worker.notification import Notification
from worker.outcome import Again, Done, Outcome, Skip
from worker.target import TAG

# Making a volume of a large image takes its time; in seconds
ABANDONED_AFTER = 21_600.0

log = structlog.get_logger(__name__)


class Reclaim:
    """Deletes the Image-Volumes of a deleted image from the internal project, whoever put them there for us."""

    name = "reclaim"
    event_types = ROUTES["reclaim"]

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._now = parts.now

    def keys(self, notification: Notification) -> Iterable[Key]:
        """One key for the image."""
        return (Key(self.name, notification.image_id),) if notification.image_id else ()

    def lanes(self) -> Mapping[str, int]:
        """One lane; deleting is quick and hurts nobody."""
        return {self.name: 8}

    async def reconcile(self, key: Key, watch: Watch) -> Outcome:  # noqa: ARG002  waiting would only hold a slot
        """Delete them if Glance is certain that the image is not there."""
        try:
            await self._cloud.get_image(key.image_id)
        except NotFound:
            return await release(self._cloud, key.image_id)
        warming = await self._cloud.find_volumes(image_volume.warming_name_of(key.image_id))
        if left := [volume for volume in warming if self._is_abandoned(volume)]:
            return await _delete(self._cloud, left, why="nobody uses it any more")
        return Skip("the image is there")

    def _is_abandoned(self, volume: Volume) -> bool:
        """Whether a throw-away volume has outlived whoever made it."""
        return TAG in volume.metadata and self._now() - volume.created_epoch > ABANDONED_AFTER

    async def prepare(self) -> None:
        """Nothing: the listing says it all."""

    def incomplete(self, image_id: str, image: Image | None, volumes: tuple[Volume, ...]) -> Iterable[Missing]:
        """An image that is not listed as active but has Image-Volumes; `reconcile` makes sure that it is gone."""
        if image is None and any(not image_volume.is_leaving(volume) for volume in volumes):
            yield Missing(Key(self.name, image_id), "image is gone or not active, Image-Volumes are there")
        warming = image_volume.warming_name_of(image_id)
        if image and any(volume.name == warming and self._is_abandoned(volume) for volume in volumes):
            yield Missing(Key(self.name, image_id), "a throw-away volume was left behind")


async def release(cloud: Cloud, image_id: str) -> Outcome:
    """Delete every Image-Volume of an image that Glance does not find.

    Blocked if Glance would not show us an image of somebody else's: then its answer says nothing.
    """
    if not await cloud.sees_all_images():
        raise Blocked("Glance does not find the image, but we lack the role admin to be sure that it is gone")
    named = await cloud.find_volumes(image_volume.name_of(image_id))
    warming = await cloud.find_volumes(image_volume.warming_name_of(image_id))
    left = [volume for volume in (*named, *warming) if _is_of(volume, image_id)]
    return await _delete(cloud, left, why="image is gone")


async def _delete(cloud: Cloud, volumes: Iterable[Volume], *, why: str) -> Outcome:
    deleted, busy = 0, list[str]()
    for volume in volumes:
        if image_volume.is_leaving(volume):
            continue
        try:
            await cloud.delete_volume(volume.id)
            log.info("image_volume_deleted", volume_id=volume.id, why=why)
            deleted += 1
        except NotFound:
            continue
        except Conflict:
            # Still being made, or a clone of it is: Cinder lets go of it later
            busy.append(volume.id)
    if busy:
        return Again(f"in use or still being made: {', '.join(busy)}")
    return Done(f"{deleted} deleted", changed=deleted > 0)


def _is_of(volume: Volume, image_id: str) -> bool:
    """Whether it was kept for this image: by us or Glance (metadata), or by Cinder, for its cache or an upload."""
    claim = volume.metadata.get("glance_image_id")
    by_cinder = image_volume.is_readonly(volume) or volume.source_volid
    return claim == image_id or bool(claim is None and by_cinder)
