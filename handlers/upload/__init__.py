"""Upload: a queued image whose data is to be a volume becomes active by a clone of it, without
copying data."""

from handlers.upload.handler import Upload

__all__ = ["Upload"]
