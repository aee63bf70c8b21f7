"""Act: make the change that the plan of an image on a target asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

import structlog

from handlers import image_volume, marks, policy, volume_status
from handlers.actions import AddLocation, SetMetadata, SetReadonly
from handlers.deletion import Deletion
from handlers.prewarm.actions import (
    Change,
    CopyImage,
    CreateVolume,
    DeleteVolume,
    RemoveLocation,
)
from handlers.prewarm.copies import Copies
from handlers.prewarm.held_back import HeldBack
from handlers.prewarm.placing import Placing
from handlers.prewarm.probes import Probes
from handlers.prewarm.seen import Seen, believed, with_volume, without
from handlers.reservations import Reservations
from handlers.target_store import LATELY, TargetStores
from worker.core.cloud import Image
from worker.core.errors import Blocked, Conflict, NotFound
from worker.core.handler import Parts, Watch
from worker.core.target import Target

log = structlog.get_logger(__name__)


class Actor:
    """Makes changes, and reads again what they may have affected."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._locks = parts.locks
        self._report = parts.report
        self._deletion = parts.shared(Deletion)
        self._stores = parts.shared(TargetStores)
        self._reservations = parts.shared(Reservations)
        self._copies = parts.shared(Copies)
        self._placing = parts.shared(Placing)
        self._probes = parts.shared(Probes)
        self._held_back = parts.shared(HeldBack)

    async def act(self, change: Change, seen: Seen, target: Target, watch: Watch) -> Seen:
        """Make one change, and add what came of it to what was seen."""
        match change:
            case CopyImage(stores):
                if target.strategy != "native":
                    await self._reservations.reserve(seen.image, target.budgeted, watch)
                return await self._copies.begin(stores, seen, watch)
            case CreateVolume():
                return await self._create(change, seen, target, watch)
            case DeleteVolume():
                return await self._delete(change, seen, target)
            case SetMetadata(volume_id, metadata, drop):
                await self._cloud.set_metadata(volume_id, metadata, drop=drop)
                return believed(volume_id, change.written, seen)
            case SetReadonly(volume_id):
                await self._cloud.set_readonly(volume_id)
                return believed(volume_id, change.written, seen)
            case AddLocation(url):
                return await self._add_location(url, seen)
            case RemoveLocation():
                return await self._remove_location(change, seen, target)
            case never:
                assert_never(never)

    async def _create(self, change: CreateVolume, seen: Seen, target: Target, watch: Watch) -> Seen:
        """Begin to make a volume, unless another image's volume shows first that Cinder needs
        none."""
        image, new = seen.image, change.new
        known = frozenset(one.id for one in await self._stores.stores(within=LATELY))
        if known != seen.known:
            # Cinder deletes a stale entry before it downloads the image: from a store that is there
            return replace(seen, known=known)
        if seen.unproven is not None:
            if (shown := self._probes.with_findings(seen, target)) is not seen:
                return shown
            if not self._probes.try_begin(seen, target):
                await watch.changed()
                return self._probes.with_findings(seen, target)
        if target.pool:
            # Before anything is evicted to make room: it need not, if no volume can be made there
            await self._placing.ensure(target)
        if change.anew:
            self._report.rewarm_began(target.name, "changed")
        else:
            # A cache entry is another volume besides
            volumes = 1 + (target.strategy == "cache")
            await self._reservations.reserve(image, target.budgeted, watch, volumes=volumes)
        try:
            volume = await self._cloud.create_volume(new)
        except NotFound:
            # The private type may be gone that was there a moment ago
            self._placing.forget()
            raise
        log.info(
            "image_volume_creating", volume_id=volume.id, volume_type=new.volume_type, size=new.size
        )
        return replace(with_volume(volume, seen), made=seen.made | {volume.id})

    async def _delete(self, change: DeleteVolume, seen: Seen, target: Target) -> Seen:
        if change.native:
            self._probes.note(seen, target, native=True)
        volumes = seen.volumes or ()
        known = next(v for v in (*volumes, *(seen.warming or ())) if v.id == change.volume_id)
        spare = any(image_volume.is_entry(one) and volume_status.is_usable(one) for one in volumes)
        await self._deletion.discard(seen.image.id, known, why=change.why, spare=spare)
        if known in volumes and volume_status.is_broken(known) and known.id not in seen.made:
            # It was whole, and nobody else has undone it
            self._held_back.forget(seen.image.id, target.place)
        if change.encrypted:
            raise self._encrypted(target, change.volume_id)
        # It was made before, and has to be made again
        repaired = known in volumes and marks.is_prewarmed(known, target)
        return replace(
            without(change.volume_id, seen),
            repaired=seen.repaired or repaired,
            failed=change.because or seen.failed,
            native=change.native,
            seems_native=seen.seems_native or change.seems_native,
        )

    async def _remove_location(self, change: RemoveLocation, seen: Seen, target: Target) -> Seen:
        await self._deletion.remove_location(
            seen.image.id, change.store, change.volume_id, whole=change.whole
        )
        here = [one for one in seen.locations or () if one.store == change.store]
        if not any(one.volume_id in seen.gone for one in here):
            # Its volume was in error: nobody else has undone it
            self._held_back.forget(seen.image.id, target.name)
        if change.encrypted:
            raise self._encrypted(target)
        self._report.rewarm_began(target.name, "broken")
        return replace(
            seen, image=await self._image(seen), locations=None, volumes=None, repaired=True
        )

    async def _add_location(self, url: str, seen: Seen) -> Seen:
        try:
            # Glance writes the whole list: a location that is removed meanwhile would come back
            async with self._locks.of(seen.image.id):
                await self._cloud.add_location(seen.image.id, url)
            log.info("location_added", url=url)
        except Conflict as error:
            log.info("location_refused", url=url, why=str(error))
            raise
        # Two of these at once can lose one, so the list is read again
        return replace(seen, image=await self._image(seen), locations=None)

    def _encrypted(self, target: Target, volume_id: str = "") -> Blocked:
        """Remember that the target makes encrypted volumes, and return the error to raise."""
        self._stores.note_encrypted(target)
        why = policy.encrypted_type(target)
        log.error("encrypted_image_volume_deleted", volume_id=volume_id, advice=why)
        return Blocked(why)

    async def _image(self, seen: Seen) -> Image:
        return await self._cloud.get_image(seen.image.id)
