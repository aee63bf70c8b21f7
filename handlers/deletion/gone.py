"""Gone: what was kept for an image that Glance does not find is deleted once that is proven."""

from __future__ import annotations

from collections.abc import Iterable

from handlers import image_volume, volume_status
from handlers.deletion.delete import Deletion
from handlers.marks import is_free, is_known
from worker.core import absence
from worker.core.cloud import Image, Volume
from worker.core.deletions import DELETED
from worker.core.handler import Parts, Watch
from worker.core.outcome import Again, Done, Outcome, Skip
from worker.core.state import State


class Gone:
    """Deletes what was kept for images that are gone, as far as the rules and `[reclaim]` allow
    it."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._rules = parts.reclaiming
        self._report = parts.report
        self._undone = parts.undone
        self._deletions = parts.deletions
        self._deletion = parts.shared(Deletion)
        self._proof = self._deletion.proof

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
        heard, own = self._deletions.status(image_id) == DELETED, frozenset(unlocated)
        free = [volume for volume in left if is_free(volume, own, heard=heard)]
        outcome: Outcome = Done("nothing is left of it", state=State.GONE)
        if free:
            if await self._proof.is_there(image_id):
                return Again("the image was not found, and then it was", counted=False)
            outcome = await self._deletion.delete(
                free, watch, why=self._evidence(image_id), reason="gone"
            )
        waiting = [
            volume for volume in left if volume not in free and not volume_status.is_leaving(volume)
        ]
        if not waiting:
            return outcome
        if not self._deletion.may_delete:
            return outcome if free else Skip("[reclaim] does not let anything be deleted")
        proven, kept = await self._proof.of_image(image_id, waiting, confirmed=confirmed)
        if proven:
            why = (
                f"image is gone: not found at {absence.LOOKS} looks over {self._rules.grace:.0f} s"
            )
            outcome = await self._deletion.delete(proven, watch, why=why, reason="gone")
        if isinstance(outcome, Again) or not kept:
            return outcome
        return Skip("; ".join(dict.fromkeys(kept)))

    async def find_image(self, image_id: str) -> Image:
        """Return the image; what was announced of its deletion before is void then. NotFound
        without it."""
        announced = self._deletions.status(image_id)
        image = await self._cloud.get_image(image_id)
        if announced:
            self._deletions.forget(image_id)
        return image

    async def find_out(self, image_id: str, watch: Watch, unlocated: Iterable[str]) -> Outcome:
        """Find out whether it is the image that was not found; if so, release what was kept for
        it."""
        if await self._proof.is_there(image_id):
            return Again("something went while it was looked at")
        return await self.release(image_id, watch, unlocated=unlocated)

    async def left_of(self, image_id: str) -> list[Volume]:
        """The volumes of the internal project that were kept for an image."""
        named = await self._cloud.find_volumes(image_volume.name_of(image_id))
        warming = await self._cloud.find_volumes(image_volume.warming_name_of(image_id))
        return [volume for volume in (*named, *warming) if is_known(volume, image_id)]

    def _evidence(self, image_id: str) -> str:
        if status := self._deletions.status(image_id):
            return f"image is gone: its image.delete said {status}, and Glance does not find it"
        return "image is not found, and this volume was never its location"
