"""What operators fear, done to real services: everything converges, once, and nothing is left
over."""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from scripts.cloud import breakage
from scripts.cloud.operate import CINDER, GLANCE, TARGETS, devcloud, groups, until
from scripts.cloud.people import HOME, Person
from tests.cloud.proxy import Fault, Proxy
from tests.devcloud import FORKED
from tests.faults.scene import HOUR, LANES, Scene
from tests.worker_process import WorkerProcess

log = logging.getLogger(__name__)
Worker = Callable[..., WorkerProcess]
# Each kind of answer and each service by itself; else all kinds in turn, and the service that does
# the work
LONG = bool(os.environ.get("LONG"))
KILLS, IMAGES, UPLOADS = (
    int(os.environ.get(name, "0")) or (many if LONG else few)
    for name, few, many in (("KILLS", 4, 30), ("IMAGES", 4, 40), ("UPLOADS", 2, 20))
)
AWAY = 10.0
# How long a request may take behind a proxy; what is late takes longer
REQUEST = 5.0
# How long a token lasts where they are to expire
TOKEN = 30.0
ANSWERS = (
    ["an error", "dropped", "late", "cut short", "garbage"]
    if LONG
    else ["wrong in one way or another"]
)
FEW = 2 if LONG else 1
SERVICES = [
    "cinder-volume",
    *(["mariadb", "cinder-scheduler", "cinder-api", "keystone"] if LONG else []),
]
FAULTS: list[Fault] = [429, 500, 503, 504, "drop", "delay", "cut", "garbage"]


@contextmanager
def behind(
    folder: Path, *services: Proxy, environment: Mapping[str, str] | None = None
) -> Iterator[WorkerProcess]:
    """A worker that reaches Glance and Cinder by way of proxies."""
    glance, cinder = services
    clouds = yaml.safe_load((HOME / "clouds.yaml").read_text())
    entry = clouds["clouds"]["operator"]
    entry["image_endpoint_override"] = glance.url
    entry["block_storage_endpoint_override"] = f"{cinder.url}/v3/{Person('operator').project_id}"
    file = folder / "clouds.yaml"
    file.write_text(yaml.safe_dump(clouds))
    file.chmod(0o600)
    limits = {"cloud": {"name": "operator", "api_timeout": REQUEST}}
    with WorkerProcess(
        folder, groups(**limits), clouds=file, environment=environment, forked=FORKED
    ) as process:
        process.wait_ready()
        yield process


WORK = frozenset({"clone_creating", "location_added", "image_copy_began", "job_done"})
"""Log events of a worker that has begun something, or ended it."""


@pytest.mark.usefixtures("hashed")
@pytest.mark.fault(f"the worker killed -9, {KILLS} times")
def test_killed_at_any_moment(worker: Worker, scene: Scene) -> None:
    seed = random.randrange(1 << 30)
    moments = random.Random(seed)
    process = worker(groups(work=LANES))
    loading = threading.Thread(target=scene.load, args=(IMAGES, UPLOADS))
    loading.start()
    worked = 0
    for life in range(KILLS):
        before = len(process.lines())

        def events(since: int = before) -> set[str]:
            return {line["event"] for line in process.lines()[since:]}

        def idle(since: int = before) -> bool:
            """Whether nothing is left to be begun."""
            compared = (one for one in process.lines()[since:] if one["event"] == "resynced")
            return not loading.is_alive() and any(not one["incomplete"] for one in compared)

        process.start()
        # From before its first request to the middle of its work, however long this machine takes
        # to get there
        if life % 2:
            until(lambda: "started" in events(), what="it has started")
        if life % 3 == 1:
            until(lambda: events() & WORK or idle(), what="it has begun something")
        time.sleep(moments.uniform(0.5, 4.0))
        process.kill()
        worked += bool(events() & WORK)
    loading.join()
    log.info("seed %s", seed)
    assert worked > KILLS / 10, "most lives were over before they had begun anything"
    process.start()
    process.wait_ready()
    scene.converged()
    scene.reported(process)


@pytest.mark.usefixtures("hashed")
@pytest.mark.parametrize("what", ANSWERS)
@pytest.mark.fault("every answer of Glance and Cinder {} for a while")
def test_no_answer_for_a_while(tmp_path: Path, scene: Scene, what: str) -> None:
    faults: dict[str, list[Fault]] = {
        "an error": [429, 500, 503, 504], "dropped": ["drop"], "late": ["delay"], "cut short": ["cut"],
        "garbage": ["garbage"],
    }  # fmt: skip
    kinds = itertools.cycle(faults.get(what, FAULTS))
    with (
        Proxy(GLANCE) as glance,
        Proxy(CINDER) as cinder,
        behind(tmp_path, glance, cinder) as process,
    ):
        for service in (glance, cinder):
            service.fault, service.delay = lambda method, path: next(kinds), 2 * REQUEST
        scene.load(2, 1)
        # One after the other: without an answer of Glance's there is nothing to ask Cinder
        for service in (glance, cinder):
            until(lambda one=service: one.faults > 3, what="it tries")
            time.sleep(5)
            service.fault = lambda method, path: None
        scene.converged()
        scene.reported(process)


