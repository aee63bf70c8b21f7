"""Which of Glance's stores lies on which target: told by the operator, or by Glance."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from worker.cloud import Store
from worker.errors import Blocked
from worker.handler import Parts
from worker.target import Target

# Glance reads its stores from a file at start; an operator who adds one should not have to restart us, in seconds
KEEP = 600.0


def resolve(target: Target, stores: tuple[Store, ...]) -> Target:
    """The target with its strategy and store decided. Pure. Blocked if Glance has not what the target needs.

    `auto` is `store` where Glance has a cinder store of the target's volume type (or the operator names it), else
    `cache`; never `location`, which needs an option of Glance that lets readers see locations (OSSN-0090).
    """
    if target.glance_store and target.glance_store not in {store.id for store in stores}:
        raise Blocked(f"Glance has no store {target.glance_store}, which [target:{target.name}] glance_store names")
    found = [store.id for store in stores if store.type == "cinder" and store.volume_type == target.volume_type]
    if len(found) > 1 and not target.glance_store and target.strategy != "cache":
        # They may be another region's, whose volumes are not found here
        raise Blocked(
            f"Glance has several cinder stores of volume type {target.volume_type} ({', '.join(found)}): name the one "
            f"of this region as glance_store in [target:{target.name}]"
        )
    store = target.glance_store or (found[0] if found else "")
    strategy = target.strategy
    if strategy == "auto":
        if not store and any(not other.type for other in stores):
            raise Blocked(f"Glance does not tell the types of its stores: set strategy in [target:{target.name}]")
        strategy = "store" if store else "cache"
    if strategy in ("store", "location") and not store:
        raise Blocked(f"Glance has no cinder store of volume type {target.volume_type}, target {target.name} needs one")
    return replace(target, strategy=strategy, glance_store=store)


class TargetStores:
    """The targets as Glance's list of stores decides them, looked up now and then."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._targets = parts.targets
        self._now = parts.now
        self._stores: tuple[Store, ...] = ()
        self._until = 0.0
        self._looking = asyncio.Lock()

    async def stores(self) -> tuple[Store, ...]:
        """Glance's stores."""
        await self._refresh()
        return self._stores

    async def resolve(self, target: Target) -> Target:
        """The target with its strategy and store decided; Blocked as `resolve` says."""
        await self._refresh()
        return resolve(target, self._stores)

    async def known(self, target: Target) -> Target:
        """The target with as much decided as can be: as it is where Glance has not what it needs."""
        try:
            return await self.resolve(target)
        except Blocked:
            return target

    async def all(self) -> tuple[Target, ...]:
        """All targets that can be had, decided."""
        await self._refresh()
        decided: list[Target] = []
        for target in self._targets:
            # One target that can't be had is no reason to do nothing for the others; its own jobs say what it lacks
            with contextlib.suppress(Blocked):
                decided.append(resolve(target, self._stores))
        return tuple(decided)

    async def _refresh(self) -> None:
        async with self._looking:
            if self._now() < self._until:
                return
            self._stores = await self._cloud.list_stores()
            self._until = self._now() + KEEP
