"""Plan: the next action for an image on a target, by the target's strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from handlers.prewarm.actions import Action
from handlers.prewarm.seen import Seen
from handlers.prewarm.strategies import cache, location, native, registered, store
from worker.core.cloud import Image, Volume
from worker.core.target import Target


class Plan(Protocol):
    """The next action for a target, by what was seen. Pure: no IO, no clock."""

    def __call__(self, seen: Seen, target: Target) -> Action: ...


class Lacks(Protocol):
    """Why an image does not look warm on a target in a bulk listing, in one line; None if it does.
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
    "store": registered.lacks,
    "location": registered.lacks,
    "cache": cache.lacks,
    "native": native.lacks,
}
