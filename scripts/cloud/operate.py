"""An operator's hands on the devcloud: its services, broker, database and switches; a worker's
configuration for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.cloud.people import HOME, Person

ROOT = Path(__file__).parents[2]
# A Glance whose Cinder was killed holds an import for minutes: it asks five times for an answer, 30
# s each here
PATIENCE = 700.0
TARGETS = ("local-1", "local-2")
PASSWORD = os.environ.get("DEVCLOUD_PASSWORD", "devcloud")
KEYSTONE, GLANCE, CINDER = "http://127.0.0.1:5000", "http://127.0.0.1:9292", "http://127.0.0.1:8776"
URL = f"rabbit://openstack:{PASSWORD}@127.0.0.1:5672/"
WORK_URL = f"amqp://openstack:{PASSWORD}@127.0.0.1:5672/worker"


def devcloud(*words: str) -> str:
    """Run scripts/devcloud; what it printed."""
    done = subprocess.run(
        [str(ROOT / "scripts" / "devcloud"), *words],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
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
    done = subprocess.run(
        words, env=environment, check=True, timeout=60, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


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
            devcloud(
                "set", *(f"{word.split('=')[0]}={before[word.split('=')[0]]}" for word in changed)
            )


def sql(database: str, statement: str) -> str:
    """Have a service's database do something, as an administrator who restores a backup would."""
    command = (
        "mariadb",
        "--no-defaults",
        "-S",
        str(HOME / "run" / "mariadb.sock"),
        "-uroot",
        "-N",
        database,
        "-e",
    )
    done = subprocess.run(
        (*command, statement), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(
    check: Callable[[], object], *, seconds: float = PATIENCE, what: str | Callable[[], str] = ""
) -> None:
    """Return when `check` is true; else fail and say `what` was awaited."""
    deadline, pause = time.monotonic() + seconds, 0.1
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError((what if isinstance(what, str) else what()) or f"{check}")
        time.sleep(pause)
        # Each look costs the services processor time that they need for what is awaited
        pause = min(1.0, 1.3 * pause)


Groups = Mapping[str, Mapping[str, object]]


def groups(
    *,
    strategy: str = "auto",
    work: Mapping[str, object] | None = None,
    **more: Mapping[str, object],
) -> Groups:
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


def of_image(operator: Person, image_id: str) -> list[dict[str, Any]]:
    """The volumes of the internal project that hold an image."""
    return [volume for volume in operator.volumes() if volume["name"].endswith(image_id)]


def is_warm(
    operator: Person,
    alice: Person,
    image_id: str,
    *,
    locations: bool = True,
    unmarked: bool = False,
) -> bool:
    """Whether there is exactly one Image-Volume a target, with all that Cinder needs to clone it
    for everyone.

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
    return sorted(volume["volume_type"] for volume in good) == list(TARGETS) and len(
        volumes
    ) == len(TARGETS)
