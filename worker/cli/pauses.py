"""`pause` and `resume`: whether jobs are begun on a target, on all replicas."""

from __future__ import annotations

import argparse
from collections.abc import Set
from typing import Any

from cliff.lister import Lister

from worker.broker import pauses
from worker.cli import Worker
from worker.cli.names import check_target
from worker.cli.table import Table
from worker.core.errors import Misconfigured
from worker.settings import Settings


def look(settings: Settings) -> Set[str]:
    """The paused targets, as the broker of the lanes tells; none where jobs wait in memory."""
    if settings.in_memory:
        return frozenset()
    names = [target.name for target in settings.targets]
    return pauses.read_pauses(settings.work_url, queue=settings.queue, targets=names)


class _Pausing(Table, Lister):
    """Pauses or resumes a target, and shows which ones are paused."""

    app: Worker
    paused: bool

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("target", metavar="TARGET", help="Name of the target.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        """The table of targets, and which of them are paused now."""
        settings = self.app.read_settings()
        names = [target.name for target in settings.targets]
        if settings.in_memory:
            raise Misconfigured(
                "[work] url is memory://: only workers with lanes on RabbitMQ can be paused"
            )
        check_target(settings, parsed_args.target)
        pauses.set_paused(
            settings.work_url,
            queue=settings.queue,
            target=parsed_args.target,
            paused=self.paused,
        )
        found = look(settings)
        return ("Target", "State"), [
            (name, "paused" if name in found else "running") for name in names
        ]


class PauseTarget(_Pausing):
    """Begin no new job on a target, on all replicas, until it is resumed.

    For the maintenance of its backend. Workers hear of it within a few seconds. Jobs wait in the
    lane meanwhile, those in progress go on: status --lanes shows when they have ended. Uploads, and
    the deleting of what nobody needs, go on too. A restart of workers or brokers changes nothing.
    """

    paused = True


class ResumeTarget(_Pausing):
    """Begin jobs on a target again, on all replicas."""

    paused = False
