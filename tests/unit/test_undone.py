"""The worker does not fight over Image-Volumes: Cinder's cache limits, and workers that
disagree."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from worker.core.cloud import GIB
from worker.core.job import Key
from worker.core.outcome import Again, Done, Skip
from worker.core.state import State
from worker.core.target import Policy
from worker.core.undone import HOLD_FOR, IN_A_ROW, Undone
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import FAST, STORES, Polls, Rig, using

PATIENT = Policy(settle=0.0, rewarm_interval=600.0)
KEY = Key("prewarm", "", "fast")


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(stores=STORES, multiple_locations=True)


def caching(cloud: FakeCloud, policy: Policy = PATIENT) -> Rig:
    cloud.cached = frozenset({"fast"})
    return Rig(cloud, targets=using("cache", FAST), policy=policy)


def states(rig: Rig, cloud: FakeCloud) -> dict[str, str]:
    """State of each image, as a listing shows it."""
    return {
        image.id: one.state
        for image in cloud.images.values()
        for one in rig.prewarm.warmth(image, tuple(cloud.of(image.id)))
    }


async def settled(rig: Rig, *, seconds: float = 0.3) -> None:
    """Nothing is worked on any more; what waits for its time does so."""
    await asyncio.sleep(seconds)
    await rig.rest(step=0.02, most=5.0, due=5.0)


@pytest.mark.parametrize("heard", [True, False], ids=["events", "no events"])
@pytest.mark.parametrize("wanted", [3, 12])
async def test_a_cache_that_is_full_is_not_fought_over(
    cloud: FakeCloud, wanted: int, heard: bool
) -> None:
    cloud.cache_max_count = 2
    async with caching(cloud) as rig:
        if heard:
            cloud.emit = rig.hear
        images = [cloud.upload() for _ in range(wanted)]
        for _ in range(4):
            await rig.resync()
            await settled(rig)
        # Some are on their way when the first eviction is found out
        assert cloud.calls["create_volume"] <= min(wanted + 1, 2 + 2 * FAST.max_concurrent)
        assert len([image for image in images if cloud.of(image.id)]) == 2
        assert sorted(states(rig, cloud).values()) == ["full"] * (wanted - 2) + ["warm"] * 2
        why = next(one.why for one in rig.prewarm.warmth(images[0], ()) if one.state == "full")
        assert "image_volume_cache_max_count" in why


async def test_once_there_is_room_the_next_one_is_made(cloud: FakeCloud) -> None:
    cloud.cache_max_count = 2
    async with caching(cloud, replace(PATIENT, rewarm_interval=0.2)) as rig:
        await rig.resync()
        cloud.emit = rig.hear
        for _ in range(3):
            cloud.upload()
            await settled(rig)
        (left_out,) = [
            image_id for image_id, state in states(rig, cloud).items() if state == "full"
        ]
        assert cloud.calls["create_volume"] == 3
        cloud.delete_image(next(image_id for image_id in cloud.images if image_id != left_out))
        await settled(rig)
        await rig.resync()
        await settled(rig)
        assert states(rig, cloud) == dict.fromkeys(cloud.images, "warm")
        assert cloud.calls["create_volume"] == 4


async def test_a_full_cache_is_tried_again_a_day_later(cloud: FakeCloud) -> None:
    cloud.cache_max_count = 2
    async with caching(cloud) as rig:
        for _ in range(3):
            cloud.upload()
        await rig.resync()
        await settled(rig)
        assert await rig.resync() == []
        cloud.cache_max_count = 3
        cloud.ahead += HOLD_FOR + 1.0
        await rig.resync()
        await settled(rig)
        assert states(rig, cloud) == dict.fromkeys(cloud.images, "warm")


async def test_an_image_above_the_caches_size_is_tried_twice_a_day(cloud: FakeCloud) -> None:
    cloud.cache_max_gigabytes = 5
    async with caching(cloud) as rig:
        cloud.emit = rig.hear
        large, small = cloud.upload(size=6 * GIB), cloud.upload(size=GIB)
        await settled(rig, seconds=1.0)
        await rig.resync()
        await settled(rig)
        assert states(rig, cloud) == {large.id: "held back", small.id: "warm"}
        assert cloud.calls["create_volume"] == 3
        assert rig.lanes.depths()["dead"] == 0
        outcome = await rig.run(large.id)
        assert isinstance(outcome, Skip)
        assert "image_volume_cache_max_size_gb" in outcome.reason
        assert cloud.calls["create_volume"] == 3
        # The image is another one
        cloud.emit = lambda _: None
        cloud.touch(large.id, size=GIB)
        outcome = await rig.run(large.id)
        assert isinstance(outcome, Again)
        assert outcome.after == pytest.approx(PATIENT.rewarm_interval, abs=2.0)
        cloud.ahead += PATIENT.rewarm_interval
        assert isinstance(await rig.run(large.id), Done)


async def test_a_cache_that_is_off_is_tried_with_a_few_images_only(cloud: FakeCloud) -> None:
    async with Rig(cloud, targets=using("cache", FAST), policy=PATIENT) as rig:
        for _ in range(20):
            cloud.upload()
        await rig.resync()
        await settled(rig, seconds=1.0)
        await rig.resync()
        await settled(rig)
        assert cloud.calls["create_volume"] <= 3 + 2 * FAST.max_concurrent
        assert set(states(rig, cloud).values()) <= {"full", "held back"}


@pytest.mark.parametrize("strategy", ["store", "location", "cache"])
async def test_workers_that_disagree_do_not_fight(cloud: FakeCloud, strategy: str) -> None:
    cloud.cached = frozenset({"fast"} if strategy == "cache" else ())
    policy = Policy(settle=0.0, rewarm_interval=0.3)
    wants = Rig(cloud, targets=using(strategy, FAST), policy=policy)
    refuses = Rig(
        cloud,
        targets=using(strategy, FAST),
        policy=replace(policy, exclude_projects=frozenset({"alice"})),
    )
    async with wants, refuses:

        def both(body: bytes) -> None:
            wants.hear(body)
            refuses.hear(body)

        cloud.emit = both
        image = cloud.upload(owner="alice")
        for _ in range(8):
            for rig in (wants, refuses):
                await rig.resync()
                await settled(rig, seconds=0.1)
        assert cloud.calls["create_volume"] + cloud.calls["copy_image"] <= 2
        cloud.emit = lambda _: None
        outcome = await wants.run(image.id)
        assert isinstance(outcome, Skip)
        assert outcome.state == "held back"
        assert cloud.has_data(image.id)


@pytest.mark.parametrize("strategy", ["store", "location", "cache"])
async def test_what_was_deleted_soon_is_made_again_once_in_rewarm_interval(
    cloud: FakeCloud, strategy: str
) -> None:
    cloud.cached = frozenset({"fast"} if strategy == "cache" else ())
    async with Rig(cloud, targets=using(strategy, FAST), policy=PATIENT) as rig:
        image = cloud.upload()
        assert isinstance(await rig.run(image.id), Done)
        rig.lose(cloud.of(image.id)[0].id)
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Again)
        assert not outcome.counted
        assert 590.0 < (outcome.after or 0.0) <= 600.0
        cloud.ahead += 601.0
        assert isinstance(await rig.run(image.id), Done)
        rig.lose(cloud.of(image.id)[0].id)
        cloud.ahead += 601.0
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Skip)
        assert outcome.state == "held back"
        # Unless an operator wants it now
        assert isinstance(
            await rig.prewarm.reconcile(KEY._replace(image_id=image.id), Polls(by_operator=True)),
            Done,
        )


@pytest.mark.parametrize("strategy", ["store", "location", "cache"])
async def test_a_clock_that_was_ahead_makes_nobody_wait_for_that_time(
    cloud: FakeCloud, strategy: str
) -> None:
    """It jumped two hours ahead and back, and a job waited for as long in the broker's delays."""
    cloud.cached = frozenset({"fast"} if strategy == "cache" else ())
    async with Rig(cloud, targets=using(strategy, FAST), policy=PATIENT) as rig:
        image = cloud.upload()
        cloud.ahead += 7200.0
        assert isinstance(await rig.run(image.id), Done)
        rig.lose(cloud.of(image.id)[0].id)
        assert isinstance(await rig.run(image.id), Again)
        cloud.ahead -= 7200.0
        assert isinstance(await rig.run(image.id), Done)


