"""An Image-Volume that Glance knows as a location: what keeps it usable, for both strategies that end in one. Pure."""

from __future__ import annotations

from handlers import image_volume
from handlers.actions import AwaitImage, LookAtLocations, SetMetadata, SetReadonly
from handlers.strategies import (
    Action,
    AwaitVolume,
    DeleteVolume,
    Finish,
    LookAtVolume,
    LookAtVolumes,
    RemoveLocation,
    Seen,
)
from worker.cloud import Image, Volume
from worker.outcome import Again, Done, Park, Skip
from worker.target import TAG, Target

# For how many seconds a job waits for what an administrator has to do
ASK_AGAIN = 900.0


def is_registered(seen: Seen, target: Target) -> bool:
    """Whether the image has a location in the target's store."""
    return target.glance_store in (seen.image.stores or ())


def plan(seen: Seen, target: Target) -> Action:
    """The next action for an image that has a location in the target's store."""
    if seen.hidden:
        return Finish(Again(image_volume.HIDDEN, after=ASK_AGAIN, counted=False, news=True))
    if seen.locations is None:
        return LookAtLocations()
    if seen.volumes is None:
        return LookAtVolumes()
    known = {volume.id: volume for volume in seen.volumes}
    mine = [location.volume_id for location in seen.locations if location.store == target.glance_store]
    if not mine:
        return Finish(Again(f"the image is in store {target.glance_store}, but none of its locations names that store"))
    for volume_id in mine:
        if volume_id not in known and volume_id not in seen.gone:
            return LookAtVolume(volume_id)
    serving = [known[volume_id] for volume_id in mine if volume_id in known]
    if any(volume.foreign for volume in serving):
        # Whoever added it (show_multiple_locations lets owners do that), it is not ours to change or remove
        return Finish(Skip(f"its location in store {target.glance_store} is a volume outside of the internal project"))
    if others := [volume for volume in serving if not image_volume.is_of(volume, seen.image)]:
        return Finish(
            Skip(f"its location in store {target.glance_store} is volume {others[0].id}, which is not this image's")
        )
    for volume in serving:
        if image_volume.needs_administrator(volume):
            # The data may well be whole, and what Cinder does not delete Glance can't remove either
            advice = image_volume.stuck_advice(volume, located=True)
            return Finish(Again(f"its Image-Volume is no clone's source: {advice}", after=ASK_AGAIN, counted=False))
    if any(volume.encrypted for volume in serving):
        return _encrypted(serving, seen, target)
    first = known.get(mine[0])
    if first and image_volume.is_usable(first) and first.volume_type != target.volume_type:
        return _leave(first, seen, target)
    usable = [v for v in serving if image_volume.is_usable(v) and v.volume_type == target.volume_type]
    for volume in serving:
        if not usable and not image_volume.is_broken(volume):
            return _await_located(volume)
    first_serves = any(volume.id == mine[0] for volume in usable)
    if not first_serves and (repair := lost(seen)):
        return repair
    # Of several locations in a store Glance removes the first. It may be whole, if we made it and another one serves
    twice = first and len(usable) > 1 and first_serves and image_volume.is_prewarmed(first, target)
    # Glance removes whatever is the first by then: two workers at once would remove both
    twice = twice and not any(image_volume.is_fresh(volume, seen.now) for volume in usable)
    if twice or not first_serves:
        # Glance writes whole lists: an import that ends now would bring the location back
        if seen.image.import_locked:
            return AwaitImage()
        return RemoveLocation(target.glance_store, mine[0], whole=bool(first and not image_volume.is_broken(first)))
    if action := put_right(usable[0], seen, target):
        return action
    located = {location.volume_id for location in seen.locations}
    for volume in seen.volumes:
        if seen.may_delete and volume.id not in located and _is_left_over(volume, seen, target):
            return DeleteVolume(volume.id, why="no location names it, and another volume serves")
    return Finish(Done(usable[0].id))


def _leave(volume: Volume, seen: Seen, target: Target) -> Action:
    """Remove the location of a volume that somebody has retyped, if we made it; then the image is copied again."""
    if image_volume.ORIGIN not in volume.metadata or volume.metadata.get(TAG) != target.name or not seen.may_delete:
        moved = f"its Image-Volume {volume.id} is of type {volume.volume_type} now, not {target.volume_type}"
        return Finish(Skip(f"{moved}: Cinder does not clone it on this target"))
    return AwaitImage() if seen.image.import_locked else RemoveLocation(target.glance_store, volume.id, whole=True)


