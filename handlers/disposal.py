"""Disposal: the one place where volumes go that nobody needs, and the rules of what must not.

Of an image that is gone everything goes that was kept for it in the internal project. While an image is there only what
carries our own mark of origin may go, and only as long as the image keeps a location that is whole and that we did not
make: so whatever several workers do at the same time, an image never loses its data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import structlog

from handlers import image_volume
from worker.cloud import Image, Location, Volume
from worker.errors import Blocked, Conflict, NotFound
from worker.handler import Parts, Watch
from worker.outcome import Again, Done, Outcome, Skip
from worker.target import TAG, Target

# Looks at volumes that are being deleted before the slot is given to somebody else
LOOKS = 8
# How often a location that comes back is removed
TRIES = 3
# Seconds until another try when a volume is in use, and when its backend does not let go of it
BUSY = 30.0
DEPENDED_ON = 900.0

Reason = Literal["gone", "unwanted", "budget", "left-over"]

log = structlog.get_logger(__name__)


class Disposal:
    """Deletes volumes as far as `[reclaim]` allows it, and says what it has deleted."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._rules = parts.reclaiming
        self._report = parts.report
        self._locks = parts.locks
        self._undone = parts.undone

    @property
    def may_delete(self) -> bool:
        """Whether anything goes at all."""
        return self._rules.enabled and not self._rules.dry_run

    async def release(self, image_id: str, watch: Watch) -> Outcome:
        """Delete every Image-Volume of an image that Glance does not find.

        Blocked if Glance would not show us an image of somebody else's: then its answer says nothing.
        """
        if not await self._is_gone(image_id):
            return Again("the image was not found, and then it was", counted=False)
        self._report.repair(image_id, possible=True)
        self._undone.forget(image_id)
        named = await self._cloud.find_volumes(image_volume.name_of(image_id))
        warming = await self._cloud.find_volumes(image_volume.warming_name_of(image_id))
        left = [volume for volume in (*named, *warming) if _is_of(volume, image_id)]
        return await self.delete(left, watch, why="image is gone", reason="gone")

    async def _is_gone(self, image_id: str) -> bool:
        """Whether Glance does not find the image, asked while we are certain to be shown all there are."""
        sure = await self._cloud.sees_all_images()
        try:
            await self._cloud.get_image(image_id)
        except NotFound:
            # The role may have come just now, or gone
            if sure and await self._cloud.sees_all_images():
                return True
            raise Blocked(
                "Glance does not find the image, but we lack the role admin to be sure that it is gone"
            ) from None
        return False

    async def delete(self, volumes: Iterable[Volume], watch: Watch, *, why: str, reason: Reason) -> Outcome:
        """Delete volumes of the internal project that no image needs, and see them go."""
        left = {volume.id: volume for volume in volumes if not volume.foreign}
        if left and not self._rules.enabled:
            return Skip("[reclaim] is not enabled")
        if left and self._rules.dry_run:
            for volume in left.values():
                log.info("volume_would_be_deleted", volume_id=volume.id, size=volume.size, why=why)
            return Skip("[reclaim] dry_run is set")
        deleted = list(left.values())
        asked, refusals = set[str](), dict[str, str]()
        for _ in range(LOOKS):
            for volume in left.values():
                # Once: Cinder gives it back when its driver says that it is busy (VolumeIsBusy)
                if volume.id in asked or image_volume.is_leaving(volume):
                    continue
                try:
                    await self._cloud.delete_volume(volume.id)
                except NotFound:
                    continue
                except Conflict as error:
                    refusals[volume.id] = str(error)
                    continue
                log.info("image_volume_deleted", volume_id=volume.id, size=volume.size, why=why)
                asked.add(volume.id)
            left = {seen.id: seen for one in left if (seen := await self._look(one))}
            if all(one.id in asked and not image_volume.is_leaving(one) for one in left.values()):
                break
            await watch.changed()
        gone = len(asked - left.keys())
        for target in {volume.metadata.get(TAG, "") for volume in deleted if volume.id not in left}:
            self._undone.made_room(target)
        for _ in range(gone):
            self._report.reclaimed(reason)
        return _waiting(left.values(), asked, refusals) if left else Done(f"{gone} deleted", changed=gone > 0)

    async def cool(self, image: Image, target: Target, *, why: str) -> Outcome:
        """Have nothing on the target that pre-warming has put there for the image: it is not wanted there."""
        if image.status != "active" or not self._rules.enabled:
            return Skip(why)
        volumes = await self._cloud.find_volumes(image_volume.name_of(image.id))
        ours = [volume for volume in volumes if image_volume.may_go(volume, image, target)]
        if ours:
            return await self.evict(image.id, ours, why=why, reason="unwanted")
        if target.glance_store in (image.stores or ()) and await self._mend(image, target):
            return Done("a location without a volume was removed", changed=True)
        return Skip(why)

    async def _mend(self, image: Image, target: Target) -> bool:
        """Whether a location on the target was removed whose volume is gone; another one of the image's is whole."""
        async with self._locks.of(image.id):
            locations = await self._cloud.get_locations(image.id)
            here = [location for location in locations if location.store == target.glance_store and location.volume_id]
            if image.import_locked or not here or await self._look(here[0].volume_id):
                return False
            if not any([await self._is_whole(location) for location in locations if location is not here[0]]):
                return False
            await self._cloud.remove_from_store(image.id, target.glance_store)
            log.warning("broken_location_removed", store=target.glance_store)
            return True

    async def evict(self, image_id: str, volumes: Iterable[Volume], *, why: str, reason: Reason) -> Outcome:
        """Delete what pre-warming has made for an image that is there, as far as the image does not need it."""
        if not self._rules.enabled:
            return Skip(why)
        stays, deleted = list[str](), 0
        for volume in volumes:
            about = {"of_image_id": image_id, "volume_id": volume.id, "size": volume.size, "why": why}
            if self._rules.dry_run:
                log.info("volume_would_be_deleted", **about)
                continue
            try:
                async with self._locks.of(image_id):
                    obstacle = await self._evict(image_id, volume)
            except NotFound:
                # The image, or the volume: whoever deleted it has done it for us
                continue
            except Conflict as error:
                return Again(f"Image-Volume {volume.id} is in use: {error}", after=BUSY, counted=False)
            if obstacle:
                stays.append(f"Image-Volume {volume.id} stays: {obstacle}")
                continue
            self._undone.forget(image_id, volume.metadata.get(TAG, ""))
            log.info("image_volume_evicted", **about)
            self._report.reclaimed(reason)
            deleted += 1
        if deleted or not (stays or self._rules.dry_run):
            return Done(f"{deleted} deleted: {why}", changed=deleted > 0)
        return Skip("; ".join([why, *stays]))

    async def _evict(self, image_id: str, volume: Volume) -> str:
        """Delete one; why it stays, if it must.

        Glance writes an image's whole list of locations: of two removals at once, or of one beside an import, a
        location can come back whose volume is gone. So here one at a time; and it is looked at afterwards, as another
        worker's may have come in between.
        """
        locations = await self._cloud.get_locations(image_id)
        if obstacle := await self.obstacle(volume, locations):
            return obstacle
        if (await self._cloud.get_image(image_id)).import_locked:
            # And what is no location yet may be about to become one
            raise Conflict("Glance is at work on the image")
        store = _store_of(volume, locations)
        if not store:
            await self._cloud.delete_volume(volume.id)
            return ""
        for _ in range(TRIES):
            await self._cloud.remove_from_store(image_id, store)
            if not _store_of(volume, await self._cloud.get_locations(image_id)):
                break
        return ""

    async def _look(self, volume_id: str) -> Volume | None:
        try:
            return await self._cloud.get_volume(volume_id)
        except NotFound:
            return None

    async def obstacle(self, volume: Volume, locations: tuple[Location, ...]) -> str:
        """Why the volume must stay for the sake of its image, which has these locations; "" if it may go."""
        if all(location.volume_id != volume.id for location in locations):
            hidden = not locations and image_volume.FRESH not in volume.metadata
            return "Glance does not show the image's locations" if hidden else ""
        store = _store_of(volume, locations)
        if not store:
            return "its location names no store, so Glance can't be told to remove it"
        # Glance takes the first that it finds in a store
        if next(location for location in locations if location.store == store).volume_id != volume.id:
            return f"the image has several locations in store {store}"
        for location in locations:
            if location.volume_id != volume.id and await self._is_anchor(location):
                return ""
        return "the image has no other location that would stay"

    async def _is_whole(self, location: Location) -> bool:
        """Whether the data can be had from a location."""
        volume = await self._look(location.volume_id) if location.volume_id else None
        return not location.volume_id or (volume is not None and image_volume.is_usable(volume))

    async def _is_anchor(self, location: Location) -> bool:
        """Whether a location is whole and none that we might remove as well."""
        if not location.volume_id:
            return True
        volume = await self._look(location.volume_id)
        return volume is not None and image_volume.is_usable(volume) and not image_volume.may_be_ours(volume)


