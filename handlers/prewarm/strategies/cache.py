"""Strategy `cache`: a throw-away volume makes Cinder fill its own image-volume cache on the target.
Pure.

An entry is stale as soon as the image's `updated_at` has changed (cinder/image/cache.py), which no
API shows; so the entry is marked with the `updated_at` that it was made for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from handlers import image_volume, marks, volume_status
from handlers.actions import LookAtLocations, SetMetadata
from handlers.prewarm.actions import (
    Action,
    AwaitEntry,
    CreateVolume,
    DeleteVolume,
    Finish,
    LookAtVolumes,
    LookAtWarming,
)
from handlers.prewarm.seen import Seen
from handlers.prewarm.strategies import located, native, registered
from handlers.prewarm.strategies.lost import lost
from handlers.prewarm.strategies.waits import FIRST_QUIET
from worker.core.age import SKEW, age
from worker.core.cloud import Image, Volume
from worker.core.outcome import Again, Done
from worker.core.state import State
from worker.core.target import TAG, UPLOAD, UPLOADED_BY, Target

LOOKS = 5
# Only with RBD does a missing download show that the driver has cloned the image: with other
# drivers we may have missed the download
NATIVE = "rbd://"
ASTRAY = "its private volume type leads to another pool:"
NO_CACHE = (
    "Cinder made no entry in its image-volume cache; is image_volume_cache_enabled set on this "
    "backend, and the image "
    "not above image_volume_cache_max_size_gb?"
)


def entries_of(seen: Seen) -> tuple[Volume, ...]:
    """Return the image's entries of Cinder's cache.

    A clone that Cinder keeps read-only is one, whatever its metadata claims, if no location names
    it: Cinder hands on what users have written on the volume that it was cloned from.
    """
    named = {one.volume_id for one in seen.locations or ()}
    return tuple(
        volume
        for volume in located.own(seen)
        if image_volume.is_entry(volume)
        or (
            seen.locations is not None
            and volume.source_volid
            and volume.id not in named
            and image_volume.is_readonly(volume)
            # One that an upload has left is none, nor one that a target has taken over since. Marks
            # that it may have from a user's volume say nothing: before ours is read-only it has its
            # own
            and (
                volume.inherited
                or (volume.metadata.get(TAG) != UPLOAD and UPLOADED_BY not in volume.metadata)
            )
        )
    )


def entry_of(entries: Iterable[Volume], target: Target, *, host: str = "") -> Volume | None:
    """Return the entry of Cinder's cache on the target: by the host it must be on, our tag, or
    type."""
    pool = located.pool_of(target)
    entries = [
        volume
        for volume in entries
        if volume_status.is_usable(volume)
        and image_volume.serves(volume, target)
        and (
            image_volume.is_on(volume, target)
            or volume.host in pool.hosts
            or (host and volume.host == host)
        )
    ]
    # Cinder uses the newest one: an older one is stale, and Cinder is about to evict it
    return max(entries, key=lambda volume: volume.created_at, default=None)


def is_fresh(entry: Volume | None, updated_at: str) -> bool:
    """Whether the entry was made for the image as it is now."""
    return entry is not None and entry.metadata.get(image_volume.FRESH) == updated_at


def plan(seen: Seen, target: Target) -> Action:
    """The next action towards a fresh entry in Cinder's cache on the target."""
    if seen.native:
        return Finish(Done(native.CLONED, state=State.WARM))
    if seen.volumes is None:
        return LookAtVolumes()
    if action := _kept_by_glance(seen, target) or located.kept_beside(seen, target):
        return action
    if seen.warming is None:
        return LookAtWarming()
    warming = [
        v
        for v in seen.warming
        if image_volume.is_warming_for(v, target) and not volume_status.is_leaving(v)
    ]
    entries = entries_of(seen)
    here = (
        one
        for one in entries
        if image_volume.is_on(one, target) and not volume_status.is_leaving(one)
    )
    if action := _unusable((*warming, *here)):
        return action
    if seen.failed:
        return lost(seen) or Finish(Again(seen.failed))
    entry = entry_of(entries, target, host=warming[0].host if warming else "")
    if entry and is_fresh(entry, seen.image.updated_at):
        return _finish(entry, warming, seen, target)
    if warming:
        return _follow(warming[0], entry, seen, target)
    return _begin(entry, seen, target)


