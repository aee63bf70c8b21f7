"""Errors whose type is their policy; foreign exceptions become one of these where they come in."""

from __future__ import annotations


class Temporary(Exception):
    """It may work later: the job tries again with backoff, or after `after` seconds."""

    def __init__(self, message: str, *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Conflict(Temporary):
    """Somebody else is at it, or the thing is in the wrong state for now (409, 400 on a state)."""


class TooLarge(Temporary):
    """The answer is larger than what we read: that is one object's fault, and no sign that the
    service is away. Asking again at once gets the same answer."""


class Blocked(Exception):
    """An operator has to act (401, 403, quota, no backend): the job tries again, but rarely."""


class NotFound(Exception):
    """The thing is not there (404): the caller looks again or is done."""


class SpelledOtherwise(NotFound):
    """There is an image `image_id` whose id differs in nothing but capital letters. On MySQL Glance
    answers for it; a key of its own would be worked on beside the image's."""

    def __init__(self, image_id: str) -> None:
        super().__init__(f"Glance spells the id of the image {image_id}")
        self.image_id = image_id


class Malformed(ValueError):
    """Bytes from outside that are not what they claim to be: kept as a dead letter."""


class Misconfigured(Exception):
    """The configuration can't work; `faults` names everything that is wrong with it."""

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults
