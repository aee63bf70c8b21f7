"""Prewarm: an image that is wanted on a target has an Image-Volume there that Cinder clones."""

from handlers.prewarm.handler import Prewarm, Warmth

__all__ = ["Prewarm", "Warmth"]
