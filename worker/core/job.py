"""A key says what to look at again; a job is a key on its way through a lane."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from worker.core.age import age
from worker.core.errors import Malformed

# Causes of jobs that no notification asked for: a comparison by the daemon itself, a person who
# wants it now, or wants it gone (a worker that knows no wishes takes that for no order to make it
# warm), and what was heard while such a job was in progress
RESYNC = "resync"
OPERATOR = "operator"
EVICTING = "operator evicts"
NOTIFIED = "notified again"
# Characters of a text; a broker has a limit for a message
MOST_TEXT = 4_000
# A part of a key, of which image ids end up in URLs; those of plug-ins need not be UUIDs
PART = re.compile(r"(?!\.)[\w.@:+-]{0,255}", re.ASCII)
MOST_TRIES = 1_000_000
# Seconds without a failure after which those before are none in a row with the next one. The slowest
# failure that comes again and again is a volume that Cinder never makes, given up after six hours
FORGIVEN_AFTER = 172_800.0
# Epoch seconds: until the year 5138; and what a notification may claim
LATEST, CLAIMED = 1e11, 3e11


class Key(NamedTuple):
    """One thing to look at again: which handler, which image, on which target ("" for all)."""

    handler: str
    image_id: str
    target: str = ""

    @property
    def lane(self) -> str:
        """The lane that work on this key waits in: `prewarm.<target>`, `upload`, `reclaim`."""
        return f"{self.handler}.{self.target}" if self.target else self.handler


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A key with its history: why it was asked for, how often it was tried, since when and for when
    (epoch seconds).

    `used` is when a volume was made of the image on the target, and `used_by` which, if that is
    what led to the job; else 0 and "". `deleted` is the status in the image.delete that led to it,
    `deleted` or `pending_delete`; else "". `deleted_volume` is the id in the volume.delete.end that
    led to it; else "". `project` is whose doing it is, "" if nobody knows: projects take turns in a
    lane. `wish` is what an operator asks for (`worker.core.wishes`), else "". Texts that are too
    long are cut. `wish_id` tells one wish from another, however often its job is tried, and
    `wished_at` is when it was made. `trace` is the span of what led to the job, "" where nobody
    traces. `failed_at` is when its last try failed, 0 if none has, and `failure` why: `reason` may be
    another wait since.
    """

    key: Key
    cause: str
    attempt: int = 0
    first_at: float
    due: float = 0.0
    reason: str = ""
    used: float = 0.0
    used_by: str = ""
    deleted: str = ""
    deleted_volume: str = ""
    project: str = ""
    wish: str = ""
    wish_id: str = ""
    wished_at: float = 0.0
    trace: str = ""
    failed_at: float = 0.0
    failure: str = ""

    @property
    def was_tried(self) -> bool:
        """Whether a worker has tried it before, and put it off."""
        return self.attempt > 0 or self.due > 0

    @property
    def is_urgent(self) -> bool:
        """Whether a person asks for it now."""
        return self.cause == OPERATOR or bool(self.wish)

    def __post_init__(self) -> None:
        """Cut what users and errors can make as long as they like."""
        for name in ("cause", "reason", "project", "failure"):
            if len(text := getattr(self, name)) > MOST_TEXT:
                object.__setattr__(self, name, text[:MOST_TEXT])

    def joined(self, other: Job) -> Job:
        """The job that does for both: what a person asks for is not lost in the other one."""
        if not other.is_urgent:
            return self
        return replace(
            self,
            cause=other.cause,
            wish=other.wish or self.wish,
            wish_id=other.wish_id or self.wish_id,
            wished_at=other.wished_at or self.wished_at,
        )

    def failed(self, reason: str, *, now: float) -> Job:
        """The same job after a try that failed for `reason`. Failures of long ago do not count any
        more: one may wait for weeks, with an outage now and then."""
        over = self.failed_at and age(self.failed_at, now) > FORGIVEN_AFTER
        attempt = 1 if over else self.attempt + 1
        return replace(self, attempt=attempt, reason=reason, failed_at=now, failure=reason)

    def to_bytes(self) -> bytes:
        """The job as it lies in a lane: a JSON object with the fields of `Job`, the key as a
        list."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, body: bytes) -> Job:
        """The job that `to_bytes` wrote; Malformed if it is anything else."""
        try:
            fields = json.loads(body)
            key = Key(*(_part(part) for part in fields["key"]))
            return cls(
                key=key,
                cause=_text(fields["cause"]),
                attempt=int(_within(fields["attempt"], MOST_TRIES)),
                first_at=_within(fields["first_at"], LATEST),
                due=_within(fields["due"], LATEST),
                reason=_text(fields["reason"]),
                # Jobs of releases before had none
                used=_within(fields.get("used", 0.0), CLAIMED, least=-CLAIMED),
                used_by=_part(fields.get("used_by", "")),
                deleted=_part(fields.get("deleted", "")),
                deleted_volume=_part(fields.get("deleted_volume", "")),
                project=_text(fields.get("project", "")),
                wish=_part(fields.get("wish", "")),
                wish_id=_part(fields.get("wish_id", "")),
                wished_at=_within(fields.get("wished_at", 0.0), LATEST),
                trace=_part(fields.get("trace", "")),
                failed_at=_within(fields.get("failed_at", 0.0), LATEST),
                failure=_text(fields.get("failure", "")),
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise Malformed(f"not a job: {error!r}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, not {type(value).__name__}")
    return value


def _part(value: object) -> str:
    text = _text(value)
    if not PART.fullmatch(text):
        raise ValueError(f"{text[:100]!r} is no id, and no part of a key")
    return text


def _within(value: object, most: float, *, least: float = 0.0) -> float:
    """Return a number in these bounds: what is not finite, say, is no time, and no JSON to a
    browser."""
    if not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{value!r:.100} is no number between {least:g} and {most:g}")
    return float(value)
