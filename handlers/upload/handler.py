"""Upload: a queued image whose data is to be a volume becomes active by a clone of it, without
copying data."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import assert_never

import structlog

from handlers import ROUTES, actions, image_volume
from handlers.age import age
from handlers.deletion import Deletion
from handlers.target_store import TargetStores
from handlers.upload import plan as completion
from handlers.upload.plan import Action, Finish, Seen
from worker.core.cloud import Image, Store, Volume
from worker.core.errors import Blocked, Conflict, NotFound, Temporary
from worker.core.handler import Missing, Parts, Watch
from worker.core.job import Key
from worker.core.notification import Notification
from worker.core.outcome import Again, Done, Outcome
from worker.core.target import UPLOAD

log = structlog.get_logger(__name__)

# Uploads worked on at once; each is a few requests and a clone
WIDTH = 8
# Looks at an active image until Glance lets go of it and its owner can be told; a resync tells what
# is left
TELL_LOOKS = 10
# Of an image older than Glance's memory of its tasks nobody knows what it was to become, in seconds
REMEMBERED = completion.TASKS_KEPT
# Sending the data of an image takes no longer, as a rule, in seconds
SAVING_LONG = 3600.0
# Properties that Glance refuses to set one by one; then the others are not tried any more
MOST_REFUSED = 16
# Glance also answers 500 to a property that it can't store, or that its rules let us create and not
# read: so long after the image's last change that counts as a refusal, in seconds
REFUSED_AFTER = 120.0


class Upload:
    """Reconciles an image."""

    name = "upload"
    event_types = ROUTES["upload"]

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.urgent
        # A wish about the earlier image is none about this one
        reserved = (*parts.uploads.reserved_image_namespaces, parts.policy.property)
        self._rules = replace(parts.uploads, reserved_image_namespaces=reserved)
        self._targets = parts.targets
        self._now = parts.now
        self._report = parts.report
        self._deletion = Deletion(replace(parts, cloud=parts.urgent))
        self._stores = TargetStores(replace(parts, cloud=parts.urgent))
        self._known: tuple[Store, ...] = ()
        self._imports_locations: bool | None = None

    def keys(self, notification: Notification) -> Iterable[Key]:
        """The image, if it is queued or asks for a volume's data, or if a clone was made for it."""
        if notification.event_type.startswith("image."):
            concerned = (
                notification.status == "queued"
                or self._rules.source_property in notification.properties
            )
        else:
            # Of what claims its image from the start only our own clones are those of uploads
            concerned = notification.target == UPLOAD or not notification.claimed
        return (
            (Key(self.name, notification.image_id),) if notification.image_id and concerned else ()
        )

    def lanes(self) -> Mapping[str, int]:
        """One lane, which nothing else shares."""
        return {self.name: WIDTH}

    async def reconcile(self, key: Key, watch: Watch) -> Outcome:
        """Look, plan, act, until the image is active or the plan says why not."""
        seen: Seen | None = None
        try:
            seen = Seen(image=await self._cloud.get_image(key.image_id), now=self._now())
            if seen.image.status == "queued":
                seen = replace(seen, stores=await self._stores.stores())
            try:
                while not isinstance(
                    action := completion.plan(seen, self._rules, self._targets), Finish
                ):
                    watch.tell(actions.words(action))
                    seen = await self._act(action, seen, watch)
            except Blocked as error:
                # Its property may have been bound in the same breath
                image = await self._cloud.get_image(key.image_id)
                after = await self._tell("waiting: the cloud's operator has to act", image, watch)
                if after > 0:
                    return Again(str(error), after=after, counted=False, wake_on_notification=True)
                raise
        except NotFound:
            return await self._gone(key.image_id, watch, _unlocated(seen))
        if action.tell or not isinstance(action.outcome, Again):
            after = await self._tell(action.tell, seen.image, watch)
            if after > 0:
                reason = getattr(action.outcome, "reason", action.tell)
                return Again(
                    f"{reason}; its owner is told in a moment",
                    after=after,
                    counted=False,
                    wake_on_notification=True,
                )
        if seen.asked and isinstance(action.outcome, Done):
            path = self._path(seen)
            self._report.upload_completed(path)
            if path == "stranded" and seen.source:
                # Cinder made it in the owner's project, and the owner's it is
                log.info(
                    "volume_left_to_owner",
                    volume_id=seen.source.id,
                    project_id=seen.source.project_id,
                )
            return replace(action.outcome, changed=True)
        return action.outcome

    async def prepare(self, volumes: Mapping[str, tuple[Volume, ...]]) -> None:  # noqa: ARG002  not its concern
        """Read Glance's stores."""
        self._known = await self._stores.stores()

    def incomplete(
        self, image_id: str, image: Image | None, volumes: tuple[Volume, ...]
    ) -> Iterable[Missing]:
        """An image that waits for a volume's data, or has clones that need not be its data. Pure
        but for the clock."""
        if image and (why := self._lacks(image, clones_of(image, volumes))):
            yield Missing(Key(self.name, image_id), why)

    def _lacks(self, image: Image, clones: tuple[Volume, ...]) -> str:
        if image.status == "active":
            stores = {
                completion.store_of(clone.volume_type, self._known, self._targets)
                for clone in clones
            }
            known = stores if image.stores is None else image.stores
            if len(clones) > 1 or not stores <= known:
                return "a clone that is none of its locations"
            status = image.properties.get(self._rules.status_property, "")
            told = completion.source_named(image, self._rules) and status not in (
                "",
                completion.DATA_UPLOADED,
            )
            unbound = completion.binding(image, self._rules)
            return "active, and its properties say that it is not" if told or unbound else ""
        if image.status == "saving" and self._rules.source_property in image.properties:
            minutes = completion.saving_for(image, self._now()) / 60
            return (
                f"saving for {minutes:.0f} minutes: see explain"
                if minutes * 60 > SAVING_LONG
                else ""
            )
        if image.status != "queued":
            return ""
        if completion.source_named(image, self._rules):
            answered = image.properties.get(self._rules.status_property, "")
            return "queued, and a property names its source volume" + (
                f"; {answered}" if answered else ""
            )
        if clones:
            return "queued, and its clone is there"
        age = self._now() - image.created_epoch
        if image_volume.is_raw(image) and self._rules.grace < age < REMEMBERED:
            return "queued, and Cinder's upload may have failed"
        return ""

    async def _gone(self, image_id: str, watch: Watch, unlocated: Iterable[str]) -> Outcome:
        """Look what was not found; if it was the image, delete what may be deleted of it.

        `unlocated` are clones of ours that the image cannot have had as its location.
        """
        try:
            await self._cloud.get_image(image_id)
        except NotFound:
            return await self._deletion.release(image_id, watch, unlocated=unlocated)
        return Again("something went while it was looked at")

    async def _tell(self, text: str, image: Image, watch: Watch) -> float:
        """Let the image's owner know by a property, if one asked for the upload by property.

        Returns after how many seconds to come again, 0 for not at all: an image that somebody may
        be about to send data for is not touched. Glance's task goes on for a moment after the image
        is active, and writes the whole image at its end: that is waited for.
        """
        status, looks = image.status, 0
        try:
            # Of an image whose status has changed something else is to be told
            while (
                image.status == status and self._has_to_be_told(image, text) and looks < TELL_LOOKS
            ):
                if not image.import_locked:
                    if (
                        wait := completion.wait_to_change(
                            image, self._rules.tell_after, self._now()
                        )
                    ) > 0:
                        return wait
                    image, _ = await self._change(image, {self._rules.status_property: text})
                    if status == "queued":
                        # If it was not changed, somebody is at work on it: that makes notifications
                        return 0.0
                if self._has_to_be_told(image, text):
                    looks += 1
                    await watch.changed()
                    image = await self._cloud.get_image(image.id)
        except (Temporary, Blocked, NotFound) as error:
            # It is a courtesy: an image that is protected, or gone, is none the worse without it
            log.info("owner_not_told", text=text, error=str(error))
        return 0.0

    def _has_to_be_told(self, image: Image, text: str) -> bool:
        """Whether the property is to be changed, now or as soon as Glance lets go of an image that
        is active."""
        name, asked = self._rules.status_property, self._rules.source_property in image.properties
        able = image.status == "active" or (image.status == "queued" and not image.import_locked)
        return bool(name) and asked and able and text != image.properties.get(name, "")

    async def _change(self, image: Image, properties: Mapping[str, str]) -> tuple[Image, bool]:
        """Change properties of an image that is still as it was; the image as it is then, and
        whether it was changed.

        Glance's PATCH writes back the status that it has read: what happens to the image meanwhile
        is undone.
        """
        fresh = await self._cloud.get_image(image.id)
        if (fresh.status, fresh.import_locked, fresh.updated_at) != (
            image.status,
            False,
            image.updated_at,
        ):
            return fresh, False
        await self._cloud.set_properties(image.id, properties)
        after = await self._cloud.get_image(image.id)
        if image.status == "queued" and after.status != "queued":
            advice = (
                "if it stays saving: nobody but its owner can mend it, by deleting it and "
                "making it anew"
            )
            log.warning("image_changed_during_upload", status=after.status, advice=advice)
        return after, True

    def _path(self, seen: Seen) -> str:
        """How the image came by its data: asked for by property, Cinder's upload finished, or begun
        again."""
        if completion.source_named(seen.image, self._rules):
            return "property"
        return (
            "stranded"
            if all(completion.is_ours(clone) for clone in seen.clones or ())
            else "cinder"
        )

    async def _act(self, action: Action, seen: Seen, watch: Watch) -> Seen:
        """Do one action and read again what it may have changed."""
        cloud, image_id = self._cloud, seen.image.id
        match action:
            case completion.LookAtClones(source_volid):
                looking = self._look_at_source(source_volid, seen) if source_volid else _same(seen)
                found, seen = await asyncio.gather(
                    cloud.find_volumes(image_volume.name_of(image_id)), looking
                )
                return replace(seen, clones=clones_of(seen.image, found))
            case completion.LookAtSource(volume_id):
                return await self._look_at_source(volume_id, seen)
            case completion.LookAtTasks():
                return replace(seen, tasks=await cloud.list_tasks(image_id))
            case actions.LookAtLocations():
                locations = await cloud.get_locations(image_id)
                return replace(seen, locations=locations, hidden=locations is None)
            case completion.LookAgain(volume_id):
                return await self._look_again(volume_id, seen)
            case completion.Bind():
                return await self._bind(action, seen)
            case completion.KeepProperties():
                return await self._keep(action, seen)
            case completion.CreateClone(new, bind):
                clone, seen = await asyncio.gather(
                    cloud.create_volume(new), self._bind(bind, seen) if bind else _same(seen)
                )
                log.info(
                    "clone_creating",
                    volume_id=clone.id,
                    source_volid=new.source_volid,
                    size=new.size,
                )
                return replace(seen, clones=(*(seen.clones or ()), clone), sure=False)
            case completion.DeleteClone(volume_id, because):
                other = (
                    "the image has other data"
                    if seen.image.status == "active"
                    else "the property has changed"
                )
                clone = next(clone for clone in seen.clones or () if clone.id == volume_id)
                await self._deletion.discard(image_id, clone, why=because or other)
                return replace(_without(volume_id, seen), failed=because or seen.failed, sure=False)
            case actions.SetMetadata(volume_id, metadata):
                await cloud.set_metadata(volume_id, metadata)
                return _believed(volume_id, metadata, seen)
            case actions.SetReadonly(volume_id):
                await cloud.set_readonly(volume_id)
                return _believed(volume_id, {"readonly": "True"}, seen)
            case actions.AddLocation(url):
                if seen.refused:
                    log.warning(
                        "properties_refused", names=sorted(seen.refused), error=seen.refusal
                    )
                if await self._add_location(image_id, url):
                    # Its task has begun, and Glance's lock lies on the image
                    image = replace(seen.image, import_locked=True)
                else:
                    image = await cloud.get_image(image_id)
                return replace(seen, image=image, asked=url, tasks=None)
            case completion.AwaitClone(volume_id, source_volid):
                await watch.changed()
                seen, again = await asyncio.gather(
                    self._look_at_clone(volume_id, seen), self._look_again(source_volid, seen)
                )
                return replace(again, clones=seen.clones)
            case actions.AwaitImage():
                await watch.changed()
                return replace(
                    seen, image=await cloud.get_image(image_id), now=self._now(), tasks=None
                )
            case Finish():
                return seen
            case never:
                assert_never(never)

    async def _bind(self, bind: completion.Bind, seen: Seen) -> Seen:
        return (await self._set({self._rules.source_property: bind.value}, seen))[0]

    async def _keep(self, action: completion.KeepProperties, seen: Seen) -> Seen:
        """Set properties that an image keeps. What Glance refuses to set alone is left out; the
        upload goes on."""
        tried = dict(sorted(action.properties.items())[: action.at_once])
        bound = {self._rules.source_property: action.bind.value} if action.bind else {}
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
                    left_out |= set(action.properties)
                seen = replace(seen, refused=frozenset(left_out), offered=seen.offered | left_out)
            # Without the right to bind it, none to set the others
            return await self._bind(action.bind, seen) if action.bind else seen
        if not done:
            return seen
        log.info("properties_kept", names=sorted(tried))
        more = None if action.at_once is None else action.at_once * 2
        # Never offered again: this has to end even if Glance does not show them
        return replace(seen, offered=seen.offered | set(tried), at_once=more)

    async def _set(self, properties: Mapping[str, str], seen: Seen) -> tuple[Seen, bool]:
        """Set properties of an image that was left alone for long enough, and say whether that was
        done."""
        image, done = await self._change(seen.image, properties)
        bound = all(image.properties.get(name) == value for name, value in properties.items())
        ours = bool(seen.bound_at) and seen.image.updated_at == seen.bound_at
        expected = replace(
            seen.image,
            properties={**seen.image.properties, **properties},
            updated_at=image.updated_at,
            updated_epoch=image.updated_epoch,
        )
        touched = seen.image.updated_epoch > seen.image.created_epoch and not ours
        changed = seen.changed or touched or image != expected
        bound_at = image.updated_at if bound else seen.bound_at
        return replace(seen, image=image, now=self._now(), changed=changed, bound_at=bound_at), done

    async def _look_at_source(self, volume_id: str, seen: Seen) -> Seen:
        try:
            return replace(seen, source=await self._cloud.get_volume(volume_id))
        except NotFound:
            return replace(seen, source=None, missing=seen.missing | {volume_id})

    async def _look_again(self, source_volid: str, seen: Seen) -> Seen:
        image, again = await asyncio.gather(
            self._cloud.get_image(seen.image.id),
            self._look_at_source(source_volid, replace(seen, source=None)),
        )
        # Its times are whole seconds: that it is being changed shows in what is read sooner
        changed = seen.changed or image != seen.image
        return replace(again, image=image, now=self._now(), sure=True, changed=changed)

    async def _add_location(self, image_id: str, url: str) -> bool:
        """Whether it was done by the new API, which takes its time."""
        new = self._rules.location_api == "new"
        if self._rules.location_api == "auto":
            if self._imports_locations is None:
                self._imports_locations = await self._cloud.imports_locations()
            new = self._imports_locations
        try:
            await (self._cloud.import_location if new else self._cloud.add_location)(image_id, url)
        except Conflict as error:
            log.info("location_refused", url=url, why=str(error))
            raise
        log.info("location_added", url=url, location_api="new" if new else "old")
        return new

    async def _look_at_clone(self, volume_id: str, seen: Seen) -> Seen:
        try:
            clone = await self._cloud.get_volume(volume_id)
        except NotFound:
            return _without(volume_id, seen)
        return replace(
            seen,
            clones=tuple(clone if other.id == clone.id else other for other in seen.clones or ()),
        )


