"""Proof: an image or a volume that is not found is gone only when that is proven."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable

import structlog

from handlers import image_volume, volume_status
from handlers.actions import SetMetadata
from handlers.deletion.brake import CONFIRM_LOCATIONS, Brake
from handlers.marks import is_ours, why_not_ours
from worker.core import absence
from worker.core.cloud import Volume
from worker.core.deletions import DELETED
from worker.core.errors import NotFound
from worker.core.handler import Parts
from worker.core.target import PENDING

# Times that each question of a look is asked, one after the other: of several Glance hosts behind a
# balancer one may hide images, and another one may show the image that is the proof
TIMES = 4
NO_WITNESS = (
    "Glance shows this login no private image of another project, so its 404 may be a policy's: "
    "with one such image "
    "there the proof is possible"
)
# Seconds over which Cinder must not find a volume before its location counts as one without a
# volume. Users' volumes are made with an error meanwhile, so it is not as long as for images
VOLUME_GRACE = 600.0
# Seconds until another look where only an operator or another project can change anything
LATER = 900.0
# Image-Volumes of a type that are looked at for one that is a location in a store
OF_A_TYPE = 20

log = structlog.get_logger(__name__)


class NotProven(Exception):
    """A volume is not found, and that is no proof yet that it is gone; `after` are the seconds
    until the next look."""

    def __init__(self, reason: str, *, after: float) -> None:
        super().__init__(reason)
        self.after = after


class Proof:
    """Looks for images and volumes, and counts the looks at which they were not found.

    The looks for an image are noted on its volumes, those for a volume in memory.
    """

    def __init__(self, parts: Parts, brake: Brake) -> None:
        self._cloud = parts.cloud
        self._rules = parts.reclaiming
        self._targets = {target.name: target for target in parts.targets}
        self._deletions = parts.deletions
        self._brake = brake
        self._now = parts.now

    async def is_there(self, image_id: str) -> bool:
        """Whether Glance finds an image."""
        try:
            await self._cloud.get_image(image_id)
        except NotFound:
            return False
        return True

    async def of_image(
        self, image_id: str, volumes: Iterable[Volume], *, confirmed: bool
    ) -> tuple[list[Volume], list[str]]:
        """Look once more, if it is time; the volumes whose image is proven to be gone, and why the
        others stay."""
        proven, kept = list[Volume](), list[str]()
        doubt: str | None = None
        for volume in volumes:
            noted = absence.absence_of(volume).as_of(self._now(), self._rules.grace)
            if not is_ours(volume, self._targets):
                kept.append(f"volume {volume.id} stays: {why_not_ours(volume, self._targets)}")
                continue
            if noted.pending and self._deletions.status(image_id) == DELETED:
                # Restored, and deleted for good since
                noted = absence.NONE
            if noted.pending or self._is_pending(volume, image_id):
                if not noted.pending:
                    noted = absence.Absence(pending=True)
                    await self._note(volume, noted)
                kept.append(f"volume {volume.id} stays: {noted}")
                continue
            counts = self._now() >= noted.next_look(self._rules.grace)
            if not (counts or noted.is_proven):
                kept.append(f"the image may be gone: {noted}")
                continue
            # Also before a proven one is deleted: the image may have been restored since
            doubt = await self._doubt(image_id) if doubt is None else doubt
            if doubt:
                kept.append(f"the image may be gone, no proof: {doubt}")
                continue
            # Also of a proven one that the brake keeps: it must not lapse
            if counts:
                noted = noted.seen(self._now())
                await self._note(volume, noted)
            if not noted.is_proven:
                kept.append(f"the image may be gone: {noted}")
            elif not confirmed and (brake := await self._brake.check()):
                kept.append(brake)
            else:
                proven.append(volume)
        return proven, kept

    def kept_because(self, volume: Volume) -> str:
        """Return why a volume of an image that is not found is kept, by its note and as of the last
        count."""
        noted = absence.absence_of(volume).as_of(self._now(), self._rules.grace)
        if volume_status.is_stuck(volume):
            return volume_status.stuck_advice(volume, located=True)
        if noted.pending:
            return str(noted)
        if image_volume.is_restored(volume):
            return f"{image_volume.RESTORED}: the worker never deletes it"
        if not image_volume.is_kept_for(volume, image_volume.image_of(volume)):
            return "its metadata names another image than its name: the worker never deletes it"
        if not is_ours(volume, self._targets):
            return why_not_ours(volume, self._targets)
        if noted.is_proven:
            return self._brake.reason or f"{noted}: the next resync deletes it"
        when = (
            f", the next one counts from {absence.told(noted.next_look(self._rules.grace))}"
            if noted.looks
            else ""
        )
        return f"{noted}{when}"

    async def withdraw(self, volumes: Iterable[Volume]) -> bool:
        """Take back what was noted on the volumes of an image that is there; whether anything
        was."""
        noted = [volume for volume in volumes if absence.absence_of(volume).is_noted]
        for volume in noted:
            await self._note(volume, absence.Absence())
            log.info("image_is_back", volume_id=volume.id)
        return bool(noted)

    async def of_volume(self, volume_id: str, store: str, *, confirmed: bool) -> None:
        """NotProven unless a volume that Cinder does not find is gone: announced, or not found for
        long enough.

        The proof that Cinder shows us the volumes of this store of Glance is another one of them,
        and a volume of another project. Glance deletes the volume of a location that it removes: in
        a wrong region or project it would delete a volume that is there.
        """
        if self._deletions.is_volume_deleted(volume_id):
            return
        shown = await self._brake.count_shown()
        if not shown:
            raise NotProven(
                f"Cinder does not find volume {volume_id} of a location, nor any other "
                f"Image-Volume of the internal "
                "project: that is no proof that it is gone",
                after=LATER,
            )
        if confirmed:
            return
        grace = min(self._rules.grace, VOLUME_GRACE)
        noted = self._deletions.look(volume_id, now=self._now(), grace=grace)
        if not noted.is_proven:
            self._brake.count_locations(shown)
            wait = max(noted.next_look(grace) - self._now(), 0.0)
            raise NotProven(f"volume {volume_id} of a location may be gone: {noted}", after=wait)
        if brake := self._brake.count_locations(shown):
            raise NotProven(brake, after=LATER)
        if not await self._shows(store):
            raise NotProven(
                f"Cinder does not find volume {volume_id} of a location in store {store}, nor shows "
                f"it any other volume of that store: it may be another region's. If they are "
                f"deleted: {CONFIRM_LOCATIONS}",
                after=LATER,
            )
        if not await self._cloud.find_volume_witness():
            raise NotProven(
                f"Cinder does not find volume {volume_id} of a location, nor shows it this login "
                f"any volume of another "
                f"project, where it may be; doctor tells more. If it is deleted: {CONFIRM_LOCATIONS}",
                after=LATER,
            )

    async def _shows(self, store: str) -> bool:
        """Whether Cinder shows us a volume that is a location in this store of Glance."""
        looked = Counter[str]()
        async for volume in self._cloud.list_volumes():
            image_id = image_volume.image_of(volume)
            maybe = image_volume.is_readonly(volume) and image_volume.may_be_location(volume)
            # One store has volumes of one type
            if not image_id or not maybe or looked[volume.volume_type] >= OF_A_TYPE:
                continue
            with contextlib.suppress(NotFound):
                locations = await self._cloud.get_locations(image_id)
                if any(
                    one.store == store and one.volume_id == volume.id for one in locations or ()
                ):
                    return True
                looked[volume.volume_type] += 1
        return False

    def _is_pending(self, volume: Volume, image_id: str) -> bool:
        return self._deletions.status(image_id) == PENDING and image_volume.may_be_location(volume)

    async def _note(self, volume: Volume, noted: absence.Absence) -> None:
        change = SetMetadata.of(volume, noted.to_metadata())
        await self._cloud.set_metadata(volume.id, change.metadata, drop=change.drop)

    async def _doubt(self, image_id: str) -> str:
        """Return why the image may be there all the same; "" if Glance does not find it while it
        shows us everything.

        The proof that it shows us everything is another project's private image, read through the
        same endpoint.
        """
        witness = await self._cloud.find_witness()
        if not witness:
            return NO_WITNESS
        for _ in range(TIMES):
            if await self.is_there(image_id):
                return "Glance did not find the image, and then it did"
        for _ in range(TIMES):
            if not await self.is_there(witness):
                return "Glance listed another project's private image, and then did not find it"
        return ""