@pytest.mark.parametrize("strategy", ["store", "location", "cache"])
async def test_what_was_there_for_a_day_is_made_again_at_once(
    cloud: FakeCloud, strategy: str
) -> None:
    cloud.cached = frozenset({"fast"} if strategy == "cache" else ())
    async with Rig(cloud, targets=using(strategy, FAST), policy=PATIENT) as rig:
        image = cloud.upload()
        for _ in range(4):
            assert isinstance(await rig.run(image.id), Done)
            rig.lose(cloud.of(image.id)[0].id)
            cloud.ahead += HOLD_FOR + 1.0
        assert isinstance(await rig.run(image.id), Done)


async def test_what_broke_is_nobodys_undoing(cloud: FakeCloud) -> None:
    cloud.cached = frozenset({"fast"})
    async with caching(cloud) as rig:
        image = cloud.upload()
        for _ in range(3):
            assert isinstance(await rig.run(image.id), Done)
            (entry,) = cloud.of(image.id)
            cloud.volumes[entry.id] = replace(entry, status="error")
        assert isinstance(await rig.run(image.id), Done)


def test_what_a_clock_that_was_years_ahead_has_noted_holds_nothing() -> None:
    undone, ahead, now = Undone(), 2_000_000_000.0, 1_700_000_000.0
    for _ in range(2):
        undone.refused("i", "fast", state="s", at=ahead, why="none was made")
    undone.fill("fast", "it is full", now=ahead)
    assert undone.held("i", "fast", state="s", now=ahead)
    assert undone.full("fast", now=ahead) == "it is full"
    assert not undone.held("i", "fast", state="s", now=now)
    assert not undone.all_held(now=now)
    assert not undone.look("i", "fast", state="s", now=now)
    assert undone.full("fast", now=now) == ""
    assert undone.full_places("fast", now=now) == ()


