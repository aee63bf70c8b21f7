"""`dead-letters`: jobs and messages that were parked, and what to do about them."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

from cliff.command import Command
from cliff.lister import Lister
from cliff.show import ShowOne

from worker.broker.dead_letters import DeadQueue, Kept
from worker.broker.lanes import RabbitLanes
from worker.cli import Worker, values
from worker.cli.assembly import HANDLERS
from worker.cli.handover import publish, unserved
from worker.cli.letters import fields_of, fits, narrows, row
from worker.cli.table import Table
from worker.core.errors import Misconfigured, NotFound
from worker.core.job import OPERATOR, Job
from worker.core.plain import plain
from worker.settings import Settings

OWN = frozenset({"prewarm", "upload", "reclaim"})
"""The handlers whose lanes the configuration decides."""
# Letters that are published before they are taken out of the queue
BATCH = 500


class _Selecting(Command):
    """The arguments of all dead-letter commands, which select letters."""

    app: Worker
    # Whether a letter has to be named or chosen, since all would be too much to happen by mistake
    careful = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The options that select."""
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        # fmt: off
        parser.add_argument("id", metavar="ID", nargs="*",
                            help="Id of a letter, as list shows it; all if left out.")
        parser.add_argument("--handler", default="", metavar="H", help="Only jobs of this handler.")
        parser.add_argument("--target", default="", metavar="T", help="Only jobs on this target.")
        parser.add_argument("--image-id", default="", metavar="ID", help="Only jobs on this image.")
        parser.add_argument("--reason", default="", metavar="TEXT",
                            help="Only where the reason contains this text.")
        parser.add_argument("--older-than", type=values.age, default=0.0, metavar="AGE",
                            help="Only what was given up before: 90s, 10m, 2h, 3d.")
        # fmt: on
        if self.careful:
            parser.add_argument(
                "--all", action="store_true", help="All of them; needed if nothing else selects."
            )
        return parser

    def opened(self, settings: Settings) -> DeadQueue:
        """Return the queue; Misconfigured if the letters are in the memory of another process."""
        if settings.in_memory:
            raise Misconfigured(
                "[work] url is memory://: dead letters are in the daemon's memory, its log "
                "tells them"
            )
        return DeadQueue(url=settings.work_url, queue=settings.queue)

    def chosen(self, queue: DeadQueue, options: argparse.Namespace) -> Iterator[Kept]:
        """Yield the letters that the options select."""
        wanted, now = set(options.id), time.time()
        for kept in queue:
            if wanted and kept.id not in wanted:
                continue
            if fits(kept, options, now):
                yield kept


class List(_Selecting, Table, Lister):
    """List jobs that were given up and messages that nobody can read, oldest first."""

    optional = ("Tries", "Given up")

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        with self.opened(self.app.read_settings()) as queue:
            rows = [row(kept) for kept in self.chosen(queue, parsed_args)]
        return ("Id", "Lane", "Image", "Tries", "Given up", "Reason"), rows


class Show(_Selecting, ShowOne):
    """Show one dead letter with everything that is known.

    With --raw the message itself is written to standard output.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--raw", action="store_true", help="Write the bytes of messages that nobody can read."
        )
        return parser

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        settings = self.app.read_settings()
        if not (parsed_args.id or any(narrows(parsed_args))):
            raise Misconfigured(
                "say which: an id, as list shows it, or --handler, --target, --image-id, --reason"
            )
        with self.opened(settings) as queue:
            for kept in self.chosen(queue, parsed_args):
                fields = tuple(
                    (name, plain(value) if isinstance(value, str) else value)
                    for name, value in fields_of(kept)
                )
                return tuple(zip(*fields, strict=True))  # type: ignore[return-value]
        raise NotFound("no such dead letter")

    def run(self, parsed_args: argparse.Namespace) -> int:
        if not parsed_args.raw:
            result: int = super().run(parsed_args)
            return result
        written = 0
        with self.opened(self.app.read_settings()) as queue:
            for kept in self.chosen(queue, parsed_args):
                body = kept.raw if kept.letter is None else kept.letter.body
                if body is not None:
                    sys.stdout.buffer.write(body.rstrip(b"\n") + b"\n")
                    written += 1
        if not written:
            raise NotFound(
                "no such dead letter that is a message; without --raw jobs are shown too"
            )
        return 0


class _Taking(_Selecting, Table, Lister):
    """Acts on letters and takes them out of the queue."""

    careful = True

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        """The letters that were dealt with."""
        settings = self.app.read_settings()
        if not (parsed_args.id or parsed_args.all or any(narrows(parsed_args))):
            raise Misconfigured(
                "say which: ids, --handler, --target, --image-id, --reason, --older-than, or --all"
            )
        rows: list[Any] = []
        with self.opened(settings) as queue:
            batch: list[Kept] = []

            def done() -> None:
                self.deal(settings, batch)
                for kept in batch:
                    queue.take(kept)
                    rows.append(row(kept))
                batch.clear()

            staying: Counter[str] = Counter()
            for kept in self.chosen(queue, parsed_args):
                if why := self.hindrance(settings, kept):
                    staying[why] += 1
                else:
                    batch.append(kept)
                if len(batch) >= BATCH:
                    done()
            done()
        for why, count in staying.items():
            self.app.LOG.warning("%d stay: %s", count, why)
        if parsed_args.id and not rows and not staying:
            raise NotFound("no such dead letter")
        return ("Id", "Lane", "Image", "Tries", "Given up", "Reason"), rows

    def hindrance(self, settings: Settings, kept: Kept) -> str:  # noqa: ARG002
        """Return why a letter has to stay; "" if it can be taken, as all can be unless a command
        says otherwise."""
        return ""

    def deal(self, settings: Settings, batch: list[Kept]) -> None:
        """Act on a batch of letters, which is taken away afterwards; does nothing by itself."""


class Replay(_Taking):
    """Put jobs that were given up back into their lanes, as if never tried.

    Messages that nobody can read stay.
    """

    def hindrance(self, settings: Settings, kept: Kept) -> str:
        """Only jobs can be done again, and only where a worker would take them."""
        if kept.letter is None or kept.letter.job is None:
            return "not a job; show --raw has it, drop deletes it"
        key = kept.letter.job.key
        known = {entry.name for entry in entry_points(group=HANDLERS)} - settings.switched_off
        # Only a plug-in knows its lanes
        own = key.handler in OWN and key.lane not in settings.lanes
        if key.handler not in known or own:
            return f"no worker with this configuration has a lane {plain(key.lane)}"
        return ""

    def deal(self, settings: Settings, batch: list[Kept]) -> None:
        """Publish the jobs, and wait until the broker has them."""
        now = time.time()
        jobs = [
            # A wish may be long over, and another one may have come since
            replace(
                kept.letter.job,
                # The image or the volume may have been restored since
                deleted="",
                deleted_volume="",
                cause=OPERATOR,
                first_at=now,
                attempt=0,
                due=0.0,
                reason="",
                wish="",
                wish_id="",
            )
            for kept in batch
            if kept.letter and kept.letter.job
        ]
        if jobs:
            asyncio.run(_publish(settings, jobs))
            for warning in unserved(settings, {job.key.lane for job in jobs}):
                self.app.LOG.warning(warning)


class Drop(_Taking):
    """Delete jobs that were given up and messages that nobody can read, for good."""


async def _publish(settings: Settings, jobs: list[Job]) -> None:
    lanes = RabbitLanes(url=settings.work_url, queue=settings.queue)
    try:
        await publish(lanes, jobs, within=settings.api_timeout)
    finally:
        await lanes.close()
