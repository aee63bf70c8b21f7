"""`doctor`: checks everything that a worker needs."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import closing
from dataclasses import replace
from typing import Any

from cliff.lister import Lister

from worker.cli import Worker
from worker.cli.assembly import build_clouds
from worker.cli.table import Table
from worker.diagnose import doctor
from worker.diagnose.check import FAILED, Check
from worker.observe.metrics import Metrics
from worker.settings import Settings, config_dirs, config_files

# Seconds that a question to the cloud may take
PATIENCE = 10.0


class Doctor(Table, Lister):
    """Check everything that a worker needs; exit status 3 if a check fails.

    Configuration, brokers, login, roles, Glance, Cinder and targets are checked. Nothing is
    changed. A table shows what is not ok, with what to do, and how many checks are ok.
    """

    app: Worker
    _checks: tuple[Check, ...] = ()

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--all", action="store_true", help="Show the checks that are ok too.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:  # noqa: ARG002
        settings = self.app.read_settings()
        files = config_files(self.app.options.config_file)
        files += config_dirs(self.app.options.config_dir, files)
        self._checks = tuple(asyncio.run(_examine(settings, files)))
        rows = [(check.name, check.verdict, check.detail, check.advice) for check in self._checks]
        return ("Check", "Result", "Detail", "What to do"), rows

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """The table; programs get all checks."""
        rows = list(data)
        shown = rows
        if parsed_args.formatter == "table" and not parsed_args.all:
            shown = [row for row in rows if row[1] != "ok"]
        status = super().produce_output(parsed_args, column_names, shown) if shown else 0
        if hidden := len(rows) - len(shown):
            self.app.stdout.write(f"{hidden} checks are ok; --all shows them.\n")
        return status

    def run(self, parsed_args: argparse.Namespace) -> int:
        super().run(parsed_args)
        return FAILED if any(check.verdict == "fail" for check in self._checks) else 0


async def _examine(settings: Settings, files: list[str]) -> list[Check]:
    # Some answers wait for Cinder's own broker. A person at a terminal should not wait as long as a
    # daemon does
    settings = replace(settings, api_timeout=min(settings.api_timeout, PATIENCE))
    with closing(build_clouds(settings, Metrics())) as clouds:
        return await doctor.examine(settings, clouds.common, files)
