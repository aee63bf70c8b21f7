"""Reservations: room for one more Image-Volume, by a target's budget and the internal project's
quota."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import structlog

from handlers import budget, image_volume, quotas, volume_status
from handlers.deletion import Deletion
from worker.core.age import age, lasts
from worker.core.cloud import Image, Quota, Volume
from worker.core.errors import Blocked, Conflict, Malformed, NotFound, Temporary
from worker.core.handler import Parts, Watch
from worker.core.outcome import Again, Skip
from worker.core.target import Target

# A place that was kept for a copy which nobody has come for, in seconds
KEPT_FOR = 3600.0
# For how many seconds an image counts for its project for which others had to go, and of which
# nothing came
WASTED_FOR = 86_400.0
# Looks at what was evicted while it is being deleted, and at the quota after it
LOOKS = 20
# Volumes that could not be looked at or deleted, before the fault is not theirs
FAILURES = 3
# For how many seconds one that its image needs is not looked at again: a project may have hundreds
NEEDED_FOR = 60.0
# For how many seconds a volume that could not be deleted is not chosen again
STUCK_FOR = 900.0
# The same for one that its image has lost all the same
LOST_FOR = 21_600.0

log = structlog.get_logger(__name__)


class Reservations:
    """Reservations on each target, so that jobs at the same time do not all take the last place."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._uses = parts.uses
        self._deletion = parts.shared(Deletion)
        self._now = parts.now
        self._coming: dict[str, dict[str, budget.Coming]] = defaultdict(dict)
        self._wasted: dict[str, dict[str, budget.Coming]] = defaultdict(dict)
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._stuck: dict[str, float] = {}
        self._lost: dict[str, float] = {}
        self._needed: dict[str, float] = {}
        self._halted: dict[str, float] = {}

    async def reserve(
        self, image: Image, target: Target, watch: Watch, *, volumes: int = 1
    ) -> None:
        """Make room for the image on the target and keep it until `release`; `volumes` is how many
        are made at once.

        Raises budget.NoRoom if the image can't have room, Blocked if the quota is used up; nothing
        is evicted then.
        """
        size = image_volume.size_on(image, target)
        coming = self._as_coming(image, target)
        failures, before = 0, dict(self._stuck)
        async with self._locks[target.name]:
            while True:
                going = await self._victims(image, target)
                freed = sum(one.size for one in going)
                quota = await self._quota(target)
                if shortage := quotas.too_large(quota, size) or quotas.shortage(
                    quota, size * volumes - freed, volumes - len(going)
                ):
                    raise Blocked(shortage)
                refused = await self._evict(going, watch, target=target, image=image)
                if refused is None:
                    break
                # Without a request to the services there is nothing that may still happen
                failures += not isinstance(refused, Skip)
                if failures >= FAILURES:
                    # Not everybody's copy for one: what was answered with an error may still happen.
                    # The next one chooses others
                    stuck = [one for one, until in self._stuck.items() if before.get(one) != until]
                    self._lost |= dict.fromkeys(stuck, self._now())
                    self._halted[target.name] = self._now()
            self._coming[target.name][image.id] = coming
        for _ in range(LOOKS if quotas.shortage(quota, size * volumes, volumes) else 0):
            await watch.changed()
            if not quotas.shortage(await self._quota(target), size * volumes, volumes):
                break

    async def _evict(
        self, going: list[budget.Held], watch: Watch, *, target: Target, image: Image
    ) -> Again | Skip | None:
        """Evict one after the other for the image; None if all are gone, else why one is not. The
        next choice leaves out what Glance or Cinder does not let go of.

        NoRoom if a volume stays although its image has lost it: then this is not done to another
        image on the target before STUCK_FOR is over.
        """
        why = f"room on {target.name} for image {image.id}"
        for one in going:
            self._check_halt(target)
            evicted = await self._deletion.evict(
                one.image_id, [one.volume], why=why, reason="budget"
            )
            if isinstance(evicted, Again | Skip):
                log.warning("image_volume_not_evicted", volume_id=one.volume.id, why=evicted.reason)
                self._stuck[one.volume.id] = self._now() + STUCK_FOR
                return evicted
            if one.owner != budget.owner_of(image):
                # Until it is there
                self._wasted[target.name][image.id] = self._as_coming(image, target)
            volume = await self._after_deletion(one.volume.id, watch)
            if volume and image_volume.may_be_location(volume):
                # With delayed deletion Glance has removed the location alone. Now Cinder is asked
                await self._deletion.evict(one.image_id, [volume], why=why, reason="budget")
                volume = await self._after_deletion(volume.id, watch)
            if volume is None:
                continue
            # Cinder has taken the request, and its driver has given the volume back
            log.warning("image_volume_handed_back", volume_id=volume.id, status=volume.status)
            if not image_volume.may_be_location(volume):
                self._stuck[volume.id] = self._now() + STUCK_FOR
                return Again(f"volume {volume.id} was handed back", after=STUCK_FOR)
            self._lost[volume.id] = self._halted[target.name] = self._now()
            self._check_halt(target)
        return None

    def _check_halt(self, target: Target) -> None:
        since = self._halted.get(target.name)
        if since is not None and age(since, self._now()) < STUCK_FOR:
            raise budget.NoRoom(
                f"target {target.name} is full, and what was to make room has not gone: no other image "
                "loses its own for a while"
            )

    async def _after_deletion(self, volume_id: str, watch: Watch) -> Volume | None:
        """Return a volume that does not go, although its deletion was asked for; else None."""
        for _ in range(LOOKS):
            volume = await self._deletion.last_copy.look(volume_id)
            if volume is None or not volume_status.is_leaving(volume):
                return volume
            await watch.changed()
        return None

    async def has_spare(self, image: Image, target: Target, *, besides: int) -> bool:
        """Whether the image has room on the target without anything being evicted; if so, it is
        kept.

        `besides` is how many Image-Volumes of it are to be made at the same time.
        """
        size = image_volume.size_on(image, target)
        quota = await self._quota(target)
        if quotas.too_large(quota, size) or quotas.shortage(
            quota, size * (1 + besides), 1 + besides
        ):
            return False
        if not target.has_budget:
            return True
        async with self._locks[target.name]:
            try:
                if await self._victims(image, target):
                    return False
            except budget.NoRoom:
                return False
            self._coming[target.name].setdefault(image.id, self._as_coming(image, target))
        return True

    def extend(self, image_id: str, target: str) -> None:
        """Extend the image's reservation: it is still on its way."""
        if kept := self._coming[target].get(image_id):
            self._coming[target][image_id] = replace(kept, since=self._now())

    def release(self, image_id: str, target: str) -> None:
        """Release the image's reservation: it is there, or not needed."""
        self._coming[target].pop(image_id, None)

    def arrived(self, image_id: str, target: str) -> None:
        """The image is there: what had to go for it has not gone in vain."""
        self._wasted[target].pop(image_id, None)

    def _as_coming(self, image: Image, target: Target) -> budget.Coming:
        return budget.Coming(
            image_volume.kept_on(image, target), self._now(), budget.owner_of(image)
        )

    async def _victims(self, image: Image, target: Target) -> list[budget.Held]:
        if not target.has_budget:
            return []
        size = image_volume.kept_on(image, target)
        # Before the look at what lies there: one that arrives meanwhile is then seen twice, not
        # missed by both
        kept = self._coming[target.name]
        for image_id in [
            one for one, coming in kept.items() if age(coming.since, self._now()) >= KEPT_FOR
        ]:
            del kept[image_id]
        coming = {image_id: one for image_id, one in kept.items() if image_id != image.id}
        self._wasted[target.name] = wasted = {
            image_id: one
            for image_id, one in self._wasted[target.name].items()
            if age(one.since, self._now()) < WASTED_FOR
        }
        there = [volume async for volume in self._cloud.list_volumes(target.name)]
        lying = budget.held(there, target, self._uses, now=self._now())
        counted = {image.id, *kept, *(one.image_id for one in lying)}
        in_vain = [one for image_id, one in wasted.items() if image_id not in counted]
        since = budget.since(image, target, self._uses)
        going = await self._able(
            lambda staying: budget.Shelf(
                target, lying, coming, staying=staying, wasted=in_vain
            ).victims(size, since=since, owner=budget.owner_of(image))
        )
        if going and not self._deletion.may_delete:
            raise budget.NoRoom(
                f"target {target.name} is full, and [reclaim] may not delete anything"
            )
        return going

    async def excess(self, target: Target) -> list[budget.Held]:
        """Return the volumes that exceed the target's budget and may be deleted."""
        there = [volume async for volume in self._cloud.list_volumes(target.name)]
        lying = budget.held(there, target, self._uses, now=self._now())
        return await self._able(
            lambda staying: budget.Shelf(target, lying, staying=staying).excess()
        )

    async def _able(self, choose: Callable[[set[str]], list[budget.Held]]) -> list[budget.Held]:
        """Repeat the choice until every chosen volume may be deleted; all are looked at before the
        first is deleted."""
        now = self._now()
        self._stuck = {one: at for one, at in self._stuck.items() if lasts(at, now, STUCK_FOR)}
        self._lost = {one: at for one, at in self._lost.items() if age(at, now) < LOST_FOR}
        self._needed = {one: at for one, at in self._needed.items() if age(at, now) < NEEDED_FOR}
        staying = {*self._stuck, *self._lost, *self._needed}
        failures = list[Exception]()
        while True:
            try:
                going = choose(staying)
            except budget.NoRoom:
                if failures:
                    raise failures[0] from None
                raise
            stays = set[str]()
            for one in going:
                try:
                    if await self._stays(one):
                        stays.add(one.volume.id)
                        self._needed[one.volume.id] = now
                except (Temporary, Blocked, Malformed) as error:
                    # A fault of this image alone keeps nobody else from room
                    log.warning(
                        "image_volume_not_looked_at", volume_id=one.volume.id, why=str(error)
                    )
                    stays.add(one.volume.id)
                    failures.append(error)
                    if len(failures) > FAILURES:
                        raise
            if not stays:
                return going
            staying |= stays

    async def _stays(self, one: budget.Held) -> bool:
        try:
            locations = await self._cloud.get_locations(one.image_id)
            image = await self._cloud.get_image(one.image_id)
            return bool(await self._deletion.keep_reason(one.volume, image, locations))
        except (NotFound, Conflict):
            # Its image is gone, and so will it be; or Glance is at work on it
            return True

    async def _quota(self, target: Target) -> Quota:
        try:
            return await self._cloud.get_quota(target.volume_type)
        except (Blocked, NotFound) as error:
            # Cinder's policy may keep it from us; then Cinder itself refuses what is too much
            log.debug("quota_unknown", error=str(error))
            return Quota()
