"""Prewarm: an image that is wanted on a target has an Image-Volume there that Cinder clones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import assert_never

import structlog

from handlers import ROUTES, actions, budget, image_volume, policy
from handlers.clone_path import Download, Evidence, Path, clone_path
from handlers.deletion import Deletion, NotProven
from handlers.prewarm import actions as own
from handlers.prewarm.actions import Action, Finish
from handlers.prewarm.creations import Creations, Looks
from handlers.prewarm.imports import Imports
from handlers.prewarm.placing import CannotPlace, Placing
from handlers.prewarm.plan import LACKS, PLANS
from handlers.prewarm.seen import Seen, believed, volume_ids, with_volume, without
from handlers.prewarm.strategies import cache, store
from handlers.reservations import Reservations
from handlers.serving import at, pool_of, served, unproven
from handlers.target_store import TargetStores
from worker.core.cloud import Image, Location, Volume
from worker.core.creation import Creation, Made
from worker.core.errors import Blocked, Conflict, NotFound, Temporary
from worker.core.handler import Missing, Parts, Watch
from worker.core.job import Key
from worker.core.notification import Notification
from worker.core.outcome import Again, Done, Outcome, Park, Skip
from worker.core.pool import Place
from worker.core.state import State
from worker.core.target import ON, UPLOAD, Target
from worker.core.undone import Past

log = structlog.get_logger(__name__)

# The status of images that have data. Glance announces that one is deactivated or reactivated as an
# image.update
WITH_DATA = ("active", "deactivated")
READING = (
    own.LookAtVolumes,
    own.LookAtWarming,
    actions.LookAtLocations,
    own.LookAtVolume,
    own.AwaitVolume,
    actions.AwaitImage,
    own.AwaitEntry,
)
# For how long a target that has failed is left out of what is done for others, in seconds
SUSPECT_FOR = 600.0
# Uses of an image on a target that make it wanted there where `when` is "used"
POPULAR = 2
LIMITS = (
    "its image-volume cache is full there: raise image_volume_cache_max_count or "
    "image_volume_cache_max_size_gb in "
    "cinder.conf, or want fewer images (see [prewarm], and max_count of the target)"
)
# Copies that we have asked Glance for and have not marked yet: more are forgotten
COPIES = 10_000


@dataclass(frozen=True, slots=True)
class Warmth:
    """The state of an image on a target, and why it is not warm there."""

    target: Target
    state: State
    why: str = ""


class Prewarm:
    """Reconciles (image, target)."""

    name = "prewarm"
    event_types = ROUTES["prewarm"]

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._policy = parts.policy
        self._now = parts.now
        self._uses = parts.uses
        self._deletion = Deletion(parts)
        self._report = parts.report
        self._locks = parts.locks
        self._undone = parts.undone
        self._learned = parts.learned
        self._placing = Placing(parts.cloud, parts.now)
        self._keeps_order = parts.keeps_order
        self._reservations = Reservations(parts)
        self._targets = {target.name: target for target in parts.targets}
        self._stores = TargetStores(parts)
        self._suspects: dict[str, float] = {}
        self._resolved: tuple[Target, ...] = ()
        self._copying: set[str] = set()
        self._probing: dict[str, str] = {}
        self._copied: dict[str, frozenset[str]] = {}
        self._shelves: dict[str, budget.Shelf] = {}
        self._imports = Imports()
        self._looks = Looks()
        self._creations = Creations(parts, self._stores, self._looks)

    def keys(self, notification: Notification) -> Iterable[Key]:
        """The image on every target; on one if the notification tells of nothing but that one."""
        if target := self._uses.heard(notification):
            known = target in self._targets
            return (Key(self.name, notification.source_image_id, target),) if known else ()
        if not notification.image_id or notification.target == UPLOAD:
            return ()
        # Of an image's life only its being active or deactivated concerns us; text payloads tell no
        # status
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
        """Look, plan, act, until Cinder clones the image on the target or the plan says why not."""
        if key.target not in self._targets:
            return Skip("no such target is configured any more")
        target = self._targets[key.target]
        unlocated = set[str]()
        try:
            image = await self._cloud.get_image(key.image_id)
            self._report.seen(image, {})
            if refusal := policy.refusal(image, target, self._policy):
                return await self._deletion.delete_unwanted(
                    image, await self._stores.known(target), why=refusal
                )
            if missing := await self._stores.missing_type(target):
                # The target's fault, not this image's: once the type is there a resync finds what
                # is missing
                return Skip(missing)
            await self._settle_claims(key)
            target = self._served(image, await self._stores.resolve(target))
            if refusal := policy.refusal(image, target, self._policy):
                # What depends on the strategy, or on the type: neither was known before
                return await self._deletion.delete_unwanted(image, target, why=refusal)
            if target.is_spread and target.strategy != "native":
                return await self._in_all_places(image, target, watch, unlocated)
            outcome, _ = await self._in_one(
                await self._begin(image, target), target, watch, unlocated
            )
            return outcome
        except NotFound:
            self._reservations.release(key.image_id, key.target)
            return await self._gone(key.image_id, watch, unlocated)
        except budget.NoRoom as error:
            return Skip(str(error), state=State.FULL)
        except NotProven as error:
            return Again(str(error), after=error.after, counted=False, wake_on_notification=True)
        except (Conflict, Blocked):
            self._suspects[target.name] = self._now() + SUSPECT_FOR
            raise

    async def _in_all_places(
        self, image: Image, target: Target, watch: Watch, unlocated: set[str]
    ) -> Outcome:
        """Have Cinder clone the image in each place of a target that has several.

        What Glance keeps in a store of its own lies in one of them, wherever Cinder has put it;
        each other one gets an entry of Cinder's image-volume cache.
        """
        seen = await self._begin(image, target)
        done: list[Outcome] = []
        if target.strategy != "cache":
            outcome, seen = await self._in_one(seen, target, watch, unlocated)
            done.append(outcome)
        if seen.volumes is None:
            seen = await self._act(own.LookAtVolumes(), seen, target, watch)
        if seen.locations is None and not seen.hidden and await self._may_be_located(seen.image):
            seen = await self._act(actions.LookAtLocations(), seen, target, watch)
        missing: dict[str, tuple[State, str]] = {}
        for place in target.places:
            path = self._path(seen.image, target, place, seen.volumes or (), seen.locations)
            one = at(target, place)
            self._looks.note(seen.image.id, one.place, path, at=self._now())
            if not isinstance(path, Download):
                continue
            seen = replace(
                await self._anew(seen, one), volumes=seen.volumes, locations=seen.locations
            )
            try:
                outcome, seen = await self._in_one(seen, one, watch, unlocated)
            except CannotPlace as error:
                outcome = Skip(str(error), state=State.PARTLY_WARM)
            except budget.NoRoom as error:
                outcome = Skip(str(error), state=State.FULL)
            if isinstance(outcome, Skip):
                missing[place.name] = outcome.state or State.PARTLY_WARM, outcome.reason
            else:
                done.append(outcome)
        if again := [one for one in done if isinstance(one, Again | Park)]:
            return again[0]
        made = any(isinstance(one, Done) and one.changed for one in done)
        if missing:
            state, why = _partly(target, missing)
            return Skip(why, state=state)
        return Done(f"in {len(target.places)} pools", changed=made, warmed=made, state=State.WARM)

    async def _may_be_located(self, image: Image) -> bool:
        """Whether Glance may keep the image in a volume: on any target, as types can share
        pools."""
        own = {one.glance_store for one in await self._stores.all()} - {""}
        return image_volume.is_raw(image) and bool(own & (image.stores or frozenset()))

    async def _anew(self, seen: Seen, target: Target) -> Seen:
        """What is known of an image for the next place of the target: its own looks and failures
        are still to come."""
        begun = await self._begin(seen.image, target)
        return replace(begun, warming=seen.warming, hidden=seen.hidden, repaired=seen.repaired)

    def _path(
        self,
        image: Image,
        target: Target,
        place: Place | None,
        volumes: tuple[Volume, ...],
        locations: tuple[Location, ...] | None,
    ) -> Path:
        """How Cinder would make a volume of the image on the target, in one of its places."""
        pool = pool_of(target, self._learned, place, now=self._now())
        full = self._cache_full(at(target, place) if place else target)
        return clone_path(
            image, pool, Evidence(locations=locations, volumes=volumes, cache_off=bool(full))
        )

    def _note_look(self, seen: Seen, target: Target) -> None:
        """Remember what Cinder would do now, if enough was read to tell."""
        image, locations = seen.image, seen.locations
        if locations is None and not seen.hidden:
            if seen.stores & (image.stores or frozenset()):
                return
            locations = ()
        if seen.volumes is None and target.strategy == "cache":
            return
        place = target.places[0] if target.pool else None
        path = self._path(image, target, place, seen.volumes or (), locations)
        self._looks.note(image.id, target.place, path, at=self._now())

    async def how_made(self, creation: Creation) -> Made | None:
        """See `worker.core.handler.Targeted`."""
        return await self._creations.how_made(creation, self._targets.values())

    def paths(
        self,
        image: Image,
        target: Target,
        volumes: tuple[Volume, ...],
        locations: tuple[Location, ...] | None,
    ) -> Iterator[tuple[str, Path, str]]:
        """How Cinder would make a volume of the image in each place of a target that has several.

        The name of the place, the path, and why the worker cannot mend it; "" if it can. Calls
        nobody.
        """
        for place in target.places if target.is_spread else ():
            obstacle = self._placing.obstacle(at(target, place))
            yield place.name, self._path(image, target, place, volumes, locations), obstacle

    async def _begin(self, image: Image, target: Target) -> Seen:
        """What is known of an image on a target before anything was looked at."""
        return Seen(
            image=image,
            now=self._now(),
            stores=frozenset(one.glance_store for one in await self._stores.all()) - {""},
            may_delete=self._deletion.may_delete,
            settle=self._policy.settle,
            rewarm_interval=self._policy.rewarm_interval,
            asked=self._copied.get(image.id, frozenset()),
            used=self._uses.last(image.id, target.name),
            unproven=unproven(
                image, target, self._learned, await self._stores.stores(), now=self._now()
            ),
        )

    async def _in_one(
        self, seen: Seen, target: Target, watch: Watch, unlocated: set[str]
    ) -> tuple[Outcome, Seen]:
        """Follow the plan for one place; what came of it, and what was seen last.

        `unlocated` gets the volumes that were made and Glance was not told of.
        """
        made, began, image_id = False, self._now(), seen.image.id
        try:
            while not isinstance(action := self._plan(seen, target, watch), Finish):
                watch.tell(actions.words(action))
                if not made and not isinstance(action, READING):
                    self._note_look(seen, target)
                before, seen = seen, await self._act(action, seen, target, watch)
                if isinstance(action, own.CreateVolume):
                    unlocated |= volume_ids(seen) - volume_ids(before)
                elif isinstance(action, actions.AddLocation):
                    unlocated.clear()
                made = made or not isinstance(action, READING)
        finally:
            if self._probing.get(target.place) == image_id:
                del self._probing[target.place]
        return await self._settled(
            image_id, target, seen, action, began=began if made else None
        ), seen

    async def _settled(
        self, image_id: str, target: Target, seen: Seen, action: Finish, *, began: float | None
    ) -> Outcome:
        """Note what came of a try; `began` is when it began to make something, None if nothing was
        made."""
        self._note_look(seen, target)
        # Not when it was interrupted: what Glance is copying is still on its way then
        self._reservations.release(image_id, target.name)
        self._forget(image_id, target.glance_store)
        if seen.imported and action == store.gone_again(_copied_into(target)):
            # Somebody was faster than our look at it
            state = _state(seen.image, target)
            self._undone.made(image_id, target.place, state=state, volume_id="", at=self._now())
        if seen.failed.startswith(cache.ASTRAY) and not action.lost:
            self._placing.note_astray(target, seen.failed)
            action = Finish(Skip(seen.failed, state=State.PARTLY_WARM))
        if seen.failed == cache.NO_CACHE and (past := self._refused(seen, target)).is_held:
            action = Finish(Skip(_why_held(past, target), state=State.HELD_BACK), held_back=True)
        if isinstance(action.outcome, Again) and action.outcome.counted:
            self._suspects[target.name] = self._now() + SUSPECT_FOR
            if seen.imported:
                # One of them may have spoilt the copy for all: each is tried by itself
                await self._suspect_others(
                    (target.glance_store,), seen.asked - (seen.image.stores or frozenset())
                )
        else:
            self._suspects.pop(target.name, None)
        if action.lost or isinstance(action.outcome, Done):
            self._report.repair(image_id, target.name, possible=not action.lost)
        if action.held_back:
            self._report.rewarm_held_back(target.name)
        if began is not None and isinstance(action.outcome, Done):
            if not seen.native:
                await self._note_made(seen, target, action.outcome.detail, began=began)
            return replace(action.outcome, changed=True, warmed=True)
        return action.outcome

    async def prepare(self, volumes: Mapping[str, tuple[Volume, ...]]) -> None:
        """Read Glance's stores, and what lies on targets with a budget."""
        self._resolved = await self._stores.all(afresh=True)
        self._report.targets(self._resolved)
        lying = await budget.lying(volumes, self._resolved, self._uses)
        self._shelves = {
            target.name: budget.Shelf(target, lying[target.name])
            for target in self._resolved
            if target.name in lying
        }
        if self._keeps_order and self._deletion.may_delete:
            used = {volume.volume_type for own in volumes.values() for volume in own}
            await self._placing.tidy(self._stores.types, used)

    @property
    def resolved(self) -> tuple[Target, ...]:
        """The targets that can be had, decided; as of `prepare`."""
        return self._resolved

    @property
    def unusable(self) -> Mapping[str, str]:
        """Reasons why targets can't be used, by name; as of the last look at the services."""
        return self._stores.unusable()

    def held(self) -> dict[str, tuple[int, int]]:
        """Return the use of each budget, as GiB and number, by target; as of `prepare`, until
        `warmth` is asked."""
        return {name: (shelf.size, shelf.count) for name, shelf in self._shelves.items()}

    def incomplete(
        self, image_id: str, image: Image | None, volumes: tuple[Volume, ...]
    ) -> Iterable[Missing]:
        """The targets where the image is wanted and does not look warm, as far as there is room.
        Calls nobody."""
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
        """How it is with an image on each target, by a bulk listing. Calls nobody.

        Between two calls of `prepare` each image that still has to come is counted against its
        target's budget.
        """
        for resolved in self._resolved:
            target = self._served(image, resolved)
            if refusal := policy.refusal(image, target, self._policy):
                yield Warmth(target, State.UNWANTED, refusal)
            elif target.is_spread and target.strategy != "native":
                yield self._warmth_in_places(image, volumes, target)
            elif not (why := LACKS[target.strategy](image, volumes, target)):
                yield Warmth(target, State.WARM)
            elif _is_there(image, volumes, target):
                yield Warmth(target, State.COLD, why)
            elif self._unpopular(image, target):
                yield Warmth(
                    target, State.UNUSED, f"{why}; it waits for a second volume to be made of it"
                )
            elif past := self._undone.held(
                image.id, target.name, state=_state(image, target), now=self._now()
            ):
                yield Warmth(target, State.HELD_BACK, _why_held(past, target))
            elif full := self._cache_full(target) or self._no_room(image, target):
                yield Warmth(target, State.FULL, full)
            else:
                yield Warmth(target, State.COLD, why)

    def _warmth_in_places(
        self, image: Image, volumes: tuple[Volume, ...], target: Target
    ) -> Warmth:
        """How it is with an image on a target that has several places, by a bulk listing."""
        # A listing shows no locations: those of the target's store are the volumes that Glance has
        # marked
        stores = frozenset(one.glance_store for one in self._resolved) - {""}
        shown = image_volume.is_raw(image) and bool(stores & (image.stores or frozenset()))
        claimed = [
            v
            for v in volumes
            if "glance_image_id" in v.metadata and image_volume.FRESH not in v.metadata
        ]
        locations = tuple(
            Location(url="", store=volume.volume_type, volume_id=volume.id)
            for volume in claimed
            if shown
        )
        lack = (
            LACKS[target.strategy](image, volumes, target) if target.strategy != "cache" else None
        )
        cold: dict[str, str] = {}
        stuck: dict[str, tuple[State, str]] = {}
        for place in target.places:
            path = self._path(image, target, place, volumes, locations)
            if isinstance(path, Download):
                one = at(target, place)
                if why := self._placing.obstacle(one):
                    stuck[place.name] = State.PARTLY_WARM, why
                elif past := self._undone.held(
                    image.id, one.place, state=_state(image, one), now=self._now()
                ):
                    stuck[place.name] = State.HELD_BACK, _why_held(past, one)
                elif why := self._cache_full(one):
                    stuck[place.name] = State.FULL, why
                else:
                    cold[place.name] = str(path)
        _, told = _partly(target, {name: (State.COLD, why) for name, why in cold.items()} | stuck)
        there = any(image_volume.is_ours(volume, target) for volume in volumes)
        if (lack or cold) and not there and self._unpopular(image, target):
            return Warmth(
                target,
                State.UNUSED,
                f"{lack or told}; it waits for a second volume to be made of it",
            )
        for name in tuple(cold):
            if full := self._no_room(image, target):
                del cold[name]
                stuck[name] = State.FULL, full
        if lack and not there and (full := self._no_room(image, target)):
            return Warmth(target, State.FULL, full)
        if lack or cold:
            return Warmth(target, State.COLD, lack or told)
        if not stuck:
            return Warmth(target, State.WARM)
        return Warmth(target, *_partly(target, stuck))

    def _served(self, image: Image, target: Target) -> Target:
        """The target as it serves this image."""
        return served(image, target, self._learned, now=self._now())

    def _cache_full(self, target: Target) -> str:
        """Why Cinder's cache takes nothing more on the target, or is off; "" if it may, or is not
        needed."""
        return (
            self._undone.full(target.place, now=self._now()) if target.strategy == "cache" else ""
        )

    def _no_room(self, image: Image, target: Target) -> str:
        """Why the target's budget has no room for an image that is not there yet; "" if it has, and
        that is counted."""
        if shelf := self._shelves.get(target.name):
            try:
                shelf.take(
                    image_volume.size_on(image, target),
                    since=budget.since(image, target, self._uses),
                )
            except budget.NoRoom as error:
                return str(error)
        return ""

    def _plan(self, seen: Seen, target: Target, watch: Watch) -> Action:
        if refusal := policy.refusal(seen.image, target, self._policy):
            return Finish(Skip(refusal))
        action = PLANS[target.strategy](seen, target)
        if isinstance(action, own.CopyImage | own.CreateVolume) and self._unpopular(
            seen.image, target
        ):
            if seen.volumes is None:
                return own.LookAtVolumes()
            # What was warm before is kept so: it was popular then
            if not seen.repaired and not any(
                image_volume.is_ours(volume, target) for volume in seen.volumes
            ):
                why = f"no second volume was made of the image on target {target.name} yet"
                return Finish(Skip(why, state=State.UNUSED))
        fresh = isinstance(action, own.CopyImage) or (
            isinstance(action, own.CreateVolume) and not action.anew
        )
        if fresh and not watch.by_operator and (wait := self._undone_before(seen, target)):
            return wait
        return action

    def _undone_before(self, seen: Seen, target: Target) -> Finish | None:
        """Wait or skip if somebody else would undo what is made now; None if it may be made.

        What was undone is made again at most once in `rewarm_interval`; after the second time it is
        left until the image changes, or until a day later.
        """
        now, name = self._now(), target.place
        past = self._undone.look(seen.image.id, name, state=_state(seen.image, target), now=now)
        if past and past.is_held:
            return Finish(Skip(_why_held(past, target), state=State.HELD_BACK), held_back=True)
        if full := self._cache_full(target):
            return Finish(Skip(full, state=State.FULL))
        # Whether Cinder has evicted it for another one of ours shows only once that one is there
        since = (
            0.0
            if not past or past.refused
            else past.gone_at
            if target.strategy == "cache"
            else past.at
        )
        if (wait := since + self._policy.rewarm_interval - now) > 0:
            reason = "somebody else has deleted its Image-Volume"
            return Finish(Again(reason, after=wait, counted=False), held_back=True)
        return None

    def held_back(self) -> Iterator[tuple[str, str, str]]:
        """The images that are not made warm again on a target for now, and why: image id, target,
        reason."""
        for (image_id, place), past in self._undone.all_held(now=self._now()).items():
            name = place.partition(ON)[0]
            if target := next(
                (one for one in self._resolved if one.name == name), self._targets.get(name)
            ):
                yield image_id, name, _why_held(past, target)

    def full(self) -> dict[str, str]:
        """Reasons why nothing more fits into Cinder's cache, by target."""
        return {
            name: why[0]
            for name in self._targets
            if (why := self._undone.full_places(name, now=self._now()))
        }

    def learned(self) -> dict[str, list[list[str]]]:
        """The sets of Glance's stores from which Cinder's driver was seen to clone by itself, by
        target or place."""
        found = self._learned.all_native(now=self._now())
        return {place: sorted(sorted(stores) for stores in sets) for place, sets in found.items()}

    def _refused(self, seen: Seen, target: Target) -> Past:
        """Note that Cinder made no cache entry of the image."""
        state = _state(seen.image, target)
        return self._undone.refused(
            seen.image.id, target.place, state=state, at=self._now(), why=cache.NO_CACHE
        )

    async def _note_made(self, seen: Seen, target: Target, volume_id: str, *, began: float) -> None:
        """Remember what was made since `began`, and find out whether Cinder has evicted another
        entry for it."""
        standing = self._undone.standing(target.place, since=began)
        now, state = self._now(), _state(seen.image, target)
        self._undone.made(seen.image.id, target.place, state=state, volume_id=volume_id, at=now)
        standing.pop(seen.image.id, None)
        if target.strategy != "cache" or not standing:
            return
        there = {volume.id async for volume in self._cloud.list_volumes(target.name)}
        for image_id, past in standing.items():
            if past.volume_id in there:
                continue
            try:
                image = await self._cloud.get_image(image_id)
            except NotFound:
                self._undone.forget(image_id)
                continue
            # Its own job may have made it anew since: then the one that is gone was stale
            stands = self._undone.standing(target.place, since=began).get(image_id) == past
            if stands and self._undone.look(
                image_id, target.place, state=_state(image, target), now=now
            ):
                why = (
                    f"Cinder evicted the entry of image {image_id} for a newer one on target "
                    f"{target.place}: {LIMITS}"
                )
                self._undone.fill(target.place, why, now=now)
                log.warning("cinder_cache_full", evicted_image_id=image_id, advice=LIMITS)
                return

    def _unpopular(self, image: Image, target: Target) -> bool:
        """Whether the image has to be used on the target before it is wanted there, and was not."""
        if self._policy.when == "new" or policy.is_asked_for(image, self._policy):
            return False
        return self._uses.count(image.id, target.name) < POPULAR

    async def _settle_claims(self, key: Key) -> None:
        """Ask Cinder about volumes that are said to have been made of the image.

        A clone of another volume carries the image's id as well. A volume that is gone, or that we
        may not look at, cannot tell, and what cannot be told apart is not counted.
        """
        for claim in self._uses.claims(key.image_id, key.target):
            try:
                volume = await self._cloud.get_volume(claim.volume_id) if claim.volume_id else None
            except (NotFound, Blocked):
                volume = None
            made = volume is not None and not volume.source_volid and not volume.snapshot_id
            self._uses.settle(key.image_id, key.target, claim, true=made)

    async def _gone(self, image_id: str, watch: Watch, unlocated: Iterable[str]) -> Outcome:
        """Look what was not found; if it was the image, delete what may be deleted of it.

        `unlocated` are volumes that this try has made and not told Glance of.
        """
        try:
            await self._cloud.get_image(image_id)
        except NotFound:
            self._copied.pop(image_id, None)
            return await self._deletion.release(image_id, watch, unlocated=unlocated)
        return Again("something went while it was looked at")

    async def _act(self, action: Action, seen: Seen, target: Target, watch: Watch) -> Seen:
        """Do one action and read again what it may have changed."""
        cloud, image_id = self._cloud, seen.image.id
        match action:
            case own.LookAtVolumes():
                return replace(seen, volumes=await self._find(image_volume.name_of(image_id), seen))
            case own.LookAtWarming():
                return replace(
                    seen, warming=await self._find(image_volume.warming_name_of(image_id), seen)
                )
            case actions.LookAtLocations():
                locations = await cloud.get_locations(image_id)
                if locations is None:
                    # For a moment there are none while an image is being deleted, and somebody's
                    # proxy may answer so
                    await watch.changed()
                    locations = await cloud.get_locations(image_id)
                return replace(seen, locations=locations, hidden=locations is None)
            case own.LookAtVolume(volume_id):
                return await self._look_at(volume_id, seen)
            case own.CopyImage(stores):
                if target.strategy != "native":
                    await self._reservations.reserve(seen.image, target.budgeted, watch)
                return await self._copy(stores, seen, watch)
            case own.CreateVolume():
                return await self._create(action, seen, target, watch)
            case own.DeleteVolume(volume_id, why, because, encrypted, by_driver):
                if by_driver:
                    self._note_native(seen, target, native=True)
                await self._delete(volume_id, seen, why)
                if any(v.id == volume_id and image_volume.is_broken(v) for v in seen.volumes or ()):
                    # Nobody else's undoing
                    self._undone.forget(image_id, target.place)
                if encrypted:
                    raise self._encrypted(target, volume_id)
                # What was made before and has to be made again
                repaired = any(
                    v.id == volume_id and image_volume.is_prewarmed(v, target)
                    for v in seen.volumes or ()
                )
                seen = replace(seen, repaired=seen.repaired or repaired)
                return replace(
                    without(volume_id, seen), failed=because or seen.failed, native=by_driver
                )
            case actions.SetMetadata(volume_id, metadata):
                await cloud.set_metadata(volume_id, metadata)
                return believed(volume_id, metadata, seen)
            case actions.SetReadonly(volume_id):
                await cloud.set_readonly(volume_id)
                return believed(volume_id, {"readonly": "True"}, seen)
            case actions.AddLocation(url):
                return await self._add_location(url, seen)
            case own.RemoveLocation():
                return await self._remove_location(action, seen, target)
            case own.AwaitVolume(volume_id):
                self._reservations.extend(image_id, target.name)
                return await self._await_volume(volume_id, seen, target, watch)
            case actions.AwaitImage():
                self._reservations.extend(image_id, target.name)
                await watch.changed()
                image = await self._image(seen)
                _tell_undone(seen, image)
                return replace(seen, image=image, now=self._now(), was=seen.was or seen.image)
            case own.AwaitEntry():
                await watch.changed()
                return replace(seen, volumes=None, looks=seen.looks + 1)
            case Finish():
                return seen
            case never:
                assert_never(never)

    async def _create(
        self, action: own.CreateVolume, seen: Seen, target: Target, watch: Watch
    ) -> Seen:
        """Begin to make a volume; where one is enough to show whether Cinder clones by itself, one
        at a time."""
        image, new = seen.image, action.new
        if seen.unproven is not None:
            if (known := self._as_learned(seen, target)) is not seen:
                return known
            if self._probing.setdefault(target.place, image.id) != image.id:
                await watch.changed()
                return self._as_learned(seen, target)
        if target.pool:
            # Before anything is evicted to make room: where it can't be made, nothing has to go
            await self._placing.ensure(target)
        if action.anew:
            self._report.rewarm_began(target.name, "changed")
        else:
            # A cache entry is another volume besides
            volumes = 1 + (target.strategy == "cache")
            await self._reservations.reserve(image, target.budgeted, watch, volumes=volumes)
        try:
            volume = await self._cloud.create_volume(new)
        except NotFound:
            # The private type may be gone that was there a moment ago
            self._placing.forget()
            raise
        log.info(
            "image_volume_creating", volume_id=volume.id, volume_type=new.volume_type, size=new.size
        )
        return with_volume(volume, seen)

    def _as_learned(self, seen: Seen, target: Target) -> Seen:
        """What was seen; and whether Cinder clones by itself, if the volume of another image has
        shown it meanwhile."""
        if seen.unproven is None or not self._learned.is_known(
            target.place, seen.unproven, now=self._now()
        ):
            return seen
        return replace(
            seen, unproven=None, native=self._served(seen.image, target).strategy == "native"
        )

    def _note_native(self, seen: Seen, target: Target, *, native: bool) -> None:
        """Remember whether Cinder has cloned the image by itself, if that was not known."""
        if seen.unproven is not None and not self._learned.is_known(
            target.place, seen.unproven, now=self._now()
        ):
            self._learned.note(target.place, seen.unproven, native=native, now=self._now())
            log.info(
                "clone_by_driver", target=target.place, stores=sorted(seen.unproven), cloned=native
            )

    def _encrypted(self, target: Target, volume_id: str = "") -> Blocked:
        """Remember that the target makes encrypted volumes, and return the error to raise."""
        self._stores.note_encrypted(target)
        why = policy.encrypted_type(target)
        log.error("encrypted_image_volume_deleted", volume_id=volume_id, advice=why)
        return Blocked(why)

    async def _image(self, seen: Seen) -> Image:
        return await self._cloud.get_image(seen.image.id)

    async def _look_at(self, volume_id: str, seen: Seen) -> Seen:
        try:
            return with_volume(await self._cloud.get_volume(volume_id), seen)
        except NotFound:
            return replace(seen, gone=seen.gone | {volume_id})

    async def _copy(self, stores: tuple[str, ...], seen: Seen, watch: Watch) -> Seen:
        """Ask Glance for one import into all stores where the image is wanted: it stages the data
        only once."""
        if seen.image.id in self._copying:
            # Asked for by the job of another target, this very moment
            await watch.changed()
            return replace(seen, image=await self._image(seen))
        self._copying.add(seen.image.id)
        try:
            stores = await self._ask_for_copy(stores, await self._with_others(stores, seen), seen)
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
        finally:
            self._copying.discard(seen.image.id)
        return replace(
            seen, image=await self._image(seen), imported=True, asked=seen.asked | set(stores)
        )

    async def _ask_for_copy(
        self, own: tuple[str, ...], stores: tuple[str, ...], seen: Seen
    ) -> tuple[str, ...]:
        """Ask Glance for a copy into `stores`, or into our `own` alone where it refuses; the stores
        that it took.

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
            await self._suspect_others(own, stores)
        except Temporary:
            # It may have begun; if not, the next try is without those that may be the reason
            await self._suspect_others(own, stores)
            raise
        async with self._locks.of(seen.image.id):
            await self._cloud.copy_image(seen.image.id, own)
        return own

    async def _suspect_others(self, own: Iterable[str], stores: Iterable[str]) -> None:
        """Leave the targets of these stores out of what is done for others, but not our own."""
        for target in await self._stores.all():
            if target.glance_store in set(stores) - set(own):
                self._suspects[target.name] = self._now() + SUSPECT_FOR

    async def _with_others(self, stores: tuple[str, ...], seen: Seen) -> tuple[str, ...]:
        """These stores and those of all other targets that want the image and have room for it."""
        for resolved in await self._stores.all():
            other = self._served(seen.image, resolved)
            if (
                other.strategy == "store"
                and other.glance_store not in (*stores, *(seen.image.stores or ()))
                and policy.refusal(seen.image, other, self._policy) is None
                and not self._unpopular(seen.image, other)
                and self._suspects.get(other.name, 0.0) < self._now()
                and await self._reservations.has_spare(seen.image, other, besides=len(stores))
            ):
                stores = (*stores, other.glance_store)
        return stores

    def _remember(self, image_id: str, stores: tuple[str, ...]) -> None:
        """Note that what comes to lie in these stores is of our making."""
        self._copied[image_id] = self._copied.get(image_id, frozenset()) | set(stores)
        if len(self._copied) > COPIES:
            del self._copied[next(iter(self._copied))]

    def _forget(self, image_id: str, store: str) -> None:
        """Forget the copy that we asked for: a later one in this store is somebody else's."""
        left = self._copied.get(image_id, frozenset()) - {store}
        if left:
            self._copied[image_id] = left
        else:
            self._copied.pop(image_id, None)

    async def _remove_location(
        self, action: own.RemoveLocation, seen: Seen, target: Target
    ) -> Seen:
        await self._deletion.remove_location(
            seen.image.id, action.store, action.volume_id, whole=action.whole
        )
        here = [one for one in seen.locations or () if one.store == action.store]
        if not any(one.volume_id in seen.gone for one in here):
            # In error: nobody else's undoing
            self._undone.forget(seen.image.id, target.name)
        if action.encrypted:
            raise self._encrypted(target)
        self._report.rewarm_began(target.name, "broken")
        return replace(
            seen, image=await self._image(seen), locations=None, volumes=None, repaired=True
        )

    async def _add_location(self, url: str, seen: Seen) -> Seen:
        try:
            # Glance writes the whole list: what is removed meanwhile would come back
            async with self._locks.of(seen.image.id):
                await self._cloud.add_location(seen.image.id, url)
            log.info("location_added", url=url)
        except Conflict as error:
            log.info("location_refused", url=url, why=str(error))
            raise
        # Two of these at once can lose one (Glance writes the whole list), so read it back
        return replace(seen, image=await self._image(seen), locations=None)

    async def _delete(self, volume_id: str, seen: Seen, why: str) -> None:
        known = next(v for v in (*(seen.volumes or ()), *(seen.warming or ())) if v.id == volume_id)
        await self._deletion.discard(seen.image.id, known, why=why)

    async def _find(self, name: str, seen: Seen) -> tuple[Volume, ...]:
        """The image's volumes of this name. Others bear it too: of an image that had the same id
        before."""
        found = await self._cloud.find_volumes(name)
        for volume in found:
            if not image_volume.is_of(volume, seen.image):
                log.warning("volume_is_not_the_images", volume_id=volume.id, name=name)
        return tuple(volume for volume in found if image_volume.is_of(volume, seen.image))

    async def _await_volume(self, volume_id: str, seen: Seen, target: Target, watch: Watch) -> Seen:
        await watch.changed()
        try:
            volume = await self._cloud.get_volume(volume_id)
        except NotFound:
            return replace(without(volume_id, seen), image=await self._image(seen))
        downloading = volume.downloaded or volume.status == "downloading"
        seen = replace(with_volume(volume, seen), downloaded=seen.downloaded or downloading)
        if downloading:
            self._note_native(seen, target, native=False)
        if image_volume.is_broken(volume):
            seen = replace(
                seen,
                failed=f"Cinder could not make volume {volume_id} from the image (status "
                f"{volume.status})",
            )
        if image_volume.is_usable(volume) or image_volume.is_broken(volume):
            # It took its time: what was wanted then need not be wanted now, and a cache entry may
            # have come of it
            fresh = (
                None if volume.name == image_volume.warming_name_of(seen.image.id) else seen.volumes
            )
            seen = replace(seen, image=await self._image(seen), now=self._now(), volumes=fresh)
        return seen


