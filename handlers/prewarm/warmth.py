"""Warmth: the state of images on targets, by a bulk listing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from handlers import budget, image_volume, marks, policy
from handlers.clone_path import Download
from handlers.prewarm.held_back import HeldBack
from handlers.prewarm.paths import Paths
from handlers.prewarm.placing import Placing
from handlers.prewarm.plan import LACKS
from handlers.prewarm.popularity import Popularity
from handlers.serving import at, served
from worker.core.cloud import Image, Location, Volume
from worker.core.handler import Parts
from worker.core.job import Key
from worker.core.state import State
from worker.core.target import TAG, UPLOAD, Target
from worker.core.wishes import EVICTED

# The places where an image is not warm: a state and the reason, by the name of the place
Missing = dict[str, tuple[State, str]]


@dataclass(frozen=True, slots=True)
class Warmth:
    """The state of an image on a target, and why it is not warm there."""

    target: Target
    state: State
    why: str = ""


class Listed:
    """The states of listed images on all targets. Asks no service.

    Between two calls of `prepare` each image that still has to come is counted against its
    target's budget.
    """

    def __init__(self, parts: Parts) -> None:
        self._rules = parts.policy
        self._uses = parts.uses
        self._learned = parts.learned
        self._wishes = parts.wishes
        self._now = parts.now
        self._popularity = parts.shared(Popularity)
        self._held_back = parts.shared(HeldBack)
        self._placing = parts.shared(Placing)
        self._paths = parts.shared(Paths)
        self._names = frozenset(target.name for target in parts.targets)
        self._targets: tuple[Target, ...] = ()
        self._shelves: dict[str, budget.Shelf] = {}

    async def prepare(
        self, targets: tuple[Target, ...], volumes: Mapping[str, tuple[Volume, ...]]
    ) -> None:
        """Take over the targets, and the use of their budgets by all volumes that there are."""
        self._targets = targets
        lying = await budget.lying(volumes, targets, self._uses, now=self._now())
        self._shelves = {
            target.name: budget.Shelf(target, lying[target.name])
            for target in targets
            if target.name in lying
        }

    def held(self) -> dict[str, tuple[int, int]]:
        """Return the use of each budget, as GiB and number, by target."""
        return {name: (shelf.size, shelf.count) for name, shelf in self._shelves.items()}

    def of(self, image: Image, volumes: tuple[Volume, ...]) -> Iterator[Warmth]:
        """The state of an image on each target."""
        for resolved in self._targets:
            target = served(image, resolved, self._learned, now=self._now())
            if self._wishes.is_evicted(
                Key("prewarm", image.id, target.name), now=self._now()
            ) and not any(marks.may_go(one, image, target) for one in volumes):
                yield Warmth(target, State.HELD_BACK, EVICTED)
            elif refusal := policy.refusal(image, target, self._rules):
                yield Warmth(target, State.UNWANTED, refusal)
            elif target.is_spread and target.strategy != "native":
                yield self._in_places(image, volumes, target)
            else:
                yield self._on(image, volumes, target)

    def _on(self, image: Image, volumes: tuple[Volume, ...], target: Target) -> Warmth:
        """The state of an image on a target that has one place."""
        why = LACKS[target.strategy](image, volumes, target)
        if not why and (name := self._of_gone_target(volumes, target)):
            why = f"it is marked for target {name}, which is not configured any more"
            return Warmth(target, State.COLD, why)
        if not why:
            return Warmth(target, State.WARM)
        if _is_there(image, volumes, target):
            return Warmth(target, State.COLD, why)
        if self._popularity.is_lacking(image, target):
            return _unused(target, why)
        if held := self._held_back.reason(image, target):
            return Warmth(target, State.HELD_BACK, held)
        if full := self._held_back.full(target) or self._no_room(image, target):
            return Warmth(target, State.FULL, full)
        return Warmth(target, State.COLD, why)

    def _of_gone_target(self, volumes: tuple[Volume, ...], target: Target) -> str:
        """The name of a target that is gone, for which something of the target's type is marked; it
        is in no budget until the target takes it over. "" if there is none."""
        names = (
            volume.metadata.get(TAG, UPLOAD)
            for volume in volumes
            if volume.volume_type == target.volume_type and image_volume.is_entry(volume)
        )
        return next((name for name in names if name not in {UPLOAD, *self._names}), "")

    def _in_places(self, image: Image, volumes: tuple[Volume, ...], target: Target) -> Warmth:
        """The state of an image on a target that has several places."""
        lack = (
            LACKS[target.strategy](image, volumes, target) if target.strategy != "cache" else None
        )
        cold, stuck = self._not_warm(image, volumes, target)
        _, told = partly(target, cold | stuck)
        there = any(image_volume.is_ours(volume, target) for volume in volumes)
        if (lack or cold) and not there and self._popularity.is_lacking(image, target):
            return _unused(target, lack or told)
        for name in tuple(cold):
            if full := self._no_room(image, target):
                del cold[name]
                stuck[name] = State.FULL, full
        if lack and not there and (full := self._no_room(image, target)):
            return Warmth(target, State.FULL, full)
        if lack or cold:
            return Warmth(target, State.COLD, lack or told)
        if not stuck:
            return Warmth(target, State.WARM)
        return Warmth(target, *partly(target, stuck))

    def _not_warm(
        self, image: Image, volumes: tuple[Volume, ...], target: Target
    ) -> tuple[Missing, Missing]:
        """Return the places where the image is cold, and those where we can't make it warm."""
        locations = self._locations(image, volumes)
        cold: Missing = {}
        stuck: Missing = {}
        for place in target.places:
            path = self._paths.of(image, target, place, volumes=volumes, locations=locations)
            if not isinstance(path, Download):
                continue
            one = at(target, place)
            if why := self._placing.obstacle(one):
                stuck[place.name] = State.PARTLY_WARM, why
            elif why := self._held_back.reason(image, one):
                stuck[place.name] = State.HELD_BACK, why
            elif why := self._held_back.full(one):
                stuck[place.name] = State.FULL, why
            else:
                cold[place.name] = State.COLD, str(path)
        return cold, stuck

    def _locations(self, image: Image, volumes: tuple[Volume, ...]) -> tuple[Location, ...]:
        """The image's locations, as far as a listing shows them: volumes that Glance has marked."""
        stores = frozenset(one.glance_store for one in self._targets) - {""}
        if not image_volume.is_raw(image) or not stores & (image.stores or frozenset()):
            return ()
        return tuple(
            Location(url="", store=volume.volume_type, volume_id=volume.id)
            for volume in volumes
            if "glance_image_id" in volume.metadata and image_volume.FRESH not in volume.metadata
        )

    def _no_room(self, image: Image, target: Target) -> str:
        """Return why the target's budget has no room for an image that is not there yet; "" if it
        has, and count the image."""
        if shelf := self._shelves.get(target.name):
            try:
                shelf.take(
                    image_volume.kept_on(image, target),
                    since=budget.since(image, target, self._uses),
                    owner=budget.owner_of(image),
                )
            except budget.NoRoom as error:
                return str(error)
        return ""


def partly(target: Target, missing: Mapping[str, tuple[State, str]]) -> tuple[State, str]:
    """The state of an image that is not warm in these places of the target, and why: each reason
    once.

    Where it is warm in none, it has the state that it has in each of them.
    """
    total, states = len(target.places), {state for state, _ in missing.values()}
    state = states.pop() if len(missing) == total and len(states) == 1 else State.PARTLY_WARM
    places: dict[str, list[str]] = {}
    for name, (_, why) in missing.items():
        places.setdefault(why, []).append(name)
    told = "; ".join(f"not in {', '.join(names)}: {why}" for why, names in places.items())
    return state, f"warm in {total - len(missing)} of {total} pools; {told}"


def _unused(target: Target, why: str) -> Warmth:
    return Warmth(target, State.UNUSED, f"{why}; it waits for a second volume to be made of it")


def _is_there(image: Image, volumes: tuple[Volume, ...], target: Target) -> bool:
    """Whether the target holds the image already, so that it needs no more room there, only a
    repair."""
    located = target.strategy != "cache" and target.glance_store in (image.stores or ())
    return located or any(image_volume.is_ours(volume, target) for volume in volumes)
