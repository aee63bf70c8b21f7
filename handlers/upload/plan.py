"""Plan: the next step from a queued image to an active one whose data is a clone of a volume. Pure.

Nothing is done to an image that Cinder's own upload is working on, or that Glance has locked.
"""

from __future__ import annotations

from collections.abc import Mapping

from handlers import image_volume
from handlers.actions import AddLocation, AwaitImage, SetMetadata, SetReadonly
from handlers.age import age
from handlers.upload import clean_up, kept_properties
from handlers.upload.actions import (
    Action,
    AwaitClone,
    CreateClone,
    DeleteClone,
    Finish,
    KeepProperties,
    LookAgain,
    LookAtClones,
    LookAtSource,
    LookAtTasks,
    LookAtUsage,
)
from handlers.upload.clones import is_ours, metadata_of
from handlers.upload.seen import Seen
from handlers.upload.sources import (
    NO_SUCH_VOLUME,
    REFUSED,
    binding,
    excess,
    hindrance,
    kind_of,
    refusal,
    saving_for,
    source_named,
    store_of,
    stranded_volumes,
    until_others_end,
    wait_to_change,
)
from worker.core.cloud import Image, NewVolume, Volume
from worker.core.notification import IMAGE_ID
from worker.core.outcome import Again, Skip
from worker.core.target import TAG, UPLOAD, Target, Uploads

# Seconds for which a job waits for a clone that is being made, and for a clone whose source is gone
PATIENCE = 60.0
NOBODY_ASKED = "no property names a source volume, and Cinder has made no clone"


def plan(seen: Seen, rules: Uploads, targets: tuple[Target, ...] = ()) -> Action:
    """The next action for an image."""
    image = seen.image
    if image.status == "active":
        return clean_up.plan(seen, rules)
    if image.status == "saving":
        return Finish(
            Skip(f"the image is saving for {saving_for(image, seen.now) / 60:.0f} minutes")
        )
    if image.status != "queued":
        return Finish(Skip(f"the image is {image.status}"))
    if image.import_locked:
        return (
            AwaitImage()
            if seen.asked
            else Finish(_patience("Glance is at work on the image", seen))
        )
    if seen.asked:
        return _look_at_answer(seen)
    named = source_named(image, rules)
    if not_yet := _not_yet(named, seen, rules):
        return not_yet
    if seen.clones is None:
        return LookAtClones(named if IMAGE_ID.fullmatch(named) else "")
    if action := _failed(seen, rules) or _of_another(named, seen):
        return action
    clones = [clone for clone in seen.clones if not image_volume.is_broken(clone)]
    if clones:
        usable = [clone for clone in clones if image_volume.is_usable(clone)]
        return _complete((usable or clones)[0], seen, rules, targets)
    if named:
        return _clone_of(named, seen, rules, targets)
    if seen.tasks is None:
        return LookAtTasks()
    stranded = [
        volume_id for volume_id in stranded_volumes(seen.tasks) if volume_id not in seen.missing
    ]
    return _clone_of(stranded[0], seen, rules, targets) if stranded else Finish(Skip(NOBODY_ASKED))


def _not_yet(named: str, seen: Seen, rules: Uploads) -> Finish | None:
    """Refuse an image that can't be made of a volume, or wait for a new one that names none; else
    None."""
    image = seen.image
    if not image_volume.is_raw(image):
        reason = f"only raw/bare images can be made of a volume, this one is {kind_of(image)}"
        return _refused(reason) if named else Finish(Skip(reason))
    quiet_in = rules.grace - age(image.created_epoch, seen.now)
    if not named and quiet_in > 0:
        # Somebody may be about to send its data, or Cinder to add a location
        return Finish(
            Again(
                "a new image, somebody may be at work on it",
                after=quiet_in,
                counted=False,
                wake_on_notification=True,
            )
        )
    return None


def _failed(seen: Seen, rules: Uploads) -> DeleteClone | Finish | None:
    """Delete a clone that Cinder could not make, or end this try after one was deleted; None if
    none has failed."""
    for clone in seen.clones or ():
        if image_volume.is_broken(clone) and (is_ours(clone) or _is_still(clone, seen, rules)):
            return DeleteClone(
                clone.id, because=f"Cinder could not clone volume {clone.source_volid}"
            )
    if seen.failed:
        return Finish(
            Again(seen.failed), tell="waiting: the volume could not be cloned, it is tried again"
        )
    return None


def _of_another(named: str, seen: Seen) -> DeleteClone | Finish | None:
    """Delete our clone of another volume than the property names, leave Cinder's alone; None if
    there is none."""
    others = [
        clone
        for clone in seen.clones or ()
        if named and clone.source_volid != named and not image_volume.is_broken(clone)
    ]
    if any(not is_ours(clone) for clone in others):
        return Finish(
            Skip("Cinder itself makes the image of another volume than the property names")
        )
    return DeleteClone(others[0].id) if others else None


def _patience(reason: str, seen: Seen) -> Again:
    """Wait for something that others end, with ever fewer looks. It never counts as a failure."""
    after = until_others_end(seen.image, seen.now)
    return Again(reason, after=after, counted=False, wake_on_notification=True)


def _refused(reason: str) -> Finish:
    return Finish(Skip(reason), tell=f"{REFUSED}{reason}")


