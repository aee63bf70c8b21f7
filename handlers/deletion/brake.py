"""Brake: nothing that was only found missing is deleted while too much of it is missing."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from handlers import image_volume
from worker.core import absence
from worker.core.age import lasts
from worker.core.cloud import Volume
from worker.core.deletions import DELETED
from worker.core.handler import Parts

log = structlog.get_logger(__name__)

# Seconds for which one count is used again
COUNT_FOR = 30.0
CONFIRM = "image-volume-worker reclaim --confirm"
CONFIRM_LOCATIONS = f"{CONFIRM} --locations"


class Brake:
    """The counts of missing images and of missing volumes of locations, and whether each brakes."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._rules = parts.reclaiming
        self._deletions = parts.deletions
        self._report = parts.report
        self._now = parts.now
        self._reason = ""
        self._counted_until = 0.0
        self._locations_braked = False
        self._shown, self._shown_until = 0, 0.0

    @property
    def reason(self) -> str:
        """The reason to delete no volume of a missing image, as of the last count; "" if off."""
        return self._reason

    async def check(self) -> str:
        """Count the volumes of missing images, and return the reason as above."""
        if not lasts(self._counted_until, self._now(), COUNT_FOR):
            volumes = await self._image_volumes()
            self.count([self.note_of(volume) for volume in volumes])
            self._counted_until = self._now() + COUNT_FOR
        return self._reason

    def note_of(self, volume: Volume) -> absence.Absence:
        """Return what is noted of the volume's image; nothing if its deletion was announced, which
        is no loss."""
        if self._deletions.status(image_volume.image_of(volume)) == DELETED:
            return absence.NONE
        return absence.absence_of(volume)

    def count(self, notes: Sequence[absence.Absence]) -> None:
        """Set the brake by the notes of all Image-Volumes that there are."""
        held = sum(note.is_noted for note in notes)
        missing = sum(note.is_noted and not note.pending for note in notes)
        most = self._rules.limit(len(notes))
        reason = ""
        if missing > most:
            reason = (
                f"the brake: {missing} of {len(notes)} Image-Volumes belong to images that "
                f"Glance does not find, more "
                f"than [reclaim] max_at_once = {most}; if these images are deleted: {CONFIRM}"
            )
            if not self._reason:
                log.error(
                    "reclaim_braked",
                    missing_volumes=missing,
                    image_volumes=len(notes),
                    most=most,
                    advice=CONFIRM,
                )
        self._reason = reason
        self._report.held_back(held, brake=bool(reason))
        self.count_locations(len(notes))

    def count_locations(self, shown: int) -> str:
        """Set the brake by how many volumes of locations are missing besides those shown; its
        reason, "" if off."""
        missing, most = self._deletions.missing_volumes(now=self._now()), self._rules.limit(shown)
        self._report.missing(missing, brake=missing > most)
        before, self._locations_braked = self._locations_braked, missing > most
        if not self._locations_braked:
            return ""
        if not before:
            log.error(
                "reclaim_braked",
                missing_locations=missing,
                image_volumes=shown,
                most=most,
                advice=CONFIRM_LOCATIONS,
            )
        return (
            f"the brake: Cinder does not find {missing} volumes of locations, more than "
            f"[reclaim] max_at_once = {most}"
            f"; if they are deleted: {CONFIRM_LOCATIONS}"
        )

    async def count_shown(self) -> int:
        """Return how many Image-Volumes Cinder shows; as of `COUNT_FOR` seconds ago at most."""
        if not lasts(self._shown_until, self._now(), COUNT_FOR):
            self._shown = len(await self._image_volumes())
            self._shown_until = self._now() + COUNT_FOR
        return self._shown

    async def _image_volumes(self) -> list[Volume]:
        return [one async for one in self._cloud.list_volumes() if image_volume.image_of(one)]
