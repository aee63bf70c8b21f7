"""`reclaim`: what is kept of images that Glance does not find, and with --confirm what the brake
holds is deleted."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any, NamedTuple

from cliff.lister import Lister

from handlers import image_volume, reclaim
from worker.cli import Worker
from worker.cli.assembly import opened
from worker.cli.preflight import check_cloud
from worker.cli.table import Table
from worker.core.cloud import Cloud, Location, Volume
from worker.core.errors import Blocked, Misconfigured, NotFound
from worker.engine.packed import Packed
from worker.engine.resync import by_image
from worker.settings import Settings

POLL = 1.0
"""Seconds between two looks at a volume that is being deleted."""
COLUMNS = ("Image", "Volume", "GiB", "Deleted", "Why")


class Row(NamedTuple):
    """A line of the table, and the store of the location that it is about, if it is about one."""

    image_id: str
    volume_id: str
    size: int
    deleted: str
    why: str
    store: str = ""


class Reclaim(Table, Lister):
    """Show volumes whose image, and locations whose volume, is not found.

    A running worker looks for them with each resync, and deletes such volumes and locations once it
    is proven that what they belong to is gone: docs/upkeep.md has the rules. If too many are
    missing at once it deletes none before you say --confirm.
    """

    app: Worker

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        # fmt: off
        parser.add_argument("--confirm", action="store_true",
                            help="Delete what the brake ([reclaim] max_at_once) holds back, of "
                                 "images that are proven to be gone, and locations without a "
                                 "volume if --locations is given too.")
        parser.add_argument("--locations", action="store_true",
                            help="With --confirm: also remove the locations whose volume Cinder "
                                 "does not find, on this one look. Only if you know that these "
                                 "volumes are deleted.")
        # fmt: on
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        """The table of what is kept, or was deleted."""
        settings = self.app.read_settings()
        if parsed_args.confirm and not (
            settings.reclaiming.enabled and not settings.reclaiming.dry_run
        ):
            raise Blocked("[reclaim] does not let anything be deleted: see enabled and dry_run")
        if parsed_args.locations and not parsed_args.confirm:
            raise Misconfigured("--locations is for --confirm")
        rows = asyncio.run(
            _reclaim(settings, confirm=parsed_args.confirm, locations=parsed_args.locations)
        )
        if not rows:
            self.app.LOG.warning(
                "Glance finds the image of every Image-Volume, and Cinder the volume of every "
                "location"
            )
        return COLUMNS, [row[: len(COLUMNS)] for row in rows]


class _Watch:
    """Waits for volumes that are being deleted."""

    by_operator = True
    wish = ""

    async def changed(self) -> None:
        await asyncio.sleep(POLL)

    def tell(self, step: str) -> None:
        """Nobody asks."""


async def _reclaim(settings: Settings, *, confirm: bool, locations: bool) -> list[Row]:
    with opened(settings) as (cloud, parts, _):
        await check_cloud(cloud, settings)
        handler = reclaim.Reclaim(parts)
        volumes = await by_image(cloud.list_volumes(), image_volume.image_of)
        await handler.prepare(volumes)
        missing, rows = await _missing(cloud, handler, volumes)
        if locations:
            rows = [await _confirmed(handler, row) for row in rows]
        for image_id, left in missing:
            if confirm:
                await handler.confirm(image_id, _Watch())
            for volume in left:
                gone = confirm and await _is_gone(cloud, volume.id)
                why = "confirmed" if gone else handler.kept_because(volume)
                rows.append(Row(image_id, volume.id, volume.size, "yes" if gone else "no", why))
        return rows


async def _confirmed(handler: reclaim.Reclaim, row: Row) -> Row:
    """The row of a location after an operator has confirmed that its volume is gone."""
    stays = await handler.confirm_location(
        row.image_id, Location(url="", store=row.store, volume_id=row.volume_id)
    )
    return (
        row._replace(deleted="no", why=stays)
        if stays
        else row._replace(deleted="yes", why="confirmed")
    )


async def _missing(
    cloud: Cloud, handler: reclaim.Reclaim, volumes: Packed
) -> tuple[list[tuple[str, tuple[Volume, ...]]], list[Row]]:
    """The images that Glance does not find though there are volumes of them; the locations without
    a volume."""
    listed, bare = 0, list[Row]()
    async for image in cloud.list_images():
        listed += 1
        for one in await handler.bare_locations(image, volumes.take(image.id)):
            why = f"Cinder does not find the volume of this location in store {one.store}"
            bare.append(Row(image.id, one.volume_id, 0, "no", why, one.store))
    if volumes and not listed:
        raise Blocked("Glance lists no image at all: that is no proof that they were deleted")
    missing = []
    for image_id, left in volumes.items():
        try:
            # A listing leaves out images that somebody is at work on
            await cloud.get_image(image_id)
        except NotFound:
            missing.append((image_id, left))
    return missing, bare


async def _is_gone(cloud: Cloud, volume_id: str) -> bool:
    try:
        # One that is stuck in an error stays
        return (await cloud.get_volume(volume_id)).status == "deleting"
    except NotFound:
        return True
