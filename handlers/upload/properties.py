"""Properties: changes of an image's properties, unless somebody else changes the image."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from worker.core.cloud import Cloud, Image

log = structlog.get_logger(__name__)


async def change(cloud: Cloud, image: Image, properties: Mapping[str, str]) -> tuple[Image, bool]:
    """Change properties of an image that is still as it was; the image as it is then, and whether
    it was changed.

    Glance's PATCH writes back the status that it has read: it undoes what happens to the image
    meanwhile.
    """
    fresh = await cloud.get_image(image.id)
    if (fresh.status, fresh.import_locked, fresh.updated_at) != (
        image.status,
        False,
        image.updated_at,
    ):
        return fresh, False
    await cloud.set_properties(image.id, properties)
    after = await cloud.get_image(image.id)
    if image.status == "queued" and after.status != "queued":
        advice = (
            "if it stays saving: nobody but its owner can mend it, by deleting it and "
            "making it anew"
        )
        log.warning("image_changed_during_upload", status=after.status, advice=advice)
    return after, True
