"""The import lock: whether the import that holds an image in Glance may have died. Pure."""

from __future__ import annotations

from worker.core.age import age
from worker.core.cloud import Image

# Seconds between two looks at something that others end
SOONEST, RAREST = 10.0, 900.0
SILENT = 300.0
"""Seconds after which an import of a small image that has changed nothing may be dead."""
GIVEN_AWAY = 3600.0
"""Seconds after which Glance takes the lock from a task that has not changed."""
SLOWEST = 10 * 2**20
"""Bytes a second that an import reads or writes at least. Glance notes nothing on the image or its
task while it stages the data of a copy, and while it computes a hash."""


def may_be_dead(image: Image, now: float) -> bool:
    """Whether nothing of the image has changed for so long that its import may have died.

    A Glance that was killed, or lost its database, leaves the lock behind. It takes it from a task
    that has not changed for an hour, but only if asked for another import
    (glance/api/v2/images.py, _enforce_import_lock); until then it refuses. It would take it from an
    import that is still alive, too, which then begins anew: so nobody asks before the image's data
    can have been read.
    """
    return age(image.updated_epoch, now) - _reading(image) > SILENT


def is_held(image: Image, now: float) -> bool:
    """Whether an import holds the image, unless it has been dead for so long that Glance would give
    its lock to the next one. By a clock that is ahead of ours it holds."""
    return image.import_locked and now - image.updated_epoch - _reading(image) <= GIVEN_AWAY


def _reading(image: Image) -> float:
    """Seconds for which an import that is alive may have nothing to note."""
    return image.size / SLOWEST


def until_others_end(image: Image, now: float) -> float:
    """Seconds until the next look at an image that others are at work on: more, the longer it has
    not changed."""
    quiet = age(max(image.created_epoch, image.updated_epoch), now)
    return max(SOONEST, min(quiet / 4, RAREST))
