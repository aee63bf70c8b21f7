"""Workers on a RabbitMQ of three nodes, under load, of which one node after the other goes away and
comes back."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import amqp
import pytest

from tests.broker import counting
from tests.broker.cluster import Cluster
from tests.broker.rabbitmq import RabbitMQ, installed
from tests.deploy.debian import CLOUD, SmallCloud
from tests.worker_process import WorkerProcess

PATIENCE = 180.0
"""Seconds after which something that has to happen counts as not happening; generous, as machines
are busy."""
QUEUE = "cluster"
EVERY = 0.2
"""Seconds between two notifications; each makes a job in each of two lanes, and most jobs take
several tries."""

STEP = 1.0
"""Seconds that a job which the broker gives to another worker may take to end: it does so before
its next step."""
SAMPLE = 10
"""Notifications published after a change that have to be done before the workers count as being at
work."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    scripts = installed()
    if scripts is None:
        pytest.fail("no RabbitMQ on this machine: scripts/test installs it")
    made = Cluster(folder=tmp_path_factory.mktemp("cluster"), scripts=scripts)
    try:
        made.start()
        yield made
    finally:
        made.remove()


class Service:
    """Publishes notifications as Glance does, one after the other, until each is confirmed by some
    node."""

    def __init__(self, nodes: list[RabbitMQ]) -> None:
        self._nodes = itertools.cycle(nodes)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="service")
        self._urgent: list[str] = []
        self.confirmed: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()

    def publish(self, image_id: str) -> None:
        """Publish this one next."""
        self._urgent.append(image_id)

    def _run(self) -> None:
        numbers = itertools.count(1)
        image_id = ""
        while not self._ending.is_set():
            try:
                with contextlib.closing(_Way(next(self._nodes))) as way:
                    while not self._ending.is_set():
                        if not image_id:
                            image_id = (
                                self._urgent.pop(0)
                                if self._urgent
                                else counting.image_id(next(numbers))
                            )
                        way.publish(image_id)
                        self.confirmed.append(image_id)
                        image_id = ""
                        time.sleep(EVERY)
            except (OSError, amqp.AMQPError, amqp.exceptions.MessageNacked):
                # To the next node, with the same notification
                time.sleep(0.2)


class _Way:
    """A connection to one node, with an exchange as oslo.messaging declares it."""

    def __init__(self, node: RabbitMQ) -> None:
        self._connection = amqp.Connection(
            f"127.0.0.1:{node.port}",
            userid="worker",
            password=node.password,
            login_method="PLAIN",
            confirm_publish=True,
            connect_timeout=5,
            read_timeout=5,
            write_timeout=5,
        )
        try:
            self._connection.connect()
            self._channel = self._connection.channel()
            self._channel.exchange_declare("glance", "topic", durable=False, auto_delete=False)
        except BaseException:
            self.close()
            raise

    def publish(self, image_id: str) -> None:
        """Publish a notification; an error if it is not confirmed, or no queue has taken it."""
        body = {"event_type": counting.EVENT, "priority": "INFO", "payload": {"id": image_id}}
        message = amqp.Message(
            json.dumps(body).encode(), delivery_mode=2, content_type="application/json"
        )
        self._channel.basic_publish(message, "glance", "notifications.info", mandatory=True)

    def close(self) -> None:
        self._connection.collect()


@dataclass
class Load:
    """Two workers at work, and what they do."""

    workers: list[WorkerProcess]
    service: Service
    notes: Path
    gate: Path
    cluster: Cluster
    told: list[str] = field(default_factory=list)

    def runs(self) -> list[counting.Run]:
        return counting.read(self.notes)

    def done(self) -> set[str]:
        """The images whose jobs are done in both lanes."""
        lanes: defaultdict[str, set[str]] = defaultdict(set)
        for run in self.runs():
            if run.outcome == "done":
                lanes[run.key[0]].add(run.key[1])
        return {image_id for image_id, found in lanes.items() if found == set(counting.LANES)}

    def until_ready(self, what: str) -> None:
        """Wait until what is published from now on is done, and the workers are ready; tell how
        long that took."""
        began = time.monotonic()
        before = len(self.service.confirmed)
        until(lambda: len(self.service.confirmed) > before, self.state)
        heard = time.monotonic()
        until(lambda: len(self.service.confirmed) >= before + SAMPLE, self.state)
        sample = set(self.service.confirmed[before : before + SAMPLE])
        until(lambda: sample <= self.done(), self.state)
        worked = time.monotonic()
        for worker in self.workers:
            worker.wait_ready(within=PATIENCE)
        ready = time.monotonic()
        self.told.append(
            f"{what}: published again after {heard - began:.1f} s, at work after "
            f"{worked - began:.1f} s, "
            f"workers ready after {ready - began:.1f} s"
        )

    def state(self) -> str:
        problems = [worker.probe("/readyz") for worker in self.workers]
        return f"{len(self.service.confirmed)} confirmed, {len(self.done())} done; {problems}"

    def finish(self) -> None:
        """End the load; nothing is lost, nothing doubled, nothing is left over."""
        until(lambda: len(self.service.confirmed) > 100, self.state)
        self.gate.touch()
        self.service.stop()
        wanted = set(self.service.confirmed)
        until(
            lambda: wanted <= self.done(),
            lambda: f"{self.state()}; lost: {sorted(wanted - self.done())[:10]}",
        )
        until(lambda: not any(self.depths().values()), lambda: f"left over: {self.depths()}")
        runs = self.runs()
        by_key: defaultdict[tuple[str, str], list[counting.Run]] = defaultdict(list)
        for run in runs:
            by_key[run.key].append(run)
        twice = [
            (one, other)
            for tries in by_key.values()
            for one, other in itertools.pairwise(tries)
            if other.began < one.ended - STEP
        ]
        assert not twice, twice[:5]
        again = sum(sum(run.outcome == "done" for run in tries) - 1 for tries in by_key.values())
        moments = sorted(run.ended for run in runs if run.outcome == "done")
        longest = max(later - earlier for earlier, later in itertools.pairwise(moments))
        self.told.append(
            f"{len(wanted)} notifications, {len(by_key)} jobs, {again} done a second time "
            f"(delivered again), "
            f"longest time without a job done: {longest:.1f} s"
        )

    def depths(self) -> dict[str, int]:
        """What waits in our queues, by name."""
        node = self.cluster.nodes[0]
        listed = json.loads(node.ctl("list_queues", "name", "--formatter=json"))
        return {
            row["name"]: depth for row in listed if (depth := node.depth(row["name"])) is not None
        }


