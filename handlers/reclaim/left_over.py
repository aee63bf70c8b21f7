"""Left-over: volumes that were left behind by a worker, or by an import of Glance's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from handlers import image_volume, marks, volume_status
from handlers.deletion.last_copy import LastCopy
from handlers.target_store import TargetStores
from handlers.upload.sources import UNDER_WAY
from worker.core.age import SKEW
from worker.core.cloud import Cloud, Image, ImageTask, Volume
from worker.core.errors import Blocked, NotFound
from worker.core.target import Target

# Making a volume of a large image takes its time; in seconds
ABANDONED_AFTER = 21_600.0
# The type of Glance's tasks that copy images into stores
IMPORT = "api_image_import"


class LeftBehind(NamedTuple):
    """A volume that an import has left behind; `stays` is why it may not be deleted, "" if it
    may."""

    volume: Volume
    stays: str


def is_abandoned(volume: Volume, now: float) -> bool:
    """Whether a throw-away volume has outlived the worker that made it. Pure."""
    old = now - volume.created_epoch > ABANDONED_AFTER
    return image_volume.is_throw_away(volume) and old and not volume_status.is_leaving(volume)


def looks_left(
    volume: Volume, image: Image, volumes: list[Volume], targets: Iterable[Target]
) -> bool:
    """Whether an import may have left a volume behind. Pure.

    A bulk listing shows no locations, so another volume of the image must serve there.
    """
    return marks.is_left_of_import(volume, image) and any(
        target.strategy != "cache"
        and image_volume.is_on(volume, target)
        and any(
            image_volume.is_ours(other, target) and volume_status.is_usable(other)
            for other in volumes
        )
        for target in targets
    )


async def left_of_imports(
    cloud: Cloud,
    stores: TargetStores,
    image: Image,
    volumes: list[Volume],
    *,
    last_copy: LastCopy,
    now: float,
) -> list[LeftBehind]:
    """Return the volumes that imports of Glance's have left behind on our targets; none while no
    location of the image is whole: one of them may have its data."""
    left = [volume for volume in volumes if marks.is_left_of_import(volume, image)]
    if not left:
        return []
    stored = [target for target in await stores.all() if target.strategy != "cache"]
    try:
        tasks = await cloud.list_tasks(image.id)
    except (Blocked, NotFound):
        # Whether the import is over is not known then
        return []
    under_way = [task for task in tasks if task.status in UNDER_WAY]
    if any(now - task.created_epoch < ABANDONED_AFTER for task in under_way):
        return []
    locations = await cloud.get_locations(image.id)
    # The import may have begun, or the deletion of the image, since it was read
    again = await cloud.get_image(image.id)
    if locations is None or again.status != "active" or again.import_locked:
        return []
    if not await last_copy.has_whole(again, locations):
        return []
    located = {location.volume_id for location in locations}
    return [
        LeftBehind(volume, _stays(volume, target, tasks))
        for volume in left
        if volume.id not in located
        and (target := next((one for one in stored if image_volume.is_on(volume, one)), None))
    ]


def _stays(volume: Volume, target: Target, tasks: Sequence[ImageTask]) -> str:
    """Return why a volume that an import may have left on a target may not be deleted, by Glance's
    tasks on its image; "" if it may."""
    for task in tasks:
        # Glance was killed, and never ends it
        if task.status in UNDER_WAY:
            return f"Glance's task {task.id} is {task.status} and has not ended for hours"
    if any(_is_made_by(task, volume, target) for task in tasks):
        return ""
    return "Glance lists no import, or no longer, that can have made it"


def _is_made_by(task: ImageTask, volume: Volume, target: Target) -> bool:
    """Whether the volume was made in the task's store while it ran, and did not become a location by
    it: Glance makes it read-only before.

    A Glance whose database was restored from a backup, or another one with the same images, knows
    neither the location that the volume may be the data of, nor its import.
    """
    began, ended = task.created_epoch - SKEW, task.updated_epoch + SKEW
    failed = task.status == "failure" or not image_volume.is_readonly(volume)
    here = task.type == IMPORT and target.glance_store in task.stores
    return here and failed and began <= volume.created_epoch <= ended
