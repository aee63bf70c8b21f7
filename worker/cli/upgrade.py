"""`upgrade check`: whether this version can take over, in the form of OpenStack's services."""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import closing
from dataclasses import replace

from cliff.command import Command

from worker.cli import Worker
from worker.cli.assembly import build_clouds
from worker.core.errors import Misconfigured
from worker.diagnose import upgrade
from worker.diagnose.check import Check
from worker.observe.metrics import Metrics

CRASHED = 255
PATIENCE = 10.0
"""Seconds that a question to the cloud may take."""


class UpgradeCheck(Command):
    """Check whether this version can take over from the one that runs.

    Run it with the new version's program and the configuration in use, before the restart. Nothing
    is changed. Exit status 0: it can. 1: it can, but read the warnings. 2: it cannot. 255: the
    command itself has failed.
    """

    app: Worker

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("--json", action="store_true", help="Print the results as JSON.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Print the results; the exit status."""
        # It takes a tenth of a second to import
        from oslo_upgradecheck.upgradecheck import Code, Result, UpgradeCommands  # noqa: PLC0415

        codes = {"warn": Code.WARNING, "fail": Code.FAILURE}
        results = [
            (check.name, Result(codes.get(check.verdict, Code.SUCCESS), _details(check)))
            for check in self._checks()
        ]
        if parsed_args.json:
            told = [
                {"check": name, "result": result.code, "details": result.details}
                for name, result in results
            ]
            document = {"name": UpgradeCommands.display_title, "checks": told}
            self.app.stdout.write(f"{json.dumps(document)}\n")
            return max(result.code for _, result in results)

        class Commands(UpgradeCommands):
            _upgrade_checks = tuple(
                (name, (lambda _, result: result, {"result": result})) for name, result in results
            )

        return int(Commands().check())

    def run(self, parsed_args: argparse.Namespace) -> int:
        """The exit status; 1 would be a warning."""
        try:
            return self.take_action(parsed_args)
        except Exception:  # the root of a command whose exit status 1 says that all is well
            self.app.LOG.exception("upgrade check has failed, please report it")
            return CRASHED

    def _checks(self) -> list[Check]:
        try:
            settings = self.app.read_settings(quiet=True)
            settings = replace(settings, api_timeout=min(settings.api_timeout, PATIENCE))
            clouds = build_clouds(settings, Metrics())
        except Misconfigured as error:
            advice = "CHANGELOG.md names the options that have changed"
            return [Check("Configuration", "fail", "; ".join(error.faults), advice)]
        with closing(clouds):
            return asyncio.run(upgrade.examine(settings, clouds.common))


def _details(check: Check) -> str:
    return f"{check.detail}. {check.advice}" if check.advice else check.detail
