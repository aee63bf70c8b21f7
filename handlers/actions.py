"""Actions that plans of several handlers ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LookAtLocations:
    """Read the image's locations."""


@dataclass(frozen=True, slots=True)
class SetMetadata:
    """Put a volume's metadata right."""

    volume_id: str
    metadata: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class SetReadonly:
    """Set a volume's read-only flag."""

    volume_id: str


@dataclass(frozen=True, slots=True)
class AddLocation:
    """Tell Glance that a volume holds the image's data."""

    url: str


@dataclass(frozen=True, slots=True)
class AwaitImage:
    """Wait until Glance has done its work on the image."""


def words(action: object) -> str:
    """Describe an action in a line for people: the first line of its class's docstring."""
    told = (type(action).__doc__ or type(action).__name__).partition("\n")[0]
    return told.partition(";")[0].rstrip(".")