def _unusable(volumes: Iterable[Volume]) -> DeleteVolume | None:
    """Return the deletion of a volume that will never serve; None if there is none."""
    for volume in volumes:
        if volume_status.is_broken(volume):
            return DeleteVolume(volume.id, why=f"it is {volume.status}")
        if volume.encrypted and volume_status.is_usable(volume):
            return DeleteVolume(volume.id, why="it is encrypted", encrypted=True)
    return None


def _finish(entry: Volume, warming: list[Volume], seen: Seen, target: Target) -> Action:
    """Plan the steps after a fresh entry is there: nothing else stays in its pool."""
    # Before what it was made with goes: without its marks it is not found again
    if _is_own(entry, seen, target) and (action := registered.put_right(entry, seen, target)):
        return action
    # An entry on another host may serve a pool that Cinder does not report at the moment
    marked = [one for one in _marked(located.own(seen), target) if one.host == entry.host]
    for volume in (*warming, *marked):
        if volume.id != entry.id:
            why = "it has served" if volume in warming else "a newer entry is there"
            return DeleteVolume(volume.id, why=why)
    return Finish(Done(entry.id, state=State.WARM))


def _is_own(entry: Volume, seen: Seen, target: Target) -> bool:
    """Whether the entry may have the target's marks: it is of its type, and not another target's in
    the same pool. One that is marked for a target that is gone is taken over."""
    name = entry.metadata.get(TAG, target.name)
    tagged = name if name in seen.targets else target.name
    return image_volume.is_on(replace(entry, metadata={**entry.metadata, TAG: tagged}), target)


def _begin(entry: Volume | None, seen: Seen, target: Target) -> Action:
    """Plan the throw-away volume, by which Cinder makes an entry; `entry` is one that is not
    fresh."""
    quiet_for = age(seen.image.updated_epoch, seen.now)
    wait = (seen.settle if entry else min(seen.settle, FIRST_QUIET)) - quiet_for
    if wait > 0:
        return Finish(Again("the image was changed a moment ago", after=wait, counted=False))
    stale = entry is not None and seen.image.updated_epoch >= entry.created_epoch
    # After the first change the entry is made again at once; an image that goes on changing waits
    again = entry is not None and stale and image_volume.ANEW in entry.metadata
    if entry and again and (wait := seen.rewarm_interval - age(entry.created_epoch, seen.now)) > 0:
        reason = "the image has changed again soon after it was made warm"
        return Finish(Again(reason, after=wait, counted=False), held_back=True)
    # Cinder deletes a stale entry before it downloads the image, whatever its type: it may be the last
    # copy by then
    last = entry or located.entry_beside(seen, target)
    may_be_stale = last and seen.image.updated_epoch >= last.created_epoch - SKEW
    if last and may_be_stale and (action := lost(seen, last)):
        return action
    if last and may_be_stale and seen.hidden and seen.stores:
        # Other targets need this login to be shown locations: it was, and will be again
        hidden = Again(image_volume.HIDDEN, after=registered.ASK_AGAIN, counted=False)
        return Finish(hidden)
    # Nothing that an Image-Volume has besides: Cinder hands it on to its entry
    new = image_volume.new_volume(
        seen.image,
        target,
        name=image_volume.warming_name_of(seen.image.id),
        keys={image_volume.FRESH: seen.image.updated_at}
        | ({image_volume.ANEW: "yes"} if stale else {}),
    )
    return CreateVolume(new, anew=stale)


def _marked(volumes: tuple[Volume, ...], target: Target) -> list[Volume]:
    """Return the entries on the target that we have marked, in any state."""
    return [
        v for v in volumes if marks.is_prewarmed(v, target) and image_volume.FRESH in v.metadata
    ]


def _of_glance(volumes: tuple[Volume, ...], target: Target) -> Volume | None:
    """Return a volume on the target that may be a location of the image: Cinder clones that one,
    and makes no entry."""
    for volume in volumes:
        unknown = image_volume.is_claimed(volume) and not image_volume.is_entry(volume)
        if unknown and volume_status.is_usable(volume) and image_volume.is_on(volume, target):
            return volume
    return None


