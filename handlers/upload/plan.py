"""Completion: the next step from a queued image to an active one whose data is the clone of a
volume. Pure.

The source is the volume that the image's property names, or, without one, the volume that Cinder's
own upload was made of. What Cinder itself has in hand, and what Glance has locked, is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from handlers import image_volume
from handlers.actions import AddLocation, AwaitImage, LookAtLocations, SetMetadata, SetReadonly
from handlers.age import age
from handlers.upload import kept_properties
from worker.core.cloud import GIB, Image, ImageTask, Location, NewVolume, Store, Volume
from worker.core.notification import IMAGE_ID
from worker.core.outcome import Again, Done, Outcome, Park, Skip
from worker.core.target import TAG, UPLOAD, Target, Uploads

LOCATION_IMPORT = "location_import"
UNDER_WAY = frozenset({"pending", "processing"})
# For so long a job waits for a clone that is being made, and a clone whose source is gone is given,
# in seconds
PATIENCE = 60.0
# How often to look whether a wait is over that others end: more seldom the longer the image is as
# it is, in seconds
SOONEST, RAREST = 10.0, 900.0
# A clone of Cinder's that is no location of its active image, in seconds; Cinder deletes its own
# within moments
LEFT_OVER_AFTER = 3600.0
# Glance forgets its tasks after two days, in seconds
TASKS_KEPT = 172_800.0
DATA_UPLOADED = "not made from the volume: data was uploaded"
NOBODY_ASKED = "no property names a source volume, and Cinder has made no clone"
# Whether it is another project's or is not there at all must not be told
NO_SUCH_VOLUME = "the image's project has no volume of this id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Everything read so far about an image; None is what has not been looked at yet.

    `clones` are the volumes of the internal project named like its Image-Volume that are clones,
    oldest first. `source` is the volume asked for last; `missing` are volumes that were not found.
    `hidden` tells that Glance was asked for the locations and showed none. `sure` tells that image
    and source were read again since the clone was there, `changed` that the image was another one
    when it was read before. `asked` is the location that this very run has given to Glance,
    `bound_at` the image's updated_at after a change of this run's, `failed` why something it made
    came to nothing. `offered` are the properties that this run has asked Glance to keep, `refused`
    those of them that Glance refused and `refusal` its last reason; `at_once` is how many it is
    asked for in one request, None for all.
    """

    image: Image
    now: float
    stores: tuple[Store, ...] = ()
    clones: tuple[Volume, ...] | None = None
    source: Volume | None = None
    missing: frozenset[str] = frozenset()
    tasks: tuple[ImageTask, ...] | None = None
    locations: tuple[Location, ...] | None = None
    hidden: bool = False
    sure: bool = False
    changed: bool = False
    asked: str = ""
    bound_at: str = ""
    failed: str = ""
    offered: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    refusal: str = ""
    at_once: int | None = None


@dataclass(frozen=True, slots=True)
class LookAtClones:
    """List the clones of the image; with `source_volid`, read that volume in the same breath."""

    source_volid: str = ""


@dataclass(frozen=True, slots=True)
class LookAtSource:
    """Read the source volume."""

    volume_id: str


@dataclass(frozen=True, slots=True)
class LookAtTasks:
    """Read what Glance did with the image."""


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Read image and source once more: what was right when the clone was begun need not be now."""

    volume_id: str


@dataclass(frozen=True, slots=True)
class Bind:
    """Write into the image's property which image it is meant for.

    Cinder and Nova hand the properties of an image on: to volumes made from it, and to the images
    made of those. One that was handed on must never be taken for a wish.
    """

    value: str


@dataclass(frozen=True, slots=True)
class KeepProperties:
    """Give the image the properties that the volume has kept of its own image.

    `at_once` is how many are given in one request, None for all; with `bind`, that one binds the
    property too.
    """

    properties: Mapping[str, str] = field(hash=False)
    at_once: int | None = None
    bind: Bind | None = None


@dataclass(frozen=True, slots=True)
class CreateClone:
    """Clone the source into the internal project; with `bind`, bind the property in the same
    breath."""

    new: NewVolume
    bind: Bind | None = None


@dataclass(frozen=True, slots=True)
class DeleteClone:
    """Delete a clone; with `because`, what it stands for has failed for now."""

    volume_id: str
    because: str = ""


@dataclass(frozen=True, slots=True)
class AwaitClone:
    """Wait until Cinder has made the clone; then read image and source again too."""

    volume_id: str
    source_volid: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing more to do now; `tell` is what the image's owner should know."""

    outcome: Outcome
    tell: str = ""


