"""Prewarm against the fake cloud: each strategy gets there, stays there, and gets over what goes
wrong on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import structlog

from handlers import image_volume
from handlers.import_lock import SLOWEST
from handlers.prewarm.strategies import registered
from handlers.resolve import resolve
from tests.unit.rigs import DeletedAtOnce
from worker.core.cloud import GIB, ImageTask, Location, Store, Volume
from worker.core.errors import Blocked, Conflict, NotFound, Temporary
from worker.core.job import Key
from worker.core.outcome import Again, Done, Skip
from worker.core.target import Policy, Target
from worker.testing.fake_cloud import PROJECT, FakeCloud, Fault, notification
from worker.testing.rig import FAST, SLOW, STORES, Polls, Rig, located, using

STRATEGIES = ["store", "location", "cache"]


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(stores=STORES, multiple_locations=True)


def caching(cloud: FakeCloud, strategy: str) -> FakeCloud:
    """The cloud with Cinder's image-volume cache on if that is what the strategy is about."""
    cloud.cached = frozenset({"fast", "slow"} if strategy == "cache" else ())
    return cloud


@pytest.fixture(params=STRATEGIES)
async def rig(request: pytest.FixtureRequest, cloud: FakeCloud) -> AsyncIterator[Rig]:
    caching(cloud, request.param)
    async with Rig(
        cloud, targets=using(request.param, FAST, SLOW), policy=Policy(settle=0.0)
    ) as rig:
        yield rig
        await rig.quiet()


@pytest.fixture
async def store_rig(cloud: FakeCloud) -> AsyncIterator[Rig]:
    async with Rig(cloud, policy=Policy(settle=0.0)) as rig:
        yield rig
        await rig.quiet()


def serving(cloud: FakeCloud, image_id: str) -> dict[str, Volume]:
    """The one Image-Volume that serves on each type, checked to be what Cinder needs to clone it
    for everyone."""
    found: dict[str, Volume] = {}
    image = cloud.images[image_id]
    for volume in cloud.of(image_id):
        assert volume.status == "available"
        assert volume.volume_type not in found, "more than one"
        assert volume.metadata["image_owner"] == image.owner
        assert volume.metadata["glance_image_id"] == image_id
        assert volume.metadata["image_size"] == str(image.size)
        assert volume.metadata["readonly"] == "True"
        assert volume.metadata["image_volume_worker"] == volume.volume_type
        found[volume.volume_type] = volume
    return found


def check_warm(cloud: FakeCloud, image_id: str, strategy: str) -> None:
    volumes = serving(cloud, image_id)
    assert set(volumes) == {"fast", "slow"}
    if strategy != "cache":
        assert set(located(cloud, image_id)) == {volume.id for volume in volumes.values()}


def strategy_of(rig: Rig) -> str:
    return next(iter(rig.prewarm._targets.values())).strategy


async def test_a_notification_is_enough(rig: Rig, cloud: FakeCloud) -> None:
    cloud.emit = rig.hear
    image = cloud.upload()
    await rig.quiet()
    check_warm(cloud, image.id, strategy_of(rig))


async def test_a_resync_alone_gets_there(rig: Rig, cloud: FakeCloud) -> None:
    image = cloud.upload()
    found = await rig.resync()
    assert {missing.key.target for missing in found} == {"fast", "slow"}
    await rig.quiet()
    check_warm(cloud, image.id, strategy_of(rig))
    assert await rig.resync() == []


async def test_the_second_run_changes_nothing_and_costs_three_calls(
    rig: Rig, cloud: FakeCloud
) -> None:
    image = cloud.upload()
    assert isinstance(await rig.run(image.id), Done)
    before = (dict(cloud.volumes), dict(cloud.locations), dict(cloud.images))
    cloud.calls.clear()
    assert isinstance(await rig.run(image.id), Done)
    assert cloud.calls.total() <= 3
    assert before == (cloud.volumes, cloud.locations, cloud.images)