@pytest.mark.usefixtures("hashed")
@pytest.mark.parametrize("what", SERVICES)
@pytest.mark.fault("{} stopped for a while")
def test_a_service_is_away(worker: Worker, scene: Scene, what: str, tmp_path: Path) -> None:
    process = worker(groups(work=LANES))
    process.start()
    process.wait_ready()
    scene.load(FEW, FEW)
    with breakage.stopped(what):
        time.sleep(AWAY)
    scene.load(1, 1)
    scene.converged(cut_off=True)
    scene.reported(process)
    process.kill()
    scene.tidied(tmp_path)


@pytest.mark.usefixtures("unhashed")
@pytest.mark.fault("a third of all answers wrong, late, cut or lost, also of writes that were done")
def test_a_third_of_all_answers(tmp_path: Path, scene: Scene) -> None:
    seed = random.randrange(1 << 30)
    dice = random.Random(seed)

    def fault(method: str, path: str) -> Fault:
        if dice.random() > 0.33:
            return None
        return dice.choice(FAULTS if method == "GET" else ["lose", "lose", "lose", *FAULTS])

    log.info("seed %s", seed)
    with (
        Proxy(GLANCE) as glance,
        Proxy(CINDER) as cinder,
        behind(tmp_path, glance, cinder) as process,
    ):
        for service in (glance, cinder):
            service.fault, service.delay = fault, 0.5
        scene.load(4, FEW + 1)
        scene.converged()
        assert min(glance.faults, cinder.faults) > 5
        scene.reported(process)


def restarted() -> None:
    with breakage.stopped("rabbitmq"):
        time.sleep(AWAY)


def deleted() -> None:
    breakage.delete_queue("/", "image-volume-worker-test")
    for name in ("upload", "reclaim", "prewarm.local-1", "prewarm.local-2"):
        breakage.delete_queue("worker", f"image-volume-worker-test.{name}")


def short_of_memory() -> None:
    with breakage.broker_short_of_memory():
        time.sleep(AWAY)


@pytest.mark.usefixtures("unhashed")
@pytest.mark.parametrize(
    "what",
    [
        "stopped for a while",
        pytest.param("closes all connections, five times", marks=pytest.mark.long),
        "loses our queues",
        "is short of memory for a while",
    ],
)
@pytest.mark.fault("RabbitMQ {}")
def test_rabbitmq(worker: Worker, scene: Scene, what: str, tmp_path: Path) -> None:
    process = worker(groups(work=LANES, resync={"interval": 60}))
    process.start()
    process.wait_ready()
    scene.load(FEW, FEW)
    broken = threading.Thread(
        target={
            "stopped": restarted,
            "closes": breakage.close_connections,
            "loses": deleted,
            "is": short_of_memory,
        }[what.split(maxsplit=1)[0]]
    )
    broken.start()
    if what.split(maxsplit=1)[0] != "stopped":
        # Cinder itself can't take a request without its broker
        scene.load(FEW, 1)
    broken.join()
    scene.load(1, FEW - 1)
    scene.converged(cut_off=True)
    process.wait_ready()
    scene.reported(process)
    process.kill()
    scene.tidied(tmp_path)


@pytest.fixture
def soon_dead() -> Iterator[None]:
    """RabbitMQ takes a client for dead after some 20 seconds of silence; the long form waits for
    what workers ask."""
    if LONG:
        yield
        return
    breakage.heartbeat(10)
    try:
        yield
    finally:
        breakage.heartbeat(breakage.HEARTBEAT)


@pytest.mark.usefixtures("unhashed", "soon_dead")
@pytest.mark.fault("two replicas: one killed; one frozen until its lanes had moved, then thawed")
def test_two_replicas(worker: Worker, scene: Scene) -> None:
    first, second, third = (worker(groups(work=LANES)) for _ in range(3))
    for process in (first, second):
        process.start()
        process.wait_ready()
    scene.load(FEW, FEW)
    first.kill()
    third.start()
    third.wait_ready()
    scene.load(FEW, FEW)
    second.signal(signal.SIGSTOP)
    scene.load(1, FEW - 1)
    # The broker takes it for dead when it has missed its heartbeats
    newest = scene.images[-1]
    until(
        lambda: (
            {line["target"] for line in third.events("job_done") if line["image_id"] == newest}
            == set(TARGETS)
        ),
        what="the third has the lanes",
        seconds=300,
    )
    second.signal(signal.SIGCONT)
    scene.converged()
    scene.reported(second, third)


