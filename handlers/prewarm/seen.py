"""Seen: everything that was read about an image on a target, and how an action changes it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from handlers import image_volume
from worker.core.cloud import Image, Location, Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Everything read so far about an image on a target; None means not read yet.

    `volumes` are those of the image in the internal project (`image_volume.is_of`), and `warming`
    are its throw-away volumes; both have the oldest first.
    """

    image: Image
    now: float
    volumes: tuple[Volume, ...] | None = None
    warming: tuple[Volume, ...] | None = None
    locations: tuple[Location, ...] | None = None

    # Facts that were read before the first action
    stores: frozenset[str] = frozenset()
    """Glance's stores on all our targets."""
    known: frozenset[str] = frozenset()
    """All of Glance's stores, as far as it tells them."""
    targets: frozenset[str] = frozenset()
    """The names of all targets that are configured."""
    may_delete: bool = True
    """`[reclaim]` lets left-over volumes be deleted."""
    settle: float = 0.0
    """Seconds for which an image must be unchanged to count as quiet."""
    rewarm_interval: float = 0.0
    """Seconds between two cache entries of one image."""
    asked: frozenset[str] = frozenset()
    """Stores into which this process has asked Glance to copy the image."""
    used: float = 0.0
    """Time when a volume was last made of the image on the target, in epoch seconds."""
    unproven: frozenset[str] | None = None
    """Stores from which Cinder may clone the image itself; None if that is known, or cannot be."""

    # Results of the actions of this try
    made: frozenset[str] = frozenset()
    """Volumes that this try has asked for. Cinder's clock may be wrong: it does not tell their age."""
    hidden: bool = False
    """Glance was asked for the locations and showed none, so nothing is known about them."""
    gone: frozenset[str] = frozenset()
    """Volumes of locations that Cinder does not find."""
    imported: bool = False
    """Glance was asked to copy the image."""
    refused: bool = False
    """Glance refused to copy the image, because another import holds it."""
    failed: str = ""
    """Reason why something that was made came to nothing."""
    looks: int = 0
    """Number of waits for a cache entry."""
    repaired: bool = False
    """A broken volume or location was deleted."""
    was: Image | None = None
    """The image when the wait for an import began."""
    downloaded: bool = False
    """Cinder was seen to download the image for a volume of ours."""
    native: bool = False
    """Cinder has cloned the image itself."""
    seems_native: bool = False
    """One volume looked as if it had; a second one is to confirm it."""


def with_volume(volume: Volume, seen: Seen) -> Seen:
    """Replace a volume that was read again, or add it."""
    if volume.name == image_volume.warming_name_of(seen.image.id):
        return replace(seen, warming=_replaced(volume, seen.warming or ()))
    return replace(seen, volumes=_replaced(volume, seen.volumes or ()))


def located(volume: Volume, seen: Seen) -> Seen:
    """Add the volume of a location, or replace it."""
    return replace(seen, volumes=_replaced(volume, seen.volumes or ()))


def _replaced(volume: Volume, volumes: tuple[Volume, ...]) -> tuple[Volume, ...]:
    if any(other.id == volume.id for other in volumes):
        return tuple(volume if other.id == volume.id else other for other in volumes)
    return (*volumes, volume)


def without(volume_id: str, seen: Seen) -> Seen:
    """Remove a volume that was deleted."""
    return replace(
        seen,
        volumes=None
        if seen.volumes is None
        else tuple(v for v in seen.volumes if v.id != volume_id),
        warming=None
        if seen.warming is None
        else tuple(v for v in seen.warming if v.id != volume_id),
    )


def volume_ids(seen: Seen) -> set[str]:
    """Return the ids of all volumes that were seen."""
    return {volume.id for volume in (*(seen.volumes or ()), *(seen.warming or ()))}


def believed(volume_id: str, written: Callable[[Volume], Volume], seen: Seen) -> Seen:
    """Take over what was just written on a volume: Cinder has confirmed it."""
    return replace(
        seen,
        volumes=tuple(written(v) if v.id == volume_id else v for v in seen.volumes or ()),
    )
