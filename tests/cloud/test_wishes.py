"""`warm`, `evict`, `pause` and `resume` on real services."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from scripts.cloud.operate import TARGETS, WORK_URL, groups, of_image, until
from scripts.cloud.people import Person
from tests.worker_process import WorkerProcess

Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]


def rows(process: WorkerProcess, *words: str) -> list[dict[str, Any]]:
    done = process.run(*words, "-f", "json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def states(process: WorkerProcess, image_id: str) -> dict[str, str]:
    return {row["Target"]: row["State"] for row in rows(process, "status", image_id)}


def types_of(operator: Person, image_id: str) -> set[str]:
    return {volume["volume_type"] for volume in of_image(operator, image_id)}


def test_an_image_is_evicted_and_made_warm_again_by_the_worker_that_runs(
    worker: Worker, images: Images, operator: Person
) -> None:
    with worker(groups(work={"url": WORK_URL}, resync={"interval": 10})) as process:
        process.wait_ready()
        image_id = images("of-wishes")
        until(lambda: set(states(process, image_id).values()) == {"warm"}, what="warm")
        [row] = rows(process, "evict", "of-wishes", "--target", "local-1")
        assert (row["Image"], row["State"], row["Wish"]) == (image_id, "warm", "asked for")
        until(lambda: types_of(operator, image_id) == {"local-2"}, what="evicted")
        until(lambda: states(process, image_id)["local-1"] == "held back", what="held back")
        # Two comparisons later
        resyncs = len(process.events("resynced"))
        until(lambda: len(process.events("resynced")) > resyncs + 1, what="two comparisons")
        assert types_of(operator, image_id) == {"local-2"}
        found = {row["Target"]: row["Wish"] for row in rows(process, "warm", image_id)}
        assert found == {"local-1": "asked for", "local-2": "asked for"}
        until(lambda: set(states(process, image_id).values()) == {"warm"}, what="warm again")
        heard = [(one["target"], one["wish"]) for one in process.events("operator_wishes")]
        assert [wish for target, wish in heard if target == "local-1"] == ["evict", "warm"]


def test_with_lanes_in_memory_the_command_does_it_itself(
    worker: Worker, images: Images, operator: Person
) -> None:
    process = worker()
    image_id = images()
    done = process.run("warm", image_id, "--target", "local-2", timeout=300)
    assert done.returncode == 0, done.stderr
    assert "a worker whose jobs wait in memory hears nothing of it" in done.stderr
    # One import of Glance's fills all stores where the image is wanted
    assert "local-2" in types_of(operator, image_id)
    assert process.run("evict", image_id, "--target", "local-2", timeout=300).returncode == 0
    until(lambda: "local-2" not in types_of(operator, image_id), what="evicted")


def test_what_policy_refuses_is_named_with_the_rule(worker: Worker, images: Images) -> None:
    process = worker(groups(prewarm={"targets": ",".join(TARGETS), "visibilities": "public"}))
    image_id = images(visibility="private")
    done = process.run("warm", image_id, "-f", "json")
    assert done.returncode == 0
    assert {row["Wish"] for row in json.loads(done.stdout)} == {"not wanted"}
    assert "visibilit" in json.loads(done.stdout)[0]["Why"]
    assert "nothing was asked for" in done.stderr
    done = process.run("evict", image_id, "--target", "tape")
    assert done.returncode == 2
    assert "no target 'tape' is configured" in done.stderr


def test_a_paused_target_gets_nothing_until_it_is_resumed_whoever_works_on_it(
    worker: Worker, images: Images, operator: Person
) -> None:
    settings = groups(work={"url": WORK_URL})
    with worker(settings) as first:
        first.wait_ready()
        shown = {row["Target"]: row["State"] for row in rows(first, "pause", "local-1")}
        assert shown == {"local-1": "paused", "local-2": "running"}
        until(lambda: first.metric("target_paused", target="local-1") == 1, what="paused")
        image_id = images()
        until(lambda: states(first, image_id)["local-2"] == "warm", what="warm elsewhere")
        assert states(first, image_id)["local-1"] != "warm"
        [why] = [
            row["Why"] for row in rows(first, "status", image_id) if row["Target"] == "local-1"
        ]
        assert why.startswith("the target is paused")
        found = {row["Target"]: row["Paused"] for row in rows(first, "status", "--summary")}
        assert found == {"local-1": "paused", "local-2": ""}
        checks = first.run("doctor", "-f", "value", "-c", "Check", "-c", "Result").stdout
        assert "target local-1 paused warn" in checks
        assert "paused" in first.run("explain", image_id, "-f", "value").stdout
    # Another process, later
    with worker(settings) as second:
        second.wait_ready()
        until(lambda: second.metric("target_paused", target="local-1") == 1, what="still paused")
        assert "local-1" not in types_of(operator, image_id)
        assert [line["target"] for line in second.events("target_paused")] == ["local-1"]
        rows(second, "resume", "local-1")
        until(lambda: set(states(second, image_id).values()) == {"warm"}, what="warm")
        assert [line["target"] for line in second.events("target_resumed")] == ["local-1"]


def test_lanes_in_memory_cannot_be_paused(worker: Worker) -> None:
    done = worker().run("pause", "local-1")
    assert done.returncode == 2
    assert "only workers with lanes on RabbitMQ can be paused" in done.stderr
    done = worker(groups(work={"url": WORK_URL})).run("resume", "tape")
    assert done.returncode == 2
    assert "no target 'tape' is configured" in done.stderr
