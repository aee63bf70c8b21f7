"""The rules of an Image-Volume: what it is called, what it carries, whether it serves. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from handlers import volume_status
from worker.core.age import SKEW
from worker.core.cloud import GIB, Image, NewVolume, Volume
from worker.core.creation import NOTE
from worker.core.notification import IMAGE_VOLUME_NAME
from worker.core.pool import BACKEND, TELLING, VolumeType
from worker.core.target import TAG, UPLOAD, UPLOADED_BY, Target

# The image's updated_at that an entry of Cinder's cache was made for
FRESH = f"{TAG}_updated_at"
# Set on a cache entry that took the place of one which a change of the image had made stale
ANEW = f"{TAG}_anew"
# Set on what pre-warming has made, and on nothing else: only that may go while its image stays
ORIGIN = f"{TAG}_origin"
PREWARM = "prewarm"
# Set on a volume that Glance knew as a location. One that it does not know any more is none again:
# Glance may have deleted it, and Cinder's database been restored, which shows it without its data
LOCATED = f"{TAG}_located"
# Begins the names of the private volume types by which a pool is chosen
PLACING = "image-volume-worker:"
# For how long one of several volumes of an image on a target is left alone, in seconds
FRESH_FOR = 120.0
RESTORED = "Cinder has restored a backup into it"
HIDDEN = (
    "Glance shows no locations of the image to this login (give it the role service), or "
    "the image is being deleted"
)


def name_of(image_id: str) -> str:
    """The name that Glance, Cinder's cache and we give to an image's Image-Volume."""
    return f"image-{image_id}"


def warming_name_of(image_id: str) -> str:
    """The name of the throw-away volume that makes Cinder fill its image-volume cache."""
    return f"warm-{image_id}"


def image_of(volume: Volume) -> str:
    """The id of the image that the volume was made for; "" if it is no Image-Volume."""
    named = IMAGE_VOLUME_NAME.fullmatch(volume.name)
    return named.group(1) if named else ""


def metadata_of(image: Image, target: Target) -> dict[str, str]:
    """Return the metadata that lets Cinder clone an Image-Volume for every project that may use the
    image.

    Source: cinder/volume/flows/manager/create_volume.py, _clone_image_volume (`image_owner`);
    glance_store/_drivers/cinder/store.py (`image_size` becomes the image's size).
    """
    return {
        "glance_image_id": image.id,
        "image_owner": image.owner,
        "image_size": str(image.size),
        TAG: target.name,
    }


def lacking(volume: Volume, wanted: Mapping[str, str]) -> dict[str, str]:
    """The metadata that is missing on the volume or wrong."""
    return {key: value for key, value in wanted.items() if volume.metadata.get(key) != value}


def is_readonly(volume: Volume) -> bool:
    """Whether its read-only flag is set; Cinder shows it as metadata."""
    return volume.metadata.get("readonly", "").lower() == "true"


def is_raw(image: Image) -> bool:
    """Whether its data can be a volume as it is: no other format, and no container."""
    return (image.disk_format, image.container_format) == ("raw", "bare")


def size_for(image: Image) -> int:
    """GiB of the smallest volume that Cinder makes from the image."""
    return max(1, -(-_bytes_from(image) // GIB))


def _bytes_from(image: Image) -> int:
    """Bytes that Cinder asks for of a volume made from the image, which `min_disk` and a sparse
    file can make many."""
    return max(image.size, image.virtual_size, image.min_disk * GIB)


def bytes_on(image: Image, target: Target) -> int:
    """Bytes that the target's strategy has allocated for the image; their lower bound while it is
    not decided.

    Glance's cinder store makes its volume of the image's size alone
    (glance_store/_drivers/cinder/store.py, `add`); Cinder makes no volume from an image that is
    smaller than its `min_disk` or its `virtual_size`.
    """
    return image.size if target.strategy in ("store", "auto") else _bytes_from(image)


def size_on(image: Image, target: Target) -> int:
    """GiB of one Image-Volume of the image on the target."""
    return max(1, -(-bytes_on(image, target) // GIB))


def kept_on(image: Image, target: Target) -> int:
    """GiB that stay on the target for the image. Cinder makes an entry of its cache as large as the
    data is, and extends only the volume that it was asked for
    (cinder/volume/flows/manager/create_volume.py, _create_from_image_cache_or_download)."""
    if target.strategy != "cache" or not (is_raw(image) or image.virtual_size):
        return size_on(image, target)
    return max(1, -(-max(image.size, image.virtual_size) // GIB))


def new_volume(image: Image, target: Target, *, name: str, keys: Mapping[str, str]) -> NewVolume:
    """A volume of the image on the target, recognisable from its first moment, by these keys of its
    metadata, should its creator die."""
    return NewVolume(
        name=name,
        size=size_on(image, target),
        volume_type=target.volume_type,
        image_id=image.id,
        availability_zone=target.availability_zone,
        metadata={TAG: target.name, ORIGIN: PREWARM, **keys},
    )


def is_of(volume: Volume, image: Image) -> bool:
    """Whether the volume is this image's: its name, its metadata, its project and its age agree.

    Anybody may add another image's Image-Volume as a location of an image of their own
    (show_multiple_locations), and an id can be used again for another image (OSSN-0075): a volume
    older than its image holds other data.
    """
    return is_kept_for(volume, image.id) and made_at(volume) >= image.created_epoch - SKEW


def made_at(volume: Volume) -> float:
    """When the volume was made, in epoch seconds; of a clone, the latest time that is possible.

    A clone that Cinder makes for its cache or its upload gets its source's created_at and
    updated_at; the latter is put right once it has been cloned (cinder/volume/manager.py,
    _clone_image_volume).
    """
    if not volume.source_volid or UPLOADED_BY in volume.metadata:
        return volume.created_epoch
    if volume.status in volume_status.MAKING:
        return math.inf
    return max(volume.created_epoch, volume.updated_epoch)


def is_kept_for(volume: Volume, image_id: str) -> bool:
    """Whether the volume is named like one of the image's, and its metadata does not name another
    image."""
    claim = volume.metadata.get("glance_image_id", image_id)
    return image_of(volume) == image_id == claim and not volume.foreign


def placing_type(pool: str) -> str:
    """The name of the private volume type that leads to this pool, host@backend#pool, and to no
    other."""
    return f"{PLACING}{pool}"


def is_placing(volume_type: VolumeType) -> bool:
    """Whether the worker has made the volume type: private, for a pool, and with no extra specs but
    those that choose one."""
    pool = volume_type.name.removeprefix(PLACING)
    return (
        volume_type.name.startswith(PLACING)
        and not volume_type.public
        and "@" in pool
        and "#" in pool
        and volume_type.specs.keys() <= {BACKEND, *TELLING}
    )


def is_placed(volume: Volume) -> bool:
    """Whether it was made by a private type that leads to one pool."""
    return volume.volume_type.startswith(PLACING)


def is_warming_for(volume: Volume, target: Target) -> bool:
    """Whether it is a throw-away volume of ours for this target, or for its one place wherever
    Cinder has put it."""
    if target.pool:
        return volume.metadata.get(TAG) == target.name and volume.volume_type == target.volume_type
    return is_ours(volume, target)


def is_on(volume: Volume, target: Target) -> bool:
    """Whether the volume is this target's: where it must be, and not tagged for another target.

    The tag alone is a claim: somebody may have retyped the volume, or configured another type
    since.
    """
    tag = volume.metadata.get(TAG, UPLOAD)
    return _lies(volume, target) and tag in (UPLOAD, target.name)


def is_ours(volume: Volume, target: Target) -> bool:
    """Whether we made it for this target, and it still is where it must be."""
    return volume.metadata.get(TAG) == target.name and _lies(volume, target)


def serves(volume: Volume, target: Target) -> bool:
    """Whether volumes on the target are clones of it: it lies where they come to lie, as far as
    that is known."""
    return not (volume.host and target.places) or any(
        volume.host in place.hosts for place in target.places
    )


def _lies(volume: Volume, target: Target) -> bool:
    """Whether the volume lies in the target's one place; else, whether it is of its type, or of one
    for its place."""
    if target.pool:
        # A volume that was asked for a moment ago is nowhere yet
        return serves(volume, target) if volume.host else volume.volume_type == target.volume_type
    return volume.volume_type in (target.volume_type, placing_type(volume.host))


def was_downloaded(volume: Volume, image: Image) -> bool:
    """Whether Cinder has noted that it downloaded the image for the volume. An image may have that
    property by itself, and Cinder copies it."""
    return volume.downloaded and NOTE not in image.properties


def was_location(volume: Volume) -> bool:
    """Whether it is noted that Glance knew the volume as a location."""
    return LOCATED in volume.metadata


def is_entry(volume: Volume) -> bool:
    """Whether it is an entry of Cinder's cache: marked by us, or with just the read-only flag that
    Cinder sets."""
    if is_restored(volume):
        return False
    return FRESH in volume.metadata or (is_readonly(volume) and not is_claimed(volume))


def is_restored(volume: Volume) -> bool:
    """Whether Cinder has restored a backup into it: somebody wants what it holds.

    It has the name and the metadata of the volume that was backed up, without the read-only flag
    (cinder/backup/manager.py, restore_backup; cinder/backup/driver.py, put_metadata). A clone has
    its source's metadata, in which users write what they like.
    """
    return "src_backup_id" in volume.metadata and not volume.source_volid


def is_claimed(volume: Volume) -> bool:
    """Whether its metadata claims that it is an image's data: Glance, Cinder's upload or we have
    written that; on Cinder's clones it may be a user's doing."""
    return not {"glance_image_id", "image_owner"}.isdisjoint(volume.metadata)


def is_throw_away(volume: Volume) -> bool:
    """Whether we made it only to have Cinder fill its cache."""
    return TAG in volume.metadata and volume.name.startswith("warm-")


def may_be_location(volume: Volume) -> bool:
    """Whether Glance may know it as a location: not a throw-away one, nor an entry of Cinder's
    cache.

    Cinder clones an entry from the volume that was downloaded, and tells nobody of it.
    """
    return not (is_throw_away(volume) or (is_entry(volume) and volume.source_volid))


def is_fresh(volume: Volume, now: float) -> bool:
    """Whether another worker may have made it just now, and be about to make a location of it.

    Two work on one key for a moment when the broker drops the connection of the one that had it. If
    each removed what the other has made, none of it would stay.
    """
    return now - made_at(volume) < FRESH_FOR
