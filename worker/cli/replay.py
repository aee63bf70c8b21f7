"""`replay`: recorded notifications, as if they came in now."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

from cliff.show import ShowOne
from tqdm import tqdm

from worker.capture import owned, replay
from worker.capture.read import STDIN, Source, sources
from worker.capture.replay import Checkpoint, Filters, Tally
from worker.cli import Worker, ending, progress, values
from worker.cli.assembly import build_handlers, opened
from worker.cli.handover import Handover
from worker.cli.preflight import check_cloud
from worker.core.errors import Blocked, Malformed, Misconfigured, NotFound, Temporary
from worker.core.job import Job
from worker.engine.router import Router
from worker.observe.creations import Creations
from worker.settings import Settings


class Replay(ShowOne):
    """Replay recorded notifications.

    Their jobs go to the workers that run, or with --local this command does them itself. SOURCE is
    a file, a folder, or - for standard input: JSON lines or arrays of oslo envelopes or bare
    notifications, or what `record`, `rabbitmqadmin get` and other tools write; plain, gzip or zstd.
    Old notifications are hints like new ones: each leads to a look at the image as it is now, so a
    replay ends in the same state whenever and however often it is done. What nobody can read is
    counted and told, and does not stop the rest. The summary at the end is what -f json prints.
    """

    app: Worker

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        # fmt: off
        parser.add_argument("source", metavar="SOURCE", nargs="+",
                            help="File, folder, or - for standard input.")
        parser.add_argument("--since", metavar="T", type=_time,
                            help="Only what was sent at this time (UTC) or later.")
        parser.add_argument("--until", metavar="T", type=_time,
                            help="Only what was sent at this time or before.")
        parser.add_argument("--event-type", metavar="E", action="append", default=[],
                            help="Only this event type; may be repeated.")
        parser.add_argument("--image-id", metavar="ID", action="append", type=values.image_id,
                            default=[], help="Only this image; may be repeated.")
        parser.add_argument("--rate", metavar="N", type=_rate, default=0.0,
                            help="Notifications a second at the most.")
        parser.add_argument("--dry-run", action="store_true",
                            help="Only print the keys that would be enqueued.")
        parser.add_argument("--local", action="store_true",
                            help="Do the work here, and end when it is done.")
        parser.add_argument("--checkpoint", metavar="FILE", type=Path,
                            help="Remember there how far it got, and go on from there.")
        parser.add_argument("--rejects", metavar="FILE", type=Path,
                            help="Keep there what nobody can read.")
        # fmt: on
        return parser

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        settings = self.app.read_settings()
        faults = []
        if not parsed_args.dry_run and not parsed_args.local and settings.in_memory:
            faults.append(
                "[work] url is memory://, so no worker could be given the jobs: use --local or "
                "--dry-run"
            )
        if parsed_args.dry_run and parsed_args.checkpoint:
            faults.append("--checkpoint notes what was enqueued, and --dry-run enqueues nothing")
        if parsed_args.checkpoint and STDIN in parsed_args.source:
            faults.append("--checkpoint is for files: standard input may be another one each time")
        found = sources(parsed_args.source)
        for name in ("rejects", "checkpoint"):
            path = getattr(parsed_args, name)
            if path and path.exists() and any(_is_same(path, source) for source in found):
                faults.append(f"--{name} {path} is one of the sources")
        if faults:
            raise Misconfigured(*faults)
        with closing(Checkpoint(parsed_args.checkpoint)) as checkpoint:
            tally = asyncio.run(_replay(settings, found, parsed_args, checkpoint))
        names, values = zip(*tally.rows(), strict=True)
        self._failed = tally.interrupted or bool(tally.failed_sources)
        return names, values

    def run(self, parsed_args: argparse.Namespace) -> int:
        """The exit status: 1 if it was interrupted, or a source could not be read to its end or at
        all."""
        self._failed = False
        super().run(parsed_args)
        return int(self._failed)


async def _replay(
    settings: Settings, found: list[Source], options: argparse.Namespace, checkpoint: Checkpoint
) -> Tally:
    filters = Filters(
        since=options.since,
        until=options.until,
        event_types=frozenset(options.event_type),
        image_ids=frozenset(options.image_id),
    )
    with ExitStack() as stack:
        cloud, parts, metrics = stack.enter_context(opened(settings))
        unknown = ""
        try:
            parts.uses.know((await check_cloud(cloud, settings)).targets)
        except (Temporary, Blocked, NotFound, Malformed, Misconfigured) as error:
            if not options.dry_run:
                raise
            # Only Cinder knows the ids of volume types, which notifications name
            unknown = f"keys of images that are used are not shown: {error}"
        handlers = build_handlers(settings, parts)
        router = Router(
            handlers=handlers.values(),
            metrics=metrics,
            creations=Creations(metrics=metrics, uses=parts.uses),
        )
        rejects = None
        if options.rejects:
            try:
                rejects = stack.enter_context(closing(_Rejects(options.rejects))).write
            except OSError as error:
                raise Misconfigured(f"--rejects {options.rejects}: {error.strerror}") from error
        bar = stack.enter_context(_bar(found))

        def told(text: str) -> None:
            bar.write(f"image-volume-worker: {text}", file=sys.stderr)

        if unknown:
            told(unknown)

        def advanced(source: Source, count: int) -> None:
            bar.set_postfix_str(f"{source.path} {count}", refresh=False)
            bar.update(max(0, sum(one.position for one in found) - bar.n))

        def running(submit: replay.Submit) -> replay.Replay:
            one = replay.Replay(
                router=router,
                submit=submit,
                filters=filters,
                checkpoint=checkpoint,
                told=told,
                rejects=rejects,
                rate=options.rate,
                advanced=advanced,
            )
            ending.when_told(lambda: setattr(one, "stopping", True))
            return one

        if options.dry_run:
            # Programs read the summary alone on standard output
            out = sys.stdout if options.formatter == "table" else sys.stderr
            return await running(lambda jobs: _print(jobs, out)).run(found)
        async with Handover(
            settings, handlers, metrics=metrics, parts=parts, local=options.local
        ) as handover:
            tally = await running(handover.submit).run(found)
            await handover.settled()
            for warning in await handover.warnings():
                told(warning)
            return tally


class _Rejects:
    """The file of what nobody can read. Temporary if a line can't be written, which then is not
    there at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = FileIO(path, "a")

    def write(self, text: str) -> None:
        try:
            owned.append(self._file, text.encode())
        except OSError as error:
            raise Temporary(f"{self._path}: {error.strerror}") from error

    def close(self) -> None:
        self._file.close()


async def _print(jobs: Iterable[Job], out: TextIO) -> None:
    """Print the keys of jobs, one a line."""
    out.writelines(f"{' '.join(part for part in job.key if part)}\n" for job in jobs)


def _bar(found: list[Source]) -> tqdm[Any]:
    """A progress bar in bytes read, on a terminal only."""
    total = sum(source.size for source in found) or None
    return progress.bar(total=total, unit="B", unit_scale=True)


def _is_same(path: Path, source: Source) -> bool:
    return source.path != STDIN and path.samefile(source.path)


def _time(text: str) -> float:
    """Epoch seconds of an ISO 8601 time; UTC unless it says otherwise."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time like 2026-01-31T12:00:00"
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of notifications a second")
    return rate
