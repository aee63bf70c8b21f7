"""The release of this package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """Return the version of this package as it is installed."""
    try:
        return version("image-volume-worker")
    except PackageNotFoundError:
        return "unknown"
