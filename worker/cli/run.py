"""`run`: the daemon."""

from __future__ import annotations

import argparse
import asyncio
import signal

import structlog
from cliff.command import Command

from worker.cli import Worker
from worker.daemon import Daemon
from worker.errors import Misconfigured
from worker.metrics import Metrics
from worker.settings import Settings

log = structlog.get_logger(__name__)


class Run(Command):
    """Run the worker until SIGTERM or SIGINT, which let jobs in progress end; SIGHUP reads the configuration again."""

    app: Worker

    def take_action(self, parsed_args: argparse.Namespace) -> int:  # noqa: ARG002
        """Exit status 0 once it has been told to stop and has drained."""
        settings: Settings | None = self.app.read_settings()
        metrics = Metrics()
        while settings is not None:
            self.app.setup_logs()
            settings = asyncio.run(self._run(settings, metrics))
        return 0

    async def _run(self, settings: Settings, metrics: Metrics) -> Settings | None:
        """Run one daemon; the settings of the next one after a SIGHUP, None after a signal to stop."""
        leave = asyncio.Event()
        following: list[Settings] = []

        def reload() -> None:
            try:
                following.append(self.app.read_settings())
            except Misconfigured as error:
                log.error("reload_refused", faults=error.faults)
                return
            log.info("reloading")
            leave.set()

        loop = asyncio.get_running_loop()
        daemon = Daemon(settings=settings, metrics=metrics)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, leave.set)
        loop.add_signal_handler(signal.SIGHUP, reload)
        await daemon.run(leave)
        return following[-1] if following else None
