"""Clones: the volumes of the internal project that are made for uploads. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from handlers import image_volume, marks, volume_status
from handlers.upload.sources import source_named
from worker.core.cloud import GIB, Image, Volume
from worker.core.target import TAG, UPLOAD, UPLOADED_BY, Uploads

CLAIM = frozenset({TAG, UPLOADED_BY})


def is_ours(clone: Volume) -> bool:
    """Whether we made it; else Cinder did."""
    return TAG in clone.metadata


def is_unproven(clone: Volume) -> bool:
    """Whether only a claim says that it is ours: we have not marked it yet, or Cinder made it of a
    volume on which a user has written our mark."""
    return is_ours(clone) and bool(clone.inherited)


def metadata_of(image: Image, size: int) -> dict[str, str]:
    """Return the metadata that makes a clone of `size` GiB the image's data, and lets Cinder clone
    it for others."""
    return {"glance_image_id": image.id, "image_owner": image.owner, "image_size": str(size * GIB)}


def marks_of(image: Image) -> dict[str, str]:
    """Return the metadata by which we know a clone for an upload of the image, and count it."""
    return {TAG: UPLOAD, UPLOADED_BY: image.owner}


def clones_of(image: Image, volumes: Iterable[Volume], rules: Uploads) -> tuple[Volume, ...]:
    """Return the volumes of the internal project that are clones for an upload of the image.

    Of an active one that is not marked by its own id only that of the volume that the image names
    is believed to be ours, unless it is read-only, which ours is not before it is marked: else a user
    who writes our mark on a volume has us delete what Cinder clones from it for its cache.
    A volume that Glance fills, or that we make from an image, has no source. An entry of Cinder's
    cache is a clone as well: if the image has data, a clone that is not ours counts as an entry.
    """
    name = image_volume.name_of(image.id)
    named = (
        v for v in volumes if v.name == name and v.source_volid and image_volume.is_of(v, image)
    )
    asked = source_named(image, rules)
    clones = (
        v
        if image.status != "active" or (v.source_volid == asked and not image_volume.is_readonly(v))
        else _unclaimed(v)
        for v in named
        if not volume_status.is_leaving(v)
    )
    return tuple(
        v for v in clones if not marks.is_prewarming(v) and (image.status != "active" or is_ours(v))
    )


def _unclaimed(clone: Volume) -> Volume:
    """The clone without an inherited claim that we made it."""
    if not clone.inherited:
        return clone
    metadata = {key: text for key, text in clone.metadata.items() if key not in CLAIM}
    return replace(clone, metadata=metadata)


def older_of(image: Image, volumes: Iterable[Volume]) -> tuple[Volume, ...]:
    """Return clones for an upload of the image that are older than it, by Cinder's clock.

    They are of an image that had this id before, or that clock is wrong.
    """
    return tuple(
        v
        for v in volumes
        if v.source_volid
        and v.metadata.get(TAG) == UPLOAD
        and image_volume.is_kept_for(v, image.id)
        and not (image_volume.is_of(v, image) or volume_status.is_leaving(v))
    )