def _partly(target: Target, missing: Mapping[str, tuple[State, str]]) -> tuple[State, str]:
    """The state of an image that is not warm in these places of the target, and why: each reason
    once.

    Where it is warm in none, it has the state that it has in each of them.
    """
    total, states = len(target.places), {state for state, _ in missing.values()}
    state = states.pop() if len(missing) == total and len(states) == 1 else State.PARTLY_WARM
    places: dict[str, list[str]] = {}
    for name, (_, why) in missing.items():
        places.setdefault(why, []).append(name)
    told = "; ".join(f"not in {', '.join(names)}: {why}" for why, names in places.items())
    return state, f"warm in {total - len(missing)} of {total} pools; {told}"


def _copied_into(target: Target) -> str:
    """Return the store of Glance that the image is copied into."""
    return (
        target.native_stores[0]
        if target.strategy == "native" and target.native_stores
        else target.glance_store
    )


def _why_held(past: Past, target: Target) -> str:
    """Return the reason why an image is held back on a target, with the advice."""
    if past.refused:
        return f"tried {past.times} times: {cache.NO_CACHE}"
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
    """Digest of those fields of an image whose change ends its being held back.

    An entry of Cinder's cache is stale with every change. A copy of Glance's, and the removal of
    one, change the image's `updated_at` and stores themselves.
    """
    if target.strategy == "cache":
        return image.updated_at
    own = sorted(item for item in image.properties.items() if not item[0].startswith("os_glance_"))
    return repr((image.name, image.visibility, image.size, image.min_disk, own))


def _tell_undone(seen: Seen, image: Image) -> None:
    """Say if what was changed during an import is as it was before: Glance's import writes the
    whole image."""
    if seen.was is None:
        return
    names = [
        name
        for name in ("visibility", *sorted({*seen.image.properties, *seen.was.properties}))
        if _field(image, name) == _field(seen.was, name) != _field(seen.image, name)
        # Glance's own notes of the import
        and not name.startswith("os_glance_")
    ]
    if names:
        log.warning(
            "changes_undone_by_glance",
            names=names,
            advice="if it was not their owner, it was Glance's import that undid them: make them "
            "again",
        )


def _field(image: Image, name: str) -> str | None:
    return image.visibility if name == "visibility" else image.properties.get(name)


def _is_there(image: Image, volumes: tuple[Volume, ...], target: Target) -> bool:
    """Whether the target holds the image already, so that it needs no more room there, only
    mending."""
    located = target.strategy != "cache" and target.glance_store in (image.stores or ())
    return located or any(image_volume.is_ours(volume, target) for volume in volumes)
