"""Prewarm: an image that is wanted on a target has an Image-Volume there that Cinder clones."""

from handlers.prewarm.handler import Prewarm
from handlers.prewarm.warmth import Warmth

__all__ = ["Prewarm", "Warmth"]
