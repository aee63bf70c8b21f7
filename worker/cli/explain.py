"""`explain`: why an image is not warm, or not active."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from cliff.lister import Lister

from handlers.prewarm import Prewarm
from worker import explain
from worker.check import Check
from worker.cli import Worker
from worker.daemon import build_clouds, build_parts, check_cloud
from worker.errors import Misconfigured
from worker.metrics import Metrics
from worker.notification import IMAGE_ID
from worker.settings import Settings
from worker.uses import Uses


class Explain(Lister):
    """Show every condition that an image has to meet, whether it does, and what to do.

    For a queued image those of an upload that is completed by a clone; for an active one whether it is warm on each
    target. Nothing is changed.
    """

    app: Worker

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The options of this command."""
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("image", metavar="IMAGE", help="Id of the image.")
        parser.add_argument("--target", default="", metavar="T", help="Only this target.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        """The table of conditions."""
        settings = self.app.read_settings()
        image_id = parsed_args.image.strip().lower()
        if not IMAGE_ID.fullmatch(image_id):
            raise Misconfigured([f"{parsed_args.image!r} is not the id of an image"])
        if parsed_args.target and parsed_args.target not in {target.name for target in settings.targets}:
            raise Misconfigured([f"no target {parsed_args.target!r} is configured"])
        checks = asyncio.run(_explain(settings, image_id, parsed_args.target))
        rows = [(check.name, check.verdict, check.detail, check.advice) for check in checks]
        return ("Condition", "Result", "Detail", "What to do"), rows


async def _explain(settings: Settings, image_id: str, target: str) -> list[Check]:
    metrics = Metrics()
    clouds = build_clouds(settings, metrics)
    try:
        await check_cloud(clouds.common, settings)
        prewarm = Prewarm(build_parts(settings, clouds, metrics, Uses()))
        explaining = explain.explain(clouds.common, settings, prewarm, image_id, now=time.time(), target=target)
        return [check async for check in explaining]
    finally:
        clouds.close()
