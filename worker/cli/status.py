"""`status`: how it is with images on targets, now."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import astuple
from typing import Any

from cliff.lister import Lister

from handlers import image_volume
from handlers.prewarm import Prewarm
from worker import explain, status
from worker.cli import Worker
from worker.daemon import build_clouds, build_handlers, build_parts, check_cloud
from worker.errors import Misconfigured
from worker.metrics import Metrics
from worker.notification import IMAGE_ID
from worker.settings import Settings
from worker.status import Row
from worker.uses import Uses

COLUMNS = ("Image", "Target", "State", "Image-Volume", "GiB", "Since", "Last use", "Why")


class Status(Lister):
    """Show images x targets: warm or not, the Image-Volume, its size, since when, last use, and why not.

    States: warm; cold, it will be warm; full, the target's budget has no room; unused, it waits for a second use;
    unwanted; lost, the data can be had nowhere; upload, a queued image; left over, what is to be deleted; gone, Glance
    has no such image and volumes are left. Images that are not wanted are shown only with --all or when named. Nothing
    is changed.
    """

    app: Worker

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The options of this command."""
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("image", metavar="IMAGE", nargs="?", default="", help="Id of an image; all if left out.")
        parser.add_argument("--target", default="", metavar="T", help="Only this target.")
        parser.add_argument("--state", default="", choices=["", *status.STATES], metavar="S", help="Only this state.")
        parser.add_argument("--all", action="store_true", help="What is not wanted too.")
        parser.add_argument("--count", action="store_true", help="Only how many there are of each.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        """The table."""
        settings = self.app.read_settings()
        image_id, target, state = parsed_args.image.strip().lower(), parsed_args.target, parsed_args.state
        if image_id and not IMAGE_ID.fullmatch(image_id):
            raise Misconfigured([f"{parsed_args.image!r} is not the id of an image"])
        if target and target not in {one.name for one in settings.targets}:
            raise Misconfigured([f"no target {target!r} is configured"])
        rows = asyncio.run(_rows(settings, image_id))
        hidden = not (parsed_args.all or image_id or state)
        shown = [
            row
            for row in rows
            if target in ("", row.target) and state in ("", row.state) and not (hidden and row.state == "unwanted")
        ]
        if parsed_args.count:
            return ("Target", "State", "Images", "GiB"), list(status.tell(shown))
        return COLUMNS, [tuple("" if cell is None else cell for cell in astuple(row)) for row in shown]


async def _rows(settings: Settings, image_id: str) -> list[Row]:
    metrics = Metrics()
    clouds = build_clouds(settings, metrics)
    cloud = clouds.common
    try:
        await check_cloud(cloud, settings)
        parts = build_parts(settings, clouds, metrics, Uses())
        prewarm = Prewarm(parts)
        others = tuple(handler for handler in build_handlers(settings, parts).values() if handler.name != prewarm.name)
        if not image_id:
            return [row async for row in status.overview(cloud, prewarm, others)]
        image = await cloud.get_image(image_id)
        volumes = (
            *await cloud.find_volumes(image_volume.name_of(image_id)),
            *await cloud.find_volumes(image_volume.warming_name_of(image_id)),
        )
        lying = await explain.lying(cloud, settings.targets)
        for handler in (prewarm, *others):
            await handler.prepare(lying)
        return [row async for row in status.of_image(cloud, prewarm, others, image, volumes)]
    finally:
        clouds.close()