def _kept_by_glance(seen: Seen, target: Target) -> Action | None:
    """Plan for an image that Glance keeps on the target already; None if it does not."""
    volume = _of_glance(located.own(seen), target)
    if volume is None:
        return None
    if seen.hidden:
        # Whether it is an entry of Cinder's cache cannot be known
        unknown = Again(image_volume.HIDDEN, after=registered.ASK_AGAIN, counted=False)
        return Finish(unknown) if image_volume.is_readonly(volume) and volume.source_volid else None
    if seen.locations is None:
        return LookAtLocations()
    if not any(location.volume_id == volume.id for location in seen.locations):
        return None
    return registered.put_right(volume, seen, target) or Finish(Done(volume.id, state=State.WARM))


def _follow(warming: Volume, entry: Volume | None, seen: Seen, target: Target) -> Action:
    """Plan the steps after the throw-away volume was asked for."""
    if not volume_status.is_usable(warming):
        return registered.await_or_give_up(warming, seen)
    if target.pool and not image_volume.serves(warming, target):
        return DeleteVolume(
            warming.id, why="it came to lie in another pool", because=f"{ASTRAY} {warming.host}"
        )
    if warming.metadata.get(image_volume.FRESH) != seen.image.updated_at:
        return DeleteVolume(warming.id, why="the image has changed since it was begun")
    if entry is None:
        noted = image_volume.was_downloaded(warming, seen.image)
        if seen.unproven is not None and not (seen.downloaded or noted):
            if look := located.look(seen):
                return look
            is_native = any(one.url.startswith(NATIVE) for one in seen.locations or ())
            if is_native and not located.may_be_here(seen, target):
                # An entry that was there for a moment would look the same: a second volume confirms it
                why = "it has shown that Cinder clones the image itself"
                sure = seen.seems_native
                return DeleteVolume(warming.id, why=why, native=sure, seems_native=not sure)
        if seen.looks < LOOKS:
            return AwaitEntry()
        return located.look(seen) or DeleteVolume(warming.id, why="it has served", because=NO_CACHE)
    marks = {image_volume.FRESH: seen.image.updated_at}
    if _is_own(entry, seen, target):
        marks |= image_volume.metadata_of(seen.image, target)
        marks[image_volume.ORIGIN] = image_volume.PREWARM
    marks |= {name: value for name, value in warming.metadata.items() if name == image_volume.ANEW}
    return SetMetadata.of(entry, image_volume.lacking(entry, marks))


def lacks(image: Image, volumes: tuple[Volume, ...], target: Target) -> str | None:
    """Return why Cinder's cache does not look fresh in a bulk listing; None if it does."""
    entries = tuple(volume for volume in volumes if volume.name == image_volume.name_of(image.id))
    if len(entries) < len(volumes):
        return "a throw-away volume is left"
    marks = image_volume.metadata_of(image, target)
    if kept := _of_glance(entries, target):
        if image_volume.is_readonly(kept) and not image_volume.lacking(kept, marks):
            return None
        if target.glance_store in (image.stores or ()):
            # Cinder clones that one even if its cache has an entry
            return (
                "the Image-Volume that Glance keeps there can be written to, or its metadata "
                "is wrong"
            )
    if any(
        one.metadata.get("image_owner") == image.owner and volume_status.is_usable(one)
        # One that we have not marked may be what an import has left
        for one in located.beside(entries, target)
        if TAG in one.metadata
    ):
        return None
    entry = entry_of((one for one in entries if image_volume.is_entry(one)), target)
    if entry is None:
        return "no entry in Cinder's image-volume cache"
    if sum(one.host == entry.host for one in _marked(entries, target)) > 1:
        return "several entries in Cinder's image-volume cache"
    if not is_fresh(entry, image.updated_at):
        return "the entry is not known to be fresh"
    if entry.encrypted:
        return "the entry is encrypted"
    if not image_volume.is_on(entry, target):
        # Another target's or Cinder's own in the same pool, by another type
        return None
    if not image_volume.is_readonly(entry) or image_volume.lacking(entry, marks):
        return "the entry can be written to, or its metadata is wrong"
    return None
