"""The state of an image on a target: one list, which handlers, status, explain, the page and the
metrics share."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """An image on a target, or what is left of an image. In the order in which people have to see
    them."""

    FAILED = "failed"
    """The last try failed. It is tried again, or was given up."""
    LOST = "lost"
    """The image's data can be had nowhere."""
    MAKING = "making"
    """Its Image-Volume is being made."""
    COLD = "cold"
    """It is wanted and not warm; the worker makes it warm."""
    HELD_BACK = "held back"
    """Somebody else undoes what the worker makes."""
    FULL = "full"
    """The target's budget, or Cinder's cache, has no room for it."""
    PARTLY_WARM = "partly warm"
    """Cinder clones it in some pools of the target, and the others can't be chosen or have no room
    for it."""
    UNKNOWN = "unknown"
    """No resync has seen it yet."""
    UNUSED = "unused"
    """It waits for a use, where `[prewarm] when` is `used`."""
    UNWANTED = "unwanted"
    """Policy does not want it there."""
    WARM = "warm"
    """Cinder clones it."""
    UPLOAD = "upload"
    """A queued image that waits for its upload to be completed."""
    LEFT_OVER = "left over"
    """A volume of the image that nobody needs, which goes."""
    GONE = "gone"
    """The image is deleted, its volumes are not yet."""
