"""Actions that the plans of prewarm ask for."""

from __future__ import annotations

from dataclasses import dataclass

from handlers.actions import AddLocation, AwaitImage, LookAtLocations, SetMetadata, SetReadonly
from worker.core.cloud import NewVolume
from worker.core.outcome import Outcome


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
    """Make a volume from the image; `anew` if an earlier one no longer serves."""

    new: NewVolume
    anew: bool = False


@dataclass(frozen=True, slots=True)
class DeleteVolume:
    """Delete a volume that we made, for the reason `why`; `because` is why this try has
    failed, if so.

    `encrypted`: Cinder made it encrypted, so nothing more may be made on this target. `native`:
    Cinder's driver made it as a clone of the image where Glance keeps it. `seems_native`: it looks
    as if, and another one is to confirm it.
    """

    volume_id: str
    why: str
    because: str = ""
    encrypted: bool = False
    native: bool = False
    seems_native: bool = False


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


Observation = (
    LookAtVolumes
    | LookAtWarming
    | LookAtLocations
    | LookAtVolume
    | AwaitVolume
    | AwaitImage
    | AwaitEntry
)
"""Reads the cloud only: see `handlers.prewarm.observe`."""
Change = (
    CopyImage
    | CreateVolume
    | DeleteVolume
    | SetMetadata
    | SetReadonly
    | AddLocation
    | RemoveLocation
)
"""Changes the cloud: see `handlers.prewarm.act`."""
Action = Observation | Change | Finish
