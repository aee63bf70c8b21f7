"""Reloads whose configuration does not start: the one before it goes on, whole."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.configurations import GOOD, load
from worker.cli import run
from worker.core.errors import Misconfigured
from worker.settings import Settings


class Process:
    """A `run` whose daemons do nothing; those that log to a file of `broken` do not start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *broken: str) -> None:
        self.coming: list[Settings] = []
        self.logs: list[str] = []
        self.started: list[str] = []
        self.begun = asyncio.Event()
        process = self

        class Daemon:
            def __init__(self, *, settings: Settings, **_: Any) -> None:
                self.name = settings.log_file
                process.started.append(self.name)

            async def run(self, leave: asyncio.Event) -> None:
                if self.name in broken:
                    process.begun.set()
                    if process.coming:
                        # Another one is accepted before this one has failed
                        os.kill(os.getpid(), signal.SIGHUP)
                        await leave.wait()
                    raise Misconfigured("[probes] bind: in use")
                await leave.wait()

        async def good(*_: Any, **__: Any) -> None:
            """All is well."""

        monkeypatch.setattr(run, "Daemon", Daemon)
        monkeypatch.setattr(run.Run, "_checked", self._checked)
        monkeypatch.setattr(run, "notify", lambda _: None)

    async def _checked(self, *_: Any) -> Settings:
        settings = self.coming.pop(0)
        await self.made._observe(settings)
        return settings

    async def run(self, first: Settings, *following: Settings) -> None:
        self.coming = list(following)
        self.made = object.__new__(run.Run)
        self.made.app = SimpleNamespace(  # type: ignore[assignment]
            setup_logs=lambda settings: self.logs.append(settings.log_file)
        )
        running = asyncio.create_task(self.made._run(first, []))
        async with asyncio.timeout(10):
            while not self.started:
                await asyncio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGHUP)
            await self.begun.wait()
            while len(self.started) < 3:
                await asyncio.sleep(0.01)
            # No more than these, however long one waits
            await asyncio.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)
            await running


@pytest.mark.parametrize("more", [0, 1])
async def test_one_that_does_not_start_leaves_nothing_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    good = load(tmp_path, GOOD)
    first, broken, third = (replace(good, log_file=name) for name in ("first", "broken", "third"))
    process = Process(monkeypatch, "broken")
    await process.run(first, *[broken, third][: 1 + more])
    last = "third" if more else "first"
    assert process.started == ["first", "broken", last]
    assert process.logs[-1] == last
