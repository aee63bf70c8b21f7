"""Registered: an Image-Volume that Glance knows as a location, and how it stays usable. Pure.

For both strategies that end in a location.
"""

from __future__ import annotations

from handlers import image_volume, import_lock, last_use, marks, volume_status
from handlers.actions import AwaitImage, LookAtLocations, SetMetadata, SetReadonly
from handlers.prewarm.actions import (
    Action,
    AwaitVolume,
    DeleteVolume,
    Finish,
    LookAtVolume,
    LookAtVolumes,
    RemoveLocation,
)
from handlers.prewarm.seen import Seen
from handlers.prewarm.strategies.lost import lost
from handlers.prewarm.strategies.waits import others_import
from worker.core.cloud import Volume
from worker.core.outcome import Again, Done, Skip
from worker.core.state import State
from worker.core.target import TAG, UPLOADED_BY, Target

# Seconds for which a job waits for an administrator
ASK_AGAIN = 900.0


def is_registered(seen: Seen, target: Target) -> bool:
    """Whether the image has a location in the target's store."""
    return target.glance_store in (seen.image.stores or ())


def plan(seen: Seen, target: Target) -> Action:
    """The next action for an image that has a location in the target's store."""
    if action := _look(seen, target):
        return action
    known = {volume.id: volume for volume in seen.volumes or ()}
    mine = _located(seen, target)
    serving = [known[volume_id] for volume_id in mine if volume_id in known]
    if action := _unclonable(serving, seen, target):
        return action
    first = known.get(mine[0])
    if first and volume_status.is_usable(first) and first.volume_type != target.volume_type:
        return _leave(first, seen, target)
    usable = [
        v for v in serving if volume_status.is_usable(v) and v.volume_type == target.volume_type
    ]
    busy = [volume for volume in serving if not volume_status.is_broken(volume)]
    if busy and not usable:
        return _await_located(busy[0])
    if first not in usable and (repair := lost(seen)):
        return repair
    if first not in usable or _is_one_too_many(first, usable, seen, target):
        # Glance writes whole lists: an import that ends now would bring the location back
        return _await_import(seen) or RemoveLocation(
            target.glance_store, mine[0], whole=bool(first and not volume_status.is_broken(first))
        )
    return (
        put_right(usable[0], seen, target, located=True)
        or _tidy(seen, target)
        or Finish(Done(usable[0].id, state=State.WARM))
    )


def _await_import(seen: Seen) -> AwaitImage | Finish | None:
    """Wait for an import that holds the image, without a slot of the lane if it may have died; None
    if none does."""
    if not import_lock.is_held(seen.image, seen.now):
        return None
    if not import_lock.may_be_dead(seen.image, seen.now):
        return AwaitImage() if seen.asked else others_import(seen)
    dead = "an import holds the image, or died and left its lock"
    return Finish(Again(dead, after=ASK_AGAIN, counted=False, wake_on_notification=True))


def _located(seen: Seen, target: Target) -> list[str]:
    """Return the ids of the volumes that the image's locations in the target's store name, in
    Glance's order."""
    return [one.volume_id for one in seen.locations or () if one.store == target.glance_store]


def _look(seen: Seen, target: Target) -> Action | None:
    """Return what has to be read before anything is decided; None if all of it was."""
    if seen.hidden:
        return Finish(
            Again(image_volume.HIDDEN, after=ASK_AGAIN, counted=False, wake_on_notification=True)
        )
    if seen.locations is None:
        return LookAtLocations()
    if seen.volumes is None:
        return LookAtVolumes()
    mine = _located(seen, target)
    if not mine:
        return Finish(
            Again(
                f"the image is in store {target.glance_store}, but none of its locations names "
                f"that store"
            )
        )
    if "" in mine:
        return Finish(
            Skip(f"its location in store {target.glance_store} is no volume, and is left alone")
        )
    known = {volume.id for volume in seen.volumes} | seen.gone
    unknown = next((volume_id for volume_id in mine if volume_id not in known), None)
    return LookAtVolume(unknown) if unknown is not None else None


def _unclonable(
    serving: list[Volume], seen: Seen, target: Target
) -> Finish | AwaitImage | RemoveLocation | None:
    """Return what to do where a location's volume is not ours, stuck or encrypted; None if it is
    none of these."""
    where = f"its location in store {target.glance_store}"
    if any(volume.foreign for volume in serving):
        # Somebody else added it (show_multiple_locations lets owners do that), so we neither change
        # nor remove it
        return Finish(Skip(f"{where} is a volume outside of the internal project"))
    for volume in serving:
        if not image_volume.is_of(volume, seen.image):
            why = (
                "which is older than the image: the image has the id of an earlier one, or Cinder's "
                "clock is behind Glance's"
                if image_volume.is_kept_for(volume, seen.image.id)
                else "which is not this image's"
            )
            return Finish(Skip(f"{where} is volume {volume.id}, {why}"))
    for volume in serving:
        if volume_status.needs_administrator(volume):
            # The data may be whole. If Cinder does not delete the volume, Glance can't either
            advice = volume_status.stuck_advice(volume, located=True)
            return Finish(
                Again(
                    f"its Image-Volume is no clone's source: {advice}",
                    after=ASK_AGAIN,
                    counted=False,
                )
            )
    return (
        _encrypted(serving, seen, target) if any(volume.encrypted for volume in serving) else None
    )