Action = (
    LookAtClones
    | LookAtSource
    | LookAtTasks
    | LookAtLocations
    | LookAgain
    | Bind
    | KeepProperties
    | CreateClone
    | DeleteClone
    | SetMetadata
    | SetReadonly
    | AddLocation
    | AwaitClone
    | AwaitImage
    | Finish
)


def plan(seen: Seen, rules: Uploads, targets: tuple[Target, ...] = ()) -> Action:
    """The next action for an image."""
    image = seen.image
    if image.status == "active":
        return _clean_up(seen, rules)
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
    if refusal := _not_yet(named, seen, rules):
        return refusal
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


def wait_to_change(image: Image, untouched: float, now: float) -> float:
    """Seconds until a property of a queued image may be changed: it must have been left alone for
    so long.

    Glance's PATCH writes the whole image as it has read it, its status too. One that meets an
    upload of data leaves the image `saving` for good, or the data is lost. Who sends data does so
    right after making the record; later only the moment of the request itself is left.
    """
    if image.status != "queued":
        return 0.0
    return untouched - age(max(image.created_epoch, image.updated_epoch), now)


def saving_for(image: Image, now: float) -> float:
    """Seconds since the image began to get data; Glance changes nothing of it until that has
    ended."""
    return now - max(image.created_epoch, image.updated_epoch)


def source_named(image: Image, rules: Uploads) -> str:
    """The volume that the image's property asks for; "" if there is none, or if it was meant for
    another image."""
    value = _wish(image, rules)
    volume_id, _, image_id = value.rpartition("/")
    if not IMAGE_ID.fullmatch(image_id) or not volume_id:
        return value
    return volume_id if image_id == image.id else ""


def binding(image: Image, rules: Uploads) -> Bind | None:
    """Return the action that binds the property to its image; None if there is nothing to bind."""
    value = _wish(image, rules)
    return Bind(f"{value}/{image.id}") if IMAGE_ID.fullmatch(value) else None


def _wish(image: Image, rules: Uploads) -> str:
    return image.properties.get(rules.source_property, "").strip().lower()


def kind_of(image: Image) -> str:
    """Its formats, as text."""
    return (
        f"{image.disk_format or 'no disk_format'}/{image.container_format or 'no container_format'}"
    )


def is_ours(clone: Volume) -> bool:
    """Whether we made it; else Cinder did."""
    return TAG in clone.metadata


def stranded_volumes(tasks: tuple[ImageTask, ...]) -> tuple[str, ...]:
    """The volumes of locations that Glance could not add; none while another try is under way.

    Glance's own record of what it was asked for, by Cinder or by us: a user can't make it say
    something else.
    """
    imports = [task for task in tasks if task.type == LOCATION_IMPORT]
    if any(task.status in UNDER_WAY for task in imports):
        return ()
    volume_ids = (
        Location.from_url(task.url).volume_id for task in imports if task.status == "failure"
    )
    return tuple(
        dict.fromkeys(volume_id for volume_id in volume_ids if IMAGE_ID.fullmatch(volume_id))
    )


def store_of(volume_type: str, stores: tuple[Store, ...], targets: tuple[Target, ...] = ()) -> str:
    """Glance's store for volumes of a type: as a target names it, else the only one that Glance
    has; "" if none is.

    Of several stores of one type all but one may be another region's: which one it is the operator
    has to say.
    """
    known = {store.id for store in stores}
    named = [
        t.glance_store for t in targets if t.volume_type == volume_type and t.glance_store in known
    ]
    found = [
        store.id for store in stores if store.type == "cinder" and store.volume_type == volume_type
    ]
    if named:
        return named[0]
    return found[0] if len(found) == 1 else ""


def refusal(source: Volume | None, image: Image, store: str) -> str:
    """Why the image may never be made of this volume, as its owner may read it; "" if it may.
    `source` None: no such.

    Nothing is told of a volume before it is known to be the image's project's own.
    """
    if source is None or source.project_id != image.owner:
        return NO_SUCH_VOLUME
    if source.encrypted:
        return "the volume is encrypted"
    if not store:
        return f"no store of Glance serves volumes of type {source.volume_type}"
    return ""


