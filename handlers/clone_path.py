"""The clone path: how Cinder would make a new volume of an image in a pool. Mirrors Cinder's own
decision. Pure.

Source: cinder/volume/flows/manager/create_volume.py (_create_from_image, _clone_image_volume, in
that order), and cinder/image/cache.py (get_entry).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from handlers import image_volume, volume_status
from handlers.reasons import WORDS, Reason
from worker.core.cloud import Image, Location, Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pool that volumes come to lie in.

    `hosts` is Cinder's host@backend#pool, and others that a clone may come from
    (`clone_across_pools`); empty where Cinder does not show it: then a volume of one of the `types`
    is taken to lie there. `native` are sets of Glance's stores: an image that is in all stores of a
    set is cloned by Cinder's driver itself.
    """

    hosts: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    native: frozenset[frozenset[str]] = frozenset()

    def has(self, volume: Volume) -> bool:
        """Whether a clone in this pool can be made of the volume."""
        return (
            volume.host in self.hosts
            if self.hosts and volume.host
            else volume.volume_type in self.types
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that was read: the image's `locations`, None if hidden, and its volumes in the
    internal project.

    `cache_off` tells that Cinder was seen to make no entry in its image-volume cache in this pool.
    """

    locations: tuple[Location, ...] | None
    volumes: tuple[Volume, ...] = field(default=())
    cache_off: bool = False


@dataclass(frozen=True, slots=True)
class NativeClone:
    """Cinder's driver clones the image where Glance keeps it."""


@dataclass(frozen=True, slots=True)
class ImageVolumeClone:
    """Cinder clones the Image-Volume that a location of the image names."""

    volume: Volume


@dataclass(frozen=True, slots=True)
class CacheClone:
    """Cinder clones the entry of its image-volume cache."""

    volume: Volume


@dataclass(frozen=True, slots=True)
class Download:
    """Cinder downloads the image: the conditions for a clone that are not met."""

    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        return "; ".join(WORDS[reason].sentence for reason in self.reasons)


@dataclass(frozen=True, slots=True)
class Unknown(Download):
    """A download, unless what could not be read says otherwise."""


Path = NativeClone | ImageVolumeClone | CacheClone | Download | Unknown


def clone_path(image: Image, pool: Pool, evidence: Evidence, *, project_id: str = "") -> Path:
    """Return how Cinder would make an unencrypted volume of the image in the pool.

    `project_id` is the project that asks for the volume; "" for one that may use the image and does
    not own it.
    """
    if image.status != "active":
        return Download((Reason.IMAGE_INACTIVE,))
    if "cinder_encryption_key_id" in image.properties:
        return Download((Reason.ENCRYPTED,))
    if is_native(image, pool):
        return NativeClone()
    located, why = _by_location(image, pool, evidence, project_id)
    if located:
        return ImageVolumeClone(located)
    entry, missing = _by_cache(image, pool, evidence)
    if entry:
        return CacheClone(entry)
    kind = Unknown if why is Reason.LOCATIONS_HIDDEN else Download
    return kind((why, missing))


def is_native(image: Image, pool: Pool) -> bool:
    """Whether the driver of the pool clones the image itself. RBD takes raw images only
    (drivers/rbd.py)."""
    return image_volume.is_raw(image) and any(
        stores <= (image.stores or frozenset()) for stores in pool.native
    )


def _by_location(
    image: Image, pool: Pool, evidence: Evidence, project_id: str
) -> tuple[Volume | None, Reason]:
    """The Image-Volume that Cinder clones by a location; else why there is none."""
    if not image_volume.is_raw(image):
        return None, Reason.FORMAT
    if evidence.locations is None:
        return None, Reason.LOCATIONS_HIDDEN
    named = {location.volume_id for location in evidence.locations if location.volume_id}
    if not named:
        return None, Reason.NO_LOCATION
    here = [volume for volume in evidence.volumes if volume.id in named and pool.has(volume)]
    if not here:
        return None, Reason.OTHER_POOL
    own = [
        one
        for one in here
        if project_id == image.owner or one.metadata.get("image_owner") == image.owner
    ]
    if not own:
        return None, Reason.OWNER
    # Cinder takes the newest (volume_get_all sorts so), and looks at neither status nor encryption
    newest = max(own, key=lambda volume: (volume.created_at, volume.id))
    if not volume_status.is_usable(newest):
        return None, Reason.NOT_AVAILABLE
    if newest.encrypted:
        return None, Reason.ENCRYPTED
    return newest, Reason.NO_LOCATION


def _by_cache(image: Image, pool: Pool, evidence: Evidence) -> tuple[Volume | None, Reason]:
    """The fresh entry of Cinder's image-volume cache; else why there is none.

    Cinder's table, which tells what an entry was made for, is shown by no API: our own mark on the
    entry does.
    """
    name = image_volume.name_of(image.id)
    located = {location.volume_id for location in evidence.locations or ()}
    entries = [
        volume
        for volume in evidence.volumes
        if volume.name == name
        and volume.id not in located
        and image_volume.is_entry(volume)
        and volume_status.is_usable(volume)
        and pool.has(volume)
    ]
    # The newest one is what Cinder uses: an older one is stale and about to be evicted
    entry = max(entries, key=lambda volume: volume.created_at, default=None)
    if entry is None:
        return None, Reason.CACHE_OFF if evidence.cache_off else Reason.ENTRY_MISSING
    if entry.encrypted:
        return None, Reason.ENCRYPTED
    if entry.metadata.get(image_volume.FRESH) != image.updated_at:
        return None, Reason.ENTRY_STALE
    return entry, Reason.ENTRY_MISSING
