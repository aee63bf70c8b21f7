"""`resync`: one comparison of the cloud, now."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from cliff.lister import Lister

from handlers import image_volume
from worker.cli import Worker
from worker.daemon import build_clouds, build_handlers, build_lanes, build_parts, check_cloud
from worker.errors import Temporary
from worker.handler import Missing
from worker.job import OPERATOR
from worker.lanes.memory import MemoryLanes
from worker.metrics import Metrics
from worker.resync import Census, compare, job_of
from worker.runner import Runner
from worker.settings import Settings
from worker.uses import Uses

# Seconds that this command waits for another try of a job at the most
PATIENCE = 60.0


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
            lanes = build_lanes(settings)
            runner = Runner(
                lanes=lanes,
                handlers=handlers,
                limits=settings.limits,
                backoff=settings.backoff,
                metrics=metrics,
                uses=uses,
            )
            if isinstance(lanes, MemoryLanes):
                await lanes.open(dict.fromkeys(runner.lanes, len(found)), runner.deliver)
            try:
                async with asyncio.timeout(None if isinstance(lanes, MemoryLanes) else settings.api_timeout):
                    await lanes.publish(job_of(missing, cause=OPERATOR) for missing in found)
            except TimeoutError as error:
                raise Temporary(f"the lanes' broker is away: {lanes.problem()}") from error
            if isinstance(lanes, MemoryLanes):
                await _all_settled(runner, lanes)
            await lanes.close()
        return found
    finally:
        clouds.close()


async def _all_settled(runner: Runner, lanes: MemoryLanes) -> None:
    """Return when all jobs are done; Temporary once those that are left keep failing."""
    calm = 0
    while calm < 2:
        # Twice in a row, as a job on its way from a lane to the runner is in neither for a moment
        await asyncio.sleep(0.2)
        waiting = any(lanes.depths().get(lane) for lane in runner.lanes) or runner.due(within=PATIENCE)
        calm = calm + 1 if runner.idle and not waiting else 0
    if failing := runner.due() + len(lanes.dead_letters()):
        raise Temporary(f"{failing} jobs keep failing; the warnings above say why")
