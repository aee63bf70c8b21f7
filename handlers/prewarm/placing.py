"""Placing: private volume types, each of which leads to one pool, so that Cinder makes an
Image-Volume there.

A public type over several pools lets Cinder's scheduler choose. No project sees a private type; an
entry of Cinder's image-volume cache that was made by one serves all types whose volumes come to lie
in that pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

from worker.core.age import age, lasts
from worker.core.errors import Blocked, Conflict, NotFound, Temporary
from worker.core.handler import Parts
from worker.core.target import Target

log = structlog.get_logger(__name__)

# An operator may allow it, in seconds
ASK_AGAIN = 3600.0
# Each try downloads the image, in seconds
TRY_AGAIN = 86_400.0
# Seconds without a volume after which a private type is deleted; not before `rewarm_interval`
UNUSED_FOR = 30.0
NO_WAY = (
    "Cinder offers no way to choose this pool (it reports no pool_name, or several pools have "
    "the same names): the "
    "first volume that a user makes there leaves an entry in Cinder's image-volume cache"
)
NOT_ALLOWED = (
    "this login may not make private volume types, by which a pool is chosen (policy "
    "volume_extension:type_create); "
    "the first volume that a user makes there leaves an entry in Cinder's image-volume cache"
)
OTHERWISE = "delete its volumes and the type, and the worker makes both again"


class CannotPlace(Exception):
    """No volume can be made in the pool; the text says why."""


class Placing:
    """The private volume types of one cloud."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._now = parts.now
        self._rules = parts.policy
        self._there: set[str] = set()
        self._unused: dict[str, float] = {}
        self._wanted: dict[str, float] = {}
        self._refused_until = 0.0
        self._astray: dict[str, tuple[float, str]] = {}

    def obstacle(self, target: Target) -> str:
        """Return why no volume can be made in the target's one place, as far as is known; "" if
        it can. Asks no service."""
        if not target.places[0].specs:
            return NO_WAY
        until, why = self._astray.get(target.volume_type, (0.0, ""))
        if lasts(until, self._now(), TRY_AGAIN):
            return why
        return NOT_ALLOWED if lasts(self._refused_until, self._now(), ASK_AGAIN) else ""

    def note_astray(self, target: Target, why: str) -> None:
        """Make no volume in the target's one place for a while: its private type does not lead
        there."""
        self._there.discard(target.volume_type)
        self._astray[target.volume_type] = self._now() + TRY_AGAIN, why

    async def ensure(self, target: Target) -> None:
        """Make the volume type that leads to the target's one place, unless it is there;
        CannotPlace if not allowed."""
        if why := self.obstacle(target):
            raise CannotPlace(why)
        self._wanted[target.volume_type] = self._now()
        if target.volume_type in self._there:
            return
        try:
            await self._cloud.create_private_type(target.volume_type, dict(target.places[0].specs))
            log.info("volume_type_made", volume_type=target.volume_type)
        except Conflict as error:
            there = {one.name: dict(one.specs) for one in await self._cloud.describe_volume_types()}
            if target.volume_type not in there:
                raise CannotPlace(
                    f"Cinder takes no private volume type for this pool: {error}"
                ) from error
            if there[target.volume_type] != dict(target.places[0].specs):
                why = (
                    f"volume type {target.volume_type} has other extra specs than lead to this "
                    f"pool alone: {OTHERWISE}"
                )
                raise CannotPlace(why) from error
        except Blocked as error:
            self._refused_until = self._now() + ASK_AGAIN
            raise CannotPlace(NOT_ALLOWED) from error
        self._there.add(target.volume_type)

    def forget(self) -> None:
        """Make each private type again before it is used: somebody may have deleted them."""
        self._there.clear()

    async def tidy(self, types: Mapping[str, str], used: Iterable[str]) -> None:
        """Delete the private types that no volume is of, once that was seen for long enough.

        `types` are their names by id, `used` names of types of volumes. A job, another worker's too,
        may be about to make a volume of one: without its type Cinder would list no volumes at all.
        """
        now, in_use = self._now(), frozenset(used)
        self._unused = {
            type_id: self._unused.get(type_id, now)
            for type_id, name in types.items()
            if name not in in_use
        }
        for type_id, seen_at in self._unused.items():
            name = types[type_id]
            since = max(seen_at, self._wanted.get(name, 0.0))
            if age(since, now) >= max(UNUSED_FOR, self._rules.rewarm_interval):
                self._there.discard(name)
                try:
                    await self._cloud.delete_volume_type(type_id)
                    log.info("volume_type_deleted", volume_type=name, why="no volume is of it")
                except (Blocked, Conflict, NotFound, Temporary) as error:
                    # Of a volume that is being made, say
                    log.info("volume_type_stays", volume_type=name, why=str(error))
