"""Handlers: one reconciler a module. This is the route table, the only list of event types there
is."""

from __future__ import annotations

from collections.abc import Mapping

ROUTES: Mapping[str, frozenset[str]] = {
    # An image is ready on image.activate or, when a location was added, on an image.update alone;
    # copy-image into a store says image.upload. A volume of ours that is made or gone wakes who
    # waits for it.
    "prewarm": frozenset(
        {
            "image.activate",
            "image.update",
            "image.upload",
            "volume.create.end",
            "volume.delete.end",
            "scheduler.create_volume",
            "image_volume_cache.miss",
            "image_volume_cache.evict",
        }
    ),
    # The queued image itself, its becoming active (an image.update alone), and the clone that it is
    # made of
    "upload": frozenset(
        {
            "image.create",
            "image.update",
            "image.activate",
            "volume.create.end",
            "scheduler.create_volume",
        }
    ),
    "reclaim": frozenset({"image.delete"}),
}
