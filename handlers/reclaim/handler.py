"""Reclaim: what was kept for an image goes when the image is gone, is not wanted any more, or takes
too much room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping

import structlog

from handlers import ROUTES, budget, image_volume, policy
from handlers.deletion import Deletion, NotProven, report_stuck
from handlers.deletion.marks import is_ours
from handlers.reservations import Reservations
from handlers.serving import served
from handlers.target_store import TargetStores
from handlers.upload.sources import UNDER_WAY
from worker.core import absence
from worker.core.cloud import Image, Location, Volume
from worker.core.errors import Blocked, Conflict, NotFound
from worker.core.handler import Missing, Parts, Watch
from worker.core.job import Key
from worker.core.notification import Notification
from worker.core.outcome import Again, Done, Outcome, Skip
from worker.core.target import Target

log = structlog.get_logger(__name__)

# Making a volume of a large image takes its time; in seconds
ABANDONED_AFTER = 21_600.0


class Reclaim:
    """Deletes Image-Volumes in the internal project: of deleted images all, of others what
    pre-warming has made."""

    name = "reclaim"
    event_types = ROUTES["reclaim"]

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._policy = parts.policy
        self._targets = {target.name: target for target in parts.targets}
        self._deletion = Deletion(parts)
        self._deletions = parts.deletions
        self._stores = TargetStores(parts)
        self._reservations = Reservations(parts)
        self._uses = parts.uses
        self._now = parts.now
        self._learned = parts.learned
        self._too_much: frozenset[str] = frozenset()
        self._resolved: tuple[Target, ...] = ()

    def _served(self, image: Image, target: Target) -> Target:
        """The target as it serves this image."""
        return served(image, target, self._learned, now=self._now())

    def keys(self, notification: Notification) -> Iterable[Key]:
        """One key for the image."""
        return (Key(self.name, notification.image_id),) if notification.image_id else ()

    def lanes(self) -> Mapping[str, int]:
        """One lane; deleting is quick and hurts nobody."""
        return {self.name: 8}

    async def reconcile(self, key: Key, watch: Watch) -> Outcome:
        """Delete what is not needed; all of it only once the image is proven to be gone."""
        try:
            image = await self._cloud.get_image(key.image_id)
        except NotFound:
            return await self._deletion.release(key.image_id, watch)
        kept = await self._deletion.left_of(key.image_id)
        back = await self._deletion.proof.withdraw(key.image_id, kept)
        await self._report_stuck(
            [volume for volume in kept if image_volume.is_stuck(volume)], image
        )
        if left := [volume for volume in kept if self._is_abandoned(volume)]:
            return await self._deletion.delete(
                left, watch, why="nobody uses it any more", reason="left-over"
            )
        if left := await self._left_of_imports(image, kept):
            free = [volume for volume in left if image_volume.may_be_deleted(volume, self._now())]
            for volume in left:
                if volume not in free:
                    report_stuck(volume, located=False)
            if free:
                why = (
                    "an import of Glance's has left it behind: its task has ended, and no "
                    "location names it"
                )
                return await self._deletion.delete(free, watch, why=why, reason="left-over")
        outcome = await self._evict(image, kept)
        return (
            Done("the image is back", changed=True)
            if back and isinstance(outcome, Skip)
            else outcome
        )

    async def confirm(self, image_id: str, watch: Watch) -> Outcome:
        """Delete what is proven to be gone although the brake holds it: an operator has looked."""
        return await self._deletion.release(image_id, watch, confirmed=True)

    async def bare_locations(self, image: Image, volumes: Iterable[Volume]) -> list[Location]:
        """The image's locations whose volumes Cinder does not find, where none of its listed
        `volumes` lies.

        As of `prepare`; at most one call if there is none.
        """
        on = list(volumes)
        bare = [
            target
            for target in self._resolved
            if target.glance_store in (image.stores or ())
            and not any(image_volume.is_on(one, target) for one in on)
        ]
        return await self._deletion.bare_locations(image, bare) if bare else []

    async def confirm_location(self, image_id: str, location: Location) -> str:
        """Remove a location whose volume is gone: an operator has looked. Why it stays, "" if it
        was removed."""
        try:
            await self._deletion.remove_location(
                image_id, location.store, location.volume_id, confirmed=True
            )
        except (Blocked, Conflict, NotFound, NotProven) as error:
            return str(error)
        return ""

    def kept_because(self, volume: Volume) -> str:
        """Why a volume of an image that is not found is kept, as of `prepare`."""
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

    async def _left_of_imports(self, image: Image, volumes: list[Volume]) -> list[Volume]:
        """The volumes that imports of Glance's have left behind on our targets."""
        left = [volume for volume in volumes if image_volume.is_left_of_import(volume, image)]
        if not left:
            return []
        stored = [target for target in await self._stores.all() if target.strategy != "cache"]
        try:
            tasks = await self._cloud.list_tasks(image.id)
        except (Blocked, NotFound):
            # Whether the import is over is not known then
            return []
        if any(task.status in UNDER_WAY for task in tasks):
            return []
        locations = await self._cloud.get_locations(image.id)
        # The import may have begun, or the deletion of the image, since it was read
        again = await self._cloud.get_image(image.id)
        if locations is None or again.status != "active" or again.import_locked:
            return []
        located = {location.volume_id for location in locations}
        return [
            volume
            for volume in left
            if volume.id not in located
            and any(image_volume.is_on(volume, target) for target in stored)
        ]

    async def _evict(self, image: Image, kept: Iterable[Volume]) -> Outcome:
        """Have go what pre-warming has put where the image is not wanted, or where it takes too
        much room."""
        done: list[Outcome] = []
        for resolved in await self._stores.all() if image.status == "active" else ():
            target = self._served(image, resolved)
            if why := policy.refusal(image, target, self._policy):
                done.append(await self._deletion.delete_unwanted(image, target, why=why))
                continue
            if outside := [
                volume for volume in kept if image_volume.is_outside(volume, image, target)
            ]:
                done.append(
                    await self._deletion.evict(
                        image.id, outside, why=_left_out(target), reason="unwanted"
                    )
                )
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

    def _is_abandoned(self, volume: Volume) -> bool:
        """Whether a throw-away volume has outlived whoever made it."""
        old = self._now() - volume.created_epoch > ABANDONED_AFTER
        return image_volume.is_throw_away(volume) and old and not image_volume.is_leaving(volume)

    async def prepare(self, volumes: Mapping[str, tuple[Volume, ...]]) -> None:
        """Read Glance's stores; find out what is too much on targets with a budget, and whether the
        brake holds."""
        self._resolved = await self._stores.all(afresh=True)
        notes: list[absence.Absence] = []
        for number, own in enumerate(volumes.values()):
            notes += map(absence.absence_of, own)
            for volume in own:
                self._deletions.found_volume(volume.id)
            if number % 1000 == 0:
                # To look at them takes time, and others have their turn in between
                await asyncio.sleep(0)
        self._deletion.brake.count(notes)
        excess: set[str] = set()
        lying = await budget.lying(volumes, self._resolved, self._uses)
        for target in self._resolved:
            if target.name in lying:
                excess |= {
                    one.volume.id for one in budget.Shelf(target, lying[target.name]).excess()
                }
        self._too_much = frozenset(excess)

    def incomplete(
        self, image_id: str, image: Image | None, volumes: tuple[Volume, ...]
    ) -> Iterable[Missing]:
        """An image with Image-Volumes that is not listed, or that need not have them; `reconcile`
        makes sure."""
        staying = [volume for volume in volumes if volume.status != "deleting"]
        if image is None:
            if staying:
                yield Missing(
                    Key(self.name, image_id),
                    f"image is not found: {_text(staying)}{_noted(staying)}",
                )
            return
        if any(absence.absence_of(volume).is_noted for volume in staying):
            yield Missing(
                Key(self.name, image_id), f"the image is back: {_text(staying)}{_noted(staying)}"
            )
        elif why := "; ".join(self._not_needed(image, staying)):
            yield Missing(Key(self.name, image_id), why)

    def _not_needed(self, image: Image, volumes: list[Volume]) -> Iterator[str]:
        targets = (
            [self._served(image, target) for target in self._resolved]
            if image.status == "active"
            else []
        )
        for target in targets:
            bare = target.glance_store in (image.stores or ()) and not any(
                image_volume.is_on(volume, target) for volume in volumes
            )
            if bare and (refusal := policy.refusal(image, target, self._policy)):
                yield (
                    f"not wanted on {target.name} any more, {refusal}: no volume for its "
                    f"location there"
                )
        for volume in volumes:
            if image_volume.is_stuck(volume):
                if is_ours(volume, self._targets):
                    yield (
                        f"Cinder does not delete it, see volume_stuck in the log: "
                        f"{_text([volume])}, {volume.status}"
                    )
                continue
            if volume.name == image_volume.warming_name_of(image.id):
                if self._is_abandoned(volume):
                    yield f"a throw-away volume was left behind: {_text([volume])}"
                continue
            if self._looks_left(volume, image, volumes):
                advice = image_volume.stuck_advice(volume, located=False)
                stuck = "" if image_volume.may_be_deleted(volume, self._now()) else f", {advice}"
                yield f"an import of Glance's has left it behind: {_text([volume])}{stuck}"
                continue
            for target in targets:
                if not image_volume.may_go(volume, image, target):
                    continue
                if refusal := policy.refusal(image, target, self._policy):
                    only = image.stores == frozenset({target.glance_store})
                    unless = ", unless it is the image's only copy" if only else ""
                    yield (
                        f"not wanted on {target.name} any more, {refusal}: "
                        f"{_text([volume])}{unless}"
                    )
                elif image_volume.is_outside(volume, image, target):
                    yield f"{_left_out(target)}: {_text([volume])}"
                elif volume.id in self._too_much:
                    yield f"the budget of target {target.name} is used up: {_text([volume])}"

    def _looks_left(self, volume: Volume, image: Image, volumes: list[Volume]) -> bool:
        """Whether an import may have left it behind; a bulk listing shows no locations, but another
        one that serves."""
        return image_volume.is_left_of_import(volume, image) and any(
            target.strategy != "cache"
            and image_volume.is_on(volume, target)
            and any(
                image_volume.is_ours(other, target) and image_volume.is_usable(other)
                for other in volumes
            )
            for target in self._resolved
        )


def _left_out(target: Target) -> str:
    return f"[target:{target.name}] leaves its pool out"


def _text(volumes: Iterable[Volume]) -> str:
    return ", ".join(f"volume {volume.id} of {volume.size} GiB" for volume in volumes)


def _noted(volumes: Iterable[Volume]) -> str:
    notes = {str(noted) for volume in volumes if (noted := absence.absence_of(volume)).is_noted}
    return f" ({'; '.join(sorted(notes))})" if notes else ""