def hindrance(source: Volume, rules: Uploads) -> str:
    """Why the volume can't be cloned now, but may be later; "" if it can."""
    if source.status == "available" or (source.status == "in-use" and rules.allow_in_use):
        return ""
    if source.status == "in-use":
        return "the volume is in-use, detach it"
    return f"the volume is {source.status}"


def metadata_of(image: Image, size: int) -> dict[str, str]:
    """Return the metadata that makes a clone of `size` GiB the image's data, and lets Cinder clone
    it for others."""
    return {"glance_image_id": image.id, "image_owner": image.owner, "image_size": str(size * GIB)}


def _patience(reason: str, seen: Seen) -> Again:
    """Wait for what others end, looking less and less often; no failure, however long it takes."""
    quiet = age(max(seen.image.created_epoch, seen.image.updated_epoch), seen.now)
    after = max(SOONEST, min(quiet / 4, RAREST))
    return Again(reason, after=after, counted=False, wake_on_notification=True)


def _refused(reason: str) -> Finish:
    return Finish(Skip(reason), tell=f"refused: {reason}")


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
    bind = None
    # Each change of an image is a risk to it: with properties to keep, one request does both once
    # the clone is there
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
    """From a clone in the internal project to a location of the image."""
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
        # Our own stands for nothing any more; whoever asked Cinder for the other may still make
        # sense of it
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
    """Wait for a clone that is being made; not with a slot of the lane for long, nor for ever
    without its source."""
    age = seen.now - clone.created_epoch
    if age > PATIENCE:
        if not seen.sure:
            return LookAgain(clone.source_volid)
        if clone.source_volid in seen.missing and is_ours(clone):
            # Cinder may have been asked for it a moment too late, and leaves it as it is
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
    # An upload that an admin asks Cinder for is the admin's
    return (word or source.project_id) == image.owner


def _look_at_answer(seen: Seen) -> Action:
    """Judge Glance's answer to the location that we gave it."""
    if seen.tasks is None:
        return LookAtTasks()
    # By the URL: their times are whole seconds
    answer = next((task for task in seen.tasks if task.url == seen.asked), None)
    if answer is None or answer.status != "failure":
        return AwaitImage()
    reason = f"Glance could not add the location: {answer.message or 'its log has the reason'}"
    return Finish(
        Again(reason), tell="waiting: Glance could not take the volume, it is tried again"
    )


def _clean_up(seen: Seen, rules: Uploads) -> Action:
    """Plan for an active image: delete clones that are none of its locations, correct what its
    owner was told."""
    if seen.asked and not seen.image.size:
        # Nobody but Glance can write it
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
            Again("its properties are put right once Glance has read it", after=15.0, counted=False)
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
        old = seen.now - clone.created_epoch > LEFT_OVER_AFTER
        settled = image_volume.is_usable(clone) or image_volume.is_broken(clone)
        if clone.id not in located and settled and (is_ours(clone) or old):
            return DeleteClone(clone.id)
    if not any(clone.id in located for clone in seen.clones):
        return _without_clone(seen, rules)
    return Finish(Done(", ".join(clone.id for clone in seen.clones if clone.id in located)))


def _without_clone(seen: Seen, rules: Uploads) -> Action:
    """Tell the owner of an active image that names a source volume, and has none of our clones for
    a location."""
    if not source_named(seen.image, rules):
        return Finish(Done())
    if seen.image.size % GIB and not seen.asked:
        return Finish(Done(), tell=DATA_UPLOADED)
    if seen.tasks is None:
        return LookAtTasks()
    if seen.now - seen.image.created_epoch > TASKS_KEPT:
        # Glance would not know any more how it came by its data
        return Finish(Done(), tell=seen.image.properties.get(rules.status_property, ""))
    located = any(task.type == LOCATION_IMPORT and task.status == "success" for task in seen.tasks)
    return Finish(Done(), tell="" if located or seen.asked else DATA_UPLOADED)


def _last_change(clone: Volume) -> float:
    return max(clone.created_epoch, clone.updated_epoch)


def _is_still(clone: Volume, seen: Seen, rules: Uploads) -> bool:
    """Whether nothing has happened to a clone of Cinder's for the grace period."""
    return age(_last_change(clone), seen.now) >= rules.grace
