"""docs/upgrade.md from the previous version, on a real RabbitMQ: no job is lost on the way."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.broker import counting, previous
from tests.broker.load import Load, Service, groups, until
from tests.broker.rabbitmq import RabbitMQ
from tests.configurations import load_text
from tests.deploy.debian import SmallCloud
from tests.worker_process import WorkerProcess

OLD, NEW = "old", "new"
BUG = "no-id"
"""The counting handler fails at it as by a bug: it is no image id, and so no number."""


@dataclass
class Place:
    """A broker, a cloud, and workers of both versions with the same configuration."""

    folder: Path
    queue: str
    clouds: Path
    environments: dict[str, dict[str, str]]
    load: Load

    def worker(self, version: str, **work: object) -> WorkerProcess:
        """Return a worker of a version, not started yet."""
        options = groups(self.load.node.url, self.queue)
        options["work"] |= work
        # Only jobs on configured targets can be sent again
        options["prewarm"]["targets"] = ",".join(counting.LANES)
        types = zip(counting.LANES, ("ssd", "hdd"), strict=True)
        options |= {f"target:{lane}": {"volume_type": name} for lane, name in types}
        del options["target:fast"]
        return WorkerProcess(
            self.folder, options, clouds=self.clouds, environment=self.environments[version]
        )


@pytest.fixture
def place(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Place]:
    today = dict(counting.plug_in(tmp_path / "plug-in"))
    old = previous.environment(previous.install(tmp_path / "previous"), today)
    cloud = SmallCloud()
    clouds = tmp_path / "clouds.yaml"
    clouds.write_text(cloud.clouds_yaml)
    queue = f"upgrade-{uuid.uuid4().hex[:6]}"
    made = Load(
        workers=[],
        service=Service([rabbitmq]),
        notes=Path(today[counting.NOTES]),
        gate=Path(today[counting.GATE]),
        node=rabbitmq,
        queue=queue,
    )
    yield Place(tmp_path, queue, clouds, {OLD: dict(old), NEW: today}, made)
    cloud.close()
    rabbitmq.delete(*made.queues())


def publish(rabbitmq: RabbitMQ, *image_ids: str) -> None:
    bodies = (
        json.dumps({"event_type": counting.EVENT, "payload": {"id": image_id}}).encode()
        for image_id in image_ids
    )
    rabbitmq.publish(*bodies, exchange="glance", routing_key="notifications.info")


def checks(worker: WorkerProcess) -> tuple[int, dict[str, str]]:
    """Return the exit status of `upgrade check`, and the details of each check."""
    done = worker.run("upgrade", "check", "--json")
    told = json.loads(done.stdout)["checks"]
    return done.returncode, {one["check"]: one["details"] for one in told}


def test_everything_that_the_old_version_left_is_taken_over(
    rabbitmq: RabbitMQ, place: Place
) -> None:
    load, lanes, dead = place.load, len(counting.LANES), f"{place.queue}.dead"
    delayed = [counting.image_id(number) for number in (2, 5, 8)]
    waiting = [counting.endless(number) for number in range(1, counting.WIDTH + 5)]
    unheard = [counting.image_id(number) for number in (21, 24)]
    rabbitmq.declare_exchange("glance")
    with place.worker(OLD, backoff_min=30.0, backoff_max=30.0, drain_timeout=1.0) as old:
        old.wait_ready()
        publish(rabbitmq, BUG, *delayed)
        rabbitmq.publish(b"junk", routing_key=f"{place.queue}.counting.east")
        until(lambda: rabbitmq.depth(dead) == lanes + 1, load.runs)
        until(lambda: outcomes(load).count("failed") == lanes * len(delayed), load.runs)
        publish(rabbitmq, *waiting)
        until(lambda: outcomes(load).count("") == lanes * counting.WIDTH, load.runs)
        assert old.stop() == 0
    publish(rabbitmq, *unheard)
    # Not the delays: what moves from one to the next meanwhile would be missed or counted twice
    resting = [place.queue, dead, *(f"{place.queue}.counting.{lane}" for lane in counting.LANES)]
    left = load.depths(resting)
    assert all(left.values()), left

    new = place.worker(NEW)
    status, told = checks(new)
    assert status == 1
    assert "x-delivery-limit" in told["Notifications 0"]
    assert f"dead letters: {lanes + 1}" in told["Lanes"]
    assert rabbitmq.depth(dead) == left[dead]
    with new:
        load.gate.touch()
        until(lambda: {*delayed, *waiting, *unheard} <= load.done(), load.runs)
        new.wait_ready()
        letters = json.loads(new.run("dead-letters", "list", "-f", "json").stdout)
        assert sorted(row["Lane"] for row in letters) == [
            "counting.east",
            "counting.east",
            "counting.west",
        ]
        # Sent again, they fail again: the bug is still there
        tries = outcomes(load).count("ended early")
        assert new.run("dead-letters", "replay", "--handler", "counting").returncode == 0
        until(lambda: outcomes(load).count("ended early") == tries + lanes, load.runs)
        until(lambda: sum(load.depths(load.queues()).values()) == lanes + 1, load.runs)
        assert rabbitmq.depth(dead) == lanes + 1
        assert new.stop() == 0


def outcomes(load: Load) -> list[str]:
    return [run.outcome for run in load.runs()]


def test_replicas_are_replaced_one_after_the_other_under_load(place: Place) -> None:
    load = place.load
    with contextlib.ExitStack() as stack:
        load.workers = [stack.enter_context(place.worker(OLD)) for _ in range(2)]
        for worker in load.workers:
            worker.wait_ready()
        load.service.start()
        stack.callback(load.service.stop)
        load.until_ready("both old")
        for number in range(2):
            assert load.workers[number].stop() == 0
            load.workers[number] = stack.enter_context(place.worker(NEW))
            load.until_ready(f"{number + 1} new")
        load.finish()


def test_every_option_of_the_old_version_is_accepted(place: Place, tmp_path: Path) -> None:
    generator = Path(sys.executable).with_name("oslo-config-generator")
    sample = subprocess.run(
        [generator, "--namespace", "image_volume_worker"],
        env={**os.environ, **place.environments[OLD]},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # Each option with its default or its example; a target needs a type, and has its own name
    text = re.sub(r"^#([a-z_]+ =.*)$", r"\1", sample, flags=re.MULTILINE)
    text = text.replace("[target:name]", "[target:fast]").replace("<None>", "ssd")
    text = text.replace("\ntargets =\n", "\ntargets = fast\n")
    options = re.findall(r"^[a-z_]+ =", text, flags=re.MULTILINE)
    assert len(options) == len(re.findall(r"^# .*\(.+ value\)$|value\)$", sample, re.MULTILINE))
    settings = load_text(tmp_path, text)
    assert [target.name for target in settings.targets] == ["fast"]
    assert settings.warnings == ()
