"""`record`: writes incoming notifications to a file that `replay` reads."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cliff.command import Command

from worker.capture.record import STDOUT, Output, Recorder
from worker.cli import Worker, ending, values
from worker.cli.assembly import build_intakes
from worker.core.errors import Misconfigured, Temporary
from worker.settings import Settings

# Seconds without a recorder after which the broker removes its queue
EXPIRES = 300
# Defaults for a file: bytes, seconds, files
ROTATION: Mapping[str, Any] = {"rotate_size": 100 << 20, "rotate_every": 86_400.0, "keep": 0}


class Record(Command):
    """Record notifications as JSON lines, until it is told to stop.

    From a queue of its own, so that the daemon misses nothing. Tokens and passwords are not
    written. With a file, it is set aside and compressed as FILE-<time>.jsonl.gz when it is large or
    old enough.
    """

    app: Worker

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        # fmt: off
        parser.add_argument("output", metavar="FILE", nargs="?", default=STDOUT,
                            help="- or nothing: standard output.")
        parser.add_argument("--rotate-size", type=values.size, metavar="SIZE",
                            help="10k, 100M (so if left out), 1G; 0 never.")
        parser.add_argument("--rotate-every", type=values.age, metavar="AGE",
                            help="10m, 1h, 1d (so if left out); 0 never.")
        parser.add_argument("--keep", type=values.count, metavar="N",
                            help="Files set aside that stay; 0 for all.")
        parser.add_argument("--count", type=values.count, default=0, metavar="N",
                            help="Stop after so many notifications; 0 for no end.")
        parser.add_argument("--queue", default="", metavar="NAME",
                            help="Its queue; else the daemon's with -record.")
        # fmt: on
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Exit status 0 once it has been told to stop."""
        settings = self.app.read_settings()
        self.app.setup_logs(settings)
        if parsed_args.queue == settings.queue:
            raise Misconfigured(
                f"--queue {parsed_args.queue} is the daemon's own: it would miss what is recorded"
            )
        given = {name: getattr(parsed_args, name) for name in ROTATION}
        if parsed_args.output == STDOUT and any(value is not None for value in given.values()):
            raise Misconfigured(
                "--rotate-size, --rotate-every and --keep are for a file; standard output has none"
            )
        rotation = {
            name: ROTATION[name] if value is None else value for name, value in given.items()
        }
        asyncio.run(_record(settings, parsed_args, rotation))
        return 0


async def _record(
    settings: Settings, options: argparse.Namespace, rotation: Mapping[str, Any]
) -> None:
    output = Output(
        options.output,
        size=rotation["rotate_size"],
        age=rotation["rotate_every"],
        keep=rotation["keep"],
    )
    try:
        output.open()
    except OSError as error:
        raise Misconfigured(f"{options.output}: {error.strerror}") from error
    stop = asyncio.Event()
    written = 0
    faults: list[str] = []

    def wrote(count: int) -> None:
        nonlocal written
        written += count
        if options.count and written >= options.count:
            stop.set()

    def failed(error: OSError) -> None:
        faults.append(f"{options.output}: {error.strerror}")
        stop.set()

    ending.when_told(stop.set)
    queue = options.queue or f"{settings.queue}-record"
    own = replace(settings, queue=queue, queue_type="classic", queue_expires=EXPIRES)
    recorder = Recorder(output, wrote=wrote, failed=failed, count=options.count)
    waiting = asyncio.create_task(stop.wait())
    intakes = [asyncio.create_task(intake.run(recorder)) for intake in build_intakes(own)]
    try:
        # An intake doesn't end by itself but for a fault, a full disk for one
        done, _ = await asyncio.wait([waiting, *intakes], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiting}:
            task.result()
    finally:
        for task in (*intakes, waiting):
            task.cancel()
        await asyncio.gather(*intakes, waiting, return_exceptions=True)
        with contextlib.suppress(OSError):
            output.close()
        sys.stderr.write(f"{written} notifications recorded\n")
    if faults:
        raise Temporary(faults[0])
