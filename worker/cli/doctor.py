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
from worker.cli.values import Plain
from worker.diagnose import doctor
from worker.diagnose.check import Check
from worker.observe.metrics import Metrics
from worker.settings import Settings, config_dirs, config_files

FAILED = 3
# Seconds that a question to the cloud may take
PATIENCE = 10.0


class Doctor(Plain, Lister):
    """Check configuration, brokers, login, roles, Glance, Cinder and targets; exit status 3 if
    anything fails.

    Nothing is changed. What a `warn` and a `fail` mean, and what to do, is told in a line.
    """

    app: Worker
    _checks: tuple[Check, ...] = ()

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:  # noqa: ARG002
        """The table of checks."""
        settings = self.app.read_settings()
        files = config_files(self.app.options.config_file)
        files += config_dirs(self.app.options.config_dir, files)
        self._checks = tuple(asyncio.run(_examine(settings, files)))
        rows = [(check.name, check.verdict, check.detail, check.advice) for check in self._checks]
        return ("Check", "Result", "Detail", "What to do"), rows

    def run(self, parsed_args: argparse.Namespace) -> int:
        """The exit status, once the table is shown."""
        super().run(parsed_args)
        return FAILED if any(check.verdict == "fail" for check in self._checks) else 0


async def _examine(settings: Settings, files: list[str]) -> list[Check]:
    # Some answers wait for Cinder's own broker. A person at a terminal should not wait as long as a
    # daemon does
    settings = replace(settings, api_timeout=min(settings.api_timeout, PATIENCE))
    with closing(build_clouds(settings, Metrics())) as clouds:
        return await doctor.examine(settings, clouds.common, files)
