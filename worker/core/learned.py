"""Observations of a cloud that no API tells: one process's memory, which its handlers share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from worker.core.age import lasts

Stores = frozenset[str]

# For how long it holds what was seen, in seconds: an administrator may have changed it since
KEEP = 86_400.0


@dataclass(slots=True)
class Learned:
    """Glance's stores from which Cinder's driver clones images by itself, by target, or place of a
    target.

    A set of stores means the images that are in all of them. The empty set means all images, where
    Glance has only one store and does not name it.
    """

    _seen: dict[str, dict[Stores, tuple[bool, float]]] = field(default_factory=dict)

    def note(self, target: str, stores: Stores, *, native: bool, now: float) -> None:
        """Remember whether Cinder's driver has cloned an image on a target which was in these
        stores."""
        self._seen.setdefault(target, {})[stores] = (native, now + KEEP)

    def take_over(self, told: Mapping[str, Iterable[Stores]], *, now: float) -> None:
        """Remember what another process has seen: the sets of stores whose images are cloned, by
        target."""
        for target, sets in told.items():
            for stores in sets:
                self.note(target, stores, native=True, now=now)

    def native(self, target: str, *, now: float) -> frozenset[Stores]:
        """Return the sets of stores whose images Cinder's driver clones on this target."""
        return frozenset(
            stores
            for stores, (native, until) in self._seen_on(target)
            if native and lasts(until, now, KEEP)
        )

    def all_native(self, *, now: float) -> dict[str, frozenset[Stores]]:
        """Return the sets of stores whose images Cinder's driver clones, by target or place."""
        found = {target: self.native(target, now=now) for target in tuple(self._seen)}
        return {target: sets for target, sets in found.items() if sets}

    def is_known(self, target: str, stores: Stores, *, now: float) -> bool:
        """Whether it was seen lately what Cinder does on this target with an image in these
        stores."""
        return any(
            stores == one and lasts(until, now, KEEP) for one, (_, until) in self._seen_on(target)
        )

    def _seen_on(self, target: str) -> tuple[tuple[Stores, tuple[bool, float]], ...]:
        return tuple(self._seen.get(target, {}).items())
