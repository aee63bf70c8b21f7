"""Plan: the next action for an image on a target, by the target's strategy and by the rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from handlers import image_volume, policy
from handlers.prewarm.actions import Action, CopyImage, CreateVolume, Finish, LookAtVolumes
from handlers.prewarm.held_back import HeldBack
from handlers.prewarm.popularity import Popularity
from handlers.prewarm.seen import Seen
from handlers.prewarm.strategies import cache, listed, location, native, store
from worker.core.cloud import Image, Volume
from worker.core.handler import Parts, Watch
from worker.core.outcome import Again, Skip
from worker.core.state import State
from worker.core.target import Target
from worker.core.wishes import Wish


class Plan(Protocol):
    """The next action for a target, by what was seen. Pure: no IO, no clock."""

    def __call__(self, seen: Seen, target: Target) -> Action: ...


class Lacks(Protocol):
    """The reason why an image does not look warm on a target in a bulk listing; None if it does.
    Pure."""

    def __call__(
        self, image: Image, volumes: tuple[Volume, ...], target: Target, /
    ) -> str | None: ...


PLANS: Mapping[str, Plan] = {
    "store": store.plan,
    "location": location.plan,
    "cache": cache.plan,
    "native": native.plan,
}
LACKS: Mapping[str, Lacks] = {
    "store": listed.lacks,
    "location": listed.lacks,
    "cache": cache.lacks,
    "native": native.lacks,
}


MOST_MADE = 3
"""Volumes that one try makes: two may be needed to find out how Cinder makes them, or as the image
has changed meanwhile."""


class Planner:
    """Plans by strategy, and makes nothing that is not wanted, not used or undone by others."""

    def __init__(self, parts: Parts) -> None:
        self._rules = parts.policy
        self._popularity = parts.shared(Popularity)
        self._held_back = parts.shared(HeldBack)

    def plan(self, seen: Seen, target: Target, watch: Watch) -> Action:
        """Return the next action. An operator gets what he asks for in spite of what others undid,
        and if he wishes for this very image, in spite of its not being used."""
        if refusal := policy.refusal(seen.image, target, self._rules):
            return Finish(Skip(refusal))
        action = PLANS[target.strategy](seen, target)
        lacking = watch.wish != Wish.WARM and self._popularity.is_lacking(seen.image, target)
        if isinstance(action, CopyImage | CreateVolume) and lacking:
            if seen.volumes is None:
                return LookAtVolumes()
            # An image that was warm before is kept warm: it was popular then
            if not seen.repaired and not any(
                image_volume.is_ours(volume, target) for volume in seen.volumes
            ):
                why = f"no second volume was made of the image on target {target.name} yet"
                return Finish(Skip(why, state=State.UNUSED))
        fresh = isinstance(action, CopyImage) or (
            isinstance(action, CreateVolume) and not action.anew
        )
        if isinstance(action, CreateVolume) and len(seen.made) >= MOST_MADE:
            return Finish(
                Again(f"{len(seen.made)} volumes were made of it, and each was gone again")
            )
        if fresh and not watch.by_operator and (wait := self._held_back.wait(seen, target)):
            return wait
        return action
