"""Held back: images that are not made warm again for now, as somebody else undid it before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import structlog

from handlers import image_volume, volume_status
from handlers.prewarm.actions import Finish
from handlers.prewarm.seen import Seen
from handlers.prewarm.strategies import cache
from worker.core.age import age
from worker.core.cloud import Image
from worker.core.errors import NotFound
from worker.core.handler import Parts
from worker.core.outcome import Again, Skip
from worker.core.state import State
from worker.core.target import ON, Target
from worker.core.undone import Past

log = structlog.get_logger(__name__)

LIMITS = (
    "its image-volume cache is full there: raise image_volume_cache_max_count or "
    "image_volume_cache_max_size_gb in "
    "cinder.conf, or want fewer images (see [prewarm], and max_count of the target)"
)


UNSIZED = (
    "Cinder could not make a volume of it, and Glance does not tell its virtual size, so it may have "
    "been too small: set its min_disk to the GiB that it needs"
)


class HeldBack:
    """Decides whether something is made again that somebody else undid.

    It is made again at most once in `rewarm_interval` seconds. After the second time it is left
    until the image changes, or until a day later.
    """

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._undone = parts.undone
        self._rewarm_interval = parts.policy.rewarm_interval
        self._now = parts.now

    def reason(self, image: Image, target: Target) -> str:
        """Return why the image is held back on a target, or in a place of it; "" if it is not."""
        past = self._undone.held(
            image.id, target.place, state=_state(image, target), now=self._now()
        )
        return _why(past, target) if past else ""

    def full(self, target: Target) -> str:
        """Return why Cinder's cache takes nothing more on the target, or is off; "" if it may take
        more, or is not needed."""
        return (
            self._undone.full(target.place, now=self._now()) if target.strategy == "cache" else ""
        )

    def has_no_cache(self, image: Image, target: Target) -> bool:
        """Whether Cinder's cache is full or off on the target, or has made no entry of this
        image."""
        return bool(self.full(target)) or self._undone.is_refused(
            image.id, target.place, state=_state(image, target), why=cache.NO_CACHE
        )

    def all(
        self, resolved: Iterable[Target], targets: Mapping[str, Target]
    ) -> Iterator[tuple[str, str, str]]:
        """The images that are held back: image id, target, reason."""
        for (image_id, place), past in self._undone.all_held(now=self._now()).items():
            name = place.partition(ON)[0]
            if target := next((one for one in resolved if one.name == name), targets.get(name)):
                yield image_id, name, _why(past, target)

    def all_full(self, targets: Iterable[str]) -> dict[str, str]:
        """Reasons why nothing more fits into Cinder's cache, by target."""
        return {
            name: why[0]
            for name in targets
            if (why := self._undone.full_places(name, now=self._now()))
        }

    def wait(self, seen: Seen, target: Target) -> Finish | None:
        """Wait or skip if somebody else would undo what is made now; None if it may be made."""
        now = self._now()
        past = self._undone.look(
            seen.image.id,
            target.place,
            state=_state(seen.image, target),
            now=now,
            stale=target.strategy == "cache",
        )
        if past and past.is_held:
            return _finish(past, target)
        if full := self.full(target):
            return Finish(Skip(full, state=State.FULL))
        # Whether Cinder has evicted it for another one of ours shows only once that one is there
        since = (
            0.0
            if not past or past.refused
            else past.gone_at
            if target.strategy == "cache"
            else past.at
        )
        reason = "somebody else has deleted its Image-Volume"
        if not past and (spent := self._undone.spent(seen.image.id, target.place)):
            since, reason = (
                spent,
                "it was made not long ago, and has been deleted or came to nothing",
            )
        # A clock that was ahead for a moment has noted a time that is yet to come
        if (wait := self._rewarm_interval - age(since, now)) > 0:
            return Finish(Again(reason, after=wait, counted=False), held_back=True)
        return None

    def forget(self, image_id: str, place: str) -> None:
        """Forget the volume that was made in a place: we have deleted it ourselves."""
        self._undone.forget(image_id, place)

    def note_gone(self, image: Image, target: Target) -> None:
        """Note that a copy was made, and was gone before we looked at it."""
        state = _state(image, target)
        self._undone.made(image.id, target.place, state=state, volume_id="", at=self._now())

    async def note_refused(
        self, seen: Seen, target: Target, why: str, *, of_image: bool = False
    ) -> Finish | None:
        """Note that Cinder has refused what would keep the image warm; how to finish if it is held
        back now. `of_image`: no other image of the target is concerned.

        Nor is one if Cinder keeps no larger entry there: it may be too large for the cache's limit.
        """
        largest = 0 if of_image else await self._largest_entry(target)
        size = image_volume.kept_on(seen.image, target)
        past = self._undone.refused(
            seen.image.id,
            target.place,
            state=_state(seen.image, target),
            at=self._now(),
            why=why,
            of_image=of_image or 0 < largest < size,
            owner=seen.image.owner,
            stands=largest > 0,
        )
        return _finish(past, target) if past.is_held else None

    def is_images_fault(self, image: Image, target: Target) -> bool:
        """Note that Cinder could make no volume of the image; whether that is the image's fault, as
        it makes volumes of others."""
        return self._undone.failed(image.id, target.place, at=self._now())

    async def _largest_entry(self, target: Target) -> int:
        """GiB of the largest entry of Cinder's cache that stands on the target; 0 if none does."""
        volumes = [one async for one in self._cloud.list_volumes(target.name)]
        return max(
            (
                one.size
                for one in volumes
                if image_volume.is_entry(one)
                and not image_volume.is_throw_away(one)
                and image_volume.is_on(one, target)
                and volume_status.is_usable(one)
            ),
            default=0,
        )

    async def note_made(self, seen: Seen, target: Target, volume_id: str, *, began: float) -> None:
        """Note a volume that was made since `began`, and find out whether Cinder has evicted
        another entry for it."""
        standing = self._undone.standing(target.place, since=began)
        now, state = self._now(), _state(seen.image, target)
        self._undone.made(seen.image.id, target.place, state=state, volume_id=volume_id, at=now)
        if target.strategy == "cache":
            self._undone.cached(target.place)
        standing.pop(seen.image.id, None)
        if target.strategy != "cache" or not standing:
            return
        there = {volume.id async for volume in self._cloud.list_volumes(target.name)}
        for image_id, past in standing.items():
            if past.volume_id not in there and await self._is_evicted(
                image_id, past, target, began=began, now=now
            ):
                why = (
                    f"Cinder evicted the entry of image {image_id} for a newer one on target "
                    f"{target.place}: {LIMITS}"
                )
                self._undone.fill(target.place, why, now=now)
                log.warning("cinder_cache_full", evicted_image_id=image_id, advice=LIMITS)
                return

    async def _is_evicted(
        self, image_id: str, past: Past, target: Target, *, began: float, now: float
    ) -> bool:
        """Whether an entry that is gone was good until then, so that Cinder needed its room."""
        try:
            image = await self._cloud.get_image(image_id)
        except NotFound:
            self._undone.forget(image_id)
            return False
        # Its own job may have made it anew since: then the one that is gone was stale
        stands = self._undone.standing(target.place, since=began).get(image_id) == past
        return stands and bool(
            self._undone.look(image_id, target.place, state=_state(image, target), now=now)
        )


def _finish(past: Past, target: Target) -> Finish:
    return Finish(Skip(_why(past, target), state=State.HELD_BACK), held_back=True)


def _why(past: Past, target: Target) -> str:
    """Return the reason why an image is held back on a target, with the advice."""
    if past.refused:
        return f"tried {past.times} times: {past.why}"
    if target.strategy == "cache":
        return (
            f"Cinder's cache entry of it was deleted {past.times} times soon after it was "
            f"made; {LIMITS}"
        )
    return (
        f"its Image-Volume was deleted {past.times} times soon after it was made, not by this "
        f"worker: is there another "
        "worker with another configuration, or a clean-up of the internal project?"
    )


def _state(image: Image, target: Target) -> str:
    """Return a digest of those fields of an image whose change ends its being held back.

    An entry of Cinder's cache is stale with every change. When Glance makes or removes a copy, it
    changes the image's `updated_at` and stores itself.
    """
    if target.strategy == "cache":
        return image.updated_at
    own = sorted(item for item in image.properties.items() if not item[0].startswith("os_glance_"))
    return repr((image.name, image.visibility, image.size, image.min_disk, own))
