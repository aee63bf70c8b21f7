"""Owner: tell an image's owner by a property how the upload is doing."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from handlers.import_lock import until_others_end
from handlers.upload import properties
from handlers.upload.sources import wait_to_change
from worker.core.cloud import Cloud, Image
from worker.core.errors import Blocked, NotFound, Temporary
from worker.core.handler import Watch
from worker.core.target import Uploads

log = structlog.get_logger(__name__)

# Looks of one try at an active image that Glance has locked, until its owner can be told
LOOKS = 10


class Owner:
    """The owner of an image who has asked for the upload by a property."""

    def __init__(self, *, cloud: Cloud, rules: Uploads, now: Callable[[], float]) -> None:
        self._cloud = cloud
        self._rules = rules
        self._now = now

    async def tell(self, text: str, image: Image, watch: Watch) -> float:
        """Write the text into the image's status property, if its owner has asked for the upload.

        Returns after how many seconds to come again, 0 for not at all: an image that somebody may
        be about to send data for is not changed. Glance's task goes on for a while after the image
        is active, and writes the whole image at its end, so this waits for that. No notification
        tells when Glance has unlocked an image.
        """
        status, looks = image.status, 0
        try:
            # Once the image's status has changed there is something else to tell
            while image.status == status and self._has_to_be_told(image, text) and looks < LOOKS:
                if not image.import_locked:
                    wait = wait_to_change(image, self._rules.tell_after, self._now())
                    if wait > 0:
                        return wait
                    told = {self._rules.status_property: text}
                    image, _ = await properties.change(self._cloud, image, told)
                    if status == "queued":
                        # If it was not changed, somebody is at work on it: that makes notifications
                        return 0.0
                if self._has_to_be_told(image, text):
                    looks += 1
                    await watch.changed()
                    image = await self._cloud.get_image(image.id)
            if looks == LOOKS and image.status == status and self._has_to_be_told(image, text):
                return until_others_end(image, self._now())
        except (Temporary, Blocked, NotFound) as error:
            # The upload does not depend on it: the image may be protected, or gone
            log.info("owner_not_told", text=text, error=str(error))
        return 0.0

    def _has_to_be_told(self, image: Image, text: str) -> bool:
        """Whether the property is to be changed, now or as soon as Glance lets go of an image that
        is active."""
        name, asked = self._rules.status_property, self._rules.source_property in image.properties
        able = image.status == "active" or (image.status == "queued" and not image.import_locked)
        return bool(name) and asked and able and text != image.properties.get(name, "")
