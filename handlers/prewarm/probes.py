"""Probes: volumes that show whether Cinder's driver clones images by itself."""

from __future__ import annotations

from dataclasses import replace

import structlog

from handlers.prewarm.seen import Seen
from handlers.serving import served
from worker.core.handler import Parts
from worker.core.target import Target

log = structlog.get_logger(__name__)


class Probes:
    """The probes that are under way, one at a time in a place, and what they have shown."""

    def __init__(self, parts: Parts) -> None:
        self._learned = parts.learned
        self._now = parts.now
        self._under_way: dict[str, str] = {}

    def try_begin(self, seen: Seen, target: Target) -> bool:
        """Whether the image's volume may be the probe: no other image's is under way."""
        return self._under_way.setdefault(target.place, seen.image.id) == seen.image.id

    def end(self, image_id: str, target: Target) -> None:
        """Let another image be the probe."""
        if self._under_way.get(target.place) == image_id:
            del self._under_way[target.place]

    def with_findings(self, seen: Seen, target: Target) -> Seen:
        """Add whether Cinder clones by itself, if the volume of another image has shown it."""
        if seen.unproven is None or not self._is_known(seen.unproven, target):
            return seen
        strategy = served(seen.image, target, self._learned, now=self._now()).strategy
        return replace(seen, unproven=None, native=strategy == "native")

    def note(self, seen: Seen, target: Target, *, native: bool) -> None:
        """Remember whether Cinder has cloned the image by itself, if that was not known."""
        if seen.unproven is not None and not self._is_known(seen.unproven, target):
            self._learned.note(target.place, seen.unproven, native=native, now=self._now())
            log.info(
                "clone_by_driver", target=target.place, stores=sorted(seen.unproven), cloned=native
            )

    def _is_known(self, stores: frozenset[str], target: Target) -> bool:
        return self._learned.is_known(target.place, stores, now=self._now())
