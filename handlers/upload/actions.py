"""Actions that the plan of an upload asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from handlers.actions import AddLocation, AwaitImage, LookAtLocations, SetMetadata, SetReadonly
from worker.core.cloud import NewVolume
from worker.core.outcome import Outcome


@dataclass(frozen=True, slots=True)
class LookAtClones:
    """List the clones of the image; with `source_volid`, read that volume at the same time."""

    source_volid: str = ""


@dataclass(frozen=True, slots=True)
class LookAtSource:
    """Read the source volume."""

    volume_id: str


@dataclass(frozen=True, slots=True)
class LookAtUsage:
    """Add up the project's images that were made of volumes."""


@dataclass(frozen=True, slots=True)
class LookAtTasks:
    """Read what Glance did with the image."""


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Read image and source once more: what was right when the clone was begun need not be now."""

    volume_id: str


@dataclass(frozen=True, slots=True)
class Bind:
    """Write into the image's property which image it is meant for.

    Cinder and Nova hand the properties of an image on: to volumes made from it, and to the images
    made of those. One that was handed on must never be taken for a wish.
    """

    value: str


@dataclass(frozen=True, slots=True)
class KeepProperties:
    """Give the image the properties that the volume has kept of its own image.

    `at_once` is how many are given in one request, None for all; with `bind`, that one binds the
    property too.
    """

    properties: Mapping[str, str] = field(hash=False)
    at_once: int | None = None
    bind: Bind | None = None


@dataclass(frozen=True, slots=True)
class CreateClone:
    """Clone the source into the internal project; with `bind`, bind the property at the same
    time."""

    new: NewVolume
    bind: Bind | None = None


@dataclass(frozen=True, slots=True)
class DeleteClone:
    """Delete a clone; `because` is why this try has failed, if so."""

    volume_id: str
    because: str = ""


@dataclass(frozen=True, slots=True)
class AwaitClone:
    """Wait until Cinder has made the clone; then read image and source again too."""

    volume_id: str
    source_volid: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing more to do now; `tell` is what the image's owner should know."""

    outcome: Outcome
    tell: str = ""


Observation = (
    LookAtClones
    | LookAtSource
    | LookAtUsage
    | LookAtTasks
    | LookAtLocations
    | LookAgain
    | AwaitClone
    | AwaitImage
)
"""Reads the cloud only: see `handlers.upload.observe`."""
Change = Bind | KeepProperties | CreateClone | DeleteClone | SetMetadata | SetReadonly | AddLocation
"""Changes the cloud: see `handlers.upload.act`."""
Action = Observation | Change | Finish
