"""Strategy `store`: Glance itself copies the image into its cinder store on the target. Pure."""

from __future__ import annotations

from handlers.strategies import Action, AwaitImage, CopyImage, Finish, Seen, registered
from worker.outcome import Again
from worker.target import Target


def plan(seen: Seen, target: Target) -> Action:
    """The next action towards a copy of the image in the target's store."""
    store = target.glance_store
    if registered.is_registered(seen, target):
        return registered.plan(seen, target)
    # One import at a time an image: somebody else's is waited for as well
    if store in seen.image.importing or seen.image.import_locked:
        return AwaitImage()
    if seen.imported:
        return Finish(Again(f"Glance could not copy the image into store {store}; its log has the reason"))
    return CopyImage((store,))
