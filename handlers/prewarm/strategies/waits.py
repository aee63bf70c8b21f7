"""Waits that strategies share. Pure."""

from __future__ import annotations

from handlers.import_lock import until_others_end
from handlers.prewarm.actions import Finish
from handlers.prewarm.seen import Seen
from worker.core.outcome import Again

# Seconds for which a new image must be unchanged. It often changes once more just after it became
# active: a cache entry from before would be stale, and a change during an import is lost
FIRST_QUIET = 2.0


def others_import(seen: Seen) -> Finish:
    """Wait for an import that we have not asked for, without a slot of the lane: it may take as
    long as reading the image does, and one project can have many."""
    after = until_others_end(seen.image, seen.now)
    return Finish(
        Again(
            "another import holds the image", after=after, counted=False, wake_on_notification=True
        )
    )
