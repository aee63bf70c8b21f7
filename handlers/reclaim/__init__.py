"""Reclaim: delete what was kept for an image when the image is gone, is not wanted any more, or
takes too much room."""

from handlers.reclaim.handler import Reclaim

__all__ = ["Reclaim"]
