"""The devcloud for the tests of this tier: its users, its switches, and workers on it that leave nothing behind."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from scripts.cloud.people import HOME, Person
from tests.worker_process import WorkerProcess

ROOT = Path(__file__).parents[2]
# A Glance whose Cinder was killed holds an import for minutes: it asks five times for an answer, 30 s each here
PATIENCE = 700.0
# Of a worker's log, in what is told of a failed test
LOG_LINES = 60
TARGETS = ("local-1", "local-2")
PASSWORD = os.environ.get("DEVCLOUD_PASSWORD", "devcloud")
GLANCE = "http://127.0.0.1:9292"
URL = f"rabbit://openstack:{PASSWORD}@127.0.0.1:5672/"


def devcloud(*words: str) -> str:
    """Run scripts/devcloud; what it printed."""
    done = subprocess.run(
        [str(ROOT / "scripts" / "devcloud"), *words], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rabbitmqctl(*words: str) -> str:
    """Have the devcloud's RabbitMQ do something; what it printed."""
    environment = {
        **os.environ,
        "HOME": str(HOME / "data" / "rabbitmq"),
        "RABBITMQ_NODENAME": "devcloud@localhost",
        "ERL_EPMD_PORT": "4370",
    }
    words = ("/usr/lib/rabbitmq/bin/rabbitmqctl", "--quiet", *words)
    done = subprocess.run(words, env=environment, check=True, timeout=60, stdout=subprocess.PIPE, text=True)
    return done.stdout


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
    """Whether Cinder asks it of Glance, which no API tells; older ones read and write what Glance shows of an image."""
    return release() >= "2025.2"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what the devcloud's release can't do."""
    if item.get_closest_marker("needs_new_location_api") and not has_new_location_api():
        pytest.skip(f"Glance of {release()} has no New Location API")
    if item.get_closest_marker("needs_cinder_with_new_location_api") and not cinder_uses_new_location_api():
        pytest.skip(f"Cinder of {release()} does not use the New Location API")
    if item.get_closest_marker("needs_optimized_upload") and release() < "2025.1":
        pytest.skip(f"Cinder of {release()} copies, whatever is configured")


def switches() -> dict[str, str]:
    """The switches of the devcloud, as they are."""
    return dict(line.split("=", 1) for line in (HOME / "switches").read_text().split())


@contextlib.contextmanager
def switched(*wanted: str) -> Iterator[None]:
    """The devcloud with other switches; in the end those are as they were."""
    before = switches()
    changed = [word for word in wanted if word.split("=")[1] != before[word.split("=")[0]]]
    if changed:
        devcloud("set", *changed)
    try:
        yield
    finally:
        if changed:
            devcloud("set", *(f"{word.split('=')[0]}={before[word.split('=')[0]]}" for word in changed))


def sql(database: str, statement: str) -> str:
    """Have a service's database do something, as an administrator who restores a backup would."""
    command = ("mariadb", "--no-defaults", "-S", str(HOME / "run" / "mariadb.sock"), "-uroot", "-N", database, "-e")
    done = subprocess.run((*command, statement), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(check: Callable[[], object], *, seconds: float = PATIENCE, what: str | Callable[[], str] = "") -> None:
    """Return when `check` is true; else fail and say `what` was awaited."""
    deadline, pause = time.monotonic() + seconds, 0.1
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError((what if isinstance(what, str) else what()) or f"{check}")
        time.sleep(pause)
        # Each look costs the services processor time that they need for what is awaited
        pause = min(0.5, 1.2 * pause)


def briefly(line: str) -> str:
    """A line of a worker's log: when, what and why; ids by their first letters."""
    if not line.startswith("{"):
        return line[:300]
    fields = json.loads(line)
    at, event = fields.pop("timestamp", "")[11:23], fields.pop("event", "")
    rest = " ".join(str(value)[:200] for name, value in fields.items() if name not in {"logger", "level", "handler"})
    return re.sub(r"([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", r"\1", f"{at} {event} {rest}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the ends of the workers' logs to what is told of a failed test."""
    report = yield
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if report.failed and folder:
        for log in sorted(folder.rglob("worker-*.log")):
            lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            # The last first: who shows this may cut it. JUnit's file has the text of such a section, without its title
            told = [f"{log.name}, the last line first", *(briefly(line) for line in reversed(lines))]
            report.sections.append(("Captured log of a worker", "\n".join(told)))
    return report


@pytest.fixture(scope="session")
def devcloud_up() -> None:
    """The devcloud in DEVCLOUD_HOME runs; `scripts/test` brings up one of its own."""
    if not (HOME / "clouds.yaml").exists():
        pytest.fail("no devcloud: scripts/devcloud up")
    devcloud("status")


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
        with contextlib.suppress(RuntimeError):
            person.delete_image(image_id)


Groups = Mapping[str, Mapping[str, object]]


def groups(*, strategy: str = "auto", work: Mapping[str, object] | None = None, **more: Mapping[str, object]) -> Groups:
    """The configuration of a worker on the devcloud."""
    stores = {"local-1": "cinder-1", "local-2": "cinder-2"}
    targets = {
        f"target:{name}": {"volume_type": name, "strategy": strategy}
        | ({"glance_store": stores[name]} if strategy == "location" else {})
        for name in TARGETS
    }
    return {
        "notifications": {"transport_urls": URL, "queue": "image-volume-worker-test"},
        "work": {"backoff_min": 1, "backoff_max": 5, **(work or {})},
        "cloud": {"name": "operator"},
        "prewarm": {"targets": ",".join(TARGETS), "settle": 1, "rewarm_interval": 5},
        "log": {"format": "json"},
        **targets,
        **more,
    }


@pytest.fixture
def worker(tmp_path: Path, devcloud_up: None) -> Iterator[Callable[..., WorkerProcess]]:
    """Makes worker processes; those that run at the end of the test are killed."""
    made: list[WorkerProcess] = []

    def make(settings: Groups | None = None) -> WorkerProcess:
        made.append(WorkerProcess(tmp_path, settings or groups(), clouds=HOME / "clouds.yaml"))
        return made[-1]

    yield make
    for process in made:
        process.kill()


def of_image(operator: Person, image_id: str) -> list[dict[str, Any]]:
    """The volumes of the internal project that hold an image."""
    return [volume for volume in operator.volumes() if volume["name"].endswith(image_id)]


def is_warm(operator: Person, alice: Person, image_id: str, *, locations: bool = True, unmarked: bool = False) -> bool:
    """Whether there is exactly one Image-Volume a target, with all that Cinder needs to clone it for everyone.

    `unmarked`: besides them there may be what an import of Glance's has left behind.
    """
    volumes = of_image(operator, image_id)
    if unmarked:
        volumes = [volume for volume in volumes if "image_volume_worker" in volume["metadata"]]
    image = alice.show(image_id)
    good = [
        volume
        for volume in volumes
        if volume["status"] in ("available", "in-use")
        and volume["metadata"].get("image_owner") == image["owner"]
        and volume["metadata"].get("image_volume_worker") == volume["volume_type"]
        and volume["metadata"].get("readonly") == "True"
    ]
    if locations and not {"cinder-1", "cinder-2"} <= set(image["stores"].split(",")):
        return False
    return sorted(volume["volume_type"] for volume in good) == list(TARGETS) and len(volumes) == len(TARGETS)
