"""Copies: the imports by which Glance copies images into our stores."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import replace

import structlog

from handlers import policy
from handlers.prewarm.popularity import Popularity
from handlers.prewarm.seen import Seen
from handlers.prewarm.suspects import Suspects
from handlers.reservations import Reservations
from handlers.serving import served
from handlers.target_store import TargetStores
from worker.core.cloud import Image
from worker.core.errors import Blocked, Conflict, NotFound, Temporary
from worker.core.handler import Parts, Watch
from worker.core.job import Key
from worker.core.target import Target

log = structlog.get_logger(__name__)

# Images whose copies are remembered until we have marked them; the oldest are forgotten
COPIES = 10_000


class Copies:
    """Asks Glance for copies, and remembers which were asked for by this process."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._locks = parts.locks
        self._rules = parts.policy
        self._learned = parts.learned
        self._wishes = parts.wishes
        self._now = parts.now
        self._popularity = parts.shared(Popularity)
        self._suspects = parts.shared(Suspects)
        self._stores = parts.shared(TargetStores)
        self._reservations = parts.shared(Reservations)
        self._beginning: set[str] = set()
        self._asked: dict[str, frozenset[str]] = {}

    def asked(self, image_id: str) -> frozenset[str]:
        """The stores into which this process has asked Glance to copy the image."""
        return self._asked.get(image_id, frozenset())

    async def begin(self, stores: tuple[str, ...], seen: Seen, watch: Watch) -> Seen:
        """Ask Glance for one import into all stores where the image is wanted, as it stages the
        data only once."""
        if seen.image.id in self._beginning:
            # The job of another target is asking for it this very moment
            await watch.changed()
            return replace(seen, image=await self._image(seen))
        self._beginning.add(seen.image.id)
        asked, began = stores, frozenset[str]()
        try:
            asked = await self._with_others(stores, seen)
            stores = await self._ask(stores, asked, seen)
            began = frozenset(stores)
            log.info("image_copy_began", stores=stores)
            self._remember(seen.image.id, stores)
        except Conflict as error:
            image = await self._image(seen)
            if (
                not image.import_locked
                and not image.importing
                and not set(stores) & (image.stores or frozenset())
            ):
                raise
            # Somebody else's import of this image was faster
            log.info("image_copy_waits", why=str(error))
            await watch.changed()
            return replace(seen, image=await self._image(seen), refused=True)
        except Temporary:
            # It may have begun
            began = frozenset(asked)
            raise
        finally:
            self._beginning.discard(seen.image.id)
            await self._release(seen.image.id, set(asked) - set(stores) - began)
        return replace(
            seen, image=await self._image(seen), imported=True, asked=seen.asked | set(stores)
        )

    def forget(self, image_id: str, store: str) -> None:
        """Forget a copy that was asked for: a later one in this store is somebody else's."""
        left = self.asked(image_id) - {store}
        if left:
            self._asked[image_id] = left
        else:
            self.forget_all(image_id)

    def forget_all(self, image_id: str) -> None:
        """Forget all copies of an image that is gone."""
        self._asked.pop(image_id, None)

    async def suspect_others(self, own: Iterable[str], stores: Iterable[str]) -> None:
        """Suspect the targets of these stores, except those of our own."""
        for target in await self._stores.all():
            if target.glance_store in set(stores) - set(own):
                self._suspects.add(target.name)

    async def _ask(
        self, own: tuple[str, ...], stores: tuple[str, ...], seen: Seen
    ) -> tuple[str, ...]:
        """Ask Glance for a copy into `stores`, or into our `own` alone if it refuses; the stores
        that it accepted.

        Glance refuses a copy as a whole for one store that it does not have, or does not let us
        write to.
        """
        try:
            async with self._locks.of(seen.image.id):
                await self._cloud.copy_image(seen.image.id, stores)
                return stores
        except (Conflict, Blocked, NotFound) as error:
            if stores == own or (await self._image(seen)).import_locked:
                raise
            log.warning("joint_copy_refused", stores=stores, error=str(error))
            await self.suspect_others(own, stores)
        except Temporary:
            # It may have begun; if not, the next try is without those that may be the reason
            await self.suspect_others(own, stores)
            raise
        async with self._locks.of(seen.image.id):
            await self._cloud.copy_image(seen.image.id, own)
        return own

    async def _with_others(self, stores: tuple[str, ...], seen: Seen) -> tuple[str, ...]:
        """Add the stores of all other targets that want the image and have room for it."""
        for resolved in await self._stores.all():
            other = served(seen.image, resolved, self._learned, now=self._now())
            if (
                other.strategy == "store"
                and other.glance_store not in (*stores, *(seen.image.stores or ()))
                and policy.refusal(seen.image, other, self._rules) is None
                and not self._popularity.is_lacking(seen.image, other)
                and not self._is_evicted(seen.image, other)
                and other.name not in self._wishes.paused
                and not self._suspects.has(other.name)
                and await self._reservations.has_spare(seen.image, other, besides=len(stores))
            ):
                stores = (*stores, other.glance_store)
        return stores

    async def _release(self, image_id: str, stores: Set[str]) -> None:
        """Release the room that was kept for copies that were not begun."""
        if stores:
            for target in await self._stores.all():
                if target.glance_store in stores:
                    self._reservations.release(image_id, target.name)

    def _is_evicted(self, image: Image, target: Target) -> bool:
        return self._wishes.is_evicted(Key("prewarm", image.id, target.name), now=self._now())

    def _remember(self, image_id: str, stores: tuple[str, ...]) -> None:
        self._asked[image_id] = self.asked(image_id) | set(stores)
        if len(self._asked) > COPIES:
            del self._asked[next(iter(self._asked))]

    async def _image(self, seen: Seen) -> Image:
        return await self._cloud.get_image(seen.image.id)