def clones_of(image: Image, volumes: Iterable[Volume]) -> tuple[Volume, ...]:
    """Those of the internal project's volumes that are clones for an upload; what Glance and we
    fill has no source.

    An entry of Cinder's cache is a clone as well: of an image that has data, what is marked as
    nobody's is one.
    """
    name = image_volume.name_of(image.id)
    named = (
        v for v in volumes if v.name == name and v.source_volid and image_volume.is_of(v, image)
    )
    clones = (v for v in named if not image_volume.is_leaving(v))
    return tuple(
        v
        for v in clones
        if not image_volume.is_prewarming(v) and (image.status != "active" or _is_claimed(v))
    )


def _is_claimed(clone: Volume) -> bool:
    """Whether Cinder's upload or we have marked it."""
    return completion.is_ours(clone) or "image_owner" in clone.metadata


def _unlocated(seen: Seen | None) -> set[str]:
    """The clones of ours that can't be a location: the image was queued when last read, and Glance
    was not asked."""
    if seen is None or seen.image.status != "queued" or seen.image.import_locked or seen.asked:
        return set()
    return {clone.id for clone in seen.clones or () if completion.is_ours(clone)}


async def _same(seen: Seen) -> Seen:
    return seen


def _without(volume_id: str, seen: Seen) -> Seen:
    return replace(
        seen, clones=tuple(clone for clone in seen.clones or () if clone.id != volume_id)
    )


def _believed(volume_id: str, metadata: Mapping[str, str], seen: Seen) -> Seen:
    """Add metadata that was just written to what was seen: Cinder has confirmed it."""
    return replace(
        seen,
        clones=tuple(
            replace(clone, metadata={**clone.metadata, **metadata})
            if clone.id == volume_id
            else clone
            for clone in seen.clones or ()
        ),
    )
