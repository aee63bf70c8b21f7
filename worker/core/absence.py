"""Absence: how often Glance has not found an image, as noted on the image's volumes. Pure.

A 404 can come of a policy, of a restored database or of a delayed deletion. So it counts as a
deletion only after `LOOKS` looks that are spread over a grace period. The looks are noted on the
volumes themselves: the note outlives the worker, and all replicas read it. The same looks are taken
for the volume of a location that Cinder does not find; they can be noted nowhere, so they are in
memory (`worker.core.deletions`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from worker.core.cloud import Volume
from worker.core.target import MISSING, PENDING

LOOKS = 5
# Seconds, at least, after which a look counts no more if no other one has followed
LAPSES = 172_800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """Note on a volume: how many looks for its image have counted, and when the last one was (epoch
    seconds).

    `pending`: the image's deletion was announced as pending_delete, so the image can be restored.
    """

    looks: int = 0
    last: float = 0.0
    pending: bool = False

    @property
    def is_noted(self) -> bool:
        """Whether the volume carries a note at all."""
        return self.pending or self.looks > 0

    @property
    def is_proven(self) -> bool:
        """Whether enough looks have counted."""
        return self.looks >= LOOKS and not self.pending

    def next_look(self, grace: float) -> float:
        """When another look counts, in epoch seconds, so that all of them are spread over `grace`
        seconds."""
        return self.last + grace / (LOOKS - 1) if self.looks else 0.0

    def as_of(self, now: float, grace: float) -> Absence:
        """The note, or none if its looks count no more and begin again.

        A clock that was far ahead may have written it: no look would count before that moment. Or
        nobody has looked for long, and the image may have been there meanwhile: the worker did not
        run, or Cinder's database was restored from a backup.
        """
        if not self.looks:
            return self
        ahead = now + grace / (LOOKS - 1) < self.last
        return NONE if ahead or now - self.last > max(2 * grace, LAPSES) else self

    def seen(self, now: float) -> Absence:
        """The note after one more look that counts."""
        return replace(self, looks=min(self.looks + 1, LOOKS), last=now)

    def to_metadata(self) -> dict[str, str]:
        """The note as metadata of a volume: "<looks> <time of the last one>", "pending_delete" for
        Glance's delayed deletion, after which an administrator can restore the image, or nothing once
        the image is back."""
        if self.pending:
            return {MISSING: PENDING}
        if not self.looks:
            return {MISSING: ""}
        return {
            MISSING: (
                f"{self.looks} "
                f"{datetime.fromtimestamp(self.last, UTC).isoformat(timespec='milliseconds')}"
            )
        }

    def __str__(self) -> str:
        if self.pending:
            return (
                "its deletion is pending: Glance deletes the data later, or an administrator "
                "restores the image"
            )
        return f"not found at {self.looks} of {LOOKS} looks"


NONE = Absence()


def told(moment: float) -> str:
    """A moment for people, in UTC."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def absence_of(volume: Volume) -> Absence:
    """The note that a volume carries; one without looks if there is none that can be read."""
    text = volume.metadata.get(MISSING, "")
    if not text:
        return NONE
    if text == PENDING:
        return Absence(pending=True)
    looks, _, last = text.partition(" ")
    try:
        return Absence(looks=min(int(looks), LOOKS), last=datetime.fromisoformat(last).timestamp())
    except ValueError:
        return NONE
