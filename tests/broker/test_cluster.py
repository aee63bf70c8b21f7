"""Workers on a RabbitMQ of three nodes, under load, of which one node after the other goes away and
comes back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker import counting
from tests.broker.cluster import Cluster
from tests.broker.load import Load, Service, groups, until
from tests.broker.rabbitmq import installed
from tests.deploy.debian import SmallCloud
from tests.worker_process import WorkerProcess

QUEUE = "cluster"


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
                    groups(cluster.url(first=first), QUEUE),
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
            node=cluster.nodes[0],
            queue=QUEUE,
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
