"""Prewarm as a handler: its keys, its reconciler, and its answers to resync, status and explain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from handlers import ROUTES, budget, policy
from handlers.clone_path import Path
from handlers.deletion import Deletion, Gone, NotProven, Unwanted
from handlers.prewarm.copies import Copies
from handlers.prewarm.creations import Creations
from handlers.prewarm.held_back import HeldBack
from handlers.prewarm.imports import Imports
from handlers.prewarm.observe import Observer
from handlers.prewarm.one_place import OnePlace
from handlers.prewarm.paths import Paths
from handlers.prewarm.places import Places
from handlers.prewarm.placing import Placing
from handlers.prewarm.popularity import Popularity
from handlers.prewarm.suspects import Suspects
from handlers.prewarm.warmth import Listed, Warmth
from handlers.reservations import Reservations
from handlers.serving import served
from handlers.target_store import TargetStores
from worker.core.cloud import Image, Location, Volume
from worker.core.creation import Creation, Made
from worker.core.errors import Blocked, Conflict, NotFound
from worker.core.handler import Missing, Parts, Watch
from worker.core.job import Key
from worker.core.notification import Notification
from worker.core.outcome import Again, Done, Outcome, Skip
from worker.core.state import State
from worker.core.target import UPLOAD, Target
from worker.core.wishes import EVICTED, Wish

# The status of images that have data. Glance announces that one is deactivated or reactivated as an
# image.update
WITH_DATA = ("active", "deactivated")
MADE_SINCE = "it was made again after this evict was asked for; ask again if it has to go"


class Prewarm:
    """Reconciles (image, target)."""

    name = "prewarm"
    event_types = ROUTES["prewarm"]

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._rules = parts.policy
        self._uses = parts.uses
        self._learned = parts.learned
        self._now = parts.now
        self._report = parts.report
        self._keeps_order = parts.keeps_order
        self._wishes = parts.wishes
        self._targets = {target.name: target for target in parts.targets}
        self._resolved: tuple[Target, ...] = ()
        self._imports = Imports()
        self._may_delete = parts.shared(Deletion).may_delete
        self._gone = parts.shared(Gone)
        self._unwanted = parts.shared(Unwanted)
        self._stores = parts.shared(TargetStores)
        self._reservations = parts.shared(Reservations)
        self._suspects = parts.shared(Suspects)
        self._popularity = parts.shared(Popularity)
        self._placing = parts.shared(Placing)
        self._held_back = parts.shared(HeldBack)
        self._copies = parts.shared(Copies)
        self._paths = parts.shared(Paths)
        self._creations = parts.shared(Creations)
        self._listed = parts.shared(Listed)
        self._observer = parts.shared(Observer)
        self._one_place = parts.shared(OnePlace)
        self._places = parts.shared(Places)

    def keys(self, notification: Notification) -> Iterable[Key]:
        """Return the image on every target, or on one if the notification is about that alone."""
        if target := self._uses.heard(notification):
            known = target in self._targets
            return (Key(self.name, notification.source_image_id, target),) if known else ()
        if not notification.image_id or notification.target == UPLOAD:
            return ()
        # Only images with data concern us; text payloads have no status
        if notification.event_type.startswith("image.") and notification.status not in (
            *WITH_DATA,
            "",
        ):
            return ()
        targets: Iterable[str] = (
            (notification.target,) if notification.target in self._targets else self._targets
        )
        if notification.event_type.startswith("image.") and self._resolved:
            arrived = self._imports.arrived(notification)
            if arrived is not None:
                targets = [
                    target.name for target in self._resolved if target.glance_store in arrived
                ]
        return tuple(Key(self.name, notification.image_id, target) for target in targets)

    def lanes(self) -> Mapping[str, int]:
        """A lane for each target."""
        return {
            f"{self.name}.{target.name}": target.max_concurrent for target in self._targets.values()
        }

    async def reconcile(self, key: Key, watch: Watch) -> Outcome:
        """Observe, plan and act until Cinder clones the image on the target, or the plan says why
        not."""
        if key.target not in self._targets:
            return Skip("no such target is configured any more")
        target = self._targets[key.target]
        unlocated = set[str]()
        try:
            return await self._warm(key, target, watch, unlocated)
        except NotFound:
            self._reservations.release(key.image_id, key.target)
            outcome = await self._gone.find_out(key.image_id, watch, unlocated)
            if not isinstance(outcome, Again):
                self._copies.forget_all(key.image_id)
            return outcome
        except budget.NoRoom as error:
            return Skip(str(error), state=State.FULL)
        except NotProven as error:
            return Again(str(error), after=error.after, counted=False, wake_on_notification=True)
        except (Conflict, Blocked):
            self._suspects.add(target.name)
            raise

    async def _warm(self, key: Key, target: Target, watch: Watch, unlocated: set[str]) -> Outcome:
        """Make the image warm if it is wanted on the target, else delete what was made there."""
        image = await self._gone.find_image(key.image_id)
        self._report.seen(image, {})
        if watch.wish == Wish.EVICT or (
            watch.wish != Wish.WARM and self._wishes.is_evicted(key, now=self._now())
        ):
            return await self._evict(image, key, target, watch)
        if watch.wish == Wish.WARM:
            await self._unwanted.keep(image, await self._stores.known(target))
        if refusal := policy.refusal(image, target, self._rules):
            known = await self._stores.known(target)
            return await self._unwanted.delete(image, known, why=refusal)
        if missing := await self._stores.missing_type(target):
            # The target's fault, not this image's: once the type is there a resync finds what is
            # missing
            return Skip(missing)
        await self._popularity.settle_claims(key)
        resolved = await self._stores.resolve(target)
        target = served(image, resolved, self._learned, now=self._now())
        if refusal := policy.refusal(image, target, self._rules):
            # It depends on the strategy or the type, which were not known before
            return await self._unwanted.delete(image, target, why=refusal)
        seen = await self._observer.begin(image, target)
        if target.is_spread and target.strategy != "native":
            return await self._places.warm(seen, target, watch, unlocated)
        outcome, _ = await self._one_place.warm(seen, target, watch, unlocated)
        return outcome

    async def _evict(self, image: Image, key: Key, target: Target, watch: Watch) -> Outcome:
        """Delete what was made of the image on the target: an operator has asked for that, now or
        before."""
        known = await self._stores.known(target)
        if served(image, known, self._learned, now=self._now()).strategy == "native":
            return Skip(
                "Cinder's driver clones it by itself: nothing was made that could be evicted"
            )
        until = self._wishes.counts_until(key) if watch.wish == Wish.EVICT else math.inf
        if until < math.inf and await self._unwanted.wished_after(until, image, known):
            self._wishes.drop(key)
            return Skip(MADE_SINCE)
        outcome = await self._unwanted.delete(image, known, why=EVICTED, by_operator=True)
        if isinstance(outcome, Again):
            return outcome
        # A later wish may have come meanwhile
        if watch.wish == Wish.EVICT:
            self._wishes.hold(key, now=self._now())
        if isinstance(outcome, Done):
            return replace(outcome, state=State.HELD_BACK)
        # Otherwise the reason says why something stays
        if isinstance(outcome, Skip) and outcome.reason == EVICTED:
            return Skip(EVICTED, state=State.HELD_BACK)
        return outcome

    async def prepare(self, volumes: Mapping[str, tuple[Volume, ...]]) -> None:
        """Read Glance's stores, and what lies on targets with a budget."""
        self._resolved = await self._stores.all(afresh=True)
        self._uses.share(self._stores.sharing)
        self._report.targets(self._resolved)
        await self._listed.prepare(self._resolved, volumes)
        if self._keeps_order and self._may_delete:
            used = {volume.volume_type for own in volumes.values() for volume in own}
            await self._placing.tidy(self._stores.placing, used)

    def incomplete(
        self, image_id: str, image: Image | None, volumes: tuple[Volume, ...]
    ) -> Iterable[Missing]:
        """The targets where the image is wanted and does not look warm, as far as there is room.
        Asks no service."""
        if image:
            found = tuple(self.warmth(image, volumes))
            if image.status in WITH_DATA:
                self._report.seen(image, {one.target.name: (one.state, one.why) for one in found})
            for one in found:
                if one.state is State.COLD:
                    yield Missing(Key(self.name, image_id, one.target.name), one.why)
                elif one.state is State.WARM:
                    # An operator may have brought back what was lost
                    self._report.repair(image_id, one.target.name, possible=True)

    def warmth(self, image: Image, volumes: tuple[Volume, ...]) -> Iterator[Warmth]:
        """The state of an image on each target, by a bulk listing: see `Listed.of`."""
        return self._listed.of(image, volumes)

    def held(self) -> dict[str, tuple[int, int]]:
        """Return the use of each budget, as GiB and number, by target; as of `prepare`, until
        `warmth` is asked."""
        return self._listed.held()

    def paths(
        self,
        image: Image,
        target: Target,
        volumes: tuple[Volume, ...],
        locations: tuple[Location, ...] | None,
    ) -> Iterator[tuple[str, Path, str]]:
        """Return how Cinder would make a volume in each place: see `Paths.in_places`."""
        return self._paths.in_places(image, target, volumes, locations)

    @property
    def resolved(self) -> tuple[Target, ...]:
        """The targets that can be used, with their strategy decided; as of `prepare`."""
        return self._resolved

    @property
    def unusable(self) -> Mapping[str, str]:
        """Reasons why targets can't be used, by name; as of the last look at the services."""
        return self._stores.unusable()

    def held_back(self) -> Iterator[tuple[str, str, str]]:
        """The images that are not made warm again on a target for now: image id, target, reason."""
        yield from self._held_back.all(self._resolved, self._targets)
        for key in self._wishes.evicted(now=self._now()):
            yield key.image_id, key.target, EVICTED

    def full(self) -> dict[str, str]:
        """Reasons why nothing more fits into Cinder's cache, by target."""
        return self._held_back.all_full(self._targets)

    def learned(self) -> dict[str, list[list[str]]]:
        """The sets of Glance's stores from which Cinder's driver was seen to clone by itself, by
        target or place."""
        found = self._learned.all_native(now=self._now())
        return {place: sorted(sorted(stores) for stores in sets) for place, sets in found.items()}

    async def how_made(self, creation: Creation) -> Made | None:
        return await self._creations.how_made(creation, self._targets.values())
