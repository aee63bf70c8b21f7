"""Which of Glance's stores lies on which target: told by the operator, or by Glance."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from worker.cloud import Store
from worker.handler import Parts
from worker.target import Target

# Glance reads its stores from a file at start; an operator who adds one should not have to restart us, in seconds
KEEP = 600.0


def resolve(target: Target, stores: tuple[Store, ...]) -> Target:
    """The target with its strategy and store decided. Pure.

    `auto` is `store` where Glance has a cinder store of the target's volume type (or the operator names it), else
    `cache`; never `location`, which needs an option of Glance that lets readers see locations (OSSN-0090).
    """
    found = [store.id for store in stores if store.type == "cinder" and store.volume_type == target.volume_type]
    store = target.glance_store or (found[0] if found else "")
    strategy = target.strategy
    if strategy == "auto":
        strategy = "store" if store else "cache"
    return replace(target, strategy=strategy, glance_store=store)


class TargetStores:
    """The targets as Glance's list of stores decides them, looked up now and then."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._targets = parts.targets
        self._now = parts.now
        self._resolved: dict[str, Target] = {}
        self._until = 0.0
        self._looking = asyncio.Lock()

    async def resolve(self, target: Target) -> Target:
        """The target with its strategy and store decided."""
        await self._refresh()
        return self._resolved[target.name]

    async def all(self) -> tuple[Target, ...]:
        """All targets, decided."""
        await self._refresh()
        return tuple(self._resolved.values())

    async def _refresh(self) -> None:
        async with self._looking:
            if self._now() < self._until:
                return
            stores = await self._cloud.list_stores()
            self._resolved = {target.name: resolve(target, stores) for target in self._targets}
            self._until = self._now() + KEEP
