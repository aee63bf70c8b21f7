"""Data of the page besides jobs and states: uploads, dead letters, Image-Volumes, budgets, how volumes
were made, and the choice of images."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from typing import Any

import pytest

from handlers import image_volume, last_use
from worker.core.cloud import GIB, Image, Volume
from worker.core.creation import Creation, Made, Way
from worker.core.job import Job, Key
from worker.core.outcome import Again, Done, Outcome, Park, Skip
from worker.core.pool import Place
from worker.core.state import State
from worker.core.target import TAG, Policy
from worker.engine.resync import Census, count
from worker.observe import image_volumes
from worker.observe.activity import Activity
from worker.observe.history import HOUR, HOURS, UPLOADS, History
from worker.observe.image_volumes import ImageVolumes, KeptVolume
from worker.observe.order import Choice
from worker.observe.status_document import MOST, Services
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import FAST, SLOW, STORES, Rig

LANES = {"upload": 8, "prewarm.fast": 2, "prewarm.slow": 2}
ID = "11111111-1111-4111-8111-111111111111"


def job(number: int = 1, handler: str = "upload", target: str = "", **fields: Any) -> Job:
    return Job(key=Key(handler, f"i{number}", target), cause="x", first_at=5.0, **fields)


def image(number: int = 1, **fields: Any) -> Image:
    defaults: dict[str, Any] = {
        "id": f"i{number}", "status": "active", "owner": "o", "disk_format": "raw", "container_format": "bare",
        "visibility": "public", "name": f"name {number}", "size": number * GIB,
    }  # fmt: skip
    return Image(**(defaults | fields))


def volume(**fields: Any) -> Volume:
    defaults: dict[str, Any] = {
        "id": ID, "name": "image-i1", "status": "available", "volume_type": "fast", "size": 3,
        "created_epoch": 1000.0, "host": "h@b#p", "metadata": {TAG: "fast"},
    }  # fmt: skip
    return Volume(**(defaults | fields))


def creation(**fields: Any) -> Creation:
    defaults: dict[str, Any] = {
        "volume_id": ID, "image_id": "i1", "target": "fast", "began": 1.0, "ended": 2.0, "seconds": 4.0,
    }  # fmt: skip
    return Creation(**(defaults | fields))


def status(activity: Activity, **fields: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"targets": (FAST, SLOW), "lanes": LANES, "depths": {}}
    document = activity.status(Services(**(defaults | fields)))
    json.dumps(document)
    return document


# Uploads


@pytest.mark.parametrize(
    ("outcomes", "shown"),
    [
        ([Done(changed=True)], ["done"]),
        ([Done()], []),
        ([Skip("no such volume", State.UPLOAD)], ["refused"]),
        ([Skip("nobody asked")], []),
        ([Skip("no such volume", State.UPLOAD), Done(changed=True)], ["done"]),
        ([Skip("no such volume", State.UPLOAD), Again("no answer", after=1.0)], []),
        ([Skip("no such volume", State.UPLOAD), Done("gone", state=State.GONE)], []),
        ([Done(changed=True), Done()], ["done"]),
        ([Done("3 deleted", changed=True, state=State.GONE)], []),
    ],
)
def test_an_upload_is_shown_as_what_came_of_it_last(
    outcomes: list[Outcome], shown: list[str]
) -> None:
    activity = Activity()
    for outcome in outcomes:
        activity.settled(job(), outcome, due=4e9)
    told = status(activity)["uploads"]
    assert [one["state"] for one in told["settled_latest"]] == shown
    assert (told["done"], told["refused"]) == (shown.count("done"), shown.count("refused"))


def test_uploads_that_wait_are_shown_with_their_reason() -> None:
    activity = Activity()
    activity.settled(job(1), Again("over quota", after=9.0, counted=False), due=4e9)
    activity.began(job(2))
    activity.doing(job(2).key, "Make a clone")
    activity.settled(job(3), Park("never"), due=4e9)
    activity.began(job(4, "prewarm", "fast"))
    told = status(activity)["uploads"]
    assert told["waiting"] == 2
    reasons = {one["image_id"]: one["reason"] for one in told["waiting_latest"]}
    assert reasons == {"i1": "over quota", "i2": "Make a clone"}


def test_uploads_are_bounded_and_the_latest_come_first() -> None:
    activity = Activity()
    for number in range(UPLOADS + 20):
        activity.settled(job(number), Done(changed=True))
    told = status(activity)["uploads"]
    assert told["done"] == UPLOADS + 20
    assert len(told["settled_latest"]) == MOST
    assert told["settled_latest"][0]["image_id"] == f"i{UPLOADS + 19}"


async def test_a_worker_tells_of_an_upload_that_it_refuses_and_then_completes() -> None:
    cloud = FakeCloud(stores=STORES)
    async with Rig(cloud) as rig:
        queued = cloud.queue(properties={"image_volume_source": "no-volume"})
        await rig.resync()
        await rig.quiet()
        (told,) = status(rig.metrics.activity)["uploads"]["settled_latest"]
        assert (told["image_id"], told["state"]) == (queued.id, "refused")
        assert "volume" in told["reason"]


# Dead letters


def test_dead_letters_are_shown_however_many_jobs_wait() -> None:
    activity = Activity()
    for number in range(300):
        activity.settled(job(number, "prewarm", "fast"), Again("busy", after=1.0), due=4e9)
    activity.settled(job(900, "prewarm", "slow", attempt=20), Park("no such type"), due=4e9)
    activity.settled(job(901), Park("a bug"), due=4e9)
    told = status(activity, depths={"dead": 7})["dead_letters"]
    assert told["count"] == 7
    assert [one["image_id"] for one in told["latest"]] == ["i901", "i900"]
    older = told["latest"][1]
    assert (older["handler"], older["target"], older["reason"]) == (
        "prewarm",
        "slow",
        "no such type",
    )
    assert status(activity)["dead_letters"]["count"] is None, "the lanes are not open"
    activity.began(job(901))
    assert [one["image_id"] for one in status(activity)["dead_letters"]["latest"]] == ["i900"]


# Image-Volumes and budgets


def test_image_volumes_are_kept_packed_and_come_out_as_they_were() -> None:
    kept = ImageVolumes(used_of=lambda _: 2000.0)
    kept.add("i1", volume())
    other = str(uuid.uuid4())
    kept.add("i1", volume(id=other, size=7, host="", status="error", metadata={}))
    assert kept.of("i1") == [
        KeptVolume(ID, 3, 1000.0, 2000.0, "fast", "h@b#p", "available"),
        KeptVolume(other, 7, 1000.0, 2000.0, "", "", "error"),
    ]
    assert kept.of("i2") == []
    assert kept.counts == {"fast": 1, "": 1}


def test_too_many_image_volumes_are_only_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_volumes, "MOST", 2)
    monkeypatch.setattr(image_volumes, "WORDS", 2)
    kept = ImageVolumes()
    for number in range(4):
        kept.add(f"i{number}", volume(id=str(uuid.UUID(int=number)), host=f"pool {number}"))
    kept.add("i9", volume(id="no uuid"))
    assert [len(kept.of(f"i{number}")) for number in range(4)] == [1, 1, 0, 0]
    assert kept.counts == {"fast": 5}
    assert kept.of("i0")[0].pool == "", "no room for more names"


async def test_the_detail_of_an_image_has_its_volumes_as_last_listed() -> None:
    cloud = FakeCloud(stores=STORES)
    async with Rig(cloud, targets=(FAST, SLOW), policy=Policy(settle=0.0)) as rig:
        activity = rig.metrics.activity
        made = cloud.upload(name="Debian", owner="project-1", size=2 * GIB)
        await rig.resync()
        await rig.quiet()
        assert activity.image("no such image", ("fast",)) == {}
        census = Census(
            kept=ImageVolumes(used_of=lambda volume: last_use.recorded_use(volume, cloud.now()))
        )
        await count(cloud, image_of=image_volume.image_of, census=census)
        assert census.kept is not None
        activity.listed(census.kept)
        told = activity.image(made.id, (one for one in ("fast", "slow")))
        assert (told["id"], told["name"], told["project"]) == (made.id, "Debian", "project-1")
        assert [one["state"] for one in told["targets"]] == ["warm", "warm"]
        ids = {one["id"] for one in told["volumes"]}
        assert ids == {one.id for one in cloud.volumes.values() if image_volume.image_of(one)}
        assert {one["size"] for one in told["volumes"]} == {2}
        assert json.loads(json.dumps(told)) == told


def test_a_job_changes_the_detail_and_a_private_image_keeps_its_name() -> None:
    activity = Activity()
    activity.look(image(1, visibility="private"), {"fast": (State.COLD, "why")})
    activity.settled(job(1, "prewarm", "fast", attempt=3), Again("quota", after=9.0), due=4e9)
    told = activity.image("i1", ("fast",))
    assert told["name"] == ""
    assert told["targets"] == [{"target": "fast", "state": "failed", "why": "quota"}]


def test_targets_are_told_with_budget_and_pools() -> None:
    places = (Place(("h@b#p2",)), Place(("h@b#p1",)))
    bounded = replace(FAST, max_gigabytes=50, max_count=9, places=places)
    activity = Activity()
    kept = ImageVolumes()
    kept.add("i1", volume())
    activity.listed(kept)
    (told,) = status(activity, targets=(bounded,))["targets"]
    assert (told["volumes"], told["max_gigabytes"], told["max_count"]) == (1, 50, 9)
    assert told["pools"] == ["h@b#p1", "h@b#p2"]


# How volumes were made


def test_volumes_are_counted_by_hour_path_and_reason() -> None:
    past = History()
    now = 1_000_000 * HOUR + 10.0
    past.create(creation(), Made(Way.CACHE), now - HOUR)
    for _ in range(2):
        past.create(creation(seconds=None), Made(Way.DOWNLOAD, ("format", "owner")), now)
    past.create(creation(), Made(Way.UNKNOWN), now)
    assert past.past(now).hours == [
        (999_999 * HOUR, "fast", "cache", "", 1),
        (1_000_000 * HOUR, "fast", "download", "format", 2),
        (1_000_000 * HOUR, "fast", "unknown", "", 1),
    ]
    assert past.past(now + (HOURS + 1) * HOUR).hours == []
    for number in range(3 * HOURS):
        past.create(creation(), Made(Way.NATIVE), now + number * HOUR)
    latest = now + (3 * HOURS - 1) * HOUR
    assert len(past.past(latest).hours) == HOURS


def test_the_status_tells_how_volumes_were_made_and_keeps_what_it_had() -> None:
    activity = Activity()
    activity.look(image(1), {"fast": (State.WARM, "")})
    activity.created(creation(), Made(Way.CACHE))
    activity.created(creation(seconds=None), Made(Way.DOWNLOAD, ("no_location",)))
    document = status(activity)
    assert [row[1:] for row in document["times"]["volume_create"]] == [["fast", True, 4.0]]
    latest = document["volumes_made"]["latest"]
    assert [(one["path"], one["reason"], one["name"]) for one in latest] == [
        ("download", "no_location", "name 1"),
        ("cache", "", "name 1"),
    ]
    assert sum(row[-1] for row in document["volumes_made"]["hours"]) == 2


# Which images


def listed(activity: Activity, **choice: Any) -> list[str]:
    document = activity.images(("fast", "slow"), Choice(**choice))
    assert document["found"] == len(document["images"])
    return [row[0] for row in document["images"]]


@pytest.fixture
def mixed() -> Activity:
    made = Activity()
    warm = (State.WARM, "")
    made.look(image(1, name="Zorin", owner="p1"), {"fast": warm, "slow": (State.FULL, "is FULL")})
    made.look(image(2, name="arch", owner="p2"), {"fast": (State.COLD, "no entry"), "slow": warm})
    made.look(image(3, name="x", owner="p1", visibility="private"), {"fast": warm, "slow": warm})
    return made


@pytest.mark.parametrize(
    ("choice", "ids"),
    [
        ({}, ["i2", "i1", "i3"]),
        ({"sort": "name"}, ["i2", "i1", "i3"]),
        ({"sort": "size"}, ["i3", "i2", "i1"]),
        ({"sort": "project"}, ["i3", "i1", "i2"]),
        ({"sort": "no such"}, ["i2", "i1", "i3"]),
        ({"project": "P1"}, ["i1", "i3"]),
        ({"reason": "full"}, ["i1"]),
        ({"reason": "full", "target": "fast"}, []),
        ({"target": "slow"}, ["i1", "i3", "i2"]),
        ({"state": "warm", "target": "fast"}, ["i3", "i1"]),
        ({"target": "no such"}, ["i2", "i1", "i3"]),
        ({"project": "p1", "state": "full", "text": "zor"}, ["i1"]),
        ({"text": "x"}, []),
    ],
)
def test_images_are_sorted_and_chosen(
    mixed: Activity, choice: dict[str, str], ids: list[str]
) -> None:
    assert listed(mixed, **choice) == ids
    assert listed(mixed, **choice) == ids, "the same when it is remembered"


def test_a_choice_that_is_remembered_is_made_anew_when_something_changes(mixed: Activity) -> None:
    assert listed(mixed, reason="quota") == []
    mixed.settled(job(3, "prewarm", "slow", attempt=1), Again("over quota", after=9.0), due=4e9)
    assert listed(mixed, reason="quota") == ["i3"]
    mixed.settled(job(2, "prewarm", "fast", attempt=1), Again("over quota", after=9.0), due=4e9)
    assert listed(mixed, reason="quota") == ["i3", "i2"]


def test_of_one_target_only_its_column_is_told(mixed: Activity) -> None:
    document = mixed.images(("fast", "slow"), Choice(target="slow"))
    assert document["targets"] == ["slow"]
    assert [len(row[3]) for row in document["images"]] == [1, 1, 1]
    assert document["projects"] == ["p1", "p1", "p2"]
