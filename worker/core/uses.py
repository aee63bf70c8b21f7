"""Uses: when volumes were last made of an image on a target, and how often; what budgets and
popularity go by."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from worker.core.newest import Newest
from worker.core.notification import Notification
from worker.core.type_map import TypeMap

# (image, target) pairs remembered; those that were not used for the longest time are forgotten
KEEP = 100_000
# A use is worth a job when it is one of the first, or when so much time has gone since the last
# that was, in seconds
FIRST = 2
EVERY = 3600.0
# Claims of an image on a target that are kept, and notifications that were none and may be made up
# for
CLAIMS = 8
REFUNDS = 20

Pair = tuple[str, str]
T = TypeVar("T")


@dataclass(slots=True)
class _Heard:
    count: int = 0
    told: float = 0.0
    refunds: int = 0


@dataclass(slots=True)
class _Noted:
    count: int = 0
    last: float = 0.0
    before: float = 0.0


@dataclass(frozen=True, slots=True)
class Claim:
    """A use as a notification tells it: at this time, in epoch seconds, this volume was made of the
    image."""

    at: float
    volume_id: str


class Uses:
    """Uses of images that this process has heard of. The last one is written on the Image-Volume,
    once in `EVERY`.

    Three memories, since the intakes of several processes share the notifications, and one process
    works on a lane: what was `heard` of notifications decides which become jobs; what a job
    `claim`s waits for a handler to ask Cinder about the volume, as notifications do not tell a
    clone of another volume from a volume of the image; what a handler has `note`d is what counts.
    """

    def __init__(self) -> None:
        self._targets: Mapping[str, str] = {}
        self._sharing = TypeMap()
        self._heard: Newest[Pair, _Heard] = Newest(KEEP)
        self._noted: Newest[Pair, _Noted] = Newest(KEEP)
        self._claims: Newest[Pair, list[Claim]] = Newest(KEEP)
        # Several intakes ask, each on its own thread
        self._lock = threading.Lock()

    def know(self, targets: Mapping[str, str]) -> None:
        """Take over the names of targets by volume type id; payloads name the type by its id."""
        self._targets = targets

    def share(self, sharing: TypeMap) -> None:
        """Take over which other types are served by what is kept warm on a target."""
        self._sharing = sharing

    def target_of(self, notification: Notification) -> str:
        """The target that serves the volume of a notification; "" if none does."""
        type_id = notification.volume_type_id
        found = self._targets.get(type_id)
        return found or self._sharing.target_of(type_id, notification.host)

    def heard(self, notification: Notification) -> str:
        """The target that the image was used on, if that is worth a job; else ""."""
        target = self.target_of(notification) if notification.is_use else ""
        if not target:
            return ""
        at = notification.timestamp or 0.0
        with self._lock:
            use = _of(self._heard, (notification.source_image_id, target), _Heard)
            use.count += 1
            if use.count > FIRST and at - use.told < EVERY:
                return ""
            use.told = at
        return target

    def claim(self, image_id: str, target: str, at: float, volume_id: str) -> None:
        """Remember what a job says of a use, until somebody has asked Cinder about the volume."""
        with self._lock:
            claims = _of(self._claims, (image_id, target), list)
            if Claim(at, volume_id) not in claims:
                claims.append(Claim(at, volume_id))
                del claims[:-CLAIMS]

    def claims(self, image_id: str, target: str) -> tuple[Claim, ...]:
        """The claims that nobody has decided yet, the newest last."""
        return tuple(self._claims.get((image_id, target), ()))

    def settle(self, image_id: str, target: str, claim: Claim, *, true: bool, now: float) -> None:
        """Count a claim if it is true, and forget it; in the place of a false one the next use is
        worth a job."""
        if true:
            # The sender's clock may be ahead
            self.note(image_id, target, min(claim.at, now))
        with self._lock:
            heard = self._heard.get((image_id, target))
            if heard and not true and heard.refunds < REFUNDS:
                heard.count, heard.refunds = max(0, heard.count - 1), heard.refunds + 1
            left = [one for one in self._claims.get((image_id, target), ()) if one != claim]
            if left:
                self._claims[image_id, target] = left
            else:
                self._claims.pop((image_id, target), None)

    def note(self, image_id: str, target: str, at: float) -> None:
        """Remember one use; the same one told twice is one."""
        with self._lock:
            use = _of(self._noted, (image_id, target), _Noted)
            if at in (use.last, use.before):
                return
            use.count += 1
            use.before, use.last = sorted((at, use.last))

    def last(self, image_id: str, target: str) -> float:
        """When it was last used, in epoch seconds, as far as this process knows; else 0."""
        use = self._noted.get((image_id, target))
        return use.last if use else 0.0

    def count(self, image_id: str, target: str) -> int:
        """How often it was used, as far as this process knows."""
        use = self._noted.get((image_id, target))
        return use.count if use else 0


def _of(memory: Newest[Pair, T], pair: Pair, new: Callable[[], T]) -> T:
    use = memory[pair] = memory.get(pair) or new()
    return use
