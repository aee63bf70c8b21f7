"""`warm` and `evict`: what an operator wants of one image, ahead of everything else."""

from __future__ import annotations

import argparse
import asyncio
import time
import uuid
from collections.abc import Iterator
from typing import Any

from cliff.lister import Lister

from handlers.prewarm import Prewarm, Warmth
from worker.cli import Worker, names, pauses
from worker.cli.assembly import build_handlers, opened
from worker.cli.handover import hand_over
from worker.cli.preflight import check_cloud
from worker.cli.table import Table
from worker.core.errors import Misconfigured, Temporary
from worker.core.job import EVICTING, OPERATOR, Job, Key
from worker.core.state import State
from worker.core.wishes import Wish
from worker.diagnose import explain
from worker.settings import Settings

PROJECT = "an operator"
"""Projects take turns in a lane: what an operator wants is nobody else's turn."""
ASKED = "asked for"


class _Wishing(Table, Lister):
    """Puts a wish about an image into the lanes of targets."""

    app: Worker
    wish = Wish.NONE

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("image", metavar="IMAGE", help="Id or name of the image.")
        evict = self.wish == Wish.EVICT
        told = "From this target." if evict else "Only on this target."
        parser.add_argument("--target", required=evict, default="", metavar="T", help=told)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        """The table of targets, and what was asked for there."""
        settings = self.app.read_settings()
        if self.wish == Wish.EVICT and settings.reclaiming.dry_run:
            raise Misconfigured("[reclaim] dry_run does not let anything be deleted")
        names.check_target(settings, parsed_args.target)
        rows, warnings = asyncio.run(self._ask(settings, parsed_args.image, parsed_args.target))
        for warning in warnings:
            self.app.LOG.warning(warning)
        if all(row[-1] != ASKED for row in rows):
            self.app.LOG.warning("nothing was asked for")
        return ("Image", "Name", "Target", "State", "Why", "Wish"), rows

    async def _ask(
        self, settings: Settings, text: str, target: str
    ) -> tuple[list[tuple[str, ...]], list[str]]:
        with opened(settings) as (cloud, parts, metrics):
            warnings = (await check_cloud(cloud, settings)).warnings
            image = await cloud.get_image(await names.image_id(cloud, text))
            if image.status != "active":
                raise Temporary(f"image {image.id} is {image.status}, not active")
            handlers = build_handlers(settings, parts)
            prewarm = Prewarm(parts)
            await prewarm.prepare(await explain.lying(cloud, settings.targets))
            volumes = await explain.volumes_of(cloud, image.id)
            found = [
                one for one in prewarm.warmth(image, volumes) if target in ("", one.target.name)
            ]
            rows: list[tuple[str, ...]] = [
                (
                    image.id,
                    image.name,
                    one.target.name,
                    one.state.value,
                    one.why,
                    _refusal(self.wish, one) or ASKED,
                )
                for one in found
            ]
            asked = [
                one.target.name for one, row in zip(found, rows, strict=True) if row[-1] == ASKED
            ]
            jobs = list(self._jobs(image.id, asked))
            paused = await asyncio.to_thread(pauses.look, settings) if jobs else frozenset[str]()
            warnings += [
                f"target {name} is paused: it is done once that is resumed"
                for name in sorted(paused & {job.key.target for job in jobs})
            ]
            if jobs:
                warnings += await hand_over(settings, handlers, jobs, metrics=metrics, parts=parts)
                if settings.in_memory:
                    warnings.append(
                        "done by this command: a worker whose jobs wait in memory hears nothing of it"
                    )
            return rows, warnings

    def _jobs(self, image_id: str, targets: list[str]) -> Iterator[Job]:
        now = time.time()
        for name in targets:
            yield Job(
                key=Key("prewarm", image_id, name),
                cause=OPERATOR if self.wish == Wish.WARM else EVICTING,
                first_at=now,
                project=PROJECT,
                wish=self.wish,
                wish_id=uuid.uuid4().hex,
                wished_at=now,
            )


class Warm(_Wishing):
    """Make an image warm now, ahead of the images that wait.

    It is made in spite of [prewarm] when, of an earlier evict, and of what was undone before. The
    rules for what is wanted hold: an image that they refuse is named with the rule. Budgets hold
    too. The workers that run do it; with [work] url = memory:// this command does it itself.
    """

    wish = Wish.WARM


class Evict(_Wishing):
    """Delete what was made of an image on a target, and keep it away for a day.

    `warm` brings it back earlier. The rules for deleting hold: the last copy of an image's data
    stays, and so does what the worker did not make. A worker that is restarted has forgotten the
    wish; to keep an image off all targets for good, set its property image_volume_prewarm to no.
    """

    wish = Wish.EVICT


def _refusal(wish: str, one: Warmth) -> str:
    """Why nothing is asked for on a target; "" if it is."""
    if wish == Wish.EVICT:
        return "Cinder clones it by itself" if one.target.strategy == "native" else ""
    # What looks warm may be about to be evicted
    return "not wanted" if one.state is State.UNWANTED else ""
