"""One place: have Cinder clone an image in one place of a target; most targets have only one."""

from __future__ import annotations

from dataclasses import replace

from handlers import actions, image_volume, last_use
from handlers.actions import AddLocation, SetMetadata
from handlers.prewarm.act import Actor
from handlers.prewarm.actions import CreateVolume, Finish, Observation
from handlers.prewarm.copies import Copies
from handlers.prewarm.held_back import UNSIZED, HeldBack
from handlers.prewarm.observe import COULD_NOT_MAKE, Observer
from handlers.prewarm.paths import Paths
from handlers.prewarm.placing import Placing
from handlers.prewarm.plan import Planner
from handlers.prewarm.probes import Probes
from handlers.prewarm.seen import Seen, volume_ids
from handlers.prewarm.strategies import cache, located, store
from handlers.prewarm.suspects import Suspects
from handlers.reservations import Reservations
from worker.core.handler import Parts, Watch
from worker.core.outcome import Again, Done, Outcome, Skip
from worker.core.state import State
from worker.core.target import Target


class OnePlace:
    """Follows the plan for one place, and notes what came of it."""

    def __init__(self, parts: Parts) -> None:
        self._report = parts.report
        self._now = parts.now
        self._observer = parts.shared(Observer)
        self._planner = parts.shared(Planner)
        self._actor = parts.shared(Actor)
        self._reservations = parts.shared(Reservations)
        self._copies = parts.shared(Copies)
        self._placing = parts.shared(Placing)
        self._probes = parts.shared(Probes)
        self._suspects = parts.shared(Suspects)
        self._held_back = parts.shared(HeldBack)
        self._paths = parts.shared(Paths)

    async def warm(
        self, seen: Seen, target: Target, watch: Watch, unlocated: set[str]
    ) -> tuple[Outcome, Seen]:
        """Observe, plan and act until the plan is finished; the outcome, and what was seen last.

        `unlocated` gets the volumes that were made and that Glance was not told of.
        """
        changed, began = False, self._now()
        try:
            while not isinstance(action := self._planner.plan(seen, target, watch), Finish):
                watch.tell(actions.words(action))
                if isinstance(action, Observation):
                    seen = await self._observer.observe(action, seen, target, watch)
                    continue
                if not changed:
                    self._paths.note_seen(seen, target)
                if isinstance(action, AddLocation):
                    # Before: of what Glance was told we know nothing if its answer is lost
                    unlocated.clear()
                before, seen = seen, await self._actor.act(action, seen, target, watch)
                changed = changed or not _only_notes_use(action)
                if isinstance(action, CreateVolume):
                    unlocated |= volume_ids(seen) - volume_ids(before)
        finally:
            self._probes.end(seen.image.id, target)
        outcome = await self._settle(seen, target, action, began=began if changed else None)
        return outcome, seen

    async def _settle(
        self, seen: Seen, target: Target, finish: Finish, *, began: float | None
    ) -> Outcome:
        """Note what came of a try; `began` is when it began, None if it has changed nothing."""
        image_id = seen.image.id
        self._paths.note_seen(seen, target)
        # Not when the try was interrupted: the copy that Glance makes is still on its way then
        if not (seen.image.import_locked and target.glance_store in seen.image.importing):
            self._reservations.release(image_id, target.name)
        self._copies.forget(image_id, target.glance_store)
        if seen.imported and finish == store.gone_again(_copied_into(target)):
            # Somebody was faster than our look at it
            self._held_back.note_gone(seen.image, target)
        if seen.failed.startswith(cache.ASTRAY) and not finish.lost:
            self._placing.note_astray(target, seen.failed)
            finish = Finish(Skip(seen.failed, state=State.PARTLY_WARM))
        if seen.failed == cache.NO_CACHE:
            # While it is not known whether Cinder's driver clones by itself, that may be the reason
            other = seen.unproven is not None or located.may_be_here(seen, target)
            refused = await self._held_back.note_refused(
                seen, target, cache.NO_CACHE, of_image=other
            )
            finish = refused or finish
        if seen.failed.startswith(COULD_NOT_MAKE) and not finish.lost:
            why = UNSIZED if _is_unsized(seen, target) else seen.failed
            if self._held_back.is_images_fault(seen.image, target) or why == UNSIZED:
                refused = await self._held_back.note_refused(seen, target, why, of_image=True)
                finish = refused or finish
        if isinstance(finish.outcome, Again) and finish.outcome.counted and not finish.lost:
            self._suspects.add(target.name)
            if seen.imported:
                # One of them may have spoilt the copy for all: each is tried by itself
                await self._copies.suspect_others(
                    (target.glance_store,), seen.asked - (seen.image.stores or frozenset())
                )
        else:
            self._suspects.clear(target.name)
        if isinstance(finish.outcome, Done):
            self._reservations.arrived(image_id, target.name)
        if finish.lost or isinstance(finish.outcome, Done):
            self._report.repair(image_id, target.name, possible=not finish.lost)
        if finish.held_back:
            self._report.rewarm_held_back(target.name)
        if began is not None and isinstance(finish.outcome, Done):
            if not seen.native:
                await self._held_back.note_made(seen, target, finish.outcome.detail, began=began)
            return replace(finish.outcome, changed=True, warmed=True)
        return finish.outcome


def _only_notes_use(action: object) -> bool:
    """Whether an action only writes down when the image was used: that makes nothing warm."""
    return isinstance(action, SetMetadata) and action.metadata.keys() <= {last_use.USED}


def _is_unsized(seen: Seen, target: Target) -> bool:
    """Whether nobody tells how large a volume of the image has to be."""
    image = seen.image
    known = image_volume.is_raw(image) or image.virtual_size or image.min_disk
    return target.strategy == "cache" and not known


def _copied_into(target: Target) -> str:
    """Return the store of Glance that the image is copied into."""
    return (
        target.native_stores[0]
        if target.strategy == "native" and target.native_stores
        else target.glance_store
    )
