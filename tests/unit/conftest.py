"""Unit tests of the handlers and of the runner wait in a time that costs none."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping

import hypothesis
import pytest

from tests.stateful.clock import Clock, Loop

# Their waits are all waits of the event loop; the other modules have threads, sockets or processes.
LEAPING = {
    "test_deletion",
    "test_explain",
    "test_popularity",
    "test_prewarm",
    "test_runner",
    "test_undone",
    "test_upkeep",
    "test_upload",
}
CLOCK = Clock()
# Hypothesis would fail a test that takes longer than 0.2 s, as on a busy machine
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


def leaps(item: pytest.Item) -> bool:
    """Whether this test is one of those."""
    return item.path.stem in LEAPING


def pytest_asyncio_loop_factories(
    config: pytest.Config,
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop that a test gets."""
    return (
        {"leaping": lambda: Loop(CLOCK, turn=0.00001)}
        if leaps(item)
        else {"real": asyncio.new_event_loop}
    )


@pytest.fixture(autouse=True)
def leaping_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own modules see the clock of the event loop where they would look at the machine's."""
    if leaps(request.node):
        CLOCK.now = time.time()
        ours = [
            module
            for name, module in sys.modules.items()
            if name.split(".")[0] in {"worker", "handlers", "tests"}
        ]
        for module in ours:
            if getattr(module, "time", None) is time and module is not sys.modules[__name__]:
                monkeypatch.setattr(module, "time", CLOCK)
