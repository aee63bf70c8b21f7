"""The status of all replicas in one document."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any

import pytest

from worker.broker.replicas import Replicas
from worker.core.creation import Creation, Made, Way
from worker.core.job import Job, Key
from worker.core.outcome import Again, Done, Park
from worker.core.target import Target
from worker.observe.activity import Activity
from worker.observe.joint import FORMAT, SILENT, joint
from worker.observe.status_document import Services

LANES = {"upload": 8, "prewarm.fast": 2}
FAST = Target(name="fast", volume_type="ssd", glance_store="cinder-fast")


def job(image: str, handler: str = "prewarm", target: str = "fast") -> Job:
    return Job(key=Key(handler, image, target), cause="x", first_at=5.0)


def document(activity: Activity, host: str, serves: tuple[str, ...], **more: Any) -> dict[str, Any]:
    services = Services(
        targets=[FAST],
        lanes=LANES,
        depths={"prewarm.fast": 3, "dead": 2},
        serves=serves.__contains__,
    )
    status = activity.status(services)
    status |= {
        "format": FORMAT,
        "version": "1",
        "host": host,
        "held_back": [],
        "cache_full": {},
        "cloned_from": {},
    }
    return status | {"reasons": {}} | more


def creation(volume: str) -> Creation:
    return Creation(
        volume_id=volume, image_id="i1", target="fast", began=1.0, ended=2.0, seconds=4.0
    )


def both() -> tuple[dict[str, Any], dict[str, Any]]:
    """The documents of two replicas: the first has the lane of uploads, the second the other."""
    one, two = Activity(), Activity()
    one.began(job("u1", "upload", ""))
    one.settled(job("u2", "upload", ""), Done(changed=True))
    one.created(creation("v1"), Made(Way.DOWNLOAD, ("no_location",)))
    two.began(job("i1"))
    two.held(job("i2"))
    two.settled(job("i3"), Park("no such type"), due=4e9)
    two.settled(job("i4"), Again("away"), due=4e9)
    two.weighed({"fast": 7})
    two.created(creation("v2"), Made(Way.DOWNLOAD, ("no_location",)))
    return (
        document(one, "a", ("upload",), cache_full={"fast": "it is full"}),
        document(two, "b", ("prewarm.fast",), held_back=[("i9", "fast", "undone")]),
    )


def lane(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(row for row in told["lanes"] if row["lane"] == name)
    return found


def test_any_replica_shows_what_all_do() -> None:
    one, two = both()
    told = joint(one, [(two, 3.0)], most=10)
    assert told["host"] == "a"
    assert [(row["host"], row["own"], row["silent"], row["lanes"]) for row in told["replicas"]] == [
        ("a", True, 0.0, ["upload"]),
        ("b", False, 0.0, ["prewarm.fast"]),
    ]
    states = [(row["host"], row["image_id"], row["state"]) for row in told["jobs"]]
    assert states == [
        *sorted((("a", "u1", "in progress"), ("b", "i1", "in progress")), key=lambda row: row[0]),
        ("b", "i4", "waiting"),
        ("b", "i3", "parked"),
        ("b", "i2", "held"),
    ]
    fast = lane(told, "prewarm.fast")
    assert (fast["served"], fast["served_by"]) == (True, "b")
    assert (fast["in_progress"], fast["held"], fast["waiting"], fast["depth"]) == (1, 1, 1, 3)
    assert lane(told, "upload")["served_by"] == "a"
    # As the replica has seen it that serves the lane
    assert told["targets"][0]["bytes"] == 7
    assert told["uploads"]["waiting"] == told["uploads"]["done"] == 1
    assert told["dead_letters"]["count"] == 2
    assert [row["image_id"] for row in told["dead_letters"]["latest"]] == ["i3"]
    assert {row["image_id"] for row in told["failures"]} == {"i3", "i4"}
    [(_, *made, count)] = told["volumes_made"]["hours"]
    assert (made, count) == (["fast", "download", "no_location"], 2)
    assert len(told["volumes_made"]["latest"]) == len(told["times"]["volume_create"]) == 2
    assert told["held_back"] == [["i9", "fast", "undone"]]
    assert told["cache_full"] == {"fast": "it is full"}


def test_whoever_is_asked_the_answer_is_the_same() -> None:
    one, two = both()
    asked, other = joint(one, [(two, 0.0)], most=10), joint(two, [(one, 0.0)], most=10)
    own = {"started", "now", "host", "grid", "replicas", "last_resync"}
    assert asked.keys() == other.keys()
    for name in asked.keys() - own:
        assert _sorted(asked[name]) == _sorted(other[name]), name


def test_no_more_jobs_than_were_asked_for() -> None:
    one, two = both()
    told = joint(one, [(two, 0.0)], most=2)
    assert (len(told["jobs"]), told["jobs_left_out"]) == (2, 3)


def test_of_a_silent_replica_only_its_silence_is_told() -> None:
    one, two = both()
    told = joint(one, [(two, SILENT + 1)], most=10)
    assert [row["host"] for row in told["jobs"]] == ["a"]
    assert lane(told, "prewarm.fast")["served"] is False
    assert [row["silent"] for row in told["replicas"]] == [0.0, SILENT + 1]


@pytest.mark.parametrize(
    "strange", [{}, {"version": "2", "host": "b", "lanes": 7}, {"format": FORMAT + 1, "jobs": 0}]
)
def test_a_replica_of_another_form_may_tell_anything(strange: Mapping[str, Any]) -> None:
    one, _ = both()
    told = joint(one, [(strange, 0.0)], most=10)
    assert [row["version"] for row in told["replicas"]] == ["1", strange.get("version", "")]
    assert [row["merged"] for row in told["replicas"]] == [True, False]
    assert [row["host"] for row in told["jobs"]] == ["a"]


def test_alone_a_replica_tells_what_it_knows() -> None:
    one, _ = both()
    before = copy.deepcopy(one)
    told = joint(one, [], most=10)
    assert one == before
    assert {**told, "jobs": [], "lanes": [], "replicas": []} == {
        **one, "jobs": [], "lanes": [], "replicas": [], "held_back": [],
    }  # fmt: skip
    assert [row["host"] for row in told["replicas"]] == ["a"]


def _sorted(value: Any) -> Any:
    return sorted(map(repr, value)) if isinstance(value, list) else value


@pytest.mark.parametrize("cost", [0.0, 0.18, 0.6, 3.0])
def test_a_part_that_costs_a_lot_makes_no_replica_silent(
    monkeypatch: pytest.MonkeyPatch, cost: float
) -> None:
    now = 0.0

    def made() -> Mapping[str, Any]:
        nonlocal now
        now += cost
        return {}

    class Channel:
        def basic_publish(self, *_: object, **__: object) -> None:
            """Take it."""

    monkeypatch.setattr(time, "monotonic", lambda: now)
    replicas = Replicas(url="amqp://a:b@c/d", queue="q", document=made)
    replicas._channel = Channel()
    assert replicas.turn() + cost <= SILENT / 2 + cost
