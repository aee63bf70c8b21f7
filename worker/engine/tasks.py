"""Tasks: the supervisor of a process's own tasks. It logs and counts every failure."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from worker.core.errors import Misconfigured
from worker.engine.retry import Backoff
from worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)

LASTING = 90.0
"""Seconds that a task has to run until its last failure is over. Longer than the rarest loop takes
for one round."""
NO_DESCRIPTORS = "socket.accept() out of system resource"
"""How asyncio's report begins that the HTTP port can accept no connection (asyncio's
selector_events.py)."""
TELL_EVERY = 60.0
"""Seconds between two log lines about it."""
OTHER = "other"
"""Failures of tasks and threads that are not supervised are counted under this name."""


class Tasks:
    """Begins tasks that run until they are cancelled, and begins those again that fail.

    A failure is logged with its traceback, counted, and a problem until the task has run for
    `LASTING` seconds. Misconfigured is no failure: it ends the task, and whoever waits for the task
    ends the process.
    """

    def __init__(
        self,
        *,
        metrics: Metrics,
        backoff: Backoff | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._backoff = backoff or Backoff(shortest=1.0, longest=30.0)
        self._now = now
        self._failed: dict[str, tuple[float, str]] = {}

    def begin(self, name: str, run: Callable[[], Awaitable[object]]) -> asyncio.Task[None]:
        """Run the task; `run` is called again after each failure."""
        # From the beginning, or no alert sees the first failure
        self._metrics.task_failures.labels(name)
        return asyncio.create_task(self._keep(name, run), name=name)

    def problems(self) -> Mapping[str, str]:
        """Return the tasks that have failed a moment ago, and how."""
        since = self._now() - LASTING
        return {name: text for name, (at, text) in self._failed.items() if at > since}

    async def _keep(self, name: str, run: Callable[[], Awaitable[object]]) -> None:
        failures = 0
        while True:
            began = self._now()
            try:
                await run()
                error: Exception = RuntimeError("it ended by itself")
            except Misconfigured:
                raise
            except Exception as caught:
                # The root of a task: a bug in one of them must neither end the others nor go unseen
                error = caught
            failures = 0 if self._now() - began > LASTING else failures
            wait = self._backoff.after(failures)
            failures += 1
            self._metrics.task_failures.labels(name).inc()
            self._failed[name] = (
                self._now() + wait,
                f"failed and began again: {type(error).__name__}: {error}",
            )
            log.error("task_failed", task=name, after=round(wait, 1), exc_info=error)
            await asyncio.sleep(wait)


def watch_others(metrics: Metrics) -> None:
    """Log and count errors that kill a task or a thread of this process that nobody supervises."""
    metrics.task_failures.labels(OTHER)

    told_at = -TELL_EVERY

    def of_loop(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal told_at
        if str(context.get("message", "")).startswith(NO_DESCRIPTORS):
            # asyncio tells of it once for each place in the queue of connections, every second
            if time.monotonic() - told_at >= TELL_EVERY:
                told_at = time.monotonic()
                log.error("port_out_of_descriptors", error=str(context.get("exception")))
            return
        metrics.task_failures.labels(OTHER).inc()
        task = context.get("task") or context.get("future")
        name = task.get_name() if isinstance(task, asyncio.Task) else ""
        log.error(
            "task_failed", task=name, what=context.get("message"), exc_info=context.get("exception")
        )

    def of_thread(failure: threading.ExceptHookArgs) -> None:
        metrics.task_failures.labels(OTHER).inc()
        log.error(
            "thread_failed",
            thread=failure.thread and failure.thread.name,
            exc_info=failure.exc_value,
        )

    asyncio.get_running_loop().set_exception_handler(of_loop)
    threading.excepthook = of_thread


def after(
    event: asyncio.Event, run: Callable[[], Awaitable[object]]
) -> Callable[[], Awaitable[object]]:
    """Return a function that runs once the event is set."""

    async def run_after() -> None:
        await event.wait()
        await run()

    return run_after