def _encrypted(serving: list[Volume], seen: Seen, target: Target) -> Action:
    """Take out an encrypted location that pre-warming has made; one of somebody else's is only named."""
    first = serving[0]
    if first.encrypted and image_volume.may_be_ours(first):
        if seen.image.import_locked:
            return AwaitImage()
        return RemoveLocation(target.glance_store, first.id, whole=True, encrypted=True)
    which = ", ".join(volume.id for volume in serving if volume.encrypted)
    return Finish(
        Skip(
            f"its location in store {target.glance_store} is encrypted volume {which}, which we did not make: Cinder "
            "hands out its ciphertext; remove that location"
        )
    )


def lost(seen: Seen) -> Action | None:
    """Return the next look before an image is called lost, then the verdict; None if its data may be had somewhere.

    A location in a store that lies on none of our targets is unknown: its volume may be in another region.
    """
    if seen.hidden:
        return None
    if seen.locations is None:
        return LookAtLocations()
    if seen.volumes is None:
        return LookAtVolumes()
    known = {volume.id: volume for volume in seen.volumes}
    for location in seen.locations:
        volume = known.get(location.volume_id)
        if not location.volume_id or (volume and not image_volume.is_broken(volume)):
            return None
        if location.store not in seen.stores:
            return None
        if volume is None and location.volume_id not in seen.gone:
            return LookAtVolume(location.volume_id)
    broken = ", ".join(location.volume_id for location in seen.locations)
    reason = (
        f"nobody can repair it: every volume with the image's data is gone or in error ({broken}). If Cinder can "
        "restore one (cinder reset-state, or from a backup under the same id), do that; else have the owner upload the "
        "image anew and delete this one, of which no volume can be made any more"
    )
    return Finish(Park(reason), lost=True)


def await_or_give_up(volume: Volume, seen: Seen) -> Action:
    """Wait for a volume that we are having made; not for ever."""
    if image_volume.is_stalled(volume, seen.now):
        late = f"volume {volume.id} was {volume.status} for too long"
        return DeleteVolume(volume.id, why="it was made for too long", because=late)
    if volume.status in image_volume.MAKING:
        return AwaitVolume(volume.id)
    return _await_located(volume)


def _await_located(volume: Volume) -> Action:
    """Wait for a volume that somebody is busy with; without a slot of the lane unless it is a matter of moments."""
    if volume.status in image_volume.MAKING | {"attaching", "detaching", "reserved"}:
        return AwaitVolume(volume.id)
    return Finish(Again(f"its Image-Volume {volume.id} is {volume.status}", after=60.0, counted=False, news=True))


def _is_left_over(volume: Volume, seen: Seen, target: Target) -> bool:
    """Whether a volume of ours that is no location of the image stayed behind."""
    # An entry of Cinder's cache too, from when the target had that strategy
    ours = image_volume.is_of(volume, seen.image) and image_volume.is_ours(volume, target)
    old = image_volume.is_entry(volume) or not image_volume.is_fresh(volume, seen.now)
    return ours and old and image_volume.may_be_deleted(volume, seen.now)


def put_right(volume: Volume, seen: Seen, target: Target) -> Action | None:
    """What the volume lacks so that Cinder clones it for everyone who may use the image; None if nothing."""
    marks = image_volume.metadata_of(seen.image, target)
    asked = target.glance_store in seen.asked and image_volume.is_unmarked_copy(volume)
    if asked or image_volume.is_copy_of_ours(volume, seen.image):
        marks[image_volume.ORIGIN] = image_volume.PREWARM
    if missing := image_volume.lacking(volume, marks | image_volume.use_to_record(volume, seen.used)):
        return SetMetadata(volume.id, missing)
    if not image_volume.is_readonly(volume):
        return SetReadonly(volume.id)
    return None


def lacks(image: Image, volumes: tuple[Volume, ...], target: Target) -> str | None:
    """Why an image does not look warm in a bulk listing, which shows stores but no locations."""
    if image.stores is not None and target.glance_store not in image.stores:
        return f"not in store {target.glance_store}"
    name = image_volume.name_of(image.id)
    tagged = [
        v for v in volumes if v.name == name and v.metadata.get(TAG) == target.name and image_volume.is_of(v, image)
    ]
    mine = [volume for volume in tagged if image_volume.is_ours(volume, target)]
    if not mine and tagged:
        return f"its Image-Volume {tagged[0].id} is of type {tagged[0].volume_type}, not {target.volume_type}"
    if not mine:
        return "no Image-Volume of ours"
    if not image_volume.is_readonly(mine[0]):
        return "Image-Volume can be written to"
    if len(mine) > 1:
        return "several Image-Volumes"
    if not image_volume.is_usable(mine[0]):
        return f"Image-Volume is {mine[0].status}"
    if mine[0].encrypted:
        return "Image-Volume is encrypted"
    if missing := image_volume.lacking(mine[0], image_volume.metadata_of(image, target)):
        return f"wrong or missing: {', '.join(sorted(missing))}"
    return None
