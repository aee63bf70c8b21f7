"""Strategy `store`: Glance itself copies the image into its cinder store on the target. Pure."""

from __future__ import annotations

from handlers.actions import AwaitImage
from handlers.import_lock import may_be_dead
from handlers.prewarm.actions import Action, CopyImage, Finish
from handlers.prewarm.seen import Seen
from handlers.prewarm.strategies import registered
from handlers.prewarm.strategies.lost import lost
from handlers.prewarm.strategies.waits import FIRST_QUIET, others_import
from worker.core.age import age
from worker.core.outcome import Again
from worker.core.target import Target

# Seconds until we ask Glance again whether it is dead; until then the lane's slot is free
ASK_AGAIN = 60.0


def gone_again(store: str) -> Finish:
    """Finish after Glance has copied the image and named no failure, and the copy is not there."""
    return Finish(
        Again(f"the copy in store {store} was removed as soon as it was made", counted=False)
    )


def plan(seen: Seen, target: Target) -> Action:
    """The next action towards a copy of the image in the target's store."""
    if registered.is_registered(seen, target):
        return registered.plan(seen, target)
    return copy(seen, target.glance_store)


def copy(seen: Seen, store: str) -> Action:
    """The next action towards a copy of the image in a store of Glance where it is not yet."""
    if seen.image.import_locked:
        # Glance allows one import at a time per image, so we wait for somebody else's. A Glance
        # whose staging area is full drops the lock, and leaves `os_glance_importing_to_stores`
        # behind: that alone tells nothing
        silent = may_be_dead(seen.image, seen.now)
        if silent and not seen.refused:
            return CopyImage((store,))
        if silent and store not in seen.asked:
            held = (
                "another import holds the image, or died and left its lock: Glance gives that "
                "away after an hour"
            )
            return Finish(Again(held, after=ASK_AGAIN, counted=False, wake_on_notification=True))
        return AwaitImage() if seen.asked else others_import(seen)
    if seen.imported and not {store} & (seen.image.failed | seen.image.importing):
        return lost(seen) or gone_again(store)
    if seen.imported:
        failed = Finish(
            Again(f"Glance could not copy the image into store {store}: see glance's log by its id")
        )
        return lost(seen) or failed
    # Glance's import writes the whole image once it ends, as it was when it began: what its owner
    # changes meanwhile is lost
    wait = min(seen.settle, FIRST_QUIET) - age(seen.image.updated_epoch, seen.now)
    if wait > 0 and not seen.repaired:
        return Finish(Again("the image was changed a moment ago", after=wait, counted=False))
    return CopyImage((store,))
