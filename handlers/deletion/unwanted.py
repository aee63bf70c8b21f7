"""Unwanted: what prewarm made on a target that does not want the image is deleted."""

from __future__ import annotations

import structlog

from handlers import image_volume, import_lock, marks
from handlers.deletion.delete import Deletion
from handlers.deletion.proof import NotProven
from worker.core.cloud import Image
from worker.core.errors import Blocked, Conflict
from worker.core.handler import Parts
from worker.core.outcome import Done, Outcome, Skip
from worker.core.state import State
from worker.core.target import Target

log = structlog.get_logger(__name__)


class Unwanted:
    """Deletes what prewarm made where the image is not wanted, as far as the image can do without
    it."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._rules = parts.reclaiming
        self._now = parts.now
        self._deletion = parts.shared(Deletion)

    async def delete(
        self, image: Image, target: Target, *, why: str, by_operator: bool = False
    ) -> Outcome:
        """Delete what prewarm made on a target that does not want the image.

        `by_operator`: an operator asks for it, also where `[reclaim]` is switched off.
        """
        if image.status != "active" or not (self._rules.enabled or by_operator):
            return Skip(why)
        volumes = await self._cloud.find_volumes(image_volume.name_of(image.id))
        ours = [volume for volume in volumes if marks.may_go(volume, image, target)]
        if ours:
            return await self._deletion.evict(
                image.id, ours, why=why, reason="unwanted", by_operator=by_operator
            )
        if target.glance_store in (image.stores or ()) and await self._remove_dangling(
            image, target
        ):
            return Done(why, changed=True, state=State.UNWANTED)
        return Skip(why)

    async def made_after(self, moment: float, image: Image, target: Target) -> bool:
        """Whether something that `delete` would delete was made after the moment (epoch
        seconds)."""
        volumes = await self._cloud.find_volumes(image_volume.name_of(image.id))
        return any(
            volume.created_epoch > moment
            for volume in volumes
            if marks.may_go(volume, image, target)
        )

    async def _remove_dangling(self, image: Image, target: Target) -> bool:
        """Whether a location on the target was removed whose volume is gone; another one of the
        image's is whole."""
        locations = await self._cloud.get_locations(image.id)
        here = [
            one for one in locations or () if one.store == target.glance_store and one.volume_id
        ]
        if (
            import_lock.is_held(image, self._now())
            or not here
            or not self._deletion.may_delete
            or await self._deletion.last_copy.look(here[0].volume_id)
        ):
            return False
        try:
            await self._deletion.remove_location(image.id, target.glance_store, here[0].volume_id)
        except (Blocked, Conflict, NotProven) as error:
            log.info("location_stays", store=target.glance_store, why=str(error))
            return False
        return True
