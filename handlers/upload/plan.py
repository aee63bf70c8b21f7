"""Plan: the next step from a queued image to an active one whose data is a clone of a volume. Pure.

Nothing is done to an image that Cinder's own upload is working on, or that Glance has locked.
"""

from __future__ import annotations

from handlers import image_volume, volume_status
from handlers.actions import AddLocation, AwaitImage, SetMetadata, SetReadonly
from handlers.import_lock import may_be_dead, until_others_end
from handlers.upload import clean_up
from handlers.upload.actions import (
    Action,
    CreateClone,
    DeleteClone,
    Finish,
    LookAtClones,
    LookAtSource,
    LookAtTasks,
    LookAtUsage,
    Observation,
)
from handlers.upload.clones import is_ours, is_unproven, marks_of, metadata_of
from handlers.upload.complete import complete, is_still, judge_answer, to_keep
from handlers.upload.seen import Seen
from handlers.upload.sources import (
    NO_SUCH_VOLUME,
    binding,
    excess,
    hindrance,
    kind_of,
    refusal,
    refused,
    saving_for,
    source_named,
    store_of,
    stranded_volumes,
    wait_to_change,
)
from worker.core.age import age
from worker.core.cloud import NewVolume, Volume
from worker.core.notification import IMAGE_ID
from worker.core.outcome import Again, Skip
from worker.core.target import Target, Uploads

UNPROVEN = "no property names a source volume; whether this worker or Cinder has made the clone is not known"
OF_ANOTHER = "another volume is asked for now"
WAS_ITS_DATA = (
    "clone {} stays: it was the image's data before, so Glance's database may have been restored; if "
    "nobody needs it, delete it"
)
NOBODY_ASKED = "no property names a source volume, and Cinder has made no clone"


def plan(seen: Seen, rules: Uploads, targets: tuple[Target, ...] = ()) -> Action:
    """The next action for an image. What was its data before stays."""
    action = _plan(seen, rules, targets)
    if isinstance(action, DeleteClone):
        clones = seen.clones or ()
        if any(one.id == action.volume_id and image_volume.was_location(one) for one in clones):
            return Finish(Skip(WAS_ITS_DATA.format(action.volume_id)))
    return action


def _plan(seen: Seen, rules: Uploads, targets: tuple[Target, ...]) -> Action:
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
        return AwaitImage() if seen.asked else _locked(seen, rules, targets)
    return judge_answer(seen) if seen.asked else _begin(seen, rules, targets)


def _locked(seen: Seen, rules: Uploads, targets: tuple[Target, ...]) -> Action:
    """Wait for the import that holds the image; once it has been silent for long, ask Glance for
    the lock.

    Nothing else of the image is changed meanwhile, as an import writes all of it.
    """
    waiting = Finish(_patience("Glance is at work on the image", seen))
    if seen.lock_refused or not may_be_dead(seen.image, seen.now):
        return waiting
    action = _begin(seen, rules, targets)
    harmless = isinstance(action, Observation | SetMetadata | SetReadonly | AddLocation)
    return action if harmless else waiting


def _begin(seen: Seen, rules: Uploads, targets: tuple[Target, ...]) -> Action:
    """Plan the way to the image's data."""
    image = seen.image
    named = source_named(image, rules)
    if not_yet := _not_yet(named, seen, rules):
        return not_yet
    if seen.clones is None:
        return LookAtClones(named if IMAGE_ID.fullmatch(named) else "")
    if action := _failed(named, seen, rules) or _of_another(named, seen):
        return action
    clones = [clone for clone in seen.clones if not volume_status.is_broken(clone)]
    if clones:
        usable = [clone for clone in clones if volume_status.is_usable(clone)]
        clone = (usable or clones)[0]
        return _nobody_asks(clone, named, seen) or complete(clone, seen, rules, targets)
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
        return refused(reason) if named else Finish(Skip(reason))
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


