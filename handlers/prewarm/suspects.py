"""Suspects: targets that failed lately, and so are left out of what is done for other targets."""

from __future__ import annotations

from worker.core.age import lasts
from worker.core.handler import Parts

# Seconds for which a target that has failed is left out
SUSPECT_FOR = 600.0


class Suspects:
    """The targets that failed lately, by name."""

    def __init__(self, parts: Parts) -> None:
        self._now = parts.now
        self._until: dict[str, float] = {}

    def add(self, target: str) -> None:
        """Suspect a target, because it has failed."""
        self._until[target] = self._now() + SUSPECT_FOR

    def clear(self, target: str) -> None:
        """Trust a target again, because it has not failed this time."""
        self._until.pop(target, None)

    def has(self, target: str) -> bool:
        """Whether a target is suspect now."""
        return lasts(self._until.get(target, 0.0), self._now(), SUSPECT_FOR)
