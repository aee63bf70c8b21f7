"""`reclaim`: what is kept of images that Glance does not find, and with --confirm what the brake holds is deleted."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from cliff.lister import Lister

from handlers import image_volume, reclaim
from worker.cli import Worker
from worker.cli.values import Plain
from worker.cloud import Cloud, Volume
from worker.daemon import build_clouds, build_parts, check_cloud
from worker.errors import Blocked, NotFound
from worker.metrics import Metrics
from worker.packed import Packed
from worker.resync import by_image
from worker.settings import Settings

POLL = 1.0
"""Seconds between two looks at a volume that is being deleted."""
COLUMNS = ("Image", "Volume", "GiB", "Deleted", "Why")


class Reclaim(Plain, Lister):
    """Show each volume of an image that Glance does not find, whether it is deleted, and the evidence.

    A running worker looks for such images with each resync, and deletes their volumes once the images are proven to be
    gone: docs/upkeep.md has the rules. If too many are missing at once it deletes none before you say --confirm.
    """

    app: Worker

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The options of this command."""
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "--confirm",
            action="store_true",
            help="Delete what the brake ([reclaim] max_at_once) holds back, of images that are proven to be gone.",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        """The table of what is kept, or was deleted."""
        settings = self.app.read_settings()
        if parsed_args.confirm and not (settings.reclaiming.enabled and not settings.reclaiming.dry_run):
            raise Blocked("[reclaim] does not let anything be deleted: see enabled and dry_run")
        rows = asyncio.run(_reclaim(settings, confirm=parsed_args.confirm))
        if not rows:
            self.app.LOG.warning("Glance finds the image of every Image-Volume")
        return COLUMNS, rows


class _Watch:
    """Waits for volumes that are being deleted."""

    by_operator = True

    async def changed(self) -> None:
        await asyncio.sleep(POLL)

    def tell(self, step: str) -> None:
        """Nobody asks."""


async def _reclaim(settings: Settings, *, confirm: bool) -> list[tuple[str, str, int, str, str]]:
    metrics = Metrics()
    clouds = build_clouds(settings, metrics)
    try:
        await check_cloud(clouds.common, settings)
        handler = reclaim.Reclaim(build_parts(settings, clouds, metrics))
        volumes = await by_image(clouds.common.list_volumes(), image_volume.image_of)
        await handler.prepare(volumes)
        rows = []
        for image_id, left in await _missing(clouds.common, volumes):
            if confirm:
                await handler.confirm(image_id, _Watch())
            for volume in left:
                gone = confirm and await _is_gone(clouds.common, volume.id)
                why = "confirmed" if gone else handler.kept_because(volume)
                rows.append((image_id, volume.id, volume.size, "yes" if gone else "no", why))
        return rows
    finally:
        clouds.close()


async def _missing(cloud: Cloud, volumes: Packed) -> list[tuple[str, tuple[Volume, ...]]]:
    """The images that Glance does not find though there are volumes of them."""
    listed = 0
    async for image in cloud.list_images():
        listed += 1
        volumes.take(image.id)
    if volumes and not listed:
        raise Blocked("Glance lists no image at all: that is no proof that they were deleted")
    missing = []
    for image_id, left in volumes.items():
        try:
            # A listing leaves out images that somebody is at work on
            await cloud.get_image(image_id)
        except NotFound:
            missing.append((image_id, left))
    return missing


async def _is_gone(cloud: Cloud, volume_id: str) -> bool:
    try:
        return image_volume.is_leaving(await cloud.get_volume(volume_id))
    except NotFound:
        return True