def _nobody_asks(clone: Volume, named: str, seen: Seen) -> Action | None:
    """Leave a clone alone that may be ours or Cinder's, if neither a property nor Glance's record of
    a location that it could not add asks for it; None if there is no doubt, or one asks.

    Ours was to be for whoever owned the volume when it was asked for; Cinder may be at work on its
    own.
    """
    if named or not is_unproven(clone) or clone.id in seen.made:
        return None
    if seen.tasks is None:
        return LookAtTasks()
    return None if clone.source_volid in stranded_volumes(seen.tasks) else Finish(Skip(UNPROVEN))


def _failed(named: str, seen: Seen, rules: Uploads) -> DeleteClone | Finish | None:
    """Delete a clone that Cinder could not make, or end this try after one was deleted; None if
    none has failed."""
    for clone in seen.clones or ():
        ours = is_ours(clone) and (named or not is_unproven(clone))
        if volume_status.is_broken(clone) and (ours or is_still(clone, seen, rules)):
            return DeleteClone(
                clone.id, because=f"Cinder could not clone volume {clone.source_volid}"
            )
    if seen.failed:
        # One who changes it without end has a clone made for each try
        why = seen.failed if seen.failed == OF_ANOTHER else "the volume could not be cloned"
        return Finish(Again(seen.failed), tell=f"waiting: {why}, it is tried again")
    return None


def _of_another(named: str, seen: Seen) -> DeleteClone | Finish | None:
    """Delete our clone of another volume than the property names, leave Cinder's alone; None if
    there is none."""
    others = [
        clone
        for clone in seen.clones or ()
        if named and clone.source_volid != named and not volume_status.is_broken(clone)
    ]
    if any(not is_ours(clone) for clone in others):
        return Finish(
            Skip("Cinder itself makes the image of another volume than the property names")
        )
    return DeleteClone(others[0].id, because=OF_ANOTHER) if others else None


def _patience(reason: str, seen: Seen) -> Again:
    """Wait for something that others end, with ever fewer looks. It never counts as a failure."""
    after = until_others_end(seen.image, seen.now)
    return Again(reason, after=after, counted=False, wake_on_notification=True)


def _clone_of(source_id: str, seen: Seen, rules: Uploads, targets: tuple[Target, ...]) -> Action:
    """Begin with the clone, or say why not."""
    if not IMAGE_ID.fullmatch(source_id):
        return refused(NO_SUCH_VOLUME)
    source = seen.source
    if source_id not in seen.missing and (source is None or source.id != source_id):
        return LookAtSource(source_id)
    if source_id in seen.missing:
        source = None
    store = store_of(source.volume_type, seen.stores, targets) if source else ""
    if reason := refusal(source, seen.image, store):
        return refused(reason)
    assert source is not None
    if reason := hindrance(source, rules):
        return Finish(_patience(reason, seen), tell=f"waiting: {reason}")
    if rules.project_gigabytes:
        if seen.used is None:
            return LookAtUsage()
        if reason := excess(source, seen.used, rules):
            return Finish(_patience(reason, seen), tell=f"waiting: {reason}")
    if seen.older:
        ids = ", ".join(clone.id for clone in seen.older)
        reason = (
            f"clone {ids} is older than the image by Cinder's clock: it is of an image that had this "
            "id before, and can be deleted, or that clock is wrong"
        )
        return Finish(_patience(reason, seen), tell="waiting: a clone of an earlier image is there")
    bind = None
    # Each change of an image is a risk to it. If there are properties to keep, one request does
    # both once the clone is there
    if (
        not to_keep(source, seen, rules)
        and wait_to_change(seen.image, rules.untouched, seen.now) <= 0
    ):
        bind = binding(seen.image, rules)
    return CreateClone(
        NewVolume(
            name=image_volume.name_of(seen.image.id),
            size=source.size,
            source_volid=source.id,
            metadata=metadata_of(seen.image, source.size) | marks_of(seen.image),
        ),
        bind,
    )
