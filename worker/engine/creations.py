"""Finds out how Cinder made each volume that a user had made of an image."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from worker.core.creation import Made, Way
from worker.core.errors import Blocked, Malformed, Misconfigured, NotFound, Temporary
from worker.core.handler import Targeted
from worker.observe.creations import Creations

log = structlog.get_logger(__name__)

PAUSE = 0.5
"""Seconds between two looks for volumes that were made."""
AWAY = 5.0
"""Seconds until the next try once the cloud could not be asked."""
TRIES = 5
"""Tries for one volume; after that it counts as unknown, so that it keeps no other back."""


async def find_ways(creations: Creations, handlers: Iterable[Targeted]) -> None:
    """Find out how each volume was made, one after the other, for as long as the worker runs."""
    handler = next(iter(handlers), None)
    failures = 0
    while True:
        creation = creations.take()
        if creation is None:
            await asyncio.sleep(PAUSE)
            continue
        if handler is None:
            creations.settle(creation, Made(Way.UNKNOWN, why="the handler prewarm is switched off"))
            continue
        try:
            made = await handler.how_made(creation)
        except asyncio.CancelledError:
            creations.put_back(creation)
            raise
        except Temporary as error:
            failures += 1
            log.debug("volume_not_looked_at", volume_id=creation.volume_id, error=str(error))
            if failures < TRIES:
                creations.put_back(creation)
                await asyncio.sleep(AWAY)
                continue
            made = Made(Way.UNKNOWN, why=str(error))
        except (Blocked, NotFound, Malformed, Misconfigured) as error:
            made = Made(Way.UNKNOWN, why=str(error))
        failures = 0
        if made is not None:
            creations.settle(creation, made)
