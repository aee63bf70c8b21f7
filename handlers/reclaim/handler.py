"""Reclaim as a handler: its keys, its reconciler, and its answers to resync and `reclaim`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import structlog

from handlers import ROUTES, marks, policy, volume_status
from handlers.deletion import Deletion, Gone, NotProven, Unwanted, report_stuck
from handlers.reclaim.left_over import is_abandoned, left_of_imports
from handlers.reclaim.listed import Listed, left_out
from handlers.reservations import Reservations
from handlers.serving import served
from handlers.target_store import TargetStores
from worker.core import absence
from worker.core.cloud import Image, Location, Volume
from worker.core.errors import Blocked, Conflict, NotFound
from worker.core.handler import Missing, Parts, Watch
from worker.core.job import Key
from worker.core.notification import Notification
from worker.core.outcome import Again, Done, Outcome, Skip

log = structlog.get_logger(__name__)


class Reclaim:
    """Deletes Image-Volumes in the internal project: all of deleted images, and those of other
    images that prewarm has made."""

    name = "reclaim"
    event_types = ROUTES["reclaim"]

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._policy = parts.policy
        self._deletion = parts.shared(Deletion)
        self._gone = parts.shared(Gone)
        self._unwanted = parts.shared(Unwanted)
        self._deletions = parts.deletions
        self._stores = parts.shared(TargetStores)
        self._reservations = parts.shared(Reservations)
        self._now = parts.now
        self._learned = parts.learned
        self._listed = Listed(parts)

    def keys(self, notification: Notification) -> Iterable[Key]:
        """One key for the image."""
        return (Key(self.name, notification.image_id),) if notification.image_id else ()

    def lanes(self) -> Mapping[str, int]:
        """One lane; deleting is quick and delays nobody."""
        return {self.name: 8}

    async def reconcile(self, key: Key, watch: Watch) -> Outcome:
        """Delete what is not needed; all of it only once the image is proven to be gone."""
        try:
            image = await self._gone.find_image(key.image_id)
        except NotFound:
            return await self._gone.release(key.image_id, watch)
        kept = await self._gone.left_of(key.image_id)
        back = await self._deletion.proof.withdraw(kept)
        await self._report_stuck(
            [volume for volume in kept if volume_status.is_stuck(volume)], image
        )
        left = [volume for volume in kept if is_abandoned(volume, self._now())]
        for volume in tuple(left):
            if reason := await self._deletion.needed_reason(image.id, volume):
                log.warning("throw_away_volume_stays", volume_id=volume.id, why=reason)
                left.remove(volume)
        if left:
            return await self._deletion.delete(
                left, watch, why="nobody uses it any more", reason="left-over"
            )
        if left := await self._left_of_imports(image, kept):
            why = (
                "an import of Glance's has left it behind: the import has ended, and the volume is "
                "no location of the image"
            )
            return await self._deletion.delete(left, watch, why=why, reason="left-over")
        outcome = await self._evict(image, kept)
        return (
            Done("the image is back", changed=True)
            if back and isinstance(outcome, Skip)
            else outcome
        )

    async def confirm(self, image_id: str, watch: Watch) -> Outcome:
        """Delete what was kept for an image in spite of the brake, after an operator has looked."""
        return await self._gone.release(image_id, watch, confirmed=True)

    async def bare_locations(self, image: Image, volumes: Iterable[Volume]) -> list[Location]:
        """The image's locations whose volumes Cinder does not find, where none of its listed
        `volumes` lies.

        As of `prepare`; at most one call if there is none.
        """
        bare = self._listed.bare(image, volumes)
        return await self._deletion.bare_locations(image, bare) if bare else []

    async def confirm_location(self, image_id: str, location: Location) -> str:
        """Remove a location whose volume is gone, after an operator has looked; the reason if it
        stays, else ""."""
        try:
            await self._deletion.remove_location(
                image_id, location.store, location.volume_id, confirmed=True
            )
        except (Blocked, Conflict, NotFound, NotProven) as error:
            return str(error)
        return ""

    def kept_because(self, volume: Volume) -> str:
        """Return why a volume of an image that is not found is kept, as of `prepare`."""
        return self._deletion.proof.kept_because(volume)

    async def _report_stuck(self, volumes: list[Volume], image: Image) -> None:
        """Log the volumes that Cinder does not delete, each with the command that fits."""
        if not volumes:
            return
        locations = await self._cloud.get_locations(image.id)
        located = None if locations is None else {location.volume_id for location in locations}
        for volume in volumes:
            # A queued image has no location
            report_stuck(
                volume,
                located=volume.id in located if located is not None else image.status != "queued",
            )

    async def _left_of_imports(self, image: Image, kept: list[Volume]) -> list[Volume]:
        """Return what imports have left behind and may be deleted; log what has to stay."""
        now = self._now()
        left = await left_of_imports(
            self._cloud, self._stores, image, kept, last_copy=self._deletion.last_copy, now=now
        )
        may_go = list[Volume]()
        for volume, stays in left:
            if stays:
                log.warning("left_over_stays", volume_id=volume.id, size=volume.size, why=stays)
            elif not volume_status.may_be_deleted(volume, now):
                report_stuck(volume, located=False)
            else:
                may_go.append(volume)
        return may_go

    async def _evict(self, image: Image, kept: Iterable[Volume]) -> Outcome:
        """Delete what prewarm has made where the image is not wanted, or where it takes too much
        room."""
        done: list[Outcome] = []
        for resolved in await self._stores.all():
            target = served(image, resolved, self._learned, now=self._now())
            if image.status == "active":
                if why := policy.refusal(image, target, self._policy):
                    done.append(await self._unwanted.delete(image, target, why=why))
                    continue
                if outside := [one for one in kept if marks.is_outside(one, image, target)]:
                    done.append(
                        await self._deletion.evict(
                            image.id, outside, why=left_out(target), reason="unwanted"
                        )
                    )
            # This image's own volume may have to stay, and then others' go
            if target.has_budget:
                why = f"the budget of target {target.name} is used up"
                excess = await self._reservations.excess(target)
                done += [
                    await self._deletion.evict(one.image_id, [one.volume], why=why, reason="budget")
                    for one in excess
                ]
        again = [one for one in done if isinstance(one, Again)]
        skipped = [one.reason for one in done if isinstance(one, Skip)]
        if again:
            return again[0]
        if any(isinstance(one, Done) for one in done):
            return Done("what was not needed was deleted", changed=True)
        return Skip(
            "; ".join(dict.fromkeys(skipped))
            or "the image is there, and what is kept for it is wanted"
        )

    async def prepare(self, volumes: Mapping[str, tuple[Volume, ...]]) -> None:
        """Find the volumes that exceed budgets, and set the brake.

        Prewarm's turn, which comes first, has read stores and types afresh.
        """
        resolved = await self._stores.all()
        notes: list[absence.Absence] = []
        for number, own in enumerate(volumes.values()):
            notes += map(self._deletion.brake.note_of, own)
            for volume in own:
                self._deletions.found_volume(volume.id)
            if number % 1000 == 0:
                # This takes time: let other tasks run in between
                await asyncio.sleep(0)
        self._deletion.brake.count(notes)
        await self._listed.prepare(resolved, volumes)

    def incomplete(
        self, image_id: str, image: Image | None, volumes: tuple[Volume, ...]
    ) -> Iterable[Missing]:
        """An image with Image-Volumes that is not listed, or that need not have them; `reconcile`
        makes sure."""
        if why := self._listed.lack(image, volumes):
            yield Missing(Key(self.name, image_id), why)