@pytest.mark.usefixtures("unhashed")
@pytest.mark.fault("its token revoked in Keystone")
def test_the_token_is_revoked(tmp_path: Path, scene: Scene) -> None:
    with (
        Proxy(GLANCE) as glance,
        Proxy(CINDER) as cinder,
        behind(tmp_path, glance, cinder) as process,
    ):
        scene.load(1, 1)
        until(lambda: cinder.tokens, what="it asks")
        known = (glance.tokens | cinder.tokens) - {""}
        breakage.revoke(scene.admin, known)
        scene.load(2, FEW - 1)
        scene.converged()
        assert (glance.tokens | cinder.tokens) - known - {""}, "it has fetched no other"
        scene.reported(process)


@pytest.fixture
def short_tokens() -> Iterator[None]:
    """Keystone's tokens last for TOKEN seconds."""
    file = HOME / "etc" / "keystone" / "keystone.conf"
    before = file.read_text()
    assert "\nexpiration = 86400\n" in before
    file.write_text(before.replace("\nexpiration = 86400\n", f"\nexpiration = {TOKEN:.0f}\n"))
    try:
        devcloud("restart", "keystone")
        yield
    finally:
        file.write_text(before)
        devcloud("restart", "keystone")


@pytest.mark.usefixtures("unhashed", "short_tokens")
@pytest.mark.fault("its token expired, with two hours to go by its own clock")
@pytest.mark.long
def test_the_token_expires(tmp_path: Path, scene: Scene) -> None:
    late = breakage.set_clock(tmp_path, -2 * HOUR)
    with (
        Proxy(GLANCE) as glance,
        Proxy(CINDER) as cinder,
        behind(tmp_path, glance, cinder, environment=late) as process,
    ):
        scene.load(1, 1)
        until(lambda: cinder.tokens, what="it asks")
        known = (glance.tokens | cinder.tokens) - {""}
        time.sleep(TOKEN)
        scene.load(2, FEW - 1)
        scene.converged()
        assert (glance.tokens | cinder.tokens) - known - {""}, "it has fetched no other"
        assert glance.answers[401] + cinder.answers[401] > 0, "it knew before it was told"
        scene.reported(process)


@pytest.mark.usefixtures("unhashed")
@pytest.mark.fault("imports of Glance's cut off, which left volumes in this status and that")
def test_what_imports_left_behind(worker: Worker, scene: Scene, tmp_path: Path) -> None:
    process = worker(groups(work=LANES))
    process.start()
    process.wait_ready()
    scene.load(1, 1)
    scene.converged()
    metadata = {
        "glance_image_id": scene.images[0],
        "image_owner": scene.operator.project_id,
        "image_size": "1",
    }
    for status in ("error", "creating", "attaching", "available"):
        made = scene.operator.blank("local-2", name=f"image-{scene.images[0]}", metadata=metadata)
        scene.admin.act(made, "os-reset_status", status=status)
    scene.converged(cut_off=True)
    assert len(scene.left) == 4
    scene.reported(process)
    process.kill()
    scene.tidied(tmp_path)


@pytest.mark.usefixtures("unhashed")
@pytest.mark.fault("Glance's staging area full")
def test_no_room_for_staging(worker: Worker, scene: Scene) -> None:
    process = worker(groups(work=LANES))
    process.start()
    process.wait_ready()
    with breakage.staging_full():
        scene.load(2, 1)
        until(lambda: process.events("job_again"), what="it does not work")
        time.sleep(AWAY)
    scene.converged()
    scene.reported(process)


@pytest.mark.usefixtures("unhashed")
@pytest.mark.parametrize("what", ["two hours ahead", "two hours back"])
@pytest.mark.fault("the worker's clock jumps {}")
def test_the_clock_jumps(tmp_path: Path, scene: Scene, what: str) -> None:
    off = breakage.set_clock(tmp_path, 0)
    with WorkerProcess(tmp_path, groups(), clouds=HOME / "clouds.yaml", environment=off) as process:
        process.wait_ready()
        scene.load(2, 1)
        breakage.set_clock(tmp_path, HOUR * (2 if what.endswith("ahead") else -2))
        scene.load(2, 1)
        scene.converged()
        scene.reported(process)
