"""`run`: the daemon."""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections.abc import Sequence
from contextlib import closing

import structlog
from cliff.command import Command

from worker.cli import Worker
from worker.cli.assembly import build_clouds
from worker.cli.daemon import Daemon
from worker.cli.preflight import check_bind, check_cloud
from worker.core.errors import Blocked, Malformed, Misconfigured, NotFound, Temporary
from worker.core.release import release
from worker.diagnose import broker_check
from worker.engine.tasks import watch_others
from worker.engine.threads import on_daemon_thread
from worker.observe import tracing
from worker.observe.metrics import Metrics
from worker.observe.systemd import READY, RELOADING, STOPPING, notify, status
from worker.settings import Settings

log = structlog.get_logger(__name__)

CHECKED_WITHIN = 60.0
"""Seconds that a reload may look at the brokers: one that drips answers would keep it for ever."""


class Run(Command):
    """Run the worker.

    SIGTERM and SIGINT let jobs in progress end; SIGHUP reads the configuration again.
    """

    app: Worker

    def take_action(self, parsed_args: argparse.Namespace) -> int:  # noqa: ARG002
        """Exit status 0 once it has been told to stop and has drained."""
        early: list[int] = []
        # Between the reading and the loop that hears it
        signal.signal(signal.SIGHUP, lambda number, _frame: early.append(number))
        settings = self.app.read_settings(quiet=True)
        try:
            asyncio.run(self._run(settings, early))
        finally:
            tracing.end()
        return 0

    async def _observe(self, settings: Settings) -> None:
        """Log and trace as the configuration says."""
        self.app.setup_logs(settings)
        # It sends what is left to the collector before, which may take its time
        await on_daemon_thread(
            lambda: tracing.setup(
                settings.otlp_endpoint, ratio=settings.trace_ratio, version=release()
            ),
            name="tracing",
        )
        for warning in settings.warnings:
            log.warning("configuration_warning", warning=warning)

    async def _run(self, settings: Settings, early: Sequence[int]) -> None:
        """Run one daemon after the other: each SIGHUP ends one, and the next one has the new
        configuration.

        `early` has those that came while the first was being read.
        """
        stop, leave, reload = asyncio.Event(), asyncio.Event(), asyncio.Event()

        def told_to_stop() -> None:
            notify(f"{STOPPING}\nSTATUS=draining")
            stop.set()
            leave.set()

        loop = asyncio.get_running_loop()
        # Once for the whole process: between two daemons a signal must find its handler too
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told_to_stop)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        if early:
            reload.set()
        await self._observe(settings)
        metrics = Metrics()
        watch_others(metrics)
        proven: Settings | None = None
        refused = ""
        while not stop.is_set():
            leave.clear()
            failed: tuple[str, ...] = ()
            reloading = asyncio.create_task(
                self._reload(reload, leave, metrics, settings), name="reload"
            )
            try:
                await Daemon(settings=settings, metrics=metrics, refused=refused).run(leave)
            except Exception as error:
                if isinstance(error, Misconfigured):
                    log.error("start_refused", faults=error.faults)
                if proven is None:
                    raise
                if not isinstance(error, Misconfigured):
                    # The root of the process: the configuration before this one has worked
                    metrics.task_failures.labels("reload").inc()
                    log.exception("start_failed")
                failed = error.faults if isinstance(error, Misconfigured) else (repr(error),)
            finally:
                reloading.cancel()
                (following,) = await asyncio.gather(reloading, return_exceptions=True)
            if isinstance(following, Settings):
                proven, settings, refused = proven if failed else settings, following, ""
            elif failed and proven:
                settings, proven, refused = proven, None, _refusal(failed)
                await self._observe(settings)

    async def _reload(
        self, reload: asyncio.Event, leave: asyncio.Event, metrics: Metrics, proven: Settings
    ) -> Settings:
        """Return the new settings after a SIGHUP, with `leave` set; refuse those that can't work."""
        metrics.task_failures.labels("reload")
        while True:
            await reload.wait()
            reload.clear()
            notify(f"{RELOADING}\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                settings = await self._checked(metrics, proven)
            except Misconfigured as error:
                faults, trace = error.faults, None
            except (Temporary, Blocked, NotFound, Malformed) as error:
                faults, trace = (f"the cloud could not be asked about it: {error}",), None
            except Exception as error:
                # The root of a task: after any error systemd hears how the reload ended, and the
                # next SIGHUP counts
                metrics.task_failures.labels("reload").inc()
                faults, trace = (f"{type(error).__name__}: {error}",), error
            else:
                log.info("reloading")
                leave.set()
                return settings
            log.error("reload_refused", faults=faults, exc_info=trace)
            notify(f"{READY}\n{status(_refusal(faults))}")

    async def _checked(self, metrics: Metrics, proven: Settings) -> Settings:
        """Return the configuration as it is now, once the cloud and the brokers were asked about it."""
        settings = self.app.read_settings(quiet=True)
        with closing(build_clouds(settings, metrics)) as clouds:
            await check_cloud(clouds.common, settings)
        tracing.check(settings.otlp_endpoint)
        try:
            async with asyncio.timeout(CHECKED_WITHIN):
                await on_daemon_thread(lambda: check_bind(settings, proven=proven), name="reload")
                await on_daemon_thread(
                    lambda: broker_check.check(settings, proven=proven), name="reload"
                )
        except TimeoutError as error:
            raise Temporary(
                f"the brokers were not all looked at within {CHECKED_WITHIN:g} s"
            ) from error
        await self._observe(settings)
        return settings


def _refusal(faults: Sequence[str]) -> str:
    return f"reload refused: {'; '.join(faults)}"
