"""The import lock: whether the import that holds an image in Glance may have died. Pure."""

from __future__ import annotations

from worker.core.age import age
from worker.core.cloud import Image

SILENT = 300.0
"""Seconds after which an import that has changed nothing may be dead."""


def may_be_dead(image: Image, now: float) -> bool:
    """Whether nothing of the image has changed for so long that its import may have died.

    A Glance that was killed, or lost its database, leaves the lock behind. It takes it from a task
    that has not changed for an hour, but only if asked for another import
    (glance/api/v2/images.py, _enforce_import_lock); until then it refuses.
    """
    return age(image.updated_epoch, now) > SILENT
