"""`resync`: one comparison of the cloud, now."""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from cliff.lister import Lister

from handlers import image_volume
from worker.cli import Worker, names, progress
from worker.cli.assembly import build_handlers, opened
from worker.cli.handover import hand_over
from worker.cli.preflight import check_cloud
from worker.cli.table import Table
from worker.core.handler import Handler, Kind, Missing
from worker.core.job import OPERATOR
from worker.diagnose import explain
from worker.engine.resync import Census, compare, compare_images, job_of
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.openstack.cloud import OpenStackCloud


LOOKED_AT = {
    Kind.REFUSED: "uploads wait for their owners, see status; a resync only looks at them again",
    Kind.LOOK: "queued images wait for data, or an upload of Cinder's has failed; a resync looks",
}


class Resync(Table, Lister):
    """Compare Glance and Cinder once, show what is missing, and have it done.

    With lanes on RabbitMQ the jobs go to the workers that run; with memory:// this command does the
    work itself, and ends when it is done. A job that was given up, or waits for its next try, is
    tried at once.
    """

    app: Worker

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        # fmt: off
        parser.add_argument("--dry-run", action="store_true", help="Only show what is missing.")
        parser.add_argument("--image-id", metavar="IMAGE", action="append", default=[],
                            help="Only this image, by id, whether Glance has it or not, or by "
                                 "name; may be repeated.")
        parser.add_argument("--target", default="", metavar="T",
                            help="Only pre-warming on this target: no uploads, nothing reclaimed.")
        # fmt: on
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        settings = self.app.read_settings()
        names.check_target(settings, parsed_args.target)
        found = asyncio.run(_resync(settings, parsed_args, self.app.LOG.warning))
        if not found:
            self.app.LOG.warning("nothing is missing")
        rows = [
            (one.key.handler, one.key.image_id, one.name, one.key.target, one.why) for one in found
        ]
        return ("Handler", "Image", "Name", "Target", "Why"), rows


async def _resync(
    settings: Settings, options: argparse.Namespace, told: Callable[[str], None]
) -> list[Missing]:
    with opened(settings) as (cloud, parts, metrics):
        for warning in (await check_cloud(cloud, settings)).warnings:
            told(warning)
        handlers = build_handlers(settings, parts)
        image_ids = [await names.image_id(cloud, image) for image in options.image_id]
        missing = await _compared(settings, cloud, handlers.values(), image_ids)
        found = [one for one in missing if options.target in ("", one.key.target)]
        if options.dry_run:
            others = Counter(one.kind for one in found if one.kind is not Kind.WORK)
            found = [one for one in found if one.kind is Kind.WORK]
            for kind, count in others.items():
                told(f"{count} {LOOKED_AT[kind]}")
        if found and not options.dry_run:
            jobs = [job_of(one, cause=OPERATOR) for one in found]
            for warning in await hand_over(settings, handlers, jobs, metrics=metrics, parts=parts):
                told(warning)
        return found


async def _compared(
    settings: Settings, cloud: OpenStackCloud, handlers: Iterable[Handler], image_ids: list[str]
) -> list[Missing]:
    """Yield keys that look incomplete, of all images or of some."""
    if image_ids:
        comparing = compare_images(
            cloud,
            handlers,
            dict.fromkeys(image_ids),
            volumes_of=lambda image_id: explain.volumes_of(cloud, image_id),
            lying=await explain.lying(cloud, settings.targets),
        )
        return [missing async for missing in comparing]
    census = Census()
    comparing = compare(cloud, handlers, image_of=image_volume.image_of, census=census)
    async with progress.shown(lambda: census.images, unit=" images"):
        return [missing async for missing in comparing]
