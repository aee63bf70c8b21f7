"""Marks: signs that a volume was kept for an image, is ours, or holds nobody's data. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from handlers import image_volume
from worker.core.cloud import Volume
from worker.core.target import TAG, UPLOAD, Target

NOT_OURS = "it does not carry this worker's marks, or is not of its target's type"


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
    return is_cinders_clone(volume) or image_volume.is_unmarked_copy(volume)


def is_cinders_clone(volume: Volume) -> bool:
    """Whether Cinder itself has cloned it, for an entry of its cache or for an upload: then it is
    read-only, or notes the image's owner. A clone that a person has made has neither."""
    noted = image_volume.is_readonly(volume) or "image_owner" in volume.metadata
    return bool(volume.source_volid) and noted


def is_known(volume: Volume, image_id: str) -> bool:
    """Whether it was kept for this image: by us or Glance (metadata), or by Cinder, for its cache
    or an upload."""
    claimed = "glance_image_id" in volume.metadata or TAG in volume.metadata
    return image_volume.is_kept_for(volume, image_id) and (claimed or is_cinders_clone(volume))


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
