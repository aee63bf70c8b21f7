"""Strategies: how an Image-Volume gets onto a target. Each is a pure plan: from what was seen to
one next action."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from handlers.actions import AddLocation, AwaitImage, LookAtLocations, SetMetadata, SetReadonly
from worker.core.cloud import Image, Location, NewVolume, Volume
from worker.core.outcome import Outcome
from worker.core.target import Target

# A new image gets its last touches within moments of being active: a cache entry made before would
# be stale, and what is changed during an import is lost. In seconds
FIRST_QUIET = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Everything read so far about an image on a target; None is what has not been looked at yet.

    `volumes` are the image's in the internal project (`image_volume.is_of`), `warming` the
    throw-away ones, oldest first; `hidden` tells that Glance was asked for the locations and showed
    none, so nothing is known of them; `gone` are volumes that locations point to and that are not
    there; `imported` whether this very run has asked Glance to copy, `refused` whether Glance would
    not because another import holds the image, `failed` why something it made came to nothing,
    `looks` how often it waited for a cache entry. `asked` are the stores that this process has
    asked Glance to copy the image into; `repaired` whether this very run has taken away what was
    broken there; `was` is the image when it began to wait for an import; `used` is when a volume
    was last made of it there, in epoch seconds. `stores` are Glance's stores on our targets,
    `may_delete` tells whether `[reclaim]` lets left-over volumes be deleted. `settle` is for how
    many seconds an image must be unchanged to count as quiet, `rewarm_interval` how many lie
    between two cache entries of it. `downloaded` tells that Cinder was seen downloading the image
    for a volume of ours, `native` that it has cloned the image itself, `unproven` that it may do so
    from these stores; None if that is known, or cannot be.
    """

    image: Image
    now: float
    volumes: tuple[Volume, ...] | None = None
    warming: tuple[Volume, ...] | None = None
    locations: tuple[Location, ...] | None = None
    hidden: bool = False
    gone: frozenset[str] = frozenset()
    imported: bool = False
    refused: bool = False
    failed: str = ""
    looks: int = 0
    settle: float = 0.0
    rewarm_interval: float = 0.0
    asked: frozenset[str] = frozenset()
    used: float = 0.0
    stores: frozenset[str] = frozenset()
    may_delete: bool = True
    repaired: bool = False
    was: Image | None = None
    downloaded: bool = False
    native: bool = False
    unproven: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class LookAtVolumes:
    """List the Image-Volumes of the image."""


@dataclass(frozen=True, slots=True)
class LookAtWarming:
    """List the throw-away volumes of the image."""


@dataclass(frozen=True, slots=True)
class LookAtVolume:
    """Read one volume that a location points to."""

    volume_id: str


@dataclass(frozen=True, slots=True)
class CopyImage:
    """Have Glance copy the image into stores."""

    stores: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CreateVolume:
    """Make a volume from the image; `anew` if there was one before that serves no more."""

    new: NewVolume
    anew: bool = False


@dataclass(frozen=True, slots=True)
class DeleteVolume:
    """Delete a volume that we made, for the reason `why`; with `because`, what it stands for has
    failed for now.

    `encrypted`: it came out encrypted, so nothing more may be made on this target. `native`: it
    came out as a clone that Cinder's driver made of the image where Glance keeps it.
    """

    volume_id: str
    why: str
    because: str = ""
    encrypted: bool = False
    native: bool = False


@dataclass(frozen=True, slots=True)
class RemoveLocation:
    """Remove the image's first location in a store, which is this volume; `encrypted` as in
    DeleteVolume.

    `whole`: although its volume is whole; else it was seen broken or gone, and must still be.
    """

    store: str
    volume_id: str
    whole: bool = False
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class AwaitVolume:
    """Wait until Cinder has done its work on the volume."""

    volume_id: str


@dataclass(frozen=True, slots=True)
class AwaitEntry:
    """Wait for Cinder to show its cache entry."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing more to do now. `lost` if the image's data is nowhere to be had, `held_back` if it
    changes too often."""

    outcome: Outcome
    lost: bool = False
    held_back: bool = False


Action = (
    LookAtVolumes
    | LookAtWarming
    | LookAtLocations
    | LookAtVolume
    | CopyImage
    | CreateVolume
    | DeleteVolume
    | SetMetadata
    | SetReadonly
    | AddLocation
    | RemoveLocation
    | AwaitVolume
    | AwaitImage
    | AwaitEntry
    | Finish
)


class Plan(Protocol):
    """The next action for a target, by what was seen. Pure: no IO, no clock."""

    def __call__(self, seen: Seen, target: Target) -> Action: ...


class Lacks(Protocol):
    """Why an image does not look warm on a target in a bulk listing, in one line; None if it does.
    Pure."""

    def __call__(
        self, image: Image, volumes: tuple[Volume, ...], target: Target, /
    ) -> str | None: ...
