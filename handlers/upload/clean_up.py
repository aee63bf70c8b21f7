"""Clean-up: the next step for an active image. Pure."""

from __future__ import annotations

from handlers import image_volume, volume_status
from handlers.actions import LookAtLocations, SetMetadata
from handlers.import_lock import until_others_end
from handlers.upload.actions import Action, DeleteClone, Finish, LookAtClones, LookAtTasks
from handlers.upload.clones import is_ours
from handlers.upload.seen import Seen
from handlers.upload.sources import LOCATION_IMPORT, binding, source_named
from worker.core.cloud import GIB, Location, Volume
from worker.core.outcome import Again, Done, Park
from worker.core.target import Uploads

# Glance forgets its tasks after two days, in seconds
TASKS_KEPT = 172_800.0
DATA_UPLOADED = "not made from the volume: data was uploaded"


def plan(seen: Seen, rules: Uploads) -> Action:
    """Plan for an active image: delete clones that are none of its locations, and correct its
    status property."""
    if seen.asked and not seen.image.size:
        # Only Glance can write it
        return Finish(
            Park(
                "Glance has lost the image's size, somebody changed the image at the same time: "
                "make it anew"
            )
        )
    unbound = binding(seen.image, rules) is not None
    if (
        not seen.asked
        and seen.image.import_locked
        and (unbound or seen.image.properties.get(rules.status_property))
    ):
        return Finish(
            Again(
                "its properties are put right once Glance has read it",
                after=until_others_end(seen.image, seen.now),
                counted=False,
                wake_on_notification=True,
            )
        )
    if not seen.image.import_locked and (bind := binding(seen.image, rules)):
        return bind
    if seen.clones is None:
        return LookAtClones()
    if not seen.clones:
        return _without_clone(seen, rules)
    if seen.hidden:
        # Nothing is known about any clone then
        return Finish(Done())
    if seen.locations is None:
        return LookAtLocations()
    located = {location.volume_id for location in seen.locations}
    if (
        not any(clone.id in located for clone in seen.clones)
        and seen.tasks is None
        and source_named(seen.image, rules)
    ):
        return LookAtTasks()
    for clone in seen.clones:
        settled = volume_status.is_usable(clone) or volume_status.is_broken(clone)
        # One of Cinder's may be an entry of its cache with what a user has written on the volume
        if clone.id not in located and settled and is_ours(clone):
            if image_volume.was_location(clone):
                continue
            if image_volume.is_readonly(clone):
                if seen.tasks is None:
                    return LookAtTasks()
                if _may_have_been_location(clone, seen):
                    continue
            return DeleteClone(clone.id)
    if not any(clone.id in located for clone in seen.clones):
        known = any(image_volume.was_location(clone) for clone in seen.clones)
        return Finish(Done()) if known else _without_clone(seen, rules)
    for clone in seen.clones:
        if clone.id in located and is_ours(clone) and not image_volume.was_location(clone):
            return SetMetadata.of(clone, {image_volume.LOCATED: "true"})
    return Finish(Done(", ".join(clone.id for clone in seen.clones if clone.id in located)))


def _may_have_been_location(clone: Volume, seen: Seen) -> bool:
    """Whether a clone was a location, or may have been: ours is read-only before it becomes one. With
    delayed_delete an administrator may still want its data."""
    forgotten = seen.now - seen.image.created_epoch > TASKS_KEPT
    return forgotten or any(
        task.type == LOCATION_IMPORT
        and task.status == "success"
        and Location.from_url(task.url).volume_id == clone.id
        for task in seen.tasks or ()
    )


def _without_clone(seen: Seen, rules: Uploads) -> Action:
    """Tell the owner of an active image that names a source volume, and has none of our clones for
    a location."""
    if not source_named(seen.image, rules):
        return Finish(Done())
    if seen.image.size % GIB and not seen.asked:
        return Finish(Done(), tell=DATA_UPLOADED)
    if seen.tasks is None:
        return LookAtTasks()
    by_task = rules.location_api != "old" or not seen.image.size
    if not by_task or seen.now - seen.image.created_epoch > TASKS_KEPT:
        # No task gave it its data, or Glance has forgotten it
        return Finish(Done(), tell=seen.image.properties.get(rules.status_property, ""))
    located = any(task.type == LOCATION_IMPORT and task.status == "success" for task in seen.tasks)
    return Finish(Done(), tell="" if located or seen.asked else DATA_UPLOADED)
