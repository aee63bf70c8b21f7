"""Popularity: whether an image is used so much on a target that it is wanted there."""

from __future__ import annotations

from handlers import policy
from worker.core.cloud import Image
from worker.core.errors import Blocked, NotFound
from worker.core.handler import Parts
from worker.core.job import Key
from worker.core.target import Target

# Uses of an image on a target that make it wanted there where `when` is "used"
POPULAR = 2


class Popularity:
    """The uses of images, compared with `[prewarm] when`."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._rules = parts.policy
        self._uses = parts.uses
        self._now = parts.now

    def is_lacking(self, image: Image, target: Target) -> bool:
        """Whether the image has to be used on the target before it is wanted there, and was not."""
        if self._rules.when == "new" or policy.is_asked_for(image, self._rules):
            return False
        return self._uses.count(image.id, target.name) < POPULAR

    async def settle_claims(self, key: Key) -> None:
        """Ask Cinder about volumes that are said to have been made of the image.

        A clone of another volume carries the image's id as well. A volume that is gone, or that we
        may not look at, is not counted.
        """
        for claim in self._uses.claims(key.image_id, key.target):
            try:
                volume = await self._cloud.get_volume(claim.volume_id) if claim.volume_id else None
            except (NotFound, Blocked):
                volume = None
            made = volume is not None and not volume.source_volid and not volume.snapshot_id
            self._uses.settle(key.image_id, key.target, claim, true=made, now=self._now())