async def test_making_one_image_volume_costs_ten_calls_and_polls(
    rig: Rig, cloud: FakeCloud
) -> None:
    await rig.prewarm.prepare({})
    image = cloud.upload()
    cloud.seconds = 0.02
    cloud.calls.clear()
    polls = Polls()
    assert isinstance(await rig.prewarm.reconcile(Key("prewarm", image.id, "fast"), polls), Done)
    assert polls.count
    # Each wait is followed by one poll
    assert cloud.calls.total() - polls.count <= 10, cloud.calls


async def test_notifications_doubled_late_and_reordered_make_one(
    rig: Rig, cloud: FakeCloud
) -> None:
    heard: list[bytes] = []
    cloud.emit = heard.append
    cloud.seconds = 0.02
    image = cloud.upload()
    rig.hear(heard[0])
    rig.hear(heard[0])
    await rig.quiet()
    for body in reversed(heard):
        rig.hear(body)
        rig.hear(body)
    await rig.quiet()
    check_warm(cloud, image.id, strategy_of(rig))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"disk_format": "iso"}, "iso"),
        ({"status": "queued"}, "queued"),
        ({"status": "deactivated"}, "deactivated"),
        ({"owner": "mallory"}, "exclude_projects"),
    ],
)
async def test_what_is_not_wanted_is_left_alone_with_the_reason(
    cloud: FakeCloud, changes: dict[str, str], why: str
) -> None:
    async with Rig(cloud, policy=Policy(exclude_projects=frozenset({"mallory"}))) as rig:
        image = cloud.upload(**changes)
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Skip)
        assert why in outcome.reason
        assert cloud.volumes == {}
        assert await rig.resync() == []


@pytest.mark.parametrize(
    "verb",
    [
        "create_volume",
        "copy_image",
        "add_location",
        "set_metadata",
        "set_readonly",
        "delete_volume",
    ],
)
@pytest.mark.parametrize("done", [False, True], ids=["not done", "done, answer lost"])
async def test_a_write_that_fails_is_made_up_for(
    rig: Rig, cloud: FakeCloud, verb: str, done: bool
) -> None:
    cloud.emit = rig.hear
    cloud.faults[verb] = Fault(Temporary("no answer"), times=2, done=done)
    image = cloud.upload()
    await rig.quiet()
    check_warm(cloud, image.id, strategy_of(rig))


@pytest.mark.parametrize(
    "verb",
    [
        "get_image",
        "find_volumes",
        "get_volume",
        "get_locations",
        "list_stores",
        "describe_volume_types",
    ],
)
async def test_a_read_that_fails_is_made_up_for(rig: Rig, cloud: FakeCloud, verb: str) -> None:
    cloud.emit = rig.hear
    cloud.faults[verb] = Fault(Blocked("403"), times=3)
    image = cloud.upload()
    await rig.quiet()
    check_warm(cloud, image.id, strategy_of(rig))


async def test_an_image_deleted_while_its_volume_is_made_leaves_nothing(
    rig: Rig, cloud: FakeCloud
) -> None:
    cloud.emit = rig.hear
    cloud.seconds = 0.1
    image = cloud.upload()
    while not cloud.of(image.id):
        await asyncio.sleep(0.005)
    cloud.delete_image(image.id)
    await rig.quiet()
    assert cloud.of(image.id) == []


async def test_so_does_one_whose_deletion_nobody_heard_of(rig: Rig, cloud: FakeCloud) -> None:
    cloud.seconds = 0.05
    image = cloud.upload()
    await rig.resync()
    while not cloud.of(image.id):
        await asyncio.sleep(0.005)
    cloud.delete_image(image.id)
    await rig.quiet()
    await rig.resync()
    await rig.quiet()
    assert cloud.of(image.id) == []