async def test_a_cache_that_was_switched_on_takes_new_images_too() -> None:
    cloud = FakeCloud(stores={})
    async with Rig(cloud, targets=using("cache", FAST), policy=Policy(settle=0.0)) as rig:
        refused = [cloud.upload(disk_format="qcow2") for _ in range(IN_A_ROW)]
        for image in refused:
            await rig.run(image.id)
        outcome = await rig.run(cloud.upload(disk_format="qcow2").id)
        assert isinstance(outcome, Skip)
        assert outcome.state is State.FULL
        cloud.cached = frozenset({"fast"})
        # An operator has switched it on, and asks for a resync
        again = Key("prewarm", refused[0].id, "fast")
        assert isinstance(await rig.prewarm.reconcile(again, Polls(by_operator=True)), Done)
        assert isinstance(await rig.run(cloud.upload(disk_format="qcow2").id), Done)


def test_what_is_remembered_is_bounded_and_forgotten() -> None:
    undone = Undone()
    undone.made("i", "fast", state="a", volume_id="v", at=0.0)
    assert undone.standing("fast", since=1.0).keys() == {"i"}
    assert undone.look("i", "slow", state="a", now=1.0) is None
    # Looked at twice it is undone once
    for _ in range(2):
        past = undone.look("i", "fast", state="a", now=1.0)
        assert past
        assert (past.times, past.is_held) == (1, False)
    assert undone.standing("fast", since=2.0) == {}
    assert undone.look("i", "fast", state="b", now=1.0) is None
    assert undone.look("i", "fast", state="a", now=1.0) is None
    undone.made("i", "fast", state="a", volume_id="v", at=0.0)
    undone.forget("i")
    assert undone.look("i", "fast", state="a", now=1.0) is None


async def test_an_image_whose_virtual_size_nobody_tells_is_held_back_with_the_advice() -> None:
    """As of Glance before it noted that; Cinder's volume of it is too small each time."""
    cloud = FakeCloud(stores={}, cached={"fast"}, dead_types={"fast"})
    async with Rig(cloud, targets=(FAST,)) as rig:
        image = cloud.upload(disk_format="qcow2", virtual_size=0, min_disk=0)
        await rig.resync()
        await rig.quiet()
        [(image_id, target, why)] = rig.prewarm.held_back()
        assert (image_id, target) == (image.id, "fast")
        assert "set its min_disk" in why
        assert cloud.calls["create_volume"] == 2
        # Its owner does so
        cloud.dead_types.clear()
        cloud.touch(image.id, min_disk=3)
        await rig.resync()
        await rig.quiet()
        assert [volume.size for volume in cloud.of(image.id)] == [3]
