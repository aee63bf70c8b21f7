"""Seen: everything that was read about the image of an upload. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from handlers.upload.clones import is_ours
from worker.core.cloud import Image, ImageTask, Location, Store, Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Everything read so far about an image; None means not read yet.

    `clones` are the volumes of the internal project named like its Image-Volume that are clones,
    oldest first.
    """

    image: Image
    now: float
    stores: tuple[Store, ...] = ()
    clones: tuple[Volume, ...] | None = None
    older: tuple[Volume, ...] = ()
    """Clones like these that are older than the image."""
    source: Volume | None = None
    """The volume that was read last."""
    owned: tuple[str, float] = ("", 0.0)
    """The id of that volume and the time of that look, if it was the image's project's."""
    missing: frozenset[str] = frozenset()
    """Volumes that Cinder does not find."""
    used: int | None = None
    """GiB of the project's other images that were made of volumes."""
    tasks: tuple[ImageTask, ...] | None = None
    locations: tuple[Location, ...] | None = None
    hidden: bool = False
    """Glance was asked for the locations and showed none."""

    # Results of the actions of this try
    made: frozenset[str] = frozenset()
    """Clones that this try has asked for. Cinder's clock may be wrong: it does not tell their age."""
    asked_at: float = 0.0
    """When it has asked for the last one, by our clock."""
    sure: bool = False
    """Image and source were read again since the clone was there."""
    changed: bool = False
    """The image was another one when it was read before."""
    restless: bool = False
    """It has changed during a wait."""
    asked: str = ""
    """The location that Glance was given."""
    bound_at: str = ""
    """The image's updated_at after our change."""
    failed: str = ""
    """Reason why something that was made came to nothing."""
    offered: frozenset[str] = frozenset()
    """Properties that Glance was asked to keep."""
    refused: frozenset[str] = frozenset()
    """Those of them that Glance refused."""
    refusal: str = ""
    """Glance's last reason for it."""
    at_once: int | None = None
    """Number of properties that Glance is asked for in one request; None for all."""
    lock_refused: bool = False
    """Glance did not give away the lock that an import has on the image."""


def unlocated(seen: Seen) -> set[str]:
    """Return our clones that can't be a location: the image was queued when last read, and Glance
    was not asked."""
    if seen.image.status != "queued" or seen.image.import_locked or seen.asked:
        return set()
    return {clone.id for clone in seen.clones or () if is_ours(clone)}


def with_clone(clone: Volume, seen: Seen) -> Seen:
    """Replace a clone that was read again."""
    clones = tuple(clone if other.id == clone.id else other for other in seen.clones or ())
    return replace(seen, clones=clones)


def without(volume_id: str, seen: Seen) -> Seen:
    """Remove a clone that was deleted."""
    return replace(
        seen, clones=tuple(clone for clone in seen.clones or () if clone.id != volume_id)
    )


def believed(volume_id: str, written: Callable[[Volume], Volume], seen: Seen) -> Seen:
    """Take over what was just written on a clone: Cinder has confirmed it."""
    return replace(
        seen,
        clones=tuple(
            written(clone) if clone.id == volume_id else clone for clone in seen.clones or ()
        ),
    )
