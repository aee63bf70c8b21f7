"""Complete: the plan's way from a clone in the internal project to a location of the image. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from handlers import image_volume, volume_status
from handlers.actions import AddLocation, AwaitImage, SetMetadata, SetReadonly
from handlers.upload import kept_properties
from handlers.upload.actions import (
    Action,
    AwaitClone,
    DeleteClone,
    Finish,
    KeepProperties,
    LookAgain,
    LookAtTasks,
)
from handlers.upload.clones import is_ours, marks_of, metadata_of
from handlers.upload.seen import Seen
from handlers.upload.sources import (
    binding,
    refused,
    source_named,
    store_of,
    stranded_volumes,
    wait_to_change,
)
from worker.core.age import age
from worker.core.cloud import Volume
from worker.core.outcome import Again, Skip
from worker.core.target import Target, Uploads

# Seconds for which a job waits for a clone that is being made, and for a clone whose source is gone
PATIENCE = 60.0
# Nobody is given a volume, writes to it and deletes it within so many seconds
OWNED_FOR = 5.0
DELETED_EARLY = (
    "the volume was deleted before the image was made of it; the cloud's operator may still have its "
    "data"
)


def complete(clone: Volume, seen: Seen, rules: Uploads, targets: tuple[Target, ...]) -> Action:
    """Plan the way from a clone in the internal project to a location of the image."""
    if not is_ours(clone) and not is_still(clone, seen, rules):
        being_made = clone.status in volume_status.MAKING
        since = 0.0 if being_made else age(image_volume.made_at(clone), seen.now)
        left = rules.grace - since
        return Finish(
            Again("Cinder's own upload may be at work", after=max(1.0, left), counted=False)
        )
    if is_ours(clone) and clone.inherited:
        # Its marks count only beside its id, which nobody knew when it was asked for
        return SetMetadata.of(clone, marks_of(seen.image))
    if not volume_status.is_usable(clone):
        return _await(clone, seen)
    if not seen.sure:
        return LookAgain(clone.source_volid)
    source = seen.source if seen.source and seen.source.id == clone.source_volid else None
    if not is_ours(clone) and source and source.status == "uploading":
        return Finish(Again("Cinder's own upload is at work"))
    if not _is_owners(clone, source, seen):
        if source is None and clone.metadata.get("image_owner") == seen.image.owner:
            # It may be another project's by now, which has deleted it; or all that is left of it
            return refused(DELETED_EARLY)
        # Ours is of no use any more. Cinder's may still be of use to the user who asked for it
        if is_ours(clone):
            return DeleteClone(
                clone.id, because="the volume is not, or no longer, the image's project's"
            )
        return Finish(Skip("the clone that Cinder has made is not for the image's project"))
    if is_ours(clone) and not seen.image.properties.get(rules.source_property):
        if seen.tasks is None:
            return LookAtTasks()
        if clone.source_volid not in stranded_volumes(seen.tasks):
            # The property was taken away
            return DeleteClone(clone.id)
    if clone.encrypted:
        return refused("the volume is encrypted")
    store = store_of(clone.volume_type, seen.stores, targets)
    if not store:
        return refused(f"no store of Glance serves volumes of type {clone.volume_type}")
    # A clone has them from its source, but not of one that is not bootable
    knowing = source if source and source.image_properties else clone
    return _locate(clone, store, to_keep(knowing, seen, rules), seen, rules)


def to_keep(volume: Volume, seen: Seen, rules: Uploads) -> dict[str, str]:
    """Return the properties that the image lacks and that have not been offered to Glance yet.

    Nothing for Cinder's own uploads: Cinder has given their images what it wants them to have.
    """
    if not source_named(seen.image, rules):
        return {}
    present = {*seen.image.properties, rules.source_property, rules.status_property, *seen.offered}
    return kept_properties.missing(
        volume.image_properties, present, rules.reserved_image_namespaces
    )


def _locate(
    clone: Volume, store: str, kept: Mapping[str, str], seen: Seen, rules: Uploads
) -> Action:
    """Mark a clone that holds the image's data, then add it as a location, once the image is
    quiet."""
    if missing := image_volume.lacking(clone, metadata_of(seen.image, clone.size)):
        return SetMetadata.of(clone, missing)
    if not image_volume.is_readonly(clone):
        return SetReadonly(clone.id)
    ours = bool(seen.bound_at) and seen.image.updated_at == seen.bound_at
    bind = binding(seen.image, rules)
    if change := KeepProperties(kept, seen.at_once, bind) if kept else bind:
        wait = 0.0 if ours else wait_to_change(seen.image, rules.untouched, seen.now)
        return change if wait <= 0 else _await_quiet(seen, wait)
    # Glance writes a whole image whenever a part of it is changed. A change that falls together
    # with a location being added undoes half of that (measured: active without a size, or with the
    # location of a volume that is gone)
    changed = seen.changed or (not ours and seen.image.updated_epoch > seen.image.created_epoch)
    wait = rules.quiet - age(seen.image.updated_epoch, seen.now) if changed else 0.0
    if wait > 0:
        return _await_quiet(seen, wait)
    return AddLocation(f"cinder://{store}/{clone.id}")


def _await_quiet(seen: Seen, wait: float) -> Action:
    """Wait until the image is left alone; without a slot of the lane if it is changed meanwhile:
    somebody may change it without end."""
    if not seen.restless:
        return AwaitImage()
    reason = "the image is being changed"
    return Finish(Again(reason, after=wait, counted=False), tell="")


def _await(clone: Volume, seen: Seen) -> Action:
    """Wait for a clone that is being made: soon without a slot of the lane, and not for ever if
    its source is gone."""
    ours_now = clone.id in seen.made
    since = seen.now - (seen.asked_at if ours_now else clone.created_epoch)
    if since > PATIENCE:
        if not seen.sure:
            return LookAgain(clone.source_volid)
        if clone.source_volid in seen.missing and is_ours(clone):
            # Our request may have come a moment too late, and Cinder leaves the clone as it is
            return DeleteClone(clone.id, because="the volume was deleted before it was cloned")
        if is_ours(clone) and not ours_now and volume_status.is_stalled(clone, seen.now):
            return DeleteClone(clone.id, because="Cinder has lost the request for the clone")
        reason = "the volume is being cloned"
        return Finish(
            Again(reason, after=PATIENCE / 2, counted=False, wake_on_notification=True),
            tell=f"waiting: {reason}",
        )
    return AwaitClone(clone.id, clone.source_volid)


def _is_owners(clone: Volume, source: Volume | None, seen: Seen) -> bool:
    """Whether what was cloned belongs to the image's owner: by the source, and by who asked for the
    clone.

    A source that is gone can't be asked: then the clone's own word counts, which Cinder has written,
    or we before it was cloned: the source may have been another project's by then. So ours counts
    only if the source was seen after that, for which the clone was made read-only, or a moment ago.
    """
    word, owner = clone.metadata.get("image_owner"), seen.image.owner
    if source is None:
        volume_id, at = seen.owned
        lately = volume_id == clone.source_volid and age(at, seen.now) < OWNED_FOR
        known = not is_ours(clone) or image_volume.is_readonly(clone) or lately
        return word == owner and known
    if is_ours(clone):
        return word == source.project_id == owner
    # If an admin asks Cinder for an upload, the upload is the admin's
    return (word or source.project_id) == owner


def judge_answer(seen: Seen) -> Action:
    """Judge Glance's answer to the location that we gave it."""
    if seen.tasks is None:
        return LookAtTasks()
    # Found by the URL, as the times of tasks are whole seconds
    answer = next((task for task in seen.tasks if task.url == seen.asked), None)
    if answer is None or answer.status != "failure":
        return AwaitImage()
    reason = f"Glance could not add the location: {answer.message or 'its log has the reason'}"
    return Finish(
        Again(reason), tell="waiting: Glance could not take the volume, it is tried again"
    )


def is_still(clone: Volume, seen: Seen, rules: Uploads) -> bool:
    """Whether a clone that Cinder made has not changed for the grace period."""
    return (
        clone.status not in volume_status.MAKING
        and age(image_volume.made_at(clone), seen.now) >= rules.grace
    )
