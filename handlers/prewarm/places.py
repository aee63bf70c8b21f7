"""Places: have Cinder clone an image in each place of a target that has several."""

from __future__ import annotations

from dataclasses import replace

from handlers import budget, image_volume
from handlers.actions import LookAtLocations
from handlers.clone_path import Download
from handlers.prewarm.actions import LookAtVolumes
from handlers.prewarm.observe import Observer
from handlers.prewarm.one_place import OnePlace
from handlers.prewarm.paths import Paths
from handlers.prewarm.placing import CannotPlace
from handlers.prewarm.seen import Seen
from handlers.prewarm.warmth import Missing, partly
from handlers.serving import at
from handlers.target_store import TargetStores
from worker.core.cloud import Image
from worker.core.handler import Parts, Watch
from worker.core.outcome import Again, Done, Outcome, Park, Skip
from worker.core.state import State
from worker.core.target import Target


class Places:
    """Makes an image warm in all places of a target, one after the other.

    Glance's own store for the target lies in one place, wherever Cinder has put it. Each other
    place gets an entry of Cinder's image-volume cache.
    """

    def __init__(self, parts: Parts) -> None:
        self._observer = parts.shared(Observer)
        self._one_place = parts.shared(OnePlace)
        self._paths = parts.shared(Paths)
        self._stores = parts.shared(TargetStores)

    async def warm(self, seen: Seen, target: Target, watch: Watch, unlocated: set[str]) -> Outcome:
        """Have Cinder clone the image in each place, as far as that is possible.

        `unlocated` gets the volumes that were made and that Glance was not told of.
        """
        done: list[Outcome] = []
        if target.strategy != "cache":
            outcome, seen = await self._one_place.warm(seen, target, watch, unlocated)
            done.append(outcome)
        if seen.volumes is None:
            seen = await self._observer.observe(LookAtVolumes(), seen, target, watch)
        if seen.locations is None and not seen.hidden and await self._may_be_located(seen.image):
            seen = await self._observer.observe(LookAtLocations(), seen, target, watch)
        missing: Missing = {}
        for place in target.places:
            path = self._paths.of(
                seen.image, target, place, volumes=seen.volumes or (), locations=seen.locations
            )
            one = at(target, place)
            self._paths.note(seen.image, one, path)
            if not isinstance(path, Download):
                continue
            seen = await self._next(seen, one)
            try:
                outcome, seen = await self._one_place.warm(seen, one, watch, unlocated)
            except CannotPlace as error:
                outcome = Skip(str(error), state=State.PARTLY_WARM)
            except budget.NoRoom as error:
                outcome = Skip(str(error), state=State.FULL)
            if isinstance(outcome, Skip):
                missing[place.name] = outcome.state or State.PARTLY_WARM, outcome.reason
            else:
                done.append(outcome)
        return _sum_up(target, done, missing)

    async def _next(self, seen: Seen, target: Target) -> Seen:
        """Return what is known about an image for the next place, without failures of this one."""
        begun = await self._observer.begin(seen.image, target)
        return replace(
            begun,
            volumes=seen.volumes,
            warming=seen.warming,
            locations=seen.locations,
            hidden=seen.hidden,
            repaired=seen.repaired,
        )

    async def _may_be_located(self, image: Image) -> bool:
        """Whether Glance may keep the image in a volume: on any target, as types can share
        pools."""
        own = {one.glance_store for one in await self._stores.all()} - {""}
        return image_volume.is_raw(image) and bool(own & (image.stores or frozenset()))


def _sum_up(target: Target, done: list[Outcome], missing: Missing) -> Outcome:
    """The outcome for a target of its outcomes in places; `missing` are those where the image is
    not warm."""
    if again := [one for one in done if isinstance(one, Again | Park)]:
        return again[0]
    made = any(isinstance(one, Done) and one.changed for one in done)
    if missing:
        state, why = partly(target, missing)
        return Skip(why, state=state)
    return Done(f"in {len(target.places)} pools", changed=made, warmed=made, state=State.WARM)
