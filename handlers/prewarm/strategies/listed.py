"""Listed: whether an image that Glance keeps in a target's store looks warm in a bulk listing. Pure."""

from __future__ import annotations

from handlers import image_volume, volume_status
from worker.core.cloud import Image, Volume
from worker.core.target import TAG, Target


def lacks(image: Image, volumes: tuple[Volume, ...], target: Target) -> str | None:
    """Return why an image does not look warm in a bulk listing; None if it does.

    A listing shows stores, but no locations.
    """
    if image.stores is not None and target.glance_store not in image.stores:
        return f"not in store {target.glance_store}"
    name = image_volume.name_of(image.id)
    # These entries serve other pools
    entries = {
        v.id
        for v in volumes
        if image_volume.is_entry(v) and (target.is_spread or image_volume.is_placed(v))
    }
    volumes = tuple(volume for volume in volumes if volume.id not in entries)
    tagged = [
        v
        for v in volumes
        if v.name == name and v.metadata.get(TAG) == target.name and image_volume.is_of(v, image)
    ]
    mine = [volume for volume in tagged if image_volume.is_ours(volume, target)]
    if not mine and tagged:
        return (
            f"its Image-Volume {tagged[0].id} is of type {tagged[0].volume_type}, not "
            f"{target.volume_type}"
        )
    if not mine:
        return "no Image-Volume of ours"
    mine = [volume for volume in mine if not image_volume.is_restored(volume)] or mine
    if not image_volume.is_readonly(mine[0]):
        return "Image-Volume can be written to"
    if len(mine) > 1:
        return "several Image-Volumes"
    if not volume_status.is_usable(mine[0]):
        return f"Image-Volume is {mine[0].status}"
    if mine[0].encrypted:
        return "Image-Volume is encrypted"
    if missing := image_volume.lacking(mine[0], image_volume.metadata_of(image, target)):
        return f"wrong or missing: {', '.join(sorted(missing))}"
    return None
