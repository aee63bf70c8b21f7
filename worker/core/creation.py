"""A volume that a user had made of an image, and how Cinder made it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

NOTE = "signature_verified"
"""The key that Cinder adds to the image metadata of a volume for which it downloads the image."""
NO_REASON = "unknown"
"""The reason of a download that nothing that is known explains."""


class Way(StrEnum):
    """How Cinder makes a volume of an image. The value is the metric's label `path`."""

    NATIVE = "native"
    """Cinder's driver clones the image where Glance keeps it."""
    IMAGE_VOLUME = "image_volume"
    """Cinder clones the Image-Volume that is a location of the image."""
    CACHE = "cache"
    """Cinder clones the entry of its image-volume cache."""
    DOWNLOAD = "download"
    """Cinder downloads the image."""
    UNKNOWN = "unknown"
    """Nobody can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """A volume that was made of an image, as notifications tell.

    `project` is whose volume it is, `host` its pool. `seconds` are what the user waited, None if
    the beginning was not heard of. `began` and `ended` are this process's own clock when it heard
    of them; `began` is `ended` if it did not hear of the beginning. `downloaded` tells that
    Cinder has noted a download of the image on the volume itself. `read` tells that Glance sent the
    image to somebody meanwhile, `hit` that an entry of Cinder's image-volume cache was used in the
    pool, and `evicted` that one was deleted there, as it was out of date; all None if the beginning
    was not heard of.
    """

    volume_id: str
    image_id: str
    target: str
    project: str = ""
    host: str = ""
    began: float
    ended: float
    seconds: float | None = None
    downloaded: bool = False
    read: bool | None = None
    hit: bool | None = None
    evicted: bool | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """How Cinder made a volume; for a download the reasons at that time, the decisive one first."""

    way: Way
    reasons: tuple[str, ...] = ()
    why: str = ""
    """In a sentence, for people."""

    @property
    def reason(self) -> str:
        """The label `reason` of the metric: "" unless it is a download."""
        if self.way is not Way.DOWNLOAD:
            return ""
        return self.reasons[0] if self.reasons else NO_REASON
