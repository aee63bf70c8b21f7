"""`status`: the present state of images on targets, of targets, and of lanes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from cliff.lister import Lister

from worker.broker.inspect import DEAD, DELAYED
from worker.cli import Worker, names
from worker.cli.status_readings import Readings, read
from worker.cli.table import Table, fit, terminal_width
from worker.cli.values import Moment
from worker.core.errors import Misconfigured
from worker.core.state import State
from worker.diagnose.status import Row

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
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        # fmt: off
        parser.add_argument("image", metavar="IMAGE", nargs="?",
                            help="Id or name of an image; all if left out.")
        parser.add_argument("--target", default="", metavar="T", help="Only this target.")
        parser.add_argument("--state", choices=[state.value for state in State], metavar="S",
                            help="Only this state.")
        parser.add_argument("--all", action="store_true", help="What is not wanted too.")
        # fmt: on
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
        names.check_target(settings, target)
        if image_id and (parsed_args.summary or parsed_args.lanes):
            raise Misconfigured("--summary and --lanes are about all images")
        if (state and (parsed_args.summary or parsed_args.lanes)) or (target and parsed_args.lanes):
            raise Misconfigured(
                "--state is about images, and --target about images or, with --summary, targets"
            )
        self._seen = seen = read(
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


def _summary(seen: Readings, target: str) -> Iterator[tuple[Any, ...]]:
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


def _lanes(seen: Readings) -> Iterator[tuple[Any, ...]]:
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