def _store_of(volume: Volume, locations: tuple[Location, ...]) -> str:
    """The store of Glance in which the volume is a location; "" if it is none."""
    return next((location.store for location in locations if location.volume_id == volume.id), "")


def _waiting(left: Iterable[Volume], asked: set[str], refusals: Mapping[str, str]) -> Again:
    """What to do about volumes that did not go."""
    statuses = {volume.id: volume.status for volume in left}
    text = ", ".join(sorted(statuses))
    if any(status.startswith("error") for status in statuses.values()):
        return Again(f"Cinder could not delete {text}; cinder-volume's log has the reason")
    if "deleting" in statuses.values():
        return Again(f"being deleted: {text}", after=BUSY, counted=False)
    if asked >= set(statuses):
        reason = f"the backend does not let go of {text}: other volumes depend on it"
        return Again(reason, after=DEPENDED_ON, counted=False)
    said = "; ".join(sorted(set(refusals.values())))
    return Again(f"in use or still being made: {text} ({said})", after=BUSY, counted=False)


def _is_of(volume: Volume, image_id: str) -> bool:
    """Whether it was kept for this image: by us or Glance (metadata), or by Cinder, for its cache or an upload."""
    claim = volume.metadata.get("glance_image_id")
    by_cinder = image_volume.is_readonly(volume) or volume.source_volid
    return claim == image_id or bool(claim is None and by_cinder)
