"""A browser, and a worker to look at."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.page.browser import BINARY, Browser
from tests.page.world import Served, activity


@pytest.fixture(scope="session", autouse=True)
def chromium() -> None:
    if not BINARY and not os.environ.get("CI"):
        pytest.fail("no chromium: scripts/test installs it")
    assert BINARY, "chromium is missing"


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served(activity())
    yield made
    made.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as made:
        yield made
