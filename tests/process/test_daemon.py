"""The assembly, with a cloud that lets one in and says nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.configurations import GOOD, load
from worker.cli.daemon import Daemon
from worker.observe.metrics import Metrics
from worker.observe.systemd import WATCHDOG


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of somebody who lets one in and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_a_cloud_that_says_nothing_is_no_loop_that_hangs(
    tmp_path: Path, silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "OS_AUTH_URL": f"http://127.0.0.1:{silent}/v3",
        "OS_USERNAME": "u",
        "OS_PASSWORD": "p",
        "OS_PROJECT_NAME": "p",
        "OS_USER_DOMAIN_NAME": "d",
        "OS_PROJECT_DOMAIN_NAME": "d",
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OS_CLOUD", raising=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        settings = load(tmp_path, {**GOOD, "probes": {"bind": ""}, "cloud": {"api_timeout": 1}})
        leave = asyncio.Event()
        running = asyncio.create_task(Daemon(settings=settings, metrics=Metrics()).run(leave))
        told: list[bytes] = []
        async with asyncio.timeout(20):
            # Two turns of the loop that feeds the watchdog, while nobody answers
            while told.count(WATCHDOG.encode()) < 2:
                told.append(await asyncio.get_running_loop().sock_recv(manager, 4096))
        assert any(b"not asked yet" in state for state in told)
        assert not running.done()
        leave.set()
        async with asyncio.timeout(20):
            await running
