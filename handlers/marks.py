"""Marks: signs that a volume was kept for an image, is ours, or holds nobody's data. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from handlers import image_volume, volume_status
from worker.core.cloud import Image, Volume
from worker.core.target import TAG, UPLOAD, Target


def why_not_ours(volume: Volume, targets: Mapping[str, Target]) -> str:
    """Return what a volume lacks that is not ours (`is_ours`)."""
    tag = volume.metadata.get(TAG, "")
    if not tag:
        lacks = "it does not carry this worker's marks"
    elif tag == UPLOAD:
        lacks = "it is marked as an upload's, and is no clone"
    elif tag not in targets:
        lacks = f"it is marked for target {tag}, which is not configured"
    else:
        lacks = f"it is marked for target {tag}, and not of its volume type"
    return f"{lacks}: the worker never deletes it; look whose it is, and delete it by hand"


def is_ours(volume: Volume, targets: Mapping[str, Target]) -> bool:
    """Whether it carries our marks and they match reality, or is a clone or a copy that was made
    for us.

    Clones in the internal project named like an Image-Volume are Cinder's: cache entries, and those
    of uploads.
    """
    target = targets.get(volume.metadata.get(TAG, ""))
    if target is not None:
        return image_volume.is_ours(volume, target)
    if TAG in volume.metadata:
        return volume.metadata[TAG] == UPLOAD and bool(volume.source_volid)
    return is_cinders_clone(volume) or is_unmarked_copy(volume)


def is_cinders_clone(volume: Volume) -> bool:
    """Whether Cinder itself has cloned it, for an entry of its cache or for an upload: then it is
    read-only, or notes the image's owner. A clone that a person has made has neither."""
    noted = image_volume.is_readonly(volume) or "image_owner" in volume.metadata
    return bool(volume.source_volid) and noted


def is_known(volume: Volume, image_id: str) -> bool:
    """Whether it was kept for this image: by us or Glance (metadata), or by Cinder, for its cache
    or an upload."""
    claimed = "glance_image_id" in volume.metadata or TAG in volume.metadata
    return (
        image_volume.is_kept_for(volume, image_id)
        and (claimed or is_cinders_clone(volume))
        and not image_volume.is_restored(volume)
    )


def is_free(volume: Volume, unlocated: frozenset[str], *, heard: bool) -> bool:
    """Whether it holds nobody's data, as it was never a location: a 404 of its image is enough.

    Once the image's deletion was `heard` of, that is a cache entry, or a volume that was not
    finished: before it becomes a location, Glance and we make it read-only. Glance itself deletes
    the volumes of locations.
    """
    if image_volume.is_throw_away(volume) or volume.id in unlocated:
        return True
    unlocatable = not image_volume.may_be_location(volume) or not image_volume.is_readonly(volume)
    return heard and unlocatable


def is_prewarming(volume: Volume) -> bool:
    """Whether pre-warming has made it, or keeps it as an entry of Cinder's cache."""
    return image_volume.ORIGIN in volume.metadata or image_volume.FRESH in volume.metadata


def is_prewarmed(volume: Volume, target: Target) -> bool:
    """Whether pre-warming has made it for this target, and it is still to go; not a throw-away
    volume."""
    made = (
        image_volume.is_ours(volume, target)
        and volume.metadata.get(image_volume.ORIGIN) == image_volume.PREWARM
    )
    image_id = image_volume.image_of(volume)
    named = volume.name == image_volume.name_of(image_id) and image_volume.is_kept_for(
        volume, image_id
    )
    gone = volume_status.is_leaving(volume) or image_volume.is_restored(volume)
    return made and named and not gone


def is_unmarked_copy(volume: Volume) -> bool:
    """Whether Glance has made it for somebody in the internal project, whom it notes as the
    owner."""
    asked = bool(volume.project_id) and volume.metadata.get("image_owner") == volume.project_id
    return asked and not volume.source_volid and TAG not in volume.metadata


def is_copy_of_ours(volume: Volume, image: Image) -> bool:
    """Whether Glance has made it for a copy-image of ours: of an image of another project nobody
    else asks for one."""
    return is_unmarked_copy(volume) and volume.project_id != image.owner


def may_be_ours(volume: Volume) -> bool:
    """Whether it could be of pre-warming's making, so that it is no reason to let go of another
    one."""
    return image_volume.ORIGIN in volume.metadata or is_unmarked_copy(volume)


def may_go(volume: Volume, image: Image, target: Target) -> bool:
    """Whether pre-warming has made it of this image for this target, and it is still to go, marked
    or not marked yet."""
    if not image_volume.is_of(volume, image) or image_volume.is_restored(volume):
        return False
    if is_prewarmed(volume, target):
        return True
    settled = (
        volume_status.is_usable(volume) or volume_status.is_broken(volume)
    ) and volume.name == image_volume.name_of(image.id)
    return settled and is_copy_of_ours(volume, image) and image_volume.is_on(volume, target)


def is_outside(volume: Volume, image: Image, target: Target) -> bool:
    """Whether it is a cache entry that pre-warming has made in a pool which the target leaves out
    by now."""
    left_out = bool(volume.host) and not target.takes(volume.host)
    return left_out and image_volume.is_entry(volume) and may_go(volume, image, target)


def is_left_of_import(volume: Volume, image: Image) -> bool:
    """Whether an import that has ended left it behind, provided that it is no location.

    Glance makes it read-only before it becomes a location: one that is may have been one, whose data
    an administrator may still want. It is left over only if it was made for the internal project.
    An import holds its lock from before its first volume is made until its last one is a location.
    A Glance that was killed may drop the lock while its task goes on: who deletes the volume looks
    at the tasks too.
    """
    made_by_glance = (
        volume.metadata.get("glance_image_id") == image.id and "image_size" in volume.metadata
    )
    marked = TAG in volume.metadata or image_volume.is_restored(volume)
    unknown = made_by_glance and not volume.source_volid and not marked
    unfinished = not image_volume.is_readonly(volume) or is_unmarked_copy(volume)
    over = image.status == "active" and not image.import_locked
    return (
        unknown
        and unfinished
        and over
        and image_volume.is_of(volume, image)
        and volume.name == image_volume.name_of(image.id)
        and not volume_status.is_leaving(volume)
    )
