"""Deletion: the only module that deletes volumes and removes locations, and the rules for both.

docs/upkeep.md states the rules as a promise to operators. In short: what cannot be read is not
empty; an image is gone only when that is proven; only what carries our marks and matches reality is
ours; an image that is there keeps a whole location that we did not make.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from handlers import image_volume
from worker.core import absence
from worker.core.absence import PENDING
from worker.core.cloud import Image, Location, Volume
from worker.core.deletions import DELETED
from worker.core.errors import Blocked, Conflict, NotFound, Temporary
from worker.core.handler import Parts, Watch
from worker.core.outcome import Again, Done, Outcome, Skip
from worker.core.state import State
from worker.core.target import TAG, UPLOAD, Target

# Looks at volumes that are being deleted before the slot is given to somebody else
LOOKS = 8
# How often a location that comes back is removed
TRIES = 3
# Seconds until another try when a volume is in use, and when its backend does not let go of it
BUSY = 30.0
DEPENDED_ON = 900.0
# For how many seconds one count of the volumes of missing images holds good
COUNT_FOR = 30.0
# Times that each question of a look is asked, one after the other: of several Glance hosts behind a
# balancer one may hide images, and another one may show the image that is the proof
TIMES = 4
NO_WITNESS = (
    "Glance shows this login no private image of another project, so its 404 may be a policy's: "
    "with one such image "
    "there the proof is possible"
)
CONFIRM = "image-volume-worker reclaim --confirm"
# Seconds over which Cinder must not find a volume before its location counts as one without a
# volume. Users' volumes are made with an error meanwhile, so it is not as long as for images
VOLUME_GRACE = 600.0
NOT_OURS = "it does not carry this worker's marks, or is not of its target's type"

Reason = Literal["gone", "unwanted", "budget", "left-over"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """A volume of an image that is not found, and why it is not deleted yet."""

    volume: Volume
    why: str


class NotProven(Exception):
    """A volume is not found, and that is no proof yet that it is gone; `after` are the seconds
    until the next look."""

    def __init__(self, reason: str, *, after: float) -> None:
        super().__init__(reason)
        self.after = after


class Deletion:
    """Deletes what nobody needs, as far as the rules and `[reclaim]` allow it, and logs the
    evidence."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._rules = parts.reclaiming
        self._report = parts.report
        self._locks = parts.locks
        self._undone = parts.undone
        self._deletions = parts.deletions
        self._targets = {target.name: target for target in parts.targets}
        self._now = parts.now
        self._counted_until = 0.0
        self._shown, self._shown_until = 0, 0.0
        self._locations_braked = False
        self._brake = ""

    @property
    def may_delete(self) -> bool:
        """Whether `[reclaim]` lets anything be deleted at all."""
        return self._rules.enabled and not self._rules.dry_run

    # Images that are not found

    async def release(
        self, image_id: str, watch: Watch, *, unlocated: Iterable[str] = (), confirmed: bool = False
    ) -> Outcome:
        """Delete what was kept for an image that Glance does not find, as far as the image is
        proven to be gone.

        `unlocated` are volumes that the caller has made and never told Glance of. `confirmed`: an
        operator has looked, and the brake does not count.
        """
        self._report.repair(image_id, possible=True)
        self._undone.forget(image_id)
        left = await self.left_of(image_id)
        free = [volume for volume in left if self._is_free(volume, image_id, frozenset(unlocated))]
        outcome: Outcome = Done("nothing is left of it", state=State.GONE)
        if free:
            if await self._is_there(image_id):
                return Again("the image was not found, and then it was", counted=False)
            outcome = await self.delete(free, watch, why=self._evidence(image_id), reason="gone")
        waiting = [
            volume for volume in left if volume not in free and not image_volume.is_leaving(volume)
        ]
        if not waiting:
            return outcome
        if not self.may_delete:
            return outcome if free else Skip("[reclaim] does not let anything be deleted")
        proven, kept = await self._prove(image_id, waiting, confirmed=confirmed)
        if proven:
            why = (
                f"image is gone: not found at {absence.LOOKS} looks over {self._rules.grace:.0f} s"
            )
            outcome = await self.delete(proven, watch, why=why, reason="gone")
        if isinstance(outcome, Again) or not kept:
            return outcome
        return Skip("; ".join(dict.fromkeys(one.why for one in kept)))

    async def left_of(self, image_id: str) -> list[Volume]:
        """The volumes of the internal project that were kept for an image."""
        named = await self._cloud.find_volumes(image_volume.name_of(image_id))
        warming = await self._cloud.find_volumes(image_volume.warming_name_of(image_id))
        return [volume for volume in (*named, *warming) if self._is_known(volume, image_id)]

    def is_ours(self, volume: Volume) -> bool:
        """Whether it carries our marks and they match reality, or is a clone or a copy that was
        made for us.

        Clones in the internal project named like an Image-Volume are Cinder's: cache entries, and
        those of uploads.
        """
        target = self._targets.get(volume.metadata.get(TAG, ""))
        if target is not None:
            return image_volume.is_ours(volume, target)
        if TAG in volume.metadata:
            return volume.metadata[TAG] == UPLOAD and bool(volume.source_volid)
        return bool(volume.source_volid) or image_volume.is_unmarked_copy(volume)

    def kept_because(self, volume: Volume) -> str:
        """Why a volume of an image that is not found is kept, by its note and as of the last
        `count`."""
        noted = absence.absence_of(volume)
        if image_volume.is_stuck(volume):
            return image_volume.stuck_advice(volume, located=True)
        if noted.pending:
            return str(noted)
        if not self.is_ours(volume) or not image_volume.is_kept_for(
            volume, image_volume.image_of(volume)
        ):
            return NOT_OURS
        if noted.is_proven:
            return self._brake or f"{noted}: the next resync deletes it"
        when = (
            f", the next one counts from {absence.told(noted.next_look(self._rules.grace))}"
            if noted.looks
            else ""
        )
        return f"{noted}{when}"

    async def found(self, image_id: str, volumes: Iterable[Volume]) -> bool:
        """Take back what was noted of an image that is there; whether anything was."""
        self._deletions.forget(image_id)
        noted = [volume for volume in volumes if absence.absence_of(volume).is_noted]
        for volume in noted:
            await self._note(volume, absence.Absence())
            log.info("image_is_back", volume_id=volume.id)
        return bool(noted)

    def _is_known(self, volume: Volume, image_id: str) -> bool:
        """Whether it was kept for this image: by us or Glance (metadata), or by Cinder, for its
        cache or an upload."""
        claimed = "glance_image_id" in volume.metadata or TAG in volume.metadata
        by_cinder = image_volume.is_readonly(volume) or volume.source_volid
        return image_volume.is_kept_for(volume, image_id) and bool(claimed or by_cinder)

    def _is_free(self, volume: Volume, image_id: str, unlocated: frozenset[str]) -> bool:
        """Whether it holds nobody's data, and nothing more than a 404 is needed: it was never a
        location.

        Once the deletion was heard of that is a cache entry, or a volume that was not finished:
        before it becomes a location, Glance and we make it read-only. What Glance knows as a
        location, Glance deletes.
        """
        if image_volume.is_throw_away(volume) or volume.id in unlocated:
            return True
        unlocatable = not image_volume.may_be_location(volume) or not image_volume.is_readonly(
            volume
        )
        return self._deletions.status(image_id) == DELETED and unlocatable

    def _evidence(self, image_id: str) -> str:
        if status := self._deletions.status(image_id):
            return f"image is gone: its image.delete said {status}, and Glance does not find it"
        return "image is not found, and this volume was never its location"

    async def _is_there(self, image_id: str) -> bool:
        try:
            await self._cloud.get_image(image_id)
        except NotFound:
            return False
        return True

    async def _prove(
        self, image_id: str, volumes: Iterable[Volume], *, confirmed: bool
    ) -> tuple[list[Volume], list[Kept]]:
        """Look once more, if it is time; the volumes whose image is proven to be gone, and why the
        others stay."""
        proven, kept = list[Volume](), list[Kept]()
        doubt: str | None = None
        for volume in volumes:
            noted = absence.absence_of(volume)
            if not self.is_ours(volume):
                kept.append(Kept(volume, f"volume {volume.id} stays: {NOT_OURS}"))
                continue
            if noted.pending and self._deletions.status(image_id) == DELETED:
                # Restored, and deleted for good since
                noted = absence.NONE
            if noted.pending or self._is_pending(volume, image_id):
                if not noted.pending:
                    noted = absence.Absence(pending=True)
                    await self._note(volume, noted)
                kept.append(Kept(volume, f"volume {volume.id} stays: {noted}"))
                continue
            final = noted.is_proven
            if not final and self._now() < noted.next_look(self._rules.grace):
                kept.append(Kept(volume, f"the image may be gone: {noted}"))
                continue
            # Also before a proven one is deleted: the image may have been restored since
            doubt = await self._doubt(image_id) if doubt is None else doubt
            if doubt:
                kept.append(Kept(volume, f"the image may be gone, no proof: {doubt}"))
                continue
            if not final:
                noted = noted.seen(self._now())
                await self._note(volume, noted)
            if not noted.is_proven:
                kept.append(Kept(volume, f"the image may be gone: {noted}"))
            elif not confirmed and (brake := await self._braked()):
                kept.append(Kept(volume, brake))
            else:
                proven.append(volume)
        return proven, kept

    def _is_pending(self, volume: Volume, image_id: str) -> bool:
        return self._deletions.status(image_id) == PENDING and image_volume.may_be_location(volume)

    async def _note(self, volume: Volume, noted: absence.Absence) -> None:
        await self._cloud.set_metadata(volume.id, noted.to_metadata())

    async def _doubt(self, image_id: str) -> str:
        """Why the image may be there all the same; "" if Glance does not find it while it shows us
        everything.

        The proof that it shows us everything is another project's private image, read through the
        same endpoint.
        """
        witness = await self._cloud.find_witness()
        if not witness:
            return NO_WITNESS
        for _ in range(TIMES):
            if await self._is_there(image_id):
                return "Glance did not find the image, and then it did"
        for _ in range(TIMES):
            if not await self._is_there(witness):
                return "Glance listed another project's private image, and then did not find it"
        return ""

    async def _braked(self) -> str:
        """Why nothing is deleted that was only found missing: too much of it; "" if it may be."""
        if self._now() >= self._counted_until:
            volumes = [
                volume
                async for volume in self._cloud.list_volumes()
                if image_volume.image_of(volume)
            ]
            self.count([absence.absence_of(volume) for volume in volumes])
            self._counted_until = self._now() + COUNT_FOR
        return self._brake

    def count(self, notes: Sequence[absence.Absence]) -> None:
        """Count the Image-Volumes whose images were not found, by the notes of all there are, and
        set the brake."""
        held = sum(note.is_noted for note in notes)
        missing = sum(note.is_noted and not note.pending for note in notes)
        most = self._rules.limit(len(notes))
        brake = ""
        if missing > most:
            brake = (
                f"the brake: {missing} of {len(notes)} Image-Volumes belong to images that "
                f"Glance does not find, more "
                f"than [reclaim] max_at_once = {most}; if these images are deleted: {CONFIRM}"
            )
            if not self._brake:
                log.error(
                    "reclaim_braked",
                    missing_volumes=missing,
                    image_volumes=len(notes),
                    most=most,
                    advice=CONFIRM,
                )
        self._brake = brake
        self._report.held_back(held, brake=bool(brake))
        self._count_missing(len(notes))

    async def delete(
        self, volumes: Iterable[Volume], watch: Watch, *, why: str, reason: Reason
    ) -> Outcome:
        """Delete volumes of the internal project that no image needs, and see them go."""
        left = {volume.id: volume for volume in volumes if not volume.foreign}
        for volume in [volume for volume in left.values() if image_volume.is_stuck(volume)]:
            report_stuck(left.pop(volume.id), located=False)
        if left and not self._rules.enabled:
            return Skip("[reclaim] is not enabled")
        if left and self._rules.dry_run:
            for volume in left.values():
                log.info("volume_would_be_deleted", volume_id=volume.id, size=volume.size, why=why)
            return Skip("[reclaim] dry_run is set")
        chosen = list(left.values())
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
        for target in {volume.metadata.get(TAG, "") for volume in chosen if volume.id not in left}:
            self._undone.made_room(target)
        for _ in range(gone):
            self._report.reclaimed(reason)
        if left:
            return _waiting(left.values(), asked, refusals)
        return Done(
            f"{gone} deleted", changed=gone > 0, state=State.GONE if reason == "gone" else None
        )

    # Images that are there

    async def discard(self, image_id: str, volume: Volume, *, why: str) -> None:
        """Delete a volume of ours that no location names: a throw-away one, a broken one, one too
        many.

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
        if not image_volume.is_throw_away(volume):
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
                if any(one.volume_id == volume.id for one in locations or ()):
                    raise Conflict(f"Image-Volume {volume.id} stays: it is a location of the image")
                await self._ask_to_delete(volume, why)
            return
        await self._ask_to_delete(volume, why)

    async def _ask_to_delete(self, volume: Volume, why: str) -> None:
        try:
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
            volume = await self._look(volume_id)
            if volume is not None and image_volume.needs_administrator(volume):
                report_stuck(volume, located=True)
                raise Blocked(
                    f"the location in store {store} stays: "
                    f"{image_volume.stuck_advice(volume, located=True)}"
                )
            sound = volume is not None and not image_volume.is_broken(volume)
            if volume is not None and sound:
                self._deletions.found_volume(volume_id)
                if not whole:
                    raise NotProven(
                        f"volume {volume_id} of a location was broken or gone, and then whole",
                        after=BUSY,
                    )
                ours = image_volume.is_of(volume, image) and image_volume.may_be_ours(volume)
                if not ours or (reason := await self.keep_reason(volume, image, locations)):
                    raise Conflict(
                        f"Image-Volume {volume_id} stays: "
                        f"{reason if ours else 'we did not make it'}"
                    )
            elif not any(
                [
                    await self._is_whole(one, image)
                    for one in locations
                    if one.volume_id != volume_id
                ]
            ):
                raise Blocked(
                    f"the location in store {store} is broken, and no other location of the "
                    f"image is whole"
                )
            if volume is None:
                await self._prove_volume(volume_id, confirmed=confirmed)
            await self._remove_from_store(image_id, store, volume_id)
            event = "location_removed" if sound else "broken_location_removed"
            log.warning(
                event,
                store=store,
                volume_id=volume_id,
                was="gone" if volume is None else volume.status,
            )

    async def _remove_from_store(self, image_id: str, store: str, volume_id: str) -> None:
        """Have Glance remove a location with its volume; should the location come back, nobody
        wonders where it is."""
        await self._cloud.remove_from_store(image_id, store)
        self._deletions.note_volume(volume_id)

    async def _prove_volume(self, volume_id: str, *, confirmed: bool) -> None:
        """NotProven unless a volume that Cinder does not find is gone: announced, or not found for
        long enough.

        The proof that Cinder shows us its volumes is another Image-Volume, and a volume of another
        project. Glance deletes the volume of a location that it removes: in a wrong region or
        project we would have it delete what is there.
        """
        if self._deletions.is_volume_deleted(volume_id):
            return
        shown = await self._count_shown()
        if not shown:
            raise NotProven(
                f"Cinder does not find volume {volume_id} of a location, nor any other "
                f"Image-Volume of the internal "
                "project: that is no proof that it is gone",
                after=DEPENDED_ON,
            )
        if confirmed:
            return
        grace = min(self._rules.grace, VOLUME_GRACE)
        noted = self._deletions.look(volume_id, now=self._now(), grace=grace)
        if not noted.is_proven:
            self._count_missing(shown)
            wait = max(noted.next_look(grace) - self._now(), 0.0)
            raise NotProven(f"volume {volume_id} of a location may be gone: {noted}", after=wait)
        if brake := self._count_missing(shown):
            raise NotProven(brake, after=DEPENDED_ON)
        if not await self._cloud.find_volume_witness():
            raise NotProven(
                f"Cinder does not find volume {volume_id} of a location, nor shows it this login "
                f"any volume of another "
                f"project, where it may be; doctor tells more. If it is deleted: {CONFIRM}",
                after=DEPENDED_ON,
            )

    def _count_missing(self, shown: int) -> str:
        """Set the brake by how many volumes of locations are missing besides those shown; its
        reason, "" if off."""
        missing, most = self._deletions.missing_volumes(now=self._now()), self._rules.limit(shown)
        self._report.missing(missing, brake=missing > most)
        before, self._locations_braked = self._locations_braked, missing > most
        if not self._locations_braked:
            return ""
        if not before:
            log.error(
                "reclaim_braked",
                missing_locations=missing,
                image_volumes=shown,
                most=most,
                advice=CONFIRM,
            )
        return (
            f"the brake: Cinder does not find {missing} volumes of locations, more than "
            f"[reclaim] max_at_once = {most}"
            f"; if they are deleted: {CONFIRM}"
        )

    async def _count_shown(self) -> int:
        """How many Image-Volumes Cinder shows; as of `COUNT_FOR` seconds ago at most."""
        if self._now() >= self._shown_until:
            self._shown = len(
                [one async for one in self._cloud.list_volumes() if image_volume.image_of(one)]
            )
            self._shown_until = self._now() + COUNT_FOR
        return self._shown

    async def bare_locations(self, image: Image, targets: Iterable[Target]) -> list[Location]:
        """The image's locations on these targets whose volumes Cinder does not find."""
        stores = {target.glance_store for target in targets}
        locations = await self._cloud.get_locations(image.id)
        here = [one for one in locations or () if one.store in stores and one.volume_id]
        return [one for one in here if await self._look(one.volume_id) is None]

    async def delete_unwanted(self, image: Image, target: Target, *, why: str) -> Outcome:
        """Delete what prewarm made on a target that does not want the image."""
        if image.status != "active" or not self._rules.enabled:
            return Skip(why)
        volumes = await self._cloud.find_volumes(image_volume.name_of(image.id))
        ours = [volume for volume in volumes if image_volume.may_go(volume, image, target)]
        if ours:
            return await self.evict(image.id, ours, why=why, reason="unwanted")
        if target.glance_store in (image.stores or ()) and await self._remove_dangling(
            image, target
        ):
            return Done(why, changed=True, state=State.UNWANTED)
        return Skip(why)

    async def _remove_dangling(self, image: Image, target: Target) -> bool:
        """Whether a location on the target was removed whose volume is gone; another one of the
        image's is whole."""
        locations = await self._cloud.get_locations(image.id)
        here = [
            one for one in locations or () if one.store == target.glance_store and one.volume_id
        ]
        if (
            image.import_locked
            or not here
            or not self.may_delete
            or await self._look(here[0].volume_id)
        ):
            return False
        try:
            await self.remove_location(image.id, target.glance_store, here[0].volume_id)
        except (Blocked, Conflict, NotProven) as error:
            log.info("location_stays", store=target.glance_store, why=str(error))
            return False
        return True

    async def evict(
        self, image_id: str, volumes: Iterable[Volume], *, why: str, reason: Reason
    ) -> Outcome:
        """Delete what prewarm made for an image that is there, as far as the image does not need
        it."""
        if not self._rules.enabled:
            return Skip(why)
        stays, deleted = list[str](), 0
        for volume in volumes:
            about = {
                "of_image_id": image_id,
                "volume_id": volume.id,
                "size": volume.size,
                "why": why,
            }
            if self._rules.dry_run:
                log.info("volume_would_be_deleted", **about)
                continue
            try:
                async with self._locks.of(image_id):
                    needed = await self._evict(image_id, volume)
            except NotFound:
                # The image, or the volume: whoever deleted it has done it for us
                continue
            except Conflict as error:
                return Again(
                    f"Image-Volume {volume.id} is in use: {error}", after=BUSY, counted=False
                )
            except Temporary as error:
                # Glance answers 500 where Cinder does not let go of the volume: a snapshot, an
                # attachment, a group
                return Again(
                    f"Glance did not remove {volume.id}: {error}", after=DEPENDED_ON, counted=False
                )
            if needed:
                stays.append(f"Image-Volume {volume.id} stays: {needed}")
                continue
            self._undone.forget(image_id, volume.metadata.get(TAG, ""))
            log.info("image_volume_evicted", **about)
            self._report.reclaimed(reason)
            deleted += 1
        if deleted or not (stays or self._rules.dry_run):
            return Done(f"{deleted} deleted: {why}", changed=deleted > 0, state=State.UNWANTED)
        return Skip("; ".join([why, *stays]))

    async def _evict(self, image_id: str, volume: Volume) -> str:
        """Delete one; why it stays, if it must.

        Glance writes an image's whole list of locations: of two removals at once, or of one beside
        an import, a location can come back whose volume is gone. So here one at a time; and it is
        looked at afterwards, as another worker's may have come in between.
        """
        locations = await self._cloud.get_locations(image_id)
        # After its locations: while an image is being deleted they are gone before it is
        image = await self._cloud.get_image(image_id)
        if image.status != "active":
            return f"its image is {image.status}"
        if needed := await self.keep_reason(volume, image, locations):
            return needed
        if image.import_locked:
            # And what is no location yet may be about to become one
            raise Conflict("Glance is at work on the image")
        store = _store_of(volume, locations or ())
        if not store:
            await self._cloud.delete_volume(volume.id)
            return ""
        for _ in range(TRIES):
            await self._remove_from_store(image_id, store, volume.id)
            if not _store_of(volume, await self._cloud.get_locations(image_id) or ()):
                break
        return ""

    async def keep_reason(
        self, volume: Volume, image: Image, locations: tuple[Location, ...] | None
    ) -> str:
        """Why a volume must stay for the sake of its image, which has these locations; "" if it may
        be deleted."""
        if locations is None:
            return image_volume.HIDDEN if image_volume.may_be_location(volume) else ""
        if all(location.volume_id != volume.id for location in locations):
            return ""
        store = _store_of(volume, locations)
        if not store:
            return "its location names no store, so Glance can't be told to remove it"
        here = [location for location in locations if location.store == store]
        # Glance takes the first that it finds in a store
        if here[0].volume_id != volume.id:
            return f"the image has several locations in store {store}"
        others = [location for location in locations if location.volume_id != volume.id]
        for location in others:
            if await self._is_anchor(location, image):
                return ""
        # Of several in a store one is enough, and should two workers remove one each, another store
        # has the data
        twice = [await self._is_whole(one, image) for one in others if one.store == store]
        elsewhere = [await self._is_whole(one, image) for one in others if one.store != store]
        return (
            ""
            if any(twice) and any(elsewhere)
            else "the image has no other location that would stay"
        )

    async def _look(self, volume_id: str) -> Volume | None:
        try:
            return await self._cloud.get_volume(volume_id)
        except NotFound:
            return None

    async def _is_whole(self, location: Location, image: Image) -> bool:
        """Whether the image's data can be had from a location; one outside of Cinder is taken for
        whole.

        A volume that is not this image's holds other data, or is under somebody else's control.
        """
        if not location.volume_id:
            return True
        volume = await self._look(location.volume_id)
        return (
            volume is not None
            and image_volume.is_usable(volume)
            and image_volume.is_of(volume, image)
        )

    async def _is_anchor(self, location: Location, image: Image) -> bool:
        """Whether a location is whole and none that we might remove as well."""
        if not location.volume_id:
            return True
        volume = await self._look(location.volume_id)
        if volume is None or not image_volume.is_usable(volume):
            return False
        return image_volume.is_of(volume, image) and not image_volume.may_be_ours(volume)


def report_stuck(volume: Volume, *, located: bool) -> None:
    """Log a volume that Cinder does not delete before an administrator has acted; `located` if it
    is a location."""
    advice = image_volume.stuck_advice(volume, located=located)
    log.warning("volume_stuck", volume_id=volume.id, status=volume.status, advice=advice)


def _store_of(volume: Volume, locations: tuple[Location, ...]) -> str:
    """The store of Glance in which the volume is a location; "" if it is none."""
    return next((location.store for location in locations if location.volume_id == volume.id), "")


def _waiting(left: Iterable[Volume], asked: set[str], refusals: Mapping[str, str]) -> Again:
    """The wait for volumes that did not go."""
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
