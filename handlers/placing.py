"""Placing: private volume types, each of which leads to one pool, so that Cinder makes an Image-Volume there.

A public type over several pools lets Cinder's scheduler choose. No project sees a private type; an entry of Cinder's
image-volume cache that was made by one serves all types whose volumes come to lie in that pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import structlog

from handlers.image_volume import PLACING
from worker.core.cloud import Cloud
from worker.core.errors import Blocked, Conflict, NotFound, Temporary
from worker.core.target import Target

log = structlog.get_logger(__name__)

# An operator may allow it, in seconds
ASK_AGAIN = 3600.0
NO_WAY = (
    "Cinder offers no way to choose this pool (it reports no pool_name, or several pools have the same names): the "
    "first volume that a user makes there leaves an entry in Cinder's image-volume cache"
)
NOT_ALLOWED = (
    "this login may not make private volume types, by which a pool is chosen (policy volume_extension:type_create); "
    "the first volume that a user makes there leaves an entry in Cinder's image-volume cache"
)


class CannotPlace(Exception):
    """No volume can be made in the pool; the text says why."""


class Placing:
    """The private volume types of one cloud."""

    def __init__(self, cloud: Cloud, now: Callable[[], float]) -> None:
        self._cloud = cloud
        self._now = now
        self._there: set[str] = set()
        self._refused_until = 0.0

    def obstacle(self, target: Target) -> str:
        """Why no volume can be made in the target's one place, as far as is known; "" if it can. Calls nobody."""
        if not target.places[0].specs:
            return NO_WAY
        return NOT_ALLOWED if self._now() < self._refused_until else ""

    async def ensure(self, target: Target) -> None:
        """Make the volume type that leads to the target's one place, unless it is there; CannotPlace if not allowed."""
        if why := self.obstacle(target):
            raise CannotPlace(why)
        if target.volume_type in self._there:
            return
        try:
            await self._cloud.create_private_type(target.volume_type, dict(target.places[0].specs))
            log.info("volume_type_made", volume_type=target.volume_type)
        except Conflict:
            log.debug("volume_type_is_there", volume_type=target.volume_type)
        except Blocked as error:
            self._refused_until = self._now() + ASK_AGAIN
            raise CannotPlace(NOT_ALLOWED) from error
        self._there.add(target.volume_type)

    async def tidy(self, types: Mapping[str, str], used: Iterable[str]) -> None:
        """Delete the private types that no volume is of; `types` are names by id, `used` names of types of volumes."""
        in_use = frozenset(used)
        for type_id, name in types.items():
            if name.startswith(PLACING) and name not in in_use:
                self._there.discard(name)
                try:
                    await self._cloud.delete_volume_type(type_id)
                    log.info("volume_type_deleted", volume_type=name)
                except (Blocked, Conflict, NotFound, Temporary) as error:
                    # Of a volume that is being made, say
                    log.info("volume_type_stays", volume_type=name, why=str(error))