async def test_a_worker_that_stops_half_way_is_carried_on_by_the_next(cloud: FakeCloud) -> None:
    for strategy in STRATEGIES:
        caching(cloud, strategy)
        targets = using(strategy, FAST, SLOW)
        image = cloud.upload()
        for steps in range(12):
            async with Rig(cloud, targets=targets, policy=Policy(settle=0.0)) as rig:
                task = asyncio.create_task(rig.run(image.id))
                for _ in range(steps * 2):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await cloud.quiet()
        async with Rig(cloud, targets=targets, policy=Policy(settle=0.0)) as rig:
            await rig.resync()
            await rig.quiet()
        check_warm(cloud, image.id, strategy)


@pytest.mark.parametrize("strategy", ["location", "cache"])
async def test_a_volume_in_error_is_replaced(cloud: FakeCloud, strategy: str) -> None:
    async with Rig(
        caching(cloud, strategy), targets=using(strategy, FAST), policy=Policy(settle=0.0)
    ) as rig:
        cloud.dead_types = {"fast"}
        image = cloud.upload()
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Again)
        assert "could not make" in outcome.reason
        assert cloud.of(image.id) == []
        cloud.dead_types = set()
        assert isinstance(await rig.run(image.id), Done)
        assert set(serving(cloud, image.id)) == {"fast"}


async def test_a_failed_import_is_tried_again_later(store_rig: Rig, cloud: FakeCloud) -> None:
    cloud.dead_types = {"fast"}
    image = cloud.upload()
    outcome = await store_rig.run(image.id)
    assert isinstance(outcome, Again)
    assert "cinder-fast" in outcome.reason
    cloud.dead_types = set()
    assert isinstance(await store_rig.run(image.id), Done)


async def test_one_import_serves_all_targets(store_rig: Rig, cloud: FakeCloud) -> None:
    cloud.emit = store_rig.hear
    cloud.seconds = 0.02
    image = cloud.upload()
    await store_rig.quiet()
    check_warm(cloud, image.id, "store")
    assert cloud.calls["copy_image"] == 1


async def test_a_target_that_fails_is_left_out_of_the_imports_of_others(
    store_rig: Rig, cloud: FakeCloud
) -> None:
    cloud.dead_types = {"slow"}
    first = cloud.upload()
    assert isinstance(await store_rig.run(first.id, "slow"), Again)
    second = cloud.upload()
    assert isinstance(await store_rig.run(second.id, "fast"), Done)
    await cloud.quiet()
    assert cloud.images[second.id].failed == frozenset()


