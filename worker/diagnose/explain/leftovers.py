"""Leftovers of an image: locations without a volume, and clones that Cinder left with the owner."""

from __future__ import annotations

from collections.abc import AsyncIterator

from handlers.upload import sources
from worker.core.cloud import Cloud, Image, Location, Volume
from worker.core.errors import Blocked, NotFound
from worker.diagnose.check import Check


async def dangling(
    cloud: Cloud, locations: tuple[Location, ...] | None, volumes: tuple[Volume, ...]
) -> AsyncIterator[Check]:
    """Locations whose volume is gone, which Cinder may try to clone all the same."""
    known = {volume.id for volume in volumes}
    for location in locations or ():
        if location.volume_id and location.volume_id not in known:
            try:
                await cloud.get_volume(location.volume_id)
            except NotFound:
                text = (
                    f"{location.url} is a volume that is gone: volumes made of the image may "
                    f"end in error"
                )
                yield Check(
                    "location",
                    "fail",
                    text,
                    "the next resync has it removed, if there is other data",
                )


async def left_behind(cloud: Cloud, image: Image) -> AsyncIterator[Check]:
    """Clones that Cinder made in the owner's project for an upload that Glance did not take from
    there."""
    try:
        tasks = await cloud.list_tasks(image.id)
    except (Blocked, NotFound):
        return
    for volume_id in sources.stranded_volumes(tasks):
        try:
            volume = await cloud.get_volume(volume_id)
        except NotFound:
            continue
        if volume.foreign:
            text = (
                f"clone {volume_id} of Cinder's, {volume.size} GiB, is left in project "
                f"{volume.project_id}"
            )
            yield Check("left behind", "warn", text, "nobody needs it; it is the owner's to delete")
