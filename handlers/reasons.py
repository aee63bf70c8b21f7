"""The reasons why Cinder downloads an image instead of cloning: a closed list, with a sentence and
an advice each."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """A condition for a clone that is not met. The value is what commands, logs and metrics name it
    by."""

    NOT_WANTED = "not_wanted"
    IMAGE_INACTIVE = "image_inactive"
    ENCRYPTED = "encrypted"
    FORMAT = "format"
    LOCATIONS_HIDDEN = "locations_hidden"
    NO_LOCATION = "no_location"
    OTHER_POOL = "other_pool"
    OWNER = "owner"
    NOT_AVAILABLE = "not_available"
    CLONE_REFUSED = "clone_refused"
    CACHE_OFF = "cache_off"
    ENTRY_MISSING = "entry_missing"
    ENTRY_STALE = "entry_stale"


class Words(NamedTuple):
    """A reason in a sentence, and what to do about it."""

    sentence: str
    advice: str


WORDS = {
    Reason.NOT_WANTED: Words(
        "the policy does not want the image on this target",
        "see [prewarm] and the image's property; explain IMAGE names the rule",
    ),
    Reason.IMAGE_INACTIVE: Words(
        "the image is not active", "Cinder makes no volume of it before it is"
    ),
    Reason.ENCRYPTED: Words(
        "the image or its Image-Volume is encrypted",
        "Cinder clones unencrypted data only: take another type",
    ),
    Reason.FORMAT: Words(
        "only an image that is raw/bare is cloned by its location",
        "upload it as raw/bare, or have Cinder's image-volume cache on, which keeps the "
        "converted volume",
    ),
    Reason.LOCATIONS_HIDDEN: Words(
        "Glance shows this login no locations of the image",
        "grant the role service; doctor tells more",
    ),
    Reason.NO_LOCATION: Words(
        "no location of the image is a volume", "the worker has one made; resync asks for it"
    ),
    Reason.OTHER_POOL: Words(
        "the volumes that hold the image lie in other pools",
        "the worker has it made in this pool, where that can be",
    ),
    Reason.OWNER: Words(
        "image_owner of the Image-Volume is not the image's owner",
        "the worker sets it; resync asks for it",
    ),
    Reason.NOT_AVAILABLE: Words(
        "the Image-Volume is not available", "see its status; the worker repairs what it may"
    ),
    Reason.CLONE_REFUSED: Words(
        "Cinder could not clone what was there to be cloned, as when the backend has reached its "
        "limit of clones or snapshots of one volume",
        "the log of cinder-volume says why (Failed to clone image volume, with debug = true); see "
        "limits of clones in docs/strategies.md",
    ),
    Reason.CACHE_OFF: Words(
        "Cinder made no entry in its image-volume cache when it downloaded an image here",
        "set image_volume_cache_enabled = true in the backend's section of cinder.conf, and see "
        "its size limits",
    ),
    Reason.ENTRY_MISSING: Words(
        "Cinder's image-volume cache has no entry of the image",
        "the worker has one made; resync asks for it",
    ),
    Reason.ENTRY_STALE: Words(
        "the cache entry was made before the image's last change, or is not known to be fresh",
        "Cinder downloads once more; the worker makes a new entry once the image is quiet",
    ),
}
