"""Act: make the change that the plan of an upload asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import assert_never

import structlog

from handlers.actions import AddLocation, SetMetadata, SetReadonly
from handlers.deletion import Deletion
from handlers.upload import properties
from handlers.upload.actions import Bind, Change, CreateClone, DeleteClone, KeepProperties
from handlers.upload.seen import Seen, believed, without
from worker.core.age import age, lasts
from worker.core.cloud import Cloud
from worker.core.errors import Blocked, Conflict, Temporary
from worker.core.target import Uploads

log = structlog.get_logger(__name__)

# For how long it counts which API of Glance adds locations, in seconds: it may be upgraded meanwhile
KEEP = 600.0
# Properties that Glance refuses to set one by one; then the others are not tried any more
MOST_REFUSED = 16
# Glance also answers 500 to a property that it can't store, or that its rules let us create and not
# read. That long after the image's last change, in seconds, it counts as a refusal
REFUSED_AFTER = 120.0


class Actor:
    """Makes changes, and reads again what they may have affected."""

    def __init__(
        self, *, cloud: Cloud, rules: Uploads, deletion: Deletion, now: Callable[[], float]
    ) -> None:
        self._cloud = cloud
        self._rules = rules
        self._deletion = deletion
        self._now = now
        self._imports_locations = False
        self._asked_until = 0.0

    async def act(self, change: Change, seen: Seen) -> Seen:
        """Make one change, and add what came of it to what was seen."""
        match change:
            case Bind():
                return await self._bind(change, seen)
            case KeepProperties():
                return await self._keep(change, seen)
            case CreateClone():
                return await self._create(change, seen)
            case DeleteClone():
                return await self._delete(change, seen)
            case SetMetadata(volume_id, metadata, drop):
                await self._cloud.set_metadata(volume_id, metadata, drop=drop)
                return believed(volume_id, change.written, seen)
            case SetReadonly(volume_id):
                await self._cloud.set_readonly(volume_id)
                return believed(volume_id, change.written, seen)
            case AddLocation(url):
                return await self._add_location(url, seen)
            case never:
                assert_never(never)

    async def _create(self, change: CreateClone, seen: Seen) -> Seen:
        new, bind = change.new, change.bind
        making = self._cloud.create_volume(new)
        if bind:
            clone, seen = await asyncio.gather(making, self._bind(bind, seen))
        else:
            clone = await making
        log.info("clone_creating", volume_id=clone.id, source_volid=new.source_volid, size=new.size)
        return replace(
            seen,
            clones=(*(seen.clones or ()), clone),
            made=seen.made | {clone.id},
            asked_at=self._now(),
            sure=False,
        )

    async def _delete(self, change: DeleteClone, seen: Seen) -> Seen:
        other = (
            "the image has other data"
            if seen.image.status == "active"
            else "the property has changed"
        )
        clone = next(clone for clone in seen.clones or () if clone.id == change.volume_id)
        try:
            await self._deletion.discard(seen.image.id, clone, why=change.because or other)
        except Blocked as error:
            if seen.image.status != "active" or self._deletion.may_delete:
                raise
            # The image has its data, and `[reclaim]` lets nothing be deleted
            log.info("clone_stays", volume_id=clone.id, why=str(error))
        return replace(without(clone.id, seen), failed=change.because or seen.failed, sure=False)

    async def _bind(self, bind: Bind, seen: Seen) -> Seen:
        return (await self._set({self._rules.source_property: bind.value}, seen))[0]

    async def _keep(self, change: KeepProperties, seen: Seen) -> Seen:
        """Set properties that an image keeps. If Glance refuses one of them alone, the upload goes
        on without it."""
        tried = dict(sorted(change.properties.items())[: change.at_once])
        bound = {self._rules.source_property: change.bind.value} if change.bind else {}
        try:
            seen, done = await self._set({**tried, **bound}, seen)
        except (Blocked, Temporary) as error:
            refused = isinstance(error, Blocked | Conflict)
            if not refused and age(seen.image.updated_epoch, seen.now) < REFUSED_AFTER:
                raise
            # One of them may have cost the others
            seen = replace(seen, refusal=str(error), at_once=max(1, len(tried) // 2))
            if len(tried) == 1:
                left_out = {*seen.refused, *tried}
                if len(left_out) >= MOST_REFUSED:
                    left_out |= set(change.properties)
                seen = replace(seen, refused=frozenset(left_out), offered=seen.offered | left_out)
            # Without the right to bind it, none to set the others
            return await self._bind(change.bind, seen) if change.bind else seen
        if not done:
            return seen
        log.info("properties_kept", names=sorted(tried))
        more = None if change.at_once is None else change.at_once * 2
        # Never offered again: this has to end even if Glance does not show them
        return replace(seen, offered=seen.offered | set(tried), at_once=more)

    async def _set(self, values: Mapping[str, str], seen: Seen) -> tuple[Seen, bool]:
        """Set properties of an image that was left alone for long enough, and say whether that was
        done."""
        image, done = await properties.change(self._cloud, seen.image, values)
        bound = all(image.properties.get(name) == value for name, value in values.items())
        ours = bool(seen.bound_at) and seen.image.updated_at == seen.bound_at
        expected = replace(
            seen.image,
            properties={**seen.image.properties, **values},
            updated_at=image.updated_at,
            updated_epoch=image.updated_epoch,
        )
        touched = seen.image.updated_epoch > seen.image.created_epoch and not ours
        changed = seen.changed or touched or image != expected
        bound_at = image.updated_at if bound else seen.bound_at
        return replace(seen, image=image, now=self._now(), changed=changed, bound_at=bound_at), done

    async def _add_location(self, url: str, seen: Seen) -> Seen:
        if seen.refused:
            log.warning("properties_refused", names=sorted(seen.refused), error=seen.refusal)
        new = await self._uses_new_api()
        add = self._cloud.import_location if new else self._cloud.add_location
        try:
            await add(seen.image.id, url)
        except (Blocked, Conflict) as error:
            # It may have been asked of a Glance of another release
            self._asked_until = 0.0
            log.info("location_refused", url=url, why=str(error))
            if isinstance(error, Conflict) and seen.image.import_locked:
                return replace(seen, lock_refused=True)
            raise
        log.info("location_added", url=url, location_api="new" if new else "old")
        # The new API has begun a task, and Glance's lock lies on the image
        image = (
            replace(seen.image, import_locked=True)
            if new
            else await self._cloud.get_image(seen.image.id)
        )
        return replace(seen, image=image, asked=url, tasks=None)

    async def _uses_new_api(self) -> bool:
        """Whether locations are added by Glance's new API, which adds them in a task."""
        if self._rules.location_api != "auto":
            return self._rules.location_api == "new"
        if not lasts(self._asked_until, self._now(), KEEP):
            self._imports_locations = await self._cloud.imports_locations()
            self._asked_until = self._now() + KEEP
        return self._imports_locations