@pytest.fixture
def load(
    cluster: Cluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> Iterator[Load]:
    """Two workers under load, each of which begins with another node; what was measured is printed
    at the end."""
    cloud = SmallCloud()
    clouds = tmp_path / "clouds.yaml"
    clouds.write_text(cloud.clouds_yaml)
    environment = counting.plug_in(tmp_path / "plug-in")
    with contextlib.ExitStack() as stack:
        stack.callback(cloud.close)
        workers = [
            stack.enter_context(
                WorkerProcess(
                    tmp_path,
                    groups(cluster.url(first=first)),
                    clouds=clouds,
                    environment=environment,
                )
            )
            for first in (0, 1)
        ]
        for worker in workers:
            worker.wait_ready()
        service = Service(cluster.nodes)
        made = Load(
            workers=workers,
            service=service,
            notes=Path(environment[counting.NOTES]),
            gate=Path(environment[counting.GATE]),
            cluster=cluster,
        )
        service.start()
        stack.callback(service.stop)
        until(lambda: len(made.done()) > 20, made.state)
        yield made
        terminal = request.config.pluginmanager.getplugin("terminalreporter")
        with capsys.disabled():
            for line in made.told:
                # As a row of the table at the end of scripts/test
                terminal.write_line(f"\n| {request.node.name} | {line} |")


def groups(url: str) -> dict[str, dict[str, object]]:
    return {
        "notifications": {"transport_urls": url, "queue": QUEUE, "exchanges": "glance"},
        "work": {"url": url, "backoff_min": 1.0, "backoff_max": 10.0},
        "cloud": {"name": CLOUD},
        # The one image there is wanted by nobody
        "prewarm": {"targets": "fast", "min_size": 1 << 40},
        "target:fast": {"volume_type": "ssd", "strategy": "cache"},
        "log": {"format": "json"},
    }


def until(condition: Callable[[], object], told: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)


def test_the_leader_of_a_lane_is_killed_and_comes_back(cluster: Cluster, load: Load) -> None:
    leader = cluster.leader(f"{QUEUE}.counting.east")
    leader.stop(kill=True)
    load.until_ready("a leader killed")
    leader.start()
    load.until_ready("it is back")
    load.finish()


# RabbitMQ's default, and the harder one, as the node that is cut off serves its clients all the
# time; LONG=1 for both
@pytest.mark.parametrize(
    "handling", ["ignore", *(["pause_minority"] if os.environ.get("LONG") else [])]
)
def test_a_node_is_cut_off_and_comes_back(cluster: Cluster, load: Load, handling: str) -> None:
    for node in cluster.nodes:
        node.ctl("eval", f"application:set_env(rabbit, cluster_partition_handling, {handling}).")
    # Of the node whose worker has the lane: nobody but the others of the cluster can tell that it
    # is to let go of it
    job = (counting.endless(1), "east")
    load.service.publish(job[0])
    until(lambda: any(run.key == job for run in load.runs()), load.state)
    (pid,) = (run.pid for run in load.runs() if run.key == job)
    node = cluster.nodes[[worker.pid for worker in load.workers].index(pid)]
    cluster.wires.cut(node.name)
    try:
        load.until_ready("a node cut off")
        # It was given back and handed out anew; `finish` sees to it that the first worker had let
        # go of it by then
        until(lambda: sum(run.key == job for run in load.runs()) > 1, load.state)
    finally:
        cluster.wires.mend()
    load.until_ready("it is back")
    load.finish()
    if handling == "ignore":
        # That is what an operator has to do then, as RabbitMQ's own tables remain apart
        node.stop()
        node.start()


def test_nodes_are_restarted_one_after_the_other(cluster: Cluster, load: Load) -> None:
    for number, node in enumerate(cluster.nodes, 1):
        node.stop()
        load.until_ready(f"node {number} stopped")
        node.start()
        # As operators are told to, before they stop the next one
        node.ctl("await_online_nodes", str(len(cluster.nodes)))
        load.until_ready(f"node {number} is back")
    load.finish()
