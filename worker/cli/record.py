"""`record`: what comes in, as a file that `replay` reads."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from dataclasses import replace

from cliff.command import Command

from worker.cli import Worker, values
from worker.daemon import build_intakes
from worker.errors import Misconfigured, Temporary
from worker.recorder import STDOUT, Output, Recorder
from worker.settings import Settings

# Seconds after which its queue goes when nobody records any more
EXPIRES = 300


class Record(Command):
    """Record notifications as JSON lines, until it is told to stop.

    From a queue of its own, so that the daemon misses nothing. Tokens and passwords are not written. With a file, it is
    set aside and compressed as FILE-<time>.jsonl.gz when it is large or old enough.
    """

    app: Worker

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The options of this command."""
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("output", metavar="FILE", nargs="?", default=STDOUT, help="- or nothing: standard output.")
        parser.add_argument(
            "--rotate-size", type=values.size, default="100M", metavar="SIZE", help="10k, 100M, 1G; 0 never."
        )
        parser.add_argument(
            "--rotate-every", type=values.age, default="1d", metavar="AGE", help="10m, 1h, 1d; 0 never."
        )
        parser.add_argument("--keep", type=int, default=0, metavar="N", help="Files set aside that stay; 0 for all.")
        parser.add_argument("--count", type=int, default=0, metavar="N", help="Stop after so many notifications.")
        parser.add_argument("--queue", default="", metavar="NAME", help="Its queue; else the daemon's with -record.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Exit status 0 once it has been told to stop."""
        settings = self.app.read_settings()
        self.app.setup_logs()
        if parsed_args.queue == settings.queue:
            raise Misconfigured([f"--queue {parsed_args.queue} is the daemon's own: it would miss what is recorded"])
        asyncio.run(_record(settings, parsed_args))
        return 0


async def _record(settings: Settings, options: argparse.Namespace) -> None:
    output = Output(options.output, size=options.rotate_size, age=options.rotate_every, keep=options.keep)
    try:
        output.open()
    except OSError as error:
        raise Misconfigured([f"{options.output}: {error.strerror}"]) from error
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

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    queue = options.queue or f"{settings.queue}-record"
    own = replace(settings, queue=queue, queue_type="classic", queue_expires=EXPIRES)
    recorder = Recorder(output, wrote=wrote, failed=failed)
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
