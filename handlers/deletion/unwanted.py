"""Unwanted: what prewarm made on a target that does not want the image is deleted."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import structlog

from handlers import image_volume, import_lock, marks
from handlers.deletion.delete import LOST, Deletion
from handlers.deletion.proof import NotProven
from worker.core.age import epoch
from worker.core.cloud import Image, Volume
from worker.core.errors import Blocked, Conflict, NotFound
from worker.core.handler import Parts
from worker.core.outcome import Done, Outcome, Skip
from worker.core.state import State
from worker.core.target import WISHED, Target

log = structlog.get_logger(__name__)


class Unwanted:
    """Deletes what prewarm made where the image is not wanted, as far as the image can do without
    it."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._rules = parts.reclaiming
        self._now = parts.now
        self._report = parts.report
        self._deletion = parts.shared(Deletion)

    async def delete(
        self, image: Image, target: Target, *, why: str, by_operator: bool = False
    ) -> Outcome:
        """Delete what prewarm made on a target that does not want the image.

        `by_operator`: an operator asks for it, also where `[reclaim]` is switched off.
        """
        if image.status != "active" or not (self._rules.enabled or by_operator):
            return Skip(why)
        if ours := await self._prewarmed(image, target):
            return await self._deletion.evict(
                image.id, ours, why=why, reason="unwanted", by_operator=by_operator
            )
        if target.glance_store in (image.stores or ()) and await self._remove_dangling(
            image, target
        ):
            return Done(why, changed=True, state=State.UNWANTED)
        return Skip(why)

    async def wished_after(self, moment: float, image: Image, target: Target) -> bool:
        """Whether something that `delete` would delete was made, or wished for by an operator,
        after the moment (epoch seconds)."""
        return any(
            max(one.created_epoch, epoch(one.metadata.get(WISHED, ""))) > moment
            for one in await self._prewarmed(image, target)
        )

    async def keep(self, image: Image, target: Target) -> None:
        """Write on what `delete` would delete that an operator wishes for it now: an older wish to
        evict it may wait in a lane, and its worker be gone."""
        at = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="seconds")
        for one in await self._prewarmed(image, target):
            # No reason not to make the image warm
            with contextlib.suppress(Conflict, Blocked, NotFound):
                await self._cloud.set_metadata(one.id, {WISHED: at})

    async def _prewarmed(self, image: Image, target: Target) -> list[Volume]:
        volumes = await self._cloud.find_volumes(image_volume.name_of(image.id))
        return [volume for volume in volumes if marks.may_go(volume, image, target)]

    async def _remove_dangling(self, image: Image, target: Target) -> bool:
        """Whether a location on the target was removed whose volume is gone; another one of the
        image's is whole."""
        locations = await self._cloud.get_locations(image.id) or ()
        here = [one for one in locations if one.store == target.glance_store and one.volume_id]
        if import_lock.is_held(image, self._now()) or not here:
            return False
        found = await self._deletion.last_copy.look(here[0].volume_id)
        readable = bool(found) or await self._deletion.may_be_readable(locations)
        self._report.repair(image.id, target.name, possible=readable)
        if not readable:
            # Unless Glance is deleting it, and removes its volumes first
            log.warning("no_whole_location", advice=LOST)
        if found or not (readable and self._deletion.may_delete):
            return False
        try:
            await self._deletion.remove_location(image.id, target.glance_store, here[0].volume_id)
        except (Blocked, Conflict, NotProven) as error:
            log.info("location_stays", store=target.glance_store, why=str(error))
            return False
        return True
