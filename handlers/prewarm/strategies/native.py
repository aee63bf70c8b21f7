"""Strategy `native`: Cinder's driver clones the image where Glance keeps it, as RBD does. Pure.

Nothing is made where the image is in a store that the driver clones from. Where it is in none,
Glance copies it into one: of several Ceph clusters, into the store of the cluster that the target
lies on.
"""

from __future__ import annotations

from handlers.prewarm.actions import Action, Finish
from handlers.prewarm.seen import Seen
from handlers.prewarm.strategies import store
from worker.core.cloud import Image, Volume
from worker.core.outcome import Done
from worker.core.state import State
from worker.core.target import Target

CLONED = "Cinder's driver clones the image itself"


def plan(seen: Seen, target: Target) -> Action:
    """The next action towards a copy of the image in a store that Cinder's driver clones from."""
    if not _missing(seen.image, target):
        return Finish(Done(CLONED, state=State.WARM))
    return store.copy(seen, target.native_stores[0])


def lacks(image: Image, _volumes: tuple[Volume, ...], target: Target) -> str | None:
    """Return why Cinder's driver can't clone the image itself; None if it can."""
    return _missing(image, target)


def _missing(image: Image, target: Target) -> str | None:
    """Return in which stores the image is missing; None if it is in one. Without `native_stores`
    Cinder was seen to clone it."""
    wanted = target.native_stores
    if not wanted or frozenset(wanted) & (image.stores or frozenset()):
        return None
    return f"not in {'store' if len(wanted) == 1 else 'any of the stores'} {', '.join(wanted)}"
