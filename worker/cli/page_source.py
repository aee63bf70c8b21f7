"""Page source: the documents behind the page, from what the parts of the daemon know.

No service is asked.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.reasons import WORDS, Reason
from worker.broker.replicas import Part
from worker.cli.cloud_watch import CloudWatch
from worker.core.handler import Targeted
from worker.core.lanes import Lanes
from worker.core.release import release
from worker.core.uses import Uses
from worker.core.wishes import Wishes
from worker.engine.queue import Queue
from worker.observe.activity import JOBS, Activity
from worker.observe.joint import FORMAT, joint
from worker.observe.order import Choice
from worker.observe.status_document import Services
from worker.settings import Settings

TOLD = 1000
"""Images that are held back, of which other replicas are told."""


@dataclass(slots=True, kw_only=True)
class PageSource:
    """The documents of the page. `others` returns the last part that each other replica has told."""

    settings: Settings
    activity: Activity
    targeted: Sequence[Targeted]
    queue: Queue
    lanes: Lanes
    watch: CloudWatch
    uses: Uses
    wishes: Wishes
    others: Callable[[], Iterable[Part]] = tuple

    def status(self, most: float) -> Mapping[str, Any]:
        """Return the document of /status.json, with at most so many jobs, of all replicas."""
        return joint(self._own(most), self.others(), most=most)

    def part(self) -> Mapping[str, Any]:
        """Return what the other replicas are told of this one."""
        own = self._own(JOBS)
        return {**own, "held_back": own["held_back"][:TOLD]}

    def _own(self, most: float) -> Mapping[str, Any]:
        """Return this replica's document, with at most so many jobs."""
        targeted = self.targeted
        decided = {target.name: target for handler in targeted for target in handler.resolved}
        unusable = {name: why for handler in targeted for name, why in handler.unusable.items()}
        services = Services(
            targets=(decided.get(one.name, one) for one in self.settings.targets),
            lanes=self.queue.lanes,
            depths=self.lanes.depths(),
            unusable={**unusable, **self.watch.unusable},
            serves=self.lanes.serves,
        )
        status = self.activity.status(services, most=most)
        for row in status["targets"]:
            row["paused"] = row["name"] in self.wishes.paused
        full = {name: why for handler in targeted for name, why in handler.full().items()}
        learned = {name: sets for handler in targeted for name, sets in handler.learned().items()}
        return {
            "format": FORMAT,
            "version": release(),
            "host": socket.gethostname(),
            **status,
            "held_back": [one for handler in targeted for one in handler.held_back()],
            "cache_full": full,
            "cloned_from": learned,
            "reasons": _words(row[3] for row in status["volumes_made"]["hours"]),
        }

    def images(self, choice: Choice) -> Mapping[str, Any]:
        """Return the document of /images.json."""
        return self.activity.images((target.name for target in self.settings.targets), choice)

    def image(self, image_id: str) -> Mapping[str, Any]:
        """Return the document of /image.json; empty if the image is not known.

        The last use is the one that Cinder has, or a later one that this worker has heard of.
        """
        document = self.activity.image(image_id, [one.name for one in self.settings.targets])
        for volume in document.get("volumes", ()):
            volume["used"] = max(volume["used"], self.uses.last(image_id, volume["target"]))
        return document


def _words(reasons: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return what these reasons for downloads mean, and what to do about them."""
    known = {reason for reason in reasons if reason in {*Reason}}
    return {reason: WORDS[Reason(reason)]._asdict() for reason in sorted(known)}
