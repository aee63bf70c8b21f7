"""Looks: how Cinder would have made a volume of an image at earlier times."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from handlers.clone_path import Download, Path
from handlers.reasons import Reason
from worker.core.newest import Newest

KEEP = 20_000
"""Images on targets whose looks are remembered."""
LOOKS = 4
"""Looks at one image on one target that are remembered."""


class Look(NamedTuple):
    """A look at an image on a target: its time, and the reasons for a download; () for a clone."""

    at: float
    reasons: tuple[Reason, ...]


@dataclass(slots=True)
class Looks:
    """The last looks at images, by target or place of a target; one process's memory."""

    _looks: Newest[tuple[str, str], tuple[Look, ...]] = field(default_factory=lambda: Newest(KEEP))

    def note(self, image_id: str, place: str, path: Path, *, at: float) -> None:
        """Remember what Cinder would do now, unless the last look showed the same."""
        reasons = path.reasons if isinstance(path, Download) else ()
        before = self._looks.get((image_id, place), ())
        if before and before[-1].reasons == reasons:
            return
        self._looks[image_id, place] = (*before, Look(at, reasons))[-LOOKS:]

    def of(self, image_id: str, place: str) -> tuple[Look, ...]:
        """The looks at an image on a target or in a place of one, the oldest first."""
        return self._looks.get((image_id, place), ())
