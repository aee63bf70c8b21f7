"""`explain`: why an image is not warm, or not active; and proof that it is."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Set
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from cliff.lister import Lister

from handlers import image_volume
from handlers.prewarm import Prewarm
from worker.broker.tap import tap
from worker.cli import Worker, ending, names, pauses, values
from worker.cli.assembly import opened
from worker.cli.preflight import check_cloud
from worker.cli.table import Table
from worker.core.errors import NotFound, Temporary
from worker.diagnose import doctor, explain
from worker.diagnose.check import FAILED, Check
from worker.diagnose.explain import probe
from worker.observe import live
from worker.settings import Settings
from worker.settings.faults import PROJECT_ID
from worker.settings.subscription import subscription_of

if TYPE_CHECKING:
    from worker.openstack.cloud import OpenStackCloud


class Explain(Table, Lister):
    """Show every condition that an image has to meet, whether it does, and what to do.

    For an active image those of a clone on each target: what Cinder needs to clone instead of
    downloading. For a queued one those of an upload that is completed by a clone. What no API
    tells, like cinder.conf, is said so. Nothing is changed, but for --probe: it makes a volume from
    the image on each target in the internal project, tells from the times, Cinder's status and the
    notifications whether it was a clone, and deletes it. Exit status 3 if a condition is not met.
    """

    app: Worker
    _checks: tuple[Check, ...] = ()

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        # fmt: off
        parser.add_argument("image", metavar="IMAGE", help="Id or name of the image.")
        parser.add_argument("--target", default="", metavar="T", help="Only this target.")
        parser.add_argument("--project", default="", metavar="P",
                            help="As this project would get it, by id or name; else as anybody.")
        parser.add_argument("--probe", action="store_true",
                            help="Make a volume of it on each target, and delete it.")
        parser.add_argument("--timeout", type=values.age, default=600.0, metavar="AGE",
                            help="How long a probe may take: 90s, 10m.")
        # fmt: on
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        settings = self.app.read_settings()
        names.check_target(settings, parsed_args.target)
        told = live.ask(settings.bind) if settings.bind else None
        try:
            self._checks = tuple(asyncio.run(_explain(settings, parsed_args, told)))
        except asyncio.CancelledError:
            raise Temporary("interrupted") from None
        rows = [(check.name, check.verdict, check.detail, check.advice) for check in self._checks]
        return ("Condition", "Result", "Detail", "What to do"), rows

    def run(self, parsed_args: argparse.Namespace) -> int:
        super().run(parsed_args)
        return FAILED if any(check.verdict == "fail" for check in self._checks) else 0


async def _explain(
    settings: Settings, options: argparse.Namespace, told: live.Live | None
) -> list[Check]:
    with opened(settings) as (cloud, parts, _):
        await check_cloud(cloud, settings)
        image_id = await names.image_id(cloud, options.image)
        project_id = options.project
        if project_id and not PROJECT_ID.fullmatch(project_id):
            project_id = await cloud.find_project(project_id)
        if told:
            parts.learned.take_over(told.cloned_from, now=parts.now())
        prewarm = Prewarm(parts)
        explaining = explain.explain(
            cloud,
            settings,
            prewarm,
            image_id,
            now=time.time(),
            target=options.target,
            project_id=project_id,
        )
        try:
            checks = [check async for check in explaining]
        except NotFound:
            raise NotFound(
                f"Glance finds no image {image_id}; image-volume-worker reclaim lists volumes that "
                f"were kept for one"
            ) from None
        if options.probe:
            probing = _probes(settings, cloud, prewarm, options, image_id)
            probed = [check async for check in probing]
            if probed:
                # The probe shows whether cinder.conf is right, which no API tells
                checks = [check for check in checks if check.name != explain.CINDER_CONF]
            checks += probed
        cold = any(check.awaits_job for check in checks)
        paused: Set[str] = frozenset()
        with contextlib.suppress(Temporary):
            # Without the broker the rest is true all the same
            paused = await asyncio.to_thread(pauses.look, settings)
            checks += doctor.paused(paused & {options.target} if options.target else paused)
        if told:
            checks += explain.work_checks(
                image_id, told.jobs, now=time.time(), paused=paused, cold=cold
            )
        return checks


async def _probes(
    settings: Settings,
    cloud: OpenStackCloud,
    prewarm: Prewarm,
    options: argparse.Namespace,
    image_id: str,
) -> AsyncIterator[Check]:
    """A probe of each target, one after the other; told to end, it deletes what it has made
    first."""
    image = await cloud.get_image(image_id)
    if image.status != "active":
        yield Check(
            "probe", "fail", f"the image is {image.status}: no volume can be made of it", ""
        )
        return
    task = asyncio.current_task()
    assert task is not None
    ending.when_told(task.cancel)
    with ExitStack() as stack:
        take = None
        try:
            take = stack.enter_context(tap(settings.transport_urls, subscription_of(settings)))
        except Temporary as error:
            yield Check(
                "notifications",
                "warn",
                f"can't be listened to: {error}",
                "the probe goes by Cinder's status",
            )
        decided = {target.name: target for target in prewarm.resolved}
        for target in (decided.get(one.name, one) for one in settings.targets):
            if options.target in ("", target.name):
                named = await cloud.find_volumes(image_volume.name_of(image.id))
                lying = [volume for volume in named if image_volume.is_on(volume, target)]
                yield await probe.probe(
                    cloud, image, target, take=take, lying=lying, within=options.timeout
                )
