"""`status`: the present state of images on targets, of targets, and of lanes."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable, Iterator, Set
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from cliff.lister import Lister

from handlers.prewarm import Prewarm
from worker.broker.dead_letters import DeadQueue
from worker.broker.inspect import DEAD, DELAYED, Depth, look_at_lanes
from worker.cli import Worker, names, pauses
from worker.cli.assembly import build_clouds, build_handlers, build_parts
from worker.cli.preflight import check_cloud
from worker.cli.table import Table, fit, terminal_width
from worker.cli.values import Moment
from worker.core.errors import Misconfigured, NotFound, Temporary
from worker.core.job import Job, Key
from worker.core.state import State
from worker.diagnose import explain, status
from worker.diagnose.status import Row, Summary
from worker.observe import live
from worker.observe.live import Live
from worker.observe.metrics import Metrics
from worker.observe.web import shown
from worker.settings import Settings

COLUMNS = (
    "Image",
    "Name",
    "Target",
    "State",
    "Strategy",
    "Image-Volume",
    "GiB",
    "Age",
    "Last use",
    "Next try",
    "Why",
)
SUMMARY = (
    "Target",
    "Strategy",
    "Warm",
    "Making",
    "Cold",
    "Failed",
    "Other",
    "GiB",
    "Budget",
    "Paused",
)
LANES = ("Lane", "On broker", "Workers", "In progress", "Held", "Next tries", "Oldest")
# States that have a column of their own in the summary
COUNTED = (State.WARM, State.MAKING, State.COLD, State.FAILED)
MEMORY = "memory://"


@dataclass(slots=True)
class _Seen:
    """All readings; `notes` say which failed."""

    rows: list[Row] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    depths: dict[str, Depth] = field(default_factory=dict)
    live: Live | None = None
    notes: list[str] = field(default_factory=list)
    paused: Set[str] = frozenset()


class Status(Table, Lister):
    """Show each image on each target: warm or not, and why not.

    States: warm; making, it is being made now; cold, it will be warm; failed, it is tried again or
    was given up; full, the target's budget or Cinder's cache has no room; held back, somebody else
    undoes it; unused, it waits for a second use; unwanted; lost, the data can be had nowhere;
    upload, a queued image; left over, what is to be deleted; gone, Glance has no such image and
    volumes are left. Images that are not wanted are shown only with --all or when named. A table is
    followed by a summary of the targets and by the lanes; programs ask for these with --summary or
    --lanes. Glance, Cinder and the broker are read, so it works without a running worker; one that
    serves [probes] bind here is asked for what it is doing. Nothing is changed.
    """

    app: Worker
    optional = ("Strategy", "GiB", "Age", "Last use", "Image-Volume", "Next try")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The options of this command."""
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "image",
            metavar="IMAGE",
            nargs="?",
            help="Id or name of an image; all if left out.",
        )
        parser.add_argument("--target", default="", metavar="T", help="Only this target.")
        parser.add_argument("--state", choices=[*State], metavar="S", help="Only this state.")
        parser.add_argument("--all", action="store_true", help="What is not wanted too.")
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--summary",
            action="store_true",
            help="Only the targets: how many of each, GiB, budget.",
        )
        which.add_argument(
            "--lanes", action="store_true", help="Only the lanes: jobs, workers, the oldest job."
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        """The table that was asked for."""
        settings = self.app.read_settings()
        image_id, target, state = (
            parsed_args.image or "",
            parsed_args.target,
            parsed_args.state or "",
        )
        if target and target not in {one.name for one in settings.targets}:
            raise Misconfigured([f"no target {target!r} is configured"])
        if image_id and (parsed_args.summary or parsed_args.lanes):
            raise Misconfigured(["--summary and --lanes are about all images"])
        if (state and (parsed_args.summary or parsed_args.lanes)) or (target and parsed_args.lanes):
            raise Misconfigured(
                ["--state is about images, and --target about images or, with --summary, targets"]
            )
        self._seen = seen = _look(
            settings, image_id, lanes_only=parsed_args.lanes, summary_only=parsed_args.summary
        )
        for note in seen.notes:
            self.app.LOG.warning(note)
        self._more = not (parsed_args.summary or parsed_args.lanes or image_id or target or state)
        if parsed_args.lanes:
            return LANES, list(_lanes(seen))
        if parsed_args.summary:
            return SUMMARY, list(_summary(seen, target))
        hidden = not (parsed_args.all or image_id or state)
        shown = [
            row
            for row in seen.rows
            if target in ("", row.target)
            and state in ("", row.state)
            and not (hidden and row.state is State.UNWANTED)
        ]
        if not shown:
            self.app.LOG.warning(
                "no image is shown: %s", "none fits" if seen.rows else "Glance lists none"
            )
        return COLUMNS, [cells(row) for row in shown]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """The table; for a person who has asked for everything, what stands below it."""
        status_code: int = super().produce_output(parsed_args, column_names, data)
        if self._more and parsed_args.formatter == "table":
            width = 0 if parsed_args.wide else terminal_width()
            for names, rows in ((SUMMARY, _summary(self._seen, "")), (LANES, _lanes(self._seen))):
                below = fit(names, rows, width=width, optional=("Strategy", "Held", "Other"))
                self.formatter.emit_list(below.columns, below.rows, self.app.stdout, parsed_args)
        return status_code


def _look(settings: Settings, image_id: str, *, lanes_only: bool, summary_only: bool) -> _Seen:
    """Read everything that can be read: without the cloud there is no status, without the rest
    there is."""
    seen = _Seen()
    given_up: dict[Key, Job] = {}
    if settings.bind:
        seen.live = live.ask(settings.bind)
    if seen.live is None and not summary_only:
        where = f"at {shown(settings.bind)}" if settings.bind else "([probes] bind is empty)"
        seen.notes.append(
            f"no worker tells {where} what it is doing: next tries are not known here"
        )
    if settings.work_url != MEMORY:
        try:
            seen.depths = look_at_lanes(
                settings.work_url, queue=settings.queue, lanes=settings.lanes
            )
            seen.paused = pauses.look(settings)
            with DeadQueue(url=settings.work_url, queue=settings.queue) as queue:
                given_up = {
                    kept.letter.job.key: kept.letter.job
                    for kept in queue
                    if kept.letter and kept.letter.job
                }
        except Temporary as error:
            if lanes_only:
                raise
            seen.notes.append(f"the lanes can't be seen: {error}")
    if not lanes_only:
        asyncio.run(_look_at_cloud(settings, image_id, seen, given_up))
    return seen


async def _look_at_cloud(
    settings: Settings, image_id: str, seen: _Seen, given_up: dict[Key, Job]
) -> None:
    metrics = Metrics()
    with closing(build_clouds(settings, metrics)) as clouds:
        cloud = clouds.common
        found = await check_cloud(cloud, settings)
        seen.notes += (
            f"target {name} can't be used: {why}" for name, why in found.unusable.items()
        )
        parts = build_parts(settings, clouds, metrics)
        if seen.live:
            parts.learned.take_over(seen.live.cloned_from, now=parts.now())
        prewarm = Prewarm(parts)
        others = tuple(
            handler
            for handler in build_handlers(settings, parts).values()
            if handler.name != prewarm.name
        )
        held: dict[str, tuple[int, int]] = {}
        if image_id:
            image_id = await names.image_id(cloud, image_id)
            rows = await _of_image(settings, cloud, prewarm, others, image_id)
        else:
            rows = [row async for row in status.overview(cloud, prewarm, others, held)]
    jobs = seen.live.jobs if seen.live else {}
    seen.rows = [status.with_work(row, jobs, given_up) for row in rows]
    if seen.live:
        held_back, full = seen.live.held_back, seen.live.cache_full
        seen.rows = [status.with_holds(row, held_back, full) for row in seen.rows]
    seen.rows = [status.with_pause(row, seen.paused) for row in seen.rows]
    resolved = {target.name: target for target in prewarm.resolved}
    seen.summaries = status.summaries(
        [resolved.get(target.name, target) for target in settings.targets], seen.rows, held
    )


async def _of_image(
    settings: Settings, cloud: Any, prewarm: Prewarm, others: tuple[Any, ...], image_id: str
) -> list[Row]:
    """Return the rows of one image; NotFound if there is neither the image nor a volume of it."""
    volumes = await explain.volumes_of(cloud, image_id)
    try:
        image = await cloud.get_image(image_id)
    except NotFound:
        if volumes:
            return [status.of_gone(image_id, volume) for volume in volumes]
        raise
    lying = await explain.lying(cloud, settings.targets)
    for handler in (prewarm, *others):
        await handler.prepare(lying)
    return [row async for row in status.of_image(cloud, prewarm, others, image, volumes)]


def cells(row: Row) -> tuple[Any, ...]:
    """Return a row as its columns."""
    return (
        row.image_id,
        row.name,
        row.target,
        row.state.value,
        row.strategy,
        row.volume_id,
        "" if row.size is None else row.size,
        Moment(row.since),
        Moment(row.used),
        Moment(row.due),
        row.why,
    )


def _summary(seen: _Seen, target: str) -> Iterator[tuple[Any, ...]]:
    for one in seen.summaries:
        if target in ("", one.target.name):
            other = one.states.total() - sum(one.states[state] for state in COUNTED)
            counts = (one.states[state] for state in COUNTED)
            yield (
                one.target.name,
                str(one.target.strategy),
                *counts,
                other,
                one.size,
                one.budget,
                "paused" if one.target.name in seen.paused else "",
            )


def _lanes(seen: _Seen) -> Iterator[tuple[Any, ...]]:
    """Yield a line a lane; unknown cells are blank."""
    told = seen.live.lanes if seen.live else {}
    for lane in _merged(seen.depths, told):
        depth, one = seen.depths.get(lane), told.get(lane)
        oldest = min(
            (at for at in (depth.oldest if depth else 0.0, one.oldest if one else 0.0) if at),
            default=0.0,
        )
        yield (
            lane,
            depth.messages if depth else one.depth if one else "",
            depth.consumers if depth and lane not in (DEAD, DELAYED) else "",
            one.in_progress if one else "",
            one.held if one else "",
            one.waiting if one else "",
            Moment(oldest),
        )


def _merged(first: Iterable[str], second: Iterable[str]) -> list[str]:
    return list(dict.fromkeys((*first, *second)))