@pytest.mark.parametrize(
    "error",
    [
        Conflict("Store for image_id not found: slow"),
        Blocked("403"),
        NotFound("404"),
        Temporary("500"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_store_that_glance_refuses_does_not_spoil_the_copies_of_others(
    store_rig: Rig, cloud: FakeCloud, error: Exception
) -> None:
    cloud.refused_stores = {"cinder-slow": error}
    images = [cloud.upload() for _ in range(3)]
    for image in images:
        if image is images[0] and type(error) is Temporary:
            # It may have begun: the world is looked at before anything is asked for again
            with pytest.raises(Temporary):
                await store_rig.run(image.id, "fast")
        assert isinstance(await store_rig.run(image.id, "fast"), Done)
        assert len(located(cloud, image.id)) == 1
    # It was found out once
    assert cloud.calls["copy_image"] == 4
    # What is out of the question for a while is tried again after it
    cloud.refused_stores = {}
    assert isinstance(await store_rig.run(images[0].id, "slow"), Done)
    last = cloud.upload()
    assert isinstance(await store_rig.run(last.id, "fast"), Done)
    await cloud.quiet()
    assert len(located(cloud, last.id)) == 2


async def test_a_copy_that_one_store_spoils_for_all_is_made_one_by_one(
    store_rig: Rig, cloud: FakeCloud
) -> None:
    cloud.spoiling_stores = {"cinder-slow"}
    image = cloud.upload()
    assert isinstance(await store_rig.run(image.id, "fast"), Again)
    assert isinstance(await store_rig.run(image.id, "fast"), Done)
    assert isinstance(await store_rig.run(image.id, "slow"), Again)


async def test_somebody_elses_import_is_waited_for(store_rig: Rig, cloud: FakeCloud) -> None:
    cloud.seconds = 0.05
    image = cloud.upload()
    await cloud.copy_image(image.id, ["cinder-slow"])
    outcome = await store_rig.run(image.id, "fast")
    # It holds no slot of the lane meanwhile
    assert isinstance(outcome, Again)
    assert (outcome.counted, outcome.wake_on_notification) == (False, True)
    while cloud.images[image.id].import_locked:
        await asyncio.sleep(0.01)
    assert isinstance(await store_rig.run(image.id, "fast"), Done)
    assert set(cloud.images[image.id].stores or ()) == {"file", "cinder-slow", "cinder-fast"}


async def test_a_dead_lock_holds_no_slot(store_rig: Rig, cloud: FakeCloud) -> None:
    image = cloud.upload()
    cloud.touch(image.id, import_locked=True)
    cloud.ahead = 301.0 + GIB / SLOWEST
    cloud.faults["copy_image"] = Fault(Conflict("Image has active task"))
    outcome = await store_rig.run(image.id)
    assert isinstance(outcome, Again)
    assert (outcome.after, outcome.counted, outcome.wake_on_notification) == (60.0, False, True)
    # Glance gives it away
    cloud.touch(image.id, import_locked=False)
    assert isinstance(await store_rig.run(image.id), Done)


async def test_a_lock_that_died_holds_up_no_repair(cloud: FakeCloud) -> None:
    async with Rig(
        cloud, targets=using("location", FAST), policy=Policy(settle=0.0, rewarm_interval=0.0)
    ) as rig:
        image = cloud.upload()
        assert isinstance(await rig.run(image.id), Done)
        broken = located(cloud, image.id)[0]
        rig.lose(broken)
        cloud.touch(image.id, import_locked=True)
        cloud.ahead = 1000.0
        waiting = await rig.run(image.id)
        assert isinstance(waiting, Again)
        assert (waiting.after, waiting.counted) == (registered.ASK_AGAIN, False)
        assert located(cloud, image.id) == [broken]
        # Glance would give it to the next import
        cloud.ahead = 4000.0
        await rig.run(image.id)
        assert broken not in located(cloud, image.id)


async def test_a_lock_that_died_holds_up_no_eviction(cloud: FakeCloud) -> None:
    async with Rig(cloud, targets=using("location", FAST), policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        assert isinstance(await rig.run(image.id), Done)
        cloud.touch(image.id, import_locked=True)
        key = Key("prewarm", image.id, "fast")
        assert isinstance(await rig.prewarm.reconcile(key, Polls(wish="evict")), Again)
        assert cloud.of(image.id)
        cloud.ahead = 4000.0
        assert isinstance(await rig.prewarm.reconcile(key, Polls(wish="evict")), Done)
        assert not cloud.of(image.id)


async def test_a_volume_whose_location_was_sent_is_not_deleted_on_a_404_alone() -> None:
    """Its owner deletes the image before our next look at it; with delayed_delete the volume may be
    needed to restore it."""
    cloud = DeletedAtOnce(stores=STORES, multiple_locations=True, delayed=True)
    async with Rig(cloud, targets=using("location", FAST), policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        await rig.quiet()
        assert [volume.name for volume in cloud.of(image.id)] == [f"image-{image.id}"]


async def test_the_owner_of_an_image_volume_is_put_right(store_rig: Rig, cloud: FakeCloud) -> None:
    image = cloud.upload(owner="alice")
    await cloud.copy_image(image.id, ["cinder-fast", "cinder-slow"])
    await cloud.quiet()
    assert {v.metadata["image_owner"] for v in cloud.of(image.id)} == {PROJECT}
    assert len(await store_rig.resync()) == 2
    await store_rig.quiet()
    check_warm(cloud, image.id, "store")


async def test_a_location_whose_volume_is_gone_is_removed_and_made_again(cloud: FakeCloud) -> None:
    for strategy in ("store", "location"):
        async with Rig(
            cloud, targets=using(strategy, FAST), policy=Policy(settle=0.0, rewarm_interval=0.0)
        ) as rig:
            image = cloud.upload()
            assert isinstance(await rig.run(image.id), Done)
            rig.lose(located(cloud, image.id)[0])
            assert isinstance(await rig.run(image.id), Done)
            assert located(cloud, image.id) == [volume.id for volume in cloud.of(image.id)]


async def test_the_last_location_is_never_removed(store_rig: Rig, cloud: FakeCloud) -> None:
    image = cloud.upload()
    assert isinstance(await store_rig.run(image.id), Done)
    await cloud.quiet()
    broken = located(cloud, image.id)[0]
    cloud.locations[image.id] = (
        Location(url=f"cinder://cinder-fast/{broken}", store="cinder-fast", volume_id=broken),
    )
    del cloud.volumes[broken]
    outcome = await store_rig.run(image.id)
    assert isinstance(outcome, Again)
    assert "nobody can repair" in outcome.reason
    assert cloud.locations[image.id]
    assert store_rig.count("images_beyond_repair") == 1
    cloud.delete_image(image.id)
    cloud.upload()
    await store_rig.resync()
    await store_rig.quiet()
    assert store_rig.count("images_beyond_repair") == 0


async def test_duplicates_come_down_to_the_oldest(cloud: FakeCloud) -> None:
    async with Rig(cloud, targets=using("location", FAST)) as rig:
        image = cloud.upload()
        for _ in range(3):
            cloud.faults["create_volume"] = Fault(Temporary("answer lost"), done=True)
            with pytest.raises(Temporary):
                await rig.run(image.id)
            # Another replica did not see the volume of the first one yet
            hidden = {v.id: replace(v, name="hidden") for v in cloud.of(image.id)}
            cloud.volumes.update(hidden)
        await cloud.quiet()
        for volume_id in tuple(cloud.volumes):
            cloud.volumes[volume_id] = replace(
                cloud.volumes[volume_id], name=f"image-{image.id}", status="available"
            )
        oldest = min(cloud.volumes.values(), key=lambda v: v.created_at).id
        assert len(cloud.volumes) == 3
        cloud.ahead += image_volume.FRESH_FOR
        assert isinstance(await rig.run(image.id), Done)
        assert [v.id for v in cloud.of(image.id)] == [oldest]


@pytest.mark.parametrize("strategy", ["store", "location", "cache"])
@pytest.mark.parametrize("apart", [0.0, 0.1, 0.3])
async def test_two_workers_on_one_key_do_not_undo_each_other(
    cloud: FakeCloud, strategy: str, apart: float
) -> None:
    """As for a moment when the broker drops the connection of the one that had it."""
    cloud.cached = frozenset({"fast"} if strategy == "cache" else ())
    cloud.latency, cloud.seconds = 0.05, 0.3
    targets, policy = using(strategy, FAST), Policy(settle=0.0)
    async with (
        Rig(cloud, targets=targets, policy=policy) as one,
        Rig(cloud, targets=targets, policy=policy) as other,
    ):
        image = cloud.upload()
        first = asyncio.create_task(one.run(image.id))
        await asyncio.sleep(apart)
        # A conflict is looked at again
        await asyncio.gather(first, other.run(image.id), return_exceptions=True)
        made = cloud.calls["create_volume"] + cloud.calls["copy_image"]
        for _ in range(5):
            outcomes = [await rig.run(image.id) for rig in (one, other)]
            assert all(isinstance(outcome, Done) for outcome in outcomes)
        assert cloud.calls["create_volume"] + cloud.calls["copy_image"] == made <= 2
        assert not cloud.calls["remove_from_store"]
        cloud.ahead += image_volume.FRESH_FOR
        assert isinstance(await one.run(image.id), Done)
        (left,) = cloud.of(image.id)
        assert strategy == "cache" or located(cloud, image.id) == [left.id]


async def test_a_users_volume_is_never_taken_or_touched(cloud: FakeCloud) -> None:
    async with Rig(cloud, targets=using("location", FAST)) as rig:
        image = cloud.upload()
        other = Volume(
            id="other", name=f"image-{image.id}", status="error", volume_type="fast", size=1
        )
        cloud.volumes["other"] = other
        assert isinstance(await rig.run(image.id), Done)
        assert cloud.volumes["other"] == other
        assert located(cloud, image.id) != ["other"]


async def test_a_location_comes_only_after_its_volume_is_available(cloud: FakeCloud) -> None:
    cloud.seconds = 0.05
    async with Rig(cloud, targets=using("location", FAST)) as rig:
        image = cloud.upload()
        task = asyncio.create_task(rig.run(image.id))
        while not task.done():
            for volume_id in located(cloud, image.id):
                assert cloud.volumes[volume_id].status == "available"
            await asyncio.sleep(0)
        assert isinstance(task.result(), Done)


async def test_a_changed_image_makes_the_cache_entry_again_once_it_is_quiet(
    cloud: FakeCloud,
) -> None:
    policy = Policy(settle=0.5, rewarm_interval=0.0)
    async with Rig(caching(cloud, "cache"), targets=using("cache", FAST), policy=policy) as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        await rig.quiet()
        made = cloud.calls["create_volume"]
        for _ in range(10):
            cloud.touch(image.id)
            cloud.announce("image.update", image.id)
            await asyncio.sleep(0.01)
        assert cloud.calls["create_volume"] == made
        await rig.quiet()
        assert cloud.calls["create_volume"] == made + 1
        entry = serving(cloud, image.id)["fast"]
        assert entry.metadata["image_volume_worker_updated_at"] == cloud.images[image.id].updated_at


async def test_a_cache_target_without_a_cache_says_so_and_leaves_nothing(cloud: FakeCloud) -> None:
    async with Rig(cloud, targets=using("cache", FAST), policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Again)
        assert "image_volume_cache_enabled" in outcome.reason
        assert cloud.of(image.id) == []


async def test_auto_takes_the_store_where_there_is_one_else_the_cache() -> None:
    cloud = FakeCloud(stores={"cinder-fast": "fast"}, cached=frozenset({"slow"}))
    async with Rig(cloud, policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        volumes = serving(cloud, image.id)
        assert set(volumes) == {"fast", "slow"}
        assert located(cloud, image.id) == [volumes["fast"].id]


async def test_one_target_that_is_dead_does_not_hold_up_the_other(cloud: FakeCloud) -> None:
    cloud.dead_types = {"slow"}
    async with Rig(cloud, targets=using("location", FAST, SLOW)) as rig:
        cloud.emit = rig.hear
        images = [cloud.upload() for _ in range(20)]
        async with asyncio.timeout(20):
            while not all(located(cloud, image.id) for image in images):
                await asyncio.sleep(0.01)
        await rig.quiet()
        letters = rig.lanes.dead_letters()
        assert {letter.lane for letter in letters} == {"prewarm.slow"}
        assert len(letters) == 20


async def test_reclaim_takes_a_cache_entry_that_cinder_would_keep(cloud: FakeCloud) -> None:
    async with Rig(
        caching(cloud, "cache"), targets=using("cache", FAST), policy=Policy(settle=0.0)
    ) as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        await rig.quiet()
        assert cloud.of(image.id)
        cloud.delete_image(image.id)
        await rig.quiet()
        assert cloud.of(image.id) == []


async def test_reclaim_leaves_everything_of_an_image_that_is_there(
    rig: Rig, cloud: FakeCloud
) -> None:
    image = cloud.upload()
    await rig.resync()
    await rig.quiet()
    before = dict(cloud.volumes)
    rig.hear(notification("image.delete", {"id": image.id, "status": "deleted"}))
    await rig.quiet()
    assert cloud.volumes == before


async def test_the_size_of_a_volume_holds_the_image(cloud: FakeCloud) -> None:
    async with Rig(cloud, targets=using("location", FAST)) as rig:
        for size, min_disk, gib in ((1, 0, 1), (GIB, 0, 1), (GIB + 1, 0, 2), (5, 7, 7)):
            image = cloud.upload(size=size, min_disk=min_disk)
            await rig.run(image.id)
            assert [v.size for v in cloud.of(image.id)] == [gib]


async def test_a_cache_target_that_glance_keeps_the_image_on_is_warm(cloud: FakeCloud) -> None:
    async with Rig(
        caching(cloud, "cache"), targets=using("cache", FAST), policy=Policy(settle=0.0)
    ) as rig:
        image = cloud.upload()
        await cloud.copy_image(image.id, ["cinder-fast"])
        await cloud.quiet()
        assert isinstance(await rig.run(image.id), Done)
        assert cloud.calls["create_volume"] == 0
        assert set(serving(cloud, image.id)) == {"fast"}
        assert await rig.resync() == []


async def test_what_glance_keeps_on_a_cache_target_is_put_right_beside_an_entry(
    cloud: FakeCloud,
) -> None:
    async with Rig(
        caching(cloud, "cache"), targets=using("cache", FAST), policy=Policy(settle=0.0)
    ) as rig:
        image = cloud.upload()
        await cloud.copy_image(image.id, ["cinder-fast"])
        await cloud.quiet()
        (kept,) = cloud.of(image.id)
        # While it is broken the cache serves; then somebody heals it, and Cinder clones it again
        cloud.volumes[kept.id] = replace(kept, status="error")
        assert isinstance(await rig.run(image.id), Done)
        cloud.volumes[kept.id] = kept
        (missing,) = await rig.resync()
        assert "Glance keeps there" in missing.why
        await rig.quiet()
        assert cloud.volumes[kept.id].metadata["image_volume_worker"] == "fast"
        assert await rig.resync() == []


async def test_a_location_outside_of_the_internal_project_is_left_alone(cloud: FakeCloud) -> None:
    for strategy in ("store", "location"):
        async with Rig(cloud, targets=using(strategy, FAST)) as rig:
            image = cloud.upload(stores=frozenset({"file", "cinder-fast"}))
            theirs = Volume(
                id="theirs",
                name="mine",
                status="available",
                volume_type="fast",
                size=1,
                foreign=True,
            )
            cloud.volumes["theirs"] = theirs
            location = Location(
                url="cinder://cinder-fast/theirs", store="cinder-fast", volume_id="theirs"
            )
            cloud.locations[image.id] = (*cloud.locations[image.id], location)
            outcome = await rig.run(image.id)
            assert isinstance(outcome, Skip)
            assert "internal project" in outcome.reason
            assert cloud.volumes["theirs"] == theirs
            assert location in cloud.locations[image.id]


async def test_a_target_whose_store_glance_lacks_does_not_harm_the_others(cloud: FakeCloud) -> None:
    nowhere = Target(name="nowhere", volume_type="slow", glance_store="nowhere")
    cloud.types.add("other")
    unserved = Target(name="unserved", volume_type="other", strategy="store")
    async with Rig(cloud, targets=(FAST, nowhere, unserved), policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        assert isinstance(await rig.run(image.id, "fast"), Done)
        for target in ("nowhere", "unserved"):
            with pytest.raises(Blocked, match=target):
                await rig.run(image.id, target)
        assert [missing.key.target for missing in await rig.resync()] == []


async def test_a_copy_that_is_refused_for_good_is_a_failure_not_a_wait(
    store_rig: Rig, cloud: FakeCloud
) -> None:
    image = cloud.upload()
    cloud.faults["copy_image"] = Fault(Conflict("Store for identifier x not found"), times=2)
    with pytest.raises(Conflict):
        await store_rig.run(image.id)


async def test_auto_is_not_guessed_where_glance_does_not_tell(cloud: FakeCloud) -> None:
    with pytest.raises(Blocked, match="set strategy"):
        resolve(FAST, (Store(id="file"), Store(id="cinder-fast")))


@pytest.mark.parametrize("status", ["available", "error"])
async def test_what_a_failed_import_left_behind_is_deleted_once_the_import_is_over(
    store_rig: Rig, cloud: FakeCloud, status: str
) -> None:
    image = cloud.upload()
    assert isinstance(await store_rig.run(image.id), Done)
    await cloud.quiet()
    metadata = {"glance_image_id": image.id, "image_owner": PROJECT, "image_size": "1"}
    left = Volume(
        id="left",
        name=f"image-{image.id}",
        status=status,
        volume_type="fast",
        size=1,
        metadata=metadata,
    )

    async def stays() -> bool:
        await store_rig.resync()
        await store_rig.quiet()
        return "left" in cloud.volumes

    old = cloud.volumes["left"] = replace(left, created_epoch=time.time())
    cloud.touch(image.id, import_locked=True)
    assert await stays()
    cloud.touch(image.id, import_locked=False)
    cloud.image_tasks[image.id] = [
        ImageTask(id="import", type="api_image_import", status="processing")
    ]
    assert await stays()
    ended = ImageTask(
        id="import", type="api_image_import", status="failure", stores=frozenset({"cinder-fast"}),
        created_epoch=old.created_epoch - 5.0, updated_epoch=old.created_epoch + 5.0,
    )  # fmt: skip
    cloud.image_tasks[image.id] = [ended]
    cloud.hides_locations = True
    assert await stays()
    cloud.hides_locations = False
    for kept in (
        replace(old, volume_type="another's"),
        replace(old, source_volid="a user's"),
        replace(old, metadata=metadata | {"glance_image_id": "another"}),
        replace(old, foreign=True),
    ):
        cloud.volumes["left"] = kept
        assert await stays()
    cloud.volumes["left"] = old
    assert not await stays()


@pytest.mark.parametrize("status", ["creating", "attaching", "in-use", "detaching", "reserved"])
async def test_what_cinder_does_not_let_go_of_is_told(
    store_rig: Rig, cloud: FakeCloud, status: str
) -> None:
    image = cloud.upload()
    await store_rig.resync()
    await store_rig.quiet()
    metadata = {"glance_image_id": image.id, "image_owner": PROJECT, "image_size": "1"}
    cloud.volumes["left"] = Volume(
        id="left", name=f"image-{image.id}", status=status, volume_type="fast", size=1, metadata=metadata,
        created_epoch=time.time(), scheduled=True, host="cloud@fast#fast",
    )  # fmt: skip
    (missing,) = await store_rig.resync()
    assert (missing.key.handler, missing.key.image_id) == ("reclaim", image.id)
    assert "openstack volume set --state error --detached left" in missing.why
    with structlog.testing.capture_logs() as told:
        await store_rig.quiet()
    assert [line["volume_id"] for line in told if line["event"] == "volume_stuck"] == ["left"]
    assert "left" in cloud.volumes


async def test_an_import_whose_lock_is_gone_is_over(store_rig: Rig, cloud: FakeCloud) -> None:
    image = cloud.upload()
    # As a Glance leaves it that had no room to stage the image
    cloud.touch(image.id, importing=frozenset({"cinder-fast", "cinder-slow"}))
    assert isinstance(await store_rig.run(image.id), Done)
    assert "cinder-fast" in (cloud.images[image.id].stores or ())


async def test_a_throw_away_volume_that_nobody_uses_any_more_goes(
    store_rig: Rig, cloud: FakeCloud
) -> None:
    image = cloud.upload()
    await store_rig.resync()
    await store_rig.quiet()
    metadata = {"image_volume_worker": "fast"}
    warm = Volume(
        id="warm",
        name=f"warm-{image.id}",
        status="available",
        volume_type="fast",
        size=1,
        metadata=metadata,
    )
    cloud.volumes["warm"] = replace(warm, created_epoch=time.time() - 600)
    assert await store_rig.resync() == []
    cloud.volumes["warm"] = replace(warm, created_epoch=time.time() - 30_000)
    assert [missing.key.handler for missing in await store_rig.resync()] == ["reclaim"]
    await store_rig.quiet()
    assert "warm" not in cloud.volumes
