"""`resync`: one comparison of the cloud, now."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from cliff.lister import Lister

from handlers import image_volume
from worker.cli import Worker
from worker.cli.handover import Handover
from worker.daemon import build_clouds, build_handlers, build_parts, check_cloud
from worker.handler import Missing
from worker.job import OPERATOR
from worker.metrics import Metrics
from worker.resync import Census, compare, job_of
from worker.settings import Settings
from worker.uses import Uses


class Resync(Lister):
    """Compare Glance and Cinder once, show what is missing, and have it done.

    With lanes on RabbitMQ the jobs go to the workers that run; with memory:// this command does the work itself, and
    ends when it is done.
    """

    app: Worker

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The options of this command."""
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("--dry-run", action="store_true", help="Only show what is missing.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        """The table of what is missing."""
        settings = self.app.read_settings()
        found = asyncio.run(_resync(settings, dry_run=parsed_args.dry_run))
        rows = [(one.key.handler, one.key.image_id, one.key.target, one.why) for one in found]
        return ("Handler", "Image", "Target", "Why"), rows


async def _resync(settings: Settings, *, dry_run: bool) -> list[Missing]:
    metrics = Metrics()
    clouds = build_clouds(settings, metrics)
    cloud = clouds.common
    try:
        await check_cloud(cloud, settings)
        uses = Uses()
        handlers = build_handlers(settings, build_parts(settings, clouds, metrics, uses))
        comparing = compare(cloud, handlers.values(), image_of=image_volume.image_of, census=Census())
        found = [missing async for missing in comparing]
        if found and not dry_run:
            local = settings.work_url == "memory://"
            async with Handover(settings, handlers, metrics=metrics, uses=uses, local=local) as handover:
                await handover.submit(job_of(missing, cause=OPERATOR) for missing in found)
                await handover.settled()
        return found
    finally:
        clouds.close()
