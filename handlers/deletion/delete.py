"""Delete: the only module that deletes volumes and removes locations; each is logged with its
reason."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Literal

import structlog

from handlers import image_volume, import_lock, marks, volume_status
from handlers.deletion.brake import Brake
from handlers.deletion.last_copy import NO_WHOLE, LastCopy, store_of
from handlers.deletion.proof import NotProven, Proof
from handlers.deletion.stuck import Attached, report_stuck
from handlers.target_store import LATELY, TargetStores
from worker.core.cloud import Image, Location, Volume
from worker.core.errors import Blocked, Conflict, NotFound, Temporary
from worker.core.handler import Parts, Watch
from worker.core.outcome import Again, Done, Outcome, Skip
from worker.core.state import State
from worker.core.target import TAG, Target

# Looks at volumes that are being deleted before the slot is given to somebody else
LOOKS = 8
# Times that a location is removed if it comes back
TRIES = 3
# Seconds until another try when a volume is in use, and when its backend does not let go of it
BUSY = 30.0
DEPENDED_ON = 900.0

LOST = (
    "no location of the image is whole: if a volume of it can be restored, do that, else have its "
    "owner upload it anew"
)

Reason = Literal["gone", "unwanted", "budget", "left-over"]

log = structlog.get_logger(__name__)


class Deletion:
    """Deletes what nobody needs, as far as the rules and `[reclaim]` allow it."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._rules = parts.reclaiming
        self._report = parts.report
        self._locks = parts.locks
        self._undone = parts.undone
        self._deletions = parts.deletions
        self._now = parts.now
        self._attached = Attached(parts.now)
        self.brake = Brake(parts)
        self.proof = Proof(parts, self.brake)
        self._stores = parts.shared(TargetStores)
        self.last_copy = LastCopy(
            cloud=parts.cloud,
            stores=partial(self._stores.stores, within=LATELY),
            down=self._stores.down,
            needed=self._needs_locations,
        )

    async def _needs_locations(self) -> bool:
        return any(target.strategy in ("store", "location") for target in await self._stores.all())

    @property
    def may_delete(self) -> bool:
        """Whether `[reclaim]` lets anything be deleted at all."""
        return self._rules.enabled and not self._rules.dry_run

    def _refusal(self, volumes: Iterable[Volume], why: str) -> str:
        """Return why `[reclaim]` lets none of the volumes be deleted, "" if it does; a dry run logs
        them."""
        if not self._rules.enabled:
            return "[reclaim] is not enabled"
        if not self._rules.dry_run:
            return ""
        for one in volumes:
            log.info("volume_would_be_deleted", volume_id=one.id, size=one.size, why=why)
        return "[reclaim] dry_run is set"

    async def delete(
        self, volumes: Iterable[Volume], watch: Watch, *, why: str, reason: Reason
    ) -> Outcome:
        """Delete volumes of the internal project that no image needs, and wait until Cinder has."""
        left = {volume.id: volume for volume in volumes if not volume.foreign}
        for volume in [volume for volume in left.values() if volume_status.is_stuck(volume)]:
            report_stuck(left.pop(volume.id), located=False)
        if left and (refusal := self._refusal(left.values(), why)):
            return Skip(refusal)
        chosen = list(left.values())
        asked, refusals = set[str](), dict[str, str]()
        for _ in range(LOOKS):
            for volume in left.values():
                # Once: Cinder gives it back when its driver says that it is busy (VolumeIsBusy)
                if volume.id in asked or volume_status.is_leaving(volume):
                    continue
                try:
                    with _log_if_unanswered(volume.id, why):
                        await self._cloud.delete_volume(volume.id)
                except NotFound:
                    continue
                except Conflict as error:
                    refusals[volume.id] = str(error)
                    continue
                log.info("image_volume_deleted", volume_id=volume.id, size=volume.size, why=why)
                asked.add(volume.id)
            left = {seen.id: seen for one in left if (seen := await self.last_copy.look(one))}
            if all(one.id in asked and not volume_status.is_leaving(one) for one in left.values()):
                break
            await watch.changed()
        gone = len(asked - left.keys())
        for target in {volume.metadata.get(TAG, "") for volume in chosen if volume.id not in left}:
            self._undone.made_room(target)
        for _ in range(gone):
            self._report.reclaimed(reason)
        self._attached.report(left.values())
        if left:
            return _waiting(left.values(), asked, refusals)
        return Done(
            f"{gone} deleted", changed=gone > 0, state=State.GONE if reason == "gone" else None
        )

    async def needed_reason(self, image_id: str, volume: Volume) -> str:
        """Why a throw-away volume has to stay: it may have the last copy of the image's data; "" if
        it may go. NotFound without the image."""
        if not (volume_status.is_usable(volume) or volume_status.needs_administrator(volume)):
            return ""
        locations = await self._cloud.get_locations(image_id)
        image = await self._cloud.get_image(image_id)
        if locations is None:
            hidden = await self.last_copy.shows_locations(image_id)
            return image_volume.HIDDEN if hidden else ""
        readable = await self.may_be_readable(locations)
        return "" if readable or image.status != "active" else NO_WHOLE

    async def may_be_readable(self, locations: tuple[Location, ...]) -> bool:
        """Whether an image's data may be had from any of its locations."""
        own = {target.glance_store for target in await self._stores.all()}
        return await self.last_copy.may_be_readable(locations, own)

    async def discard(
        self, image_id: str, volume: Volume, *, why: str, spare: bool = False
    ) -> None:
        """Delete a volume of ours that no location names: throw-away, broken, or one too many.
        `spare`: an entry of Cinder's cache has the same data.

        Blocked if Glance does not show whether it is a location, Conflict if it is one or is not
        ours.
        """
        if not image_volume.is_kept_for(volume, image_id) or not (
            TAG in volume.metadata or volume.source_volid
        ):
            raise Conflict(
                f"volume {volume.id} is not ours to delete: its name or its metadata is another "
                f"image's"
            )
        if image_volume.is_restored(volume):
            raise Conflict(f"volume {volume.id} stays: {image_volume.RESTORED}")
        if image_volume.is_throw_away(volume):
            if not spare and (reason := await self.needed_reason(image_id, volume)):
                raise Conflict(f"volume {volume.id} stays: {reason}")
        else:
            async with self._locks.of(image_id):
                locations = await self._cloud.get_locations(image_id)
                # After its locations: while an image is being deleted they are gone before it is
                image = await self._cloud.get_image(image_id)
                if image.status == "queued" and image.import_locked:
                    raise Conflict("Glance is at work on the image")
                # Only a queued image has none; of every other one they are hidden
                if (
                    image.status != "queued"
                    and locations is None
                    and image_volume.may_be_location(volume)
                ):
                    raise Blocked(f"Image-Volume {volume.id} stays: {image_volume.HIDDEN}")
                if image.status == "queued" and image_volume.was_location(volume):
                    raise Conflict(
                        f"Image-Volume {volume.id} stays: it was the image's data before"
                    )
                if any(one.volume_id == volume.id for one in locations or ()):
                    raise Conflict(f"Image-Volume {volume.id} stays: it is a location of the image")
                if image.status != "queued":
                    await self._check_discard(volume, image, locations, why=why)
                await self._ask_to_delete(volume, why)
            return
        await self._ask_to_delete(volume, why)

    async def _check_discard(
        self, volume: Volume, image: Image, locations: tuple[Location, ...] | None, *, why: str
    ) -> None:
        """Raise unless an image that has data can do without a volume that is no location, and
        `[reclaim]` lets it be deleted."""
        broken = volume_status.is_broken(volume)
        # A broken one is made again, which [reclaim] need not be enabled for
        if (self._rules.dry_run or not broken) and (refusal := self._refusal([volume], why)):
            raise Blocked(f"Image-Volume {volume.id} stays: {refusal}")
        if broken and not volume_status.needs_administrator(volume):
            return
        if reason := await self.last_copy.keep_reason(volume, image, locations):
            raise Conflict(f"Image-Volume {volume.id} stays: {reason}")

    async def _ask_to_delete(self, volume: Volume, why: str) -> None:
        try:
            with _log_if_unanswered(volume.id, why):
                await self._cloud.delete_volume(volume.id)
        except NotFound:
            return
        log.info("volume_deleted", volume_id=volume.id, size=volume.size, why=why)

    async def remove_location(
        self,
        image_id: str,
        store: str,
        volume_id: str,
        *,
        whole: bool = False,
        confirmed: bool = False,
    ) -> None:
        """Have Glance remove an image's first location in a store, whose volume is gone or broken.

        With `whole` also one that is whole, if it is ours and not needed. Read again before:
        another location must be whole. Conflict or Blocked if not; NotProven if Cinder does not
        find the volume and that need not mean that it is gone, or if it does and the caller saw it
        broken. `confirmed`: an operator has looked, one look is enough.
        """
        if not volume_id:
            raise Conflict(f"the location in store {store} stays: it is no volume")
        async with self._locks.of(image_id):
            locations = await self._cloud.get_locations(image_id)
            image = await self._cloud.get_image(image_id)
            if locations is None or image.status != "active":
                raise Blocked(f"the location in store {store} stays: {image_volume.HIDDEN}")
            here = [location.volume_id for location in locations if location.store == store]
            if not here or here[0] != volume_id:
                raise Conflict(
                    f"the image's first location in store {store} is not volume {volume_id} any "
                    f"more"
                )
            volume = await self.last_copy.look(volume_id)
            if volume is not None and volume_status.needs_administrator(volume):
                report_stuck(volume, located=True)
                advice = volume_status.stuck_advice(volume, located=True)
                raise Blocked(f"the location in store {store} stays: {advice}")
            sound = volume is not None and not volume_status.is_broken(volume)
            if volume is not None and sound:
                await self._check_sound(volume, image, locations, whole=whole)
            elif not await self.last_copy.is_elsewhere(volume_id, image, locations):
                raise Blocked(
                    f"the location in store {store} is broken, and no other location of the "
                    f"image is whole"
                )
            if volume is None:
                await self.proof.of_volume(volume_id, store, confirmed=confirmed)
            if not self.may_delete:
                if self._rules.dry_run:
                    log.info("location_would_be_removed", store=store, volume_id=volume_id)
                raise Blocked(
                    f"the location in store {store} stays: [reclaim] does not let it be removed"
                )
            was = "gone" if volume is None else volume.status
            await self._remove_from_store(image_id, store, volume_id, why=f"it is {was}")
            event = "location_removed" if sound else "broken_location_removed"
            log.warning(
                event,
                store=store,
                volume_id=volume_id,
                was=was,
            )

    async def _check_sound(
        self, volume: Volume, image: Image, locations: tuple[Location, ...], *, whole: bool
    ) -> None:
        """Raise unless a volume that is whole may be removed with its location."""
        self._deletions.found_volume(volume.id)
        if not whole:
            raise NotProven(
                f"volume {volume.id} of a location was broken or gone, and then whole", after=BUSY
            )
        ours = image_volume.is_of(volume, image) and marks.may_be_ours(volume)
        if not ours or (reason := await self.last_copy.keep_reason(volume, image, locations)):
            raise Conflict(
                f"Image-Volume {volume.id} stays: {reason if ours else 'we did not make it'}"
            )

    async def _remove_from_store(
        self, image_id: str, store: str, volume_id: str, *, why: str
    ) -> None:
        """Have Glance remove a location with its volume, and note that the volume was deleted: the
        location may come back."""
        with _log_if_unanswered(volume_id, why):
            await self._cloud.remove_from_store(image_id, store)
        self._deletions.note_volume(volume_id)

    async def bare_locations(self, image: Image, targets: Iterable[Target]) -> list[Location]:
        """The image's locations on these targets whose volumes Cinder does not find."""
        stores = {target.glance_store for target in targets}
        locations = await self._cloud.get_locations(image.id)
        here = [one for one in locations or () if one.store in stores and one.volume_id]
        return [one for one in here if await self.last_copy.look(one.volume_id) is None]

    async def evict(
        self,
        image_id: str,
        volumes: Iterable[Volume],
        *,
        why: str,
        reason: Reason,
        by_operator: bool = False,
    ) -> Outcome:
        """Delete what prewarm made for an image that is there, as far as the image does not need
        it."""
        if not (self._rules.enabled or by_operator):
            return Skip(why)
        stays, deleted = list[str](), 0
        for volume in volumes:
            about = {
                "of_image_id": image_id,
                "volume_id": volume.id,
                "size": volume.size,
                "why": why,
            }
            try:
                async with self._locks.of(image_id):
                    needed = await self._evict(image_id, volume, why)
            except NotFound:
                # Somebody else has deleted the image or the volume
                continue
            except Conflict as error:
                return Again(
                    f"Image-Volume {volume.id} is in use: {error}", after=BUSY, counted=False
                )
            except (Temporary, Blocked) as error:
                # Glance answers 500 where Cinder does not let go of the volume: a snapshot, an
                # attachment, a group
                return Again(
                    f"Glance did not remove {volume.id}: {error}", after=DEPENDED_ON, counted=False
                )
            if needed:
                stays.append(f"Image-Volume {volume.id} stays: {needed}")
                continue
            if self._rules.dry_run:
                log.info("volume_would_be_deleted", **about)
                continue
            self._undone.gave_up(image_id, volume.metadata.get(TAG, ""))
            log.info("image_volume_evicted", **about)
            self._report.reclaimed(reason)
            deleted += 1
        if deleted or not (stays or self._rules.dry_run):
            return Done(f"{deleted} deleted: {why}", changed=deleted > 0, state=State.UNWANTED)
        return Skip("; ".join([why, *stays]))

    async def keep_reason(
        self, volume: Volume, image: Image, locations: tuple[Location, ...] | None
    ) -> str:
        """Why a volume that prewarm made has to stay; "" if it may be evicted. Conflict while
        Glance is at work on the image."""
        if not image_volume.is_of(volume, image):
            return "it is not this image's, or is older than the image"
        if image_volume.is_restored(volume):
            return image_volume.RESTORED
        entry = not image_volume.may_be_location(volume)
        # Of a deactivated one Glance removes no location, but Cinder deletes its entry
        if image.status != "active" and not (entry and image.status == "deactivated"):
            return f"its image is {image.status}"
        if needed := await self.last_copy.keep_reason(volume, image, locations):
            return needed
        settled = entry or store_of(volume, locations or ())
        if import_lock.is_held(image, self._now()) if settled else image.import_locked:
            # The import may be about to make a location of it
            raise Conflict("Glance is at work on the image")
        return ""

    async def _evict(self, image_id: str, volume: Volume, why: str) -> str:
        """Delete one, unless it is a dry run; return why it stays, if it must.

        Glance writes an image's whole list of locations: of two removals at once, or of one beside
        an import, a location can come back whose volume is gone. So here one at a time; and it is
        looked at afterwards, as another worker's may have come in between.
        """
        locations = await self._cloud.get_locations(image_id)
        # After its locations: while an image is being deleted they are gone before it is
        image = await self._cloud.get_image(image_id)
        needed = await self.keep_reason(volume, image, locations)
        if needed or self._rules.dry_run:
            return needed
        store = store_of(volume, locations or ())
        if not store:
            with _log_if_unanswered(volume.id, why):
                await self._cloud.delete_volume(volume.id)
            return ""
        for _ in range(TRIES):
            await self._remove_from_store(image_id, store, volume.id, why=why)
            left = None
            # The volume is deleted, also if this look fails
            with contextlib.suppress(NotFound, Blocked, Temporary):
                left = await self._cloud.get_locations(image_id)
                if left is not None and not await self.may_be_readable(left):
                    # Somebody has removed the others in the same moment
                    log.error("no_whole_location", of_image_id=image_id, advice=LOST)
            # Glance removes the first one in the store: once more only if it is this one again
            if next((one.volume_id for one in left or () if one.store == store), "") != volume.id:
                break
        return ""


@contextlib.contextmanager
def _log_if_unanswered(volume_id: str, why: str) -> Iterator[None]:
    """Log a deletion whose answer does not come: it may have happened, and the next try finds
    nothing to delete. So may one that is answered with 404: a proxy may have asked twice."""
    try:
        yield
    except NotFound as error:
        log.info("already_deleted", volume_id=volume_id, why=why, error=str(error))
        raise
    except (Temporary, asyncio.CancelledError) as error:
        if not isinstance(error, Conflict):
            log.warning("deletion_unanswered", volume_id=volume_id, why=why, error=str(error))
        raise


def _waiting(left: Iterable[Volume], asked: set[str], refusals: Mapping[str, str]) -> Again:
    """Return the wait for volumes that are not deleted yet."""
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