def _is_one_too_many(
    first: Volume | None, usable: list[Volume], seen: Seen, target: Target
) -> bool:
    """Whether the first of several usable locations may go: we made it, and another one serves.

    Glance removes the location that is first by then: two workers at once would remove both. So
    none of them may be fresh.
    """
    if first is None or len(usable) < 2 or not marks.is_prewarmed(first, target):
        return False
    return not any(image_volume.is_fresh(volume, seen.now) for volume in usable)


def _tidy(seen: Seen, target: Target) -> DeleteVolume | None:
    """Return the deletion of a volume of ours that no location names; None if there is none, or
    none may go."""
    located = {location.volume_id for location in seen.locations or ()}
    for volume in seen.volumes or ():
        if seen.may_delete and volume.id not in located and _is_left_over(volume, seen, target):
            return DeleteVolume(volume.id, why="no location names it, and another volume serves")
    return None


def _leave(volume: Volume, seen: Seen, target: Target) -> Action:
    """Remove the location of a volume that somebody has retyped, if we made it; then the image is
    copied again."""
    if (
        image_volume.ORIGIN not in volume.metadata
        or volume.metadata.get(TAG) != target.name
        or not seen.may_delete
    ):
        moved = (
            f"its Image-Volume {volume.id} is of type {volume.volume_type} now, not "
            f"{target.volume_type}"
        )
        return Finish(Skip(f"{moved}: Cinder does not clone it on this target"))
    return _await_import(seen) or RemoveLocation(target.glance_store, volume.id, whole=True)


def _encrypted(
    serving: list[Volume], seen: Seen, target: Target
) -> Finish | AwaitImage | RemoveLocation:
    """Remove an encrypted location that prewarm has made; name one that somebody else has made."""
    first = serving[0]
    if first.encrypted and marks.may_be_ours(first):
        return _await_import(seen) or RemoveLocation(
            target.glance_store,
            first.id,
            whole=True,
            # Of a volume that somebody has retyped it says nothing about the target's type
            encrypted=first.volume_type == target.volume_type,
        )
    which = ", ".join(volume.id for volume in serving if volume.encrypted)
    return Finish(
        Skip(
            f"its location in store {target.glance_store} is encrypted volume {which}, which we "
            f"did not make: Cinder "
            "hands out its ciphertext; remove that location"
        )
    )


def await_or_give_up(volume: Volume, seen: Seen) -> Action:
    """Wait for a volume that Cinder makes for us; delete it after too long."""
    if volume_status.is_stalled(volume, seen.now) and volume.id not in seen.made:
        late = f"volume {volume.id} was {volume.status} for too long"
        return DeleteVolume(volume.id, why="it was made for too long", because=late)
    if volume.status in volume_status.MAKING:
        return AwaitVolume(volume.id)
    return _await_located(volume)


def _await_located(volume: Volume) -> Action:
    """Wait for a volume that somebody works on; without a slot of the lane unless Cinder makes
    it."""
    if volume.status in volume_status.MAKING:
        return AwaitVolume(volume.id)
    return Finish(
        Again(
            f"its Image-Volume {volume.id} is {volume.status}",
            after=60.0,
            counted=False,
            wake_on_notification=True,
        )
    )


def _is_left_over(volume: Volume, seen: Seen, target: Target) -> bool:
    """Whether a volume of ours that is no location of the image stayed behind."""
    # An entry of Cinder's cache too, from when the target had that strategy
    ours = (
        image_volume.is_of(volume, seen.image)
        and image_volume.is_ours(volume, target)
        and marks.is_prewarming(volume)
        and not image_volume.is_restored(volume)
    )
    if image_volume.is_entry(volume) and (target.is_spread or image_volume.is_placed(volume)):
        # It serves another pool, even if Cinder does not report that pool at the moment
        return False
    old = image_volume.is_entry(volume) or not image_volume.is_fresh(volume, seen.now)
    return ours and old and volume_status.may_be_deleted(volume, seen.now)


def put_right(
    volume: Volume, seen: Seen, target: Target, *, located: bool = False
) -> Action | None:
    """Add what the volume lacks for Cinder to clone it for everyone who may use the image; None if
    nothing. `located`: it is a location of the image."""
    wanted = image_volume.metadata_of(seen.image, target) | last_use.use_to_record(
        volume, seen.used, seen.now
    )
    asked = target.glance_store in seen.asked and marks.is_unmarked_copy(volume)
    if asked or marks.is_copy_of_ours(volume, seen.image):
        wanted[image_volume.ORIGIN] = image_volume.PREWARM
    if located:
        wanted[image_volume.LOCATED] = "true"
    if UPLOADED_BY in volume.inherited:
        wanted[UPLOADED_BY] = seen.image.owner
    if missing := image_volume.lacking(volume, wanted):
        return SetMetadata.of(volume, missing)
    if not image_volume.is_readonly(volume):
        return SetReadonly(volume.id)
    return None