def _clone_of(source_id: str, seen: Seen, rules: Uploads, targets: tuple[Target, ...]) -> Action:
    """Begin with the clone, or say why not."""
    if not IMAGE_ID.fullmatch(source_id):
        return _refused(NO_SUCH_VOLUME)
    source = seen.source
    if source_id not in seen.missing and (source is None or source.id != source_id):
        return LookAtSource(source_id)
    if source_id in seen.missing:
        source = None
    store = store_of(source.volume_type, seen.stores, targets) if source else ""
    if reason := refusal(source, seen.image, store):
        return _refused(reason)
    assert source is not None
    if reason := hindrance(source, rules):
        return Finish(_patience(reason, seen), tell=f"waiting: {reason}")
    if rules.project_gigabytes:
        if seen.used is None:
            return LookAtUsage()
        if reason := excess(source, seen.used, rules):
            return Finish(_patience(reason, seen), tell=f"waiting: {reason}")
    bind = None
    # Each change of an image is a risk to it. If there are properties to keep, one request does
    # both once the clone is there
    if (
        not _to_keep(source, seen, rules)
        and wait_to_change(seen.image, rules.untouched, seen.now) <= 0
    ):
        bind = binding(seen.image, rules)
    return CreateClone(
        NewVolume(
            name=image_volume.name_of(seen.image.id),
            size=source.size,
            source_volid=source.id,
            metadata=metadata_of(seen.image, source.size) | {TAG: UPLOAD},
        ),
        bind,
    )


def _complete(clone: Volume, seen: Seen, rules: Uploads, targets: tuple[Target, ...]) -> Action:
    """Plan the way from a clone in the internal project to a location of the image."""
    if not is_ours(clone) and not _is_still(clone, seen, rules):
        left = rules.grace - age(_last_change(clone), seen.now)
        return Finish(
            Again("Cinder's own upload may be at work", after=max(1.0, left), counted=False)
        )
    if not image_volume.is_usable(clone):
        return _await(clone, seen)
    if not seen.sure:
        return LookAgain(clone.source_volid)
    source = seen.source if seen.source and seen.source.id == clone.source_volid else None
    if not is_ours(clone) and source and source.status == "uploading":
        return Finish(Again("Cinder's own upload is at work"))
    if not _is_owners(clone, source, seen.image):
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
        return _refused("the volume is encrypted")
    store = store_of(clone.volume_type, seen.stores, targets)
    if not store:
        return _refused(f"no store of Glance serves volumes of type {clone.volume_type}")
    # A clone has them from its source, but not of one that is not bootable
    knowing = source if source and source.image_properties else clone
    return _locate(clone, store, _to_keep(knowing, seen, rules), seen, rules)


def _to_keep(volume: Volume, seen: Seen, rules: Uploads) -> dict[str, str]:
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
        return SetMetadata(clone.id, missing)
    if not image_volume.is_readonly(clone):
        return SetReadonly(clone.id)
    ours = bool(seen.bound_at) and seen.image.updated_at == seen.bound_at
    bind = binding(seen.image, rules)
    if change := KeepProperties(kept, seen.at_once, bind) if kept else bind:
        untouched = ours or wait_to_change(seen.image, rules.untouched, seen.now) <= 0
        return change if untouched else AwaitImage()
    # Glance writes a whole image whenever a part of it is changed. A change that falls together
    # with a location being added undoes half of that (measured: active without a size, or with the
    # location of a volume that is gone)
    changed = seen.changed or (not ours and seen.image.updated_epoch > seen.image.created_epoch)
    if changed and age(seen.image.updated_epoch, seen.now) < rules.quiet:
        return AwaitImage()
    return AddLocation(f"cinder://{store}/{clone.id}")


def _await(clone: Volume, seen: Seen) -> Action:
    """Wait for a clone that is being made: soon without a slot of the lane, and not for ever if
    its source is gone."""
    age = seen.now - clone.created_epoch
    if age > PATIENCE:
        if not seen.sure:
            return LookAgain(clone.source_volid)
        if clone.source_volid in seen.missing and is_ours(clone):
            # Our request may have come a moment too late, and Cinder leaves the clone as it is
            return DeleteClone(clone.id, because="the volume was deleted before it was cloned")
        if is_ours(clone) and image_volume.is_stalled(clone, seen.now):
            return DeleteClone(clone.id, because="Cinder has lost the request for the clone")
        reason = "the volume is being cloned"
        return Finish(
            Again(reason, after=PATIENCE / 2, counted=False, wake_on_notification=True),
            tell=f"waiting: {reason}",
        )
    return AwaitClone(clone.id, clone.source_volid)


def _is_owners(clone: Volume, source: Volume | None, image: Image) -> bool:
    """Whether what was cloned belongs to the image's owner: by the source, and by who asked for the
    clone.

    A source that is gone can't be asked: then the clone's own word counts, which Cinder or we have
    written.
    """
    word = clone.metadata.get("image_owner")
    if source is None:
        return word == image.owner
    if is_ours(clone):
        return word == source.project_id == image.owner
    # If an admin asks Cinder for an upload, the upload is the admin's
    return (word or source.project_id) == image.owner


def _look_at_answer(seen: Seen) -> Action:
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


def _last_change(clone: Volume) -> float:
    return max(clone.created_epoch, clone.updated_epoch)


def _is_still(clone: Volume, seen: Seen, rules: Uploads) -> bool:
    """Whether nothing has happened to a clone of Cinder's for the grace period."""
    return age(_last_change(clone), seen.now) >= rules.grace
