"""Paths: how Cinder would make a volume of an image on a target, by what was read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from handlers.clone_path import Evidence, Path, clone_path
from handlers.prewarm.creations import Looks
from handlers.prewarm.held_back import HeldBack
from handlers.prewarm.placing import Placing
from handlers.prewarm.seen import Seen
from handlers.serving import at, pool_of
from worker.core.cloud import Image, Location, Volume
from worker.core.learned import Learned
from worker.core.pool import Place
from worker.core.target import Target


class Paths:
    """Finds the clone path, and notes it for the question how a volume was made."""

    def __init__(
        self,
        *,
        learned: Learned,
        held_back: HeldBack,
        placing: Placing,
        looks: Looks,
        now: Callable[[], float],
    ) -> None:
        self._learned = learned
        self._held_back = held_back
        self._placing = placing
        self._looks = looks
        self._now = now

    def of(
        self,
        image: Image,
        target: Target,
        place: Place | None,
        *,
        volumes: tuple[Volume, ...],
        locations: tuple[Location, ...] | None,
    ) -> Path:
        """Return how Cinder would make a volume of the image on the target, or in a place of it."""
        pool = pool_of(target, self._learned, place, now=self._now())
        full = self._held_back.full(at(target, place) if place else target)
        return clone_path(
            image, pool, Evidence(locations=locations, volumes=volumes, cache_off=bool(full))
        )

    def in_places(
        self,
        image: Image,
        target: Target,
        volumes: tuple[Volume, ...],
        locations: tuple[Location, ...] | None,
    ) -> Iterator[tuple[str, Path, str]]:
        """Return how Cinder would make a volume in each place of a target that has several.

        The name of the place, the path, and why the worker can make no volume there; "" if it can.
        """
        for place in target.places if target.is_spread else ():
            path = self.of(image, target, place, volumes=volumes, locations=locations)
            yield place.name, path, self._placing.obstacle(at(target, place))

    def note(self, image: Image, target: Target, path: Path) -> None:
        """Remember how Cinder would make a volume now."""
        self._looks.note(image.id, target.place, path, at=self._now())

    def note_seen(self, seen: Seen, target: Target) -> None:
        """Remember how Cinder would make a volume now, if enough was read to tell."""
        image, locations = seen.image, seen.locations
        if locations is None and not seen.hidden:
            if seen.stores & (image.stores or frozenset()):
                return
            locations = ()
        if seen.volumes is None and target.strategy == "cache":
            return
        place = target.places[0] if target.pool else None
        path = self.of(image, target, place, volumes=seen.volumes or (), locations=locations)
        self.note(image, target, path)
