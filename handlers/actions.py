"""Actions that plans of several handlers ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from worker.core.cloud import Volume
from worker.core.target import OF, TAG, UPLOAD


@dataclass(frozen=True, slots=True)
class LookAtLocations:
    """Read the image's locations."""


@dataclass(frozen=True, slots=True)
class SetMetadata:
    """Put a volume's metadata right; `drop` are the keys that it must not keep."""

    volume_id: str
    metadata: Mapping[str, str] = field(hash=False)
    drop: frozenset[str] = frozenset()

    @classmethod
    def of(cls, volume: Volume, metadata: Mapping[str, str]) -> SetMetadata:
        """Set these keys; those of a clone beside its own id, which makes them its own."""
        if not volume.source_volid:
            return cls(volume.id, metadata)
        claim = {TAG: UPLOAD} if volume.metadata.get(TAG) == UPLOAD else {}
        metadata = {**(claim if volume.inherited else {}), **metadata, OF: volume.id}
        return cls(volume.id, metadata, volume.inherited - metadata.keys())

    def written(self, volume: Volume) -> Volume:
        """The volume as it is afterwards."""
        kept = {name: text for name, text in volume.metadata.items() if name not in self.drop}
        return replace(volume, metadata=kept | dict(self.metadata), inherited=frozenset())


@dataclass(frozen=True, slots=True)
class SetReadonly:
    """Set a volume's read-only flag."""

    volume_id: str

    def written(self, volume: Volume) -> Volume:
        """The volume as it is afterwards."""
        return replace(volume, metadata={**volume.metadata, "readonly": "True"})


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
