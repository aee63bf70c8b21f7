"""Paths: how Cinder would make a volume of an image on a target, by what was read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from handlers.clone_path import Evidence, Path, clone_path
from handlers.prewarm.held_back import HeldBack
from handlers.prewarm.looks import Looks
from handlers.prewarm.placing import Placing
from handlers.prewarm.seen import Seen
from handlers.serving import at, pool_of
from worker.core.cloud import Image, Location, Volume
from worker.core.handler import Parts
from worker.core.pool import Place
from worker.core.target import Target


class Paths:
    """Finds the clone path, and notes it for the question how a volume was made."""

    def __init__(self, parts: Parts) -> None:
        self._learned = parts.learned
        self._now = parts.now
        self._held_back = parts.shared(HeldBack)
        self._placing = parts.shared(Placing)
        self.looks = Looks()

    def of(
        self,
        image: Image,
        target: Target,
        place: Place | None,
        *,
        volumes: tuple[Volume, ...],
        locations: tuple[Location, ...] | None,
        host: str = "",
        project_id: str = "",
    ) -> Path:
        """Return how Cinder would make a volume of the image on the target, or in a place of it.

        `host` is where it makes it, if the place is not known, and `project_id` who asks for it.
        """
        pool = pool_of(target, self._learned, place, now=self._now())
        if place is None and host:
            pool = replace(pool, hosts=frozenset({host}))
        here = at(target, place) if place and target.is_spread else target
        evidence = Evidence(
            locations=locations,
            volumes=volumes,
            cache_off=self._held_back.has_no_cache(image, here),
        )
        return clone_path(image, pool, evidence, project_id=project_id)

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
        self.looks.note(image.id, target.place, path, at=self._now())

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
