"""The devcloud in tests: its release, its users and their images, and workers on it that leave
nothing behind."""

from __future__ import annotations

import functools
import json
import os
import re
import urllib.request
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.cloud.operate import GLANCE, Groups, devcloud, groups, switches
from scripts.cloud.people import HOME, Person
from tests.worker_process import WorkerProcess

LONG = bool(os.environ.get("LONG"))
# The short form of the tests starts no worker from scratch
FORKED = not LONG
# Of a worker's log, in what is told of a failed test
LOG_LINES = 60


def briefly(line: str) -> str:
    """A line of a worker's log: when, what and why; ids by their first letters."""
    if not line.startswith("{"):
        return line[:300]
    fields = json.loads(line)
    at, event = fields.pop("timestamp", "")[11:23], fields.pop("event", "")
    rest = " ".join(
        str(value)[:200]
        for name, value in fields.items()
        if name not in {"logger", "level", "handler"}
    )
    return re.sub(
        r"([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        r"\1",
        f"{at} {event} {rest}",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the ends of the workers' logs to what is told of a failed test."""
    report = yield
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if report.failed and folder:
        for log in sorted(folder.rglob("worker-*.log")):
            lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            # The last first: who shows this may cut it. JUnit's file has the text of such a
            # section, without its title
            told = [
                f"{log.name}, the last line first",
                *(briefly(line) for line in reversed(lines)),
            ]
            report.sections.append(("Captured log of a worker", "\n".join(told)))
    return report


@pytest.fixture(scope="session")
def devcloud_up() -> None:
    """The devcloud in DEVCLOUD_HOME runs; `scripts/test` brings up one of its own."""
    if not (HOME / "clouds.yaml").exists():
        pytest.fail("no devcloud: scripts/devcloud up")
    devcloud("status")


@pytest.fixture(scope="session")
def hashing(devcloud_up: None) -> Iterator[Callable[[bool], None]]:
    """Sets whether Glance reads each upload for its hash, which takes longer than all else; in the
    end it is as it was.

    The short form of most tests does without.
    """

    def turn(on: bool) -> None:
        if switches()["SECURE_HASH"] != str(int(on)):
            devcloud("set", f"SECURE_HASH={int(on)}")

    before = switches()["SECURE_HASH"] == "1"
    yield turn
    turn(before)


@pytest.fixture
def unhashed(hashing: Callable[[bool], None]) -> None:
    """The test is not about the hash."""
    hashing(LONG)


@pytest.fixture
def hashed(hashing: Callable[[bool], None]) -> None:
    """The test wants the hash, too."""
    hashing(True)


@pytest.fixture(scope="session")
def alice(devcloud_up: None) -> Person:
    return Person("alice")


@pytest.fixture(scope="session")
def bob(devcloud_up: None) -> Person:
    return Person("bob")


@pytest.fixture(scope="session")
def operator(devcloud_up: None) -> Person:
    return Person("operator")


@pytest.fixture(scope="session")
def admin(devcloud_up: None) -> Person:
    return Person("admin")


@pytest.fixture
def worker(tmp_path: Path, devcloud_up: None) -> Iterator[Callable[..., WorkerProcess]]:
    """Makes worker processes; those that run at the end of the test are killed."""
    made: list[WorkerProcess] = []

    def make(settings: Groups | None = None) -> WorkerProcess:
        made.append(
            WorkerProcess(
                tmp_path, settings or groups(), clouds=HOME / "clouds.yaml", forked=FORKED
            )
        )
        return made[-1]

    yield make
    for process in made:
        process.kill()


@functools.cache
def has_new_location_api() -> bool:
    """Whether this Glance has POST and GET /v2/images/{id}/locations: API 2.17."""
    with urllib.request.urlopen(f"{GLANCE}/versions", timeout=30) as answer:
        versions = json.load(answer)["versions"]
    return any(tuple(map(int, row["id"].lstrip("v").split("."))) >= (2, 17) for row in versions)


def release() -> str:
    """The OpenStack release that the devcloud runs."""
    return (HOME / "release").read_text().strip()


def cinder_uses_new_location_api() -> bool:
    """Whether Cinder asks it of Glance, which no API tells; older ones read and write what Glance
    shows of an image."""
    return release() >= "2025.2"


@pytest.fixture
def images(alice: Person) -> Iterator[Callable[..., str]]:
    """Makes images of alice's, which go at the end of the test."""
    yield from making(alice)


@pytest.fixture
def others(bob: Person) -> Iterator[Callable[..., str]]:
    """The same for bob's."""
    yield from making(bob)


def making(person: Person) -> Iterator[Callable[..., str]]:
    made: list[str] = []

    def make(name: str = "test", **fields: Any) -> str:
        made.append(person.image(name, **fields))
        return made[-1]

    yield make
    for image_id in made:
        # The test may have deleted it itself
        person.delete_image(image_id, missing_ok=True)
