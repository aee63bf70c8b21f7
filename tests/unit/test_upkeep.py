"""Keeping it true, against the fake cloud: repair, reclaim, eviction, budgets, uses, and what must
never go."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from handlers import image_volume, volume_status
from tests.unit.rigs import rig_of
from worker.core.cloud import GIB, Image, Location, Volume
from worker.core.errors import Blocked, Temporary
from worker.core.job import Key
from worker.core.outcome import Again, Done, Park, Skip
from worker.core.target import TAG, Policy, Reclaiming, Target
from worker.engine.retry import Backoff
from worker.testing.fake_cloud import PROJECT, FakeCloud, Fault
from worker.testing.rig import FAST, SLOW, STORES, Polls, Rig, job, located

STRATEGIES = ["store", "location", "cache"]
ORIGIN = "image_volume_worker_origin"
NOBODY = "00000009-0000-4000-8000-000000000000"


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(stores=STORES, multiple_locations=True)


@pytest.fixture(params=STRATEGIES)
async def rig(request: pytest.FixtureRequest, cloud: FakeCloud) -> AsyncIterator[Rig]:
    async with rig_of(cloud, request.param) as rig:
        cloud.emit = rig.hear
        yield rig
        await rig.quiet()


def kept(cloud: FakeCloud, image: Image) -> list[str]:
    """The types on which the image has an Image-Volume."""
    return sorted(volume.volume_type for volume in cloud.of(image.id))


async def reclaim(rig: Rig, image_id: str) -> object:
    return await rig.reclaim.reconcile(Key("reclaim", image_id), Polls())


# What policy does not want any more


async def test_what_the_owner_declines_goes_and_comes_back(rig: Rig, cloud: FakeCloud) -> None:
    image = cloud.upload()
    await rig.quiet()
    assert kept(cloud, image) == ["fast", "slow"]
    cloud.set_by_user(image.id, image_volume_prewarm="no")
    await rig.quiet()
    assert kept(cloud, image) == []
    assert cloud.locations[image.id] == (Location(url="file:///x", store="file"),)
    assert rig.count("reclaimed_volumes_total", reason="unwanted") == 2
    cloud.set_by_user(image.id, image_volume_prewarm="yes")
    await rig.quiet()
    assert kept(cloud, image) == ["fast", "slow"]


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_another_policy_is_put_through_by_a_resync(cloud: FakeCloud, strategy: str) -> None:
    async with rig_of(cloud, strategy) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
    async with rig_of(cloud, strategy, policy=Policy(exclude_projects=frozenset({"alice"}))) as rig:
        found = await rig.resync()
        assert [one.key.handler for one in found] == ["reclaim"]
        assert all(volume.id in found[0].why for volume in cloud.of(image.id))
        await rig.quiet()
        assert kept(cloud, image) == []
        assert await rig.resync() == []


async def test_a_deactivated_image_keeps_what_it_has(rig: Rig, cloud: FakeCloud) -> None:
    image = cloud.upload()
    await rig.quiet()
    cloud.touch(image.id, status="deactivated")
    cloud.announce("image.update", image.id)
    await rig.quiet()
    await rig.resync()
    await rig.quiet()
    assert kept(cloud, image) == ["fast", "slow"]


async def test_data_that_lies_nowhere_else_stays(cloud: FakeCloud) -> None:
    """An image that its owner put into the cinder store of one target: the copy on the other may
    go, not that one."""
    async with rig_of(cloud, "store") as rig:
        cloud.emit = rig.hear
        data = cloud.volume_of(PROJECT, name="data")
        image = cloud.upload(stores=frozenset({"cinder-fast"}))
        cloud.volumes[data.id] = replace(
            data, name=f"image-{image.id}", metadata={"image_owner": "alice"}
        )
        cloud.locations[image.id] = (
            Location(url=f"cinder://cinder-fast/{data.id}", store="cinder-fast", volume_id=data.id),
        )
        await rig.quiet()
        assert kept(cloud, image) == ["fast", "slow"]
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        await rig.quiet()
        assert located(cloud, image.id) == [data.id]
        outcome = await reclaim(rig, image.id)
        assert isinstance(outcome, Skip)


async def test_copies_of_ours_do_not_vouch_for_each_other(cloud: FakeCloud) -> None:
    """Somebody took the original away: were both of our copies to go by two workers at once,
    nothing would be left."""
    async with rig_of(cloud, "store") as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        await rig.quiet()
        cloud.locations[image.id] = tuple(one for one in cloud.locations[image.id] if one.volume_id)
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        await rig.quiet()
        assert len(located(cloud, image.id)) == 2
        outcome = await reclaim(rig, image.id)
        assert isinstance(outcome, Skip)
        assert "no other location" in outcome.reason


async def test_what_others_made_or_claim_stays(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store") as rig:
        image = cloud.upload(properties={"image_volume_prewarm": "no"})
        mark = {"image_volume_worker": "fast", ORIGIN: "prewarm", "glance_image_id": image.id}
        theirs = cloud.volume_of("alice", name=f"image-{image.id}", metadata=mark)
        unmarked = cloud.volume_of(
            PROJECT, name=f"image-{image.id}", metadata={"image_volume_worker": "fast"}
        )
        other = cloud.volume_of(
            PROJECT, name=f"image-{image.id}", metadata={**mark, "image_volume_worker": "elsewhere"}
        )
        await rig.resync()
        await rig.quiet()
        await rig.run(image.id)
        assert {theirs.id, unmarked.id, other.id} <= set(cloud.volumes)


# Certainty


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_an_empty_list_is_no_reason_to_delete(cloud: FakeCloud, strategy: str) -> None:
    async with rig_of(cloud, strategy) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        before = dict(cloud.volumes)
        cloud.amnesiac = True
        assert await rig.resync() == []
        # And even what is looked at one by one is found
        assert isinstance(await reclaim(rig, image.id), Skip)
        assert cloud.volumes == before


@pytest.mark.parametrize("error", [Temporary("500"), Blocked("403")])
async def test_an_error_is_no_reason_to_delete(
    rig: Rig, cloud: FakeCloud, error: Exception
) -> None:
    image = cloud.upload()
    await rig.quiet()
    before = dict(cloud.volumes)
    cloud.faults["get_image"] = Fault(error, times=2)
    with pytest.raises(type(error)):
        await reclaim(rig, image.id)
    assert cloud.volumes == before


@pytest.mark.parametrize("rules", [Reclaiming(dry_run=True), Reclaiming(enabled=False)])
@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_with_dry_run_nothing_goes(
    cloud: FakeCloud, strategy: str, rules: Reclaiming, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = (replace(FAST, max_count=2), replace(SLOW, max_count=2))
    async with rig_of(cloud, strategy, *targets, reclaiming=rules) as rig:
        cloud.emit = rig.hear
        gone, declined, other = cloud.upload(), cloud.upload(), cloud.upload()
        await rig.quiet()
        assert len(kept(cloud, gone) + kept(cloud, declined) + kept(cloud, other)) == 4
        before = {volume.id for volume in cloud.volumes.values()}
        del cloud.images[gone.id]
        cloud.locations.pop(gone.id)
        cloud.announce("image.delete", gone.id, status="deleted")
        cloud.set_by_user(declined.id, image_volume_prewarm="no")
        await rig.quiet()
        await rig.resync()
        await rig.quiet()
        assert {volume.id for volume in cloud.volumes.values()} >= before
        assert rig.count("reclaimed_volumes_total", reason="gone") == 0
        assert ("volume_would_be_deleted" in capsys.readouterr().out) is rules.enabled


# What does not go at once


async def test_a_volume_that_its_backend_holds_waits_without_noise(
    cloud: FakeCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    async with rig_of(cloud, "cache", FAST) as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        await rig.quiet()
        (entry,) = cloud.of(image.id)
        cloud.held_by_backend.add(entry.id)
        cloud.delete_image(image.id)
        for _ in range(3):
            outcome = await reclaim(rig, image.id)
            assert isinstance(outcome, Again)
            assert not outcome.counted
            assert "depend on it" in outcome.reason
        cloud.held_by_backend.clear()
        assert isinstance(await reclaim(rig, image.id), Done)
        assert kept(cloud, image) == []


async def test_a_volume_in_the_making_goes_as_soon_as_it_is_made(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "cache", FAST) as rig:
        image = cloud.upload()
        cloud.seconds = 0.05
        making = asyncio.create_task(rig.run(image.id))
        while not cloud.of(image.id):
            await asyncio.sleep(0.001)
        cloud.delete_image(image.id)
        # The runner's polls are farther apart
        polls = Polls()
        while not isinstance(
            outcome := await rig.reclaim.reconcile(Key("reclaim", image.id), polls), Done
        ):
            assert isinstance(outcome, Again)
            assert not outcome.counted
            await asyncio.sleep(0.01)
        await making
        assert kept(cloud, image) == []


# Repair


def only_location(cloud: FakeCloud, image: Image, *volume_ids: str) -> None:
    """The image's data lies in these volumes, in the store cinder-fast, and nowhere else."""
    cloud.locations[image.id] = tuple(
        Location(url=f"cinder://cinder-fast/{one}", store="cinder-fast", volume_id=one)
        for one in volume_ids
    )
    cloud.touch(image.id, stores=frozenset({"cinder-fast"}))


async def test_of_two_locations_the_broken_one_goes(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        (whole,) = located(cloud, image.id)
        only_location(cloud, image, NOBODY, whole)
        rig.deletions.note_volume(NOBODY)
        assert isinstance(await rig.run(image.id), Done)
        assert located(cloud, image.id) == [whole] or kept(cloud, image) == ["fast"]


async def test_two_broken_locations_are_both_left_and_named(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        broken = [f"0000000{n}-0000-4000-8000-000000000000" for n in (8, 9)]
        only_location(cloud, image, *broken)
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Again)
        assert all(volume_id in outcome.reason for volume_id in broken)
        assert located(cloud, image.id) == broken
        assert rig.count("images_beyond_repair") == 1


async def test_an_image_that_glance_is_deleting_leaves_no_dead_letter(cloud: FakeCloud) -> None:
    # Glance removes the volumes of its locations first, then the image
    async with rig_of(cloud, "store", FAST, backoff=Backoff(shortest=0.2)) as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        await rig.quiet()
        (volume,) = cloud.of(image.id)
        only_location(cloud, image, volume.id)
        rig.lose(volume.id)
        await rig.dispatcher.submit([job(Key("prewarm", image.id, "fast"))])
        async with asyncio.timeout(10):
            while not rig.runner.queue.due():
                await asyncio.sleep(0.003)
        assert rig.count("images_beyond_repair") == 1
        cloud.delete_image(image.id)
        await rig.quiet()
        assert rig.count("images_beyond_repair") == 0
        assert not rig.lanes.dead_letters()


async def test_an_image_that_stays_lost_becomes_a_dead_letter(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        only_location(cloud, image, NOBODY)
        rig.deletions.note_volume(NOBODY)
        await rig.dispatcher.submit([job(Key("prewarm", image.id, "fast"))])
        await rig.quiet()
        (letter,) = rig.lanes.dead_letters()
        assert "nobody can repair" in letter.reason
        assert located(cloud, image.id) == [NOBODY]


@pytest.mark.parametrize("strategy", ["store", "cache"])
async def test_an_image_lost_elsewhere_is_named_by_other_targets_too(
    cloud: FakeCloud, strategy: str
) -> None:
    async with rig_of(cloud, strategy, replace(FAST, glance_store="cinder-fast"), SLOW) as rig:
        image = cloud.upload()
        only_location(cloud, image, NOBODY)
        cloud.dead_types.add("slow")
        outcome = await rig.run(image.id, "slow")
        # It has made a volume in vain, and does not do so again and again
        assert isinstance(outcome, Park)
        assert "nobody can repair" in outcome.reason
        assert kept(cloud, image) == []


async def test_two_whole_locations_in_a_store_come_down_to_one(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        (first,) = located(cloud, image.id)
        second = replace(cloud.volumes[first], id=NOBODY, created_at="9")
        cloud.volumes[second.id] = second
        cloud.locations[image.id] = (
            *cloud.locations[image.id],
            Location(
                url=f"cinder://cinder-fast/{second.id}", store="cinder-fast", volume_id=second.id
            ),
        )
        assert isinstance(await rig.run(image.id), Done)
        # Glance removes the first, and two workers at once would remove both
        assert len(located(cloud, image.id)) == 2
        cloud.ahead += image_volume.FRESH_FOR
        assert isinstance(await rig.run(image.id), Done)
        assert len(located(cloud, image.id)) == 1
        assert kept(cloud, image) == ["fast"]


async def test_a_hidden_location_is_not_repaired_in_the_dark(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        (volume,) = cloud.of(image.id)
        cloud.volumes[volume.id] = replace(volume, status="error")
        cloud.hides_locations = True
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Again)
        assert not outcome.counted
        assert "shows no locations" in outcome.reason
        assert volume.id in cloud.volumes


async def test_a_broken_cache_entry_is_made_anew(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "cache", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        (entry,) = cloud.of(image.id)
        cloud.volumes[entry.id] = replace(entry, status="error")
        assert isinstance(await rig.run(image.id), Done)
        (anew,) = cloud.of(image.id)
        assert anew.id != entry.id
        assert volume_status.is_usable(anew)


# Cinder lets go of it as long as no host has taken it; one that no scheduler has heard of is lost
# much sooner
@pytest.mark.parametrize(("scheduled", "after"), [(True, 7 * 3600.0), (False, 301.0)])
async def test_a_volume_that_is_made_for_too_long_is_given_up(
    cloud: FakeCloud, scheduled: bool, after: float
) -> None:
    async with rig_of(cloud, "location", FAST) as rig:
        image = cloud.upload()
        cloud.faults["get_volume"] = Fault(Temporary("away"))
        cloud.seconds = 0.05
        with pytest.raises(Temporary):
            await rig.run(image.id)
        await cloud.quiet()
        (stuck,) = cloud.of(image.id)
        cloud.volumes[stuck.id] = replace(stuck, status="creating", host="", scheduled=scheduled)
        cloud.ahead = after
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Again)
        assert "for too long" in outcome.reason
        assert isinstance(await rig.run(image.id), Done)
        assert stuck.id not in cloud.volumes


async def test_a_busy_volume_does_not_hold_a_slot(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        (volume,) = cloud.of(image.id)
        for status in ("deleting", "retyping", "maintenance"):
            cloud.volumes[volume.id] = replace(volume, status=status)
            outcome = await rig.run(image.id)
            assert isinstance(outcome, Again)
            assert not outcome.counted
            assert status in outcome.reason


# Re-warm


async def test_an_image_changed_all_day_is_not_made_warm_all_day(cloud: FakeCloud) -> None:
    async with rig_of(
        cloud, "cache", FAST, policy=Policy(settle=0.0, rewarm_interval=600.0)
    ) as rig:
        image = cloud.upload()
        assert isinstance(await rig.run(image.id), Done)
        # The first change is made up for at once
        cloud.touch(image.id)
        assert isinstance(await rig.run(image.id), Done)
        made = cloud.calls["create_volume"]
        for _ in range(5):
            cloud.touch(image.id)
            outcome = await rig.run(image.id)
            assert isinstance(outcome, Again)
            assert not outcome.counted
            assert outcome.after
            assert 0.0 < outcome.after <= 600.0
        assert cloud.calls["create_volume"] == made
        assert rig.count("rewarms_held_back_total", target="fast") == 5
        cloud.ahead = 601.0
        assert isinstance(await rig.run(image.id), Done)
        assert cloud.calls["create_volume"] == made + 1
        assert rig.count("rewarms_total", target="fast", reason="changed") == 2


@pytest.mark.parametrize("status", ["error", "gone"])
async def test_an_image_volume_that_is_broken_under_us_is_made_anew(
    rig: Rig, cloud: FakeCloud, status: str
) -> None:
    image = cloud.upload()
    await rig.quiet()
    victim = next(volume for volume in cloud.of(image.id) if volume.volume_type == "fast")
    if status == "gone":
        rig.lose(victim.id)
    else:
        cloud.volumes[victim.id] = replace(victim, status="error")
    assert await rig.resync()
    await rig.quiet()
    assert kept(cloud, image) == ["fast", "slow"]
    assert victim.id not in cloud.volumes
    assert await rig.resync() == []


# Budgets


async def uploaded(rig: Rig, cloud: FakeCloud, **fields: object) -> Image:
    cloud.ahead += 10.0
    image = cloud.upload(**fields)
    await rig.quiet()
    return image


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_full_target_gives_up_what_was_used_least_recently(
    cloud: FakeCloud, strategy: str
) -> None:
    async with rig_of(cloud, strategy, replace(FAST, max_count=2)) as rig:
        cloud.emit = rig.hear
        first, second = await uploaded(rig, cloud), await uploaded(rig, cloud)
        cloud.ahead += 10.0
        cloud.use(first.id, "fast")
        await rig.quiet()
        third = await uploaded(rig, cloud)
        assert [kept(cloud, image) for image in (first, second, third)] == [["fast"], [], ["fast"]]
        assert rig.count("reclaimed_volumes_total", reason="budget") == 1
        assert await rig.resync() == []


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_the_last_use_outlives_the_worker(cloud: FakeCloud, strategy: str) -> None:
    target = replace(FAST, max_count=2)
    async with rig_of(cloud, strategy, target) as rig:
        cloud.emit = rig.hear
        first, second = await uploaded(rig, cloud), await uploaded(rig, cloud)
        cloud.ahead += 7200.0
        cloud.use(first.id, "fast")
        await rig.quiet()
    async with rig_of(cloud, strategy, target) as rig:
        cloud.emit = rig.hear
        third = await uploaded(rig, cloud)
        assert [kept(cloud, image) for image in (first, second, third)] == [["fast"], [], ["fast"]]


async def test_a_use_is_written_down_once_an_hour(rig: Rig, cloud: FakeCloud) -> None:
    image = cloud.upload()
    await rig.quiet()
    before = cloud.calls["set_metadata"]
    for _ in range(5):
        cloud.ahead += 700.0
        cloud.use(image.id, "fast")
        await rig.quiet()
    assert cloud.calls["set_metadata"] - before == 1
    cloud.ahead += 3601.0
    cloud.use(image.id, "fast")
    await rig.quiet()
    assert cloud.calls["set_metadata"] - before == 2


async def test_an_image_that_can_not_have_room_is_skipped_and_nothing_goes(
    cloud: FakeCloud,
) -> None:
    async with rig_of(cloud, "store", replace(FAST, max_gigabytes=3)) as rig:
        cloud.emit = rig.hear
        small = await uploaded(rig, cloud, size=2 * GIB)
        large = await uploaded(rig, cloud, size=4 * GIB)
        assert [kept(cloud, image) for image in (small, large)] == [["fast"], []]
        outcome = await rig.run(large.id)
        assert isinstance(outcome, Skip)
        assert "max_gigabytes = 3" in outcome.reason
        assert await rig.resync() == []


async def test_an_older_image_does_not_push_out_newer_ones(cloud: FakeCloud) -> None:
    """Else a resync of more images than there is room for would go round and round."""
    async with rig_of(cloud, "store", replace(FAST, max_count=2)) as rig:
        images = [cloud.upload(created_epoch=float(number)) for number in range(1, 7)]
        for _ in range(3):
            await rig.resync()
            await rig.quiet()
        made = cloud.calls["copy_image"]
        assert sum(len(kept(cloud, image)) for image in images) == 2
        assert await rig.resync() == []
        assert cloud.calls["copy_image"] == made
        cloud.emit = rig.hear
        cold = next(image for image in images if not kept(cloud, image))
        cloud.ahead += 10.0
        cloud.use(cold.id, "fast")
        await rig.quiet()
        assert kept(cloud, cold) == ["fast"]
        assert sum(len(kept(cloud, image)) for image in images) == 2


async def test_many_at_once_do_not_all_take_the_last_place(cloud: FakeCloud) -> None:
    targets = (
        replace(FAST, max_count=3, max_concurrent=8),
        replace(SLOW, max_gigabytes=2, max_concurrent=8),
    )
    async with rig_of(cloud, "store", *targets) as rig:
        cloud.emit = rig.hear
        cloud.seconds = 0.02
        images = [cloud.upload() for _ in range(8)]
        peak = {"fast": 0, "slow": 0}
        while not rig.runner.queue.idle or cloud.tasks or not cloud.volumes:
            await asyncio.sleep(0.002)
            there = Counter(volume.volume_type for volume in cloud.volumes.values())
            peak = {
                volume_type: max(most, there[volume_type]) for volume_type, most in peak.items()
            }
        await rig.quiet()
        assert peak == {"fast": 3, "slow": 2}
        assert sum(len(kept(cloud, image)) for image in images) == 5


class Interrupted(FakeCloud):
    """A cloud that is told what to wait for between looking at the volumes and answering what there
    are."""

    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def list_volumes(self, tag: str = "", *, key: str = TAG) -> AsyncIterator[Volume]:
        there = [volume async for volume in super().list_volumes(tag, key=key)]
        if self.meanwhile:
            await self.meanwhile()
        for volume in there:
            yield volume


async def test_one_that_arrives_while_the_room_is_counted_is_counted() -> None:
    """Its volume is listed before it is marked as ours, and its place is given back before the
    listing ends."""
    cloud = Interrupted(stores=STORES)
    async with rig_of(cloud, "store", replace(FAST, max_count=1)) as rig:
        older = cloud.upload()
        cloud.ahead += 10.0
        cloud.emit = rig.hear
        cloud.seconds = 0.05
        newer = cloud.upload()
        while not cloud.of(newer.id):
            await asyncio.sleep(0.001)
        assert not any(ORIGIN in volume.metadata for volume in cloud.of(newer.id))
        cloud.meanwhile = rig.quiet
        outcome = await rig.prewarm.reconcile(Key("prewarm", older.id, "fast"), Polls())
        assert isinstance(outcome, Skip)
        assert "1 of 1" in outcome.reason
        assert [kept(cloud, image) for image in (older, newer)] == [[], ["fast"]]


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_smaller_budget_is_put_through_by_a_resync(cloud: FakeCloud, strategy: str) -> None:
    async with rig_of(cloud, strategy, FAST) as rig:
        cloud.emit = rig.hear
        images = [await uploaded(rig, cloud) for _ in range(4)]
    async with rig_of(cloud, strategy, replace(FAST, max_count=2)) as rig:
        found = await rig.resync()
        assert {one.key.image_id for one in found} == {images[0].id, images[1].id}
        assert all("budget" in one.why for one in found)
        await rig.quiet()
        assert [kept(cloud, image) for image in images] == [[], [], ["fast"], ["fast"]]
        assert await rig.resync() == []


async def test_what_can_not_go_is_no_reason_to_stop(cloud: FakeCloud) -> None:
    """The least recently used one is by now its image's only copy: the next one goes."""
    async with rig_of(cloud, "store", replace(FAST, max_count=2)) as rig:
        cloud.emit = rig.hear
        first, second = await uploaded(rig, cloud), await uploaded(rig, cloud)
        cloud.locations[first.id] = tuple(one for one in cloud.locations[first.id] if one.volume_id)
        third = await uploaded(rig, cloud)
        assert [kept(cloud, image) for image in (first, second, third)] == [["fast"], [], ["fast"]]


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_full_quota_is_found_out_before_anything_is_made(
    cloud: FakeCloud, strategy: str
) -> None:
    async with rig_of(cloud, strategy, FAST) as rig:
        image = cloud.upload(size=2 * GIB)
        cloud.quota = 1
        with pytest.raises(Blocked, match="quota has 1 GiB left"):
            await rig.run(image.id)
        assert cloud.calls["copy_image"] + cloud.calls["create_volume"] == 0
        cloud.quota = 4
        assert isinstance(await rig.run(image.id), Done)


async def test_a_full_quota_throws_nothing_out(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", replace(FAST, max_gigabytes=4)) as rig:
        cloud.emit = rig.hear
        small = await uploaded(rig, cloud, size=1 * GIB)
        cloud.emit = lambda _: None
        cloud.quota = 2
        large = cloud.upload(size=4 * GIB)
        with pytest.raises(Blocked, match="quota"):
            await rig.run(large.id)
        assert kept(cloud, small) == ["fast"]


async def test_a_quota_that_we_may_not_read_is_no_obstacle(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        cloud.faults["get_quota"] = Fault(Blocked("403"))
        assert isinstance(await rig.run(cloud.upload().id), Done)


# Popularity


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_with_used_an_image_is_made_warm_where_it_is_used_twice(
    cloud: FakeCloud, strategy: str
) -> None:
    async with rig_of(cloud, strategy, policy=Policy(settle=0.0, when="used")) as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        await rig.quiet()
        assert await rig.resync() == []
        cloud.use(image.id, "fast", project="bob")
        await rig.quiet()
        # Cinder itself may have made an entry in its cache
        assert not any(TAG in volume.metadata for volume in cloud.of(image.id))
        cloud.ahead += 1.0
        cloud.use(image.id, "fast", project="alice")
        await rig.quiet()
        assert kept(cloud, image) == ["fast"]
        # From then on it is kept so
        victim = cloud.of(image.id)[0]
        cloud.volumes[victim.id] = replace(victim, status="error")
        await rig.resync()
        await rig.quiet()
        assert kept(cloud, image) == ["fast"]
        assert victim.id not in cloud.volumes


async def test_with_used_two_uses_in_one_breath_are_two(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST, policy=Policy(settle=0.0, when="used")) as rig:
        heard: list[bytes] = []
        cloud.emit = heard.append
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        assert kept(cloud, image) == []
        for _ in range(2):
            cloud.ahead += 1.0
            cloud.use(image.id, "fast", project="bob")
        await rig.dispatcher.accept([rig.dispatcher.route(body) for body in heard])
        await rig.quiet()
        assert kept(cloud, image) == ["fast"]


async def test_with_used_what_was_warm_is_kept_by_the_next_worker(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
    async with rig_of(cloud, "store", FAST, policy=Policy(settle=0.0, when="used")) as rig:
        assert await rig.resync() == []
        (volume,) = cloud.of(image.id)
        cloud.volumes[volume.id] = replace(volume, status="error")
        await rig.resync()
        await rig.quiet()
        assert kept(cloud, image) == ["fast"]


async def test_with_used_the_owners_yes_still_counts(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST, policy=Policy(settle=0.0, when="used")) as rig:
        image = cloud.upload(properties={"image_volume_prewarm": "yes"})
        await rig.resync()
        await rig.quiet()
        assert kept(cloud, image) == ["fast"]


# Scale


async def test_a_resync_with_nothing_to_do_costs_pages_only() -> None:
    targets = tuple(
        Target(name=name, volume_type=name, glance_store=f"cinder-{name}")
        for name in ("a", "b", "c")
    )
    cloud = FakeCloud(stores={f"cinder-{target.name}": target.name for target in targets})
    rig = Rig(cloud, targets=targets)
    for _ in range(2_000):
        cloud.fill(targets)
    cloud.calls.clear()
    assert await rig.resync() == []
    # Handlers share one look at the targets
    reads = {
        "list_volumes": 6,
        "list_images": 2,
        "list_stores": 2,
        "describe_volume_types": 1,
        "list_pools": 1,
        "encrypts": 3,
    }
    assert cloud.calls == reads


# What random histories have found


async def test_a_copy_that_the_owner_makes_where_ours_was_is_the_owners(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", replace(FAST, max_count=1)) as rig:
        cloud.emit = rig.hear
        first = await uploaded(rig, cloud)
        await uploaded(rig, cloud)
        assert kept(cloud, first) == []
        cloud.user_copies(first.id, "cinder-fast", project="alice")
        await rig.quiet()
        (own,) = cloud.of(first.id)
        assert own.metadata["image_volume_worker"] == "fast"
        assert ORIGIN not in own.metadata
        await uploaded(rig, cloud)
        assert own.id in cloud.volumes


async def test_an_operators_volume_is_no_cache_entry(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "cache", FAST) as rig:
        image = cloud.upload()
        own = cloud.volume_of(PROJECT, name=f"image-{image.id}", volume_type="fast")
        assert isinstance(await rig.run(image.id), Done)
        assert cloud.volumes[own.id] == own
        assert len(cloud.of(image.id)) == 2


async def test_a_copy_that_came_too_late_goes(cloud: FakeCloud) -> None:
    """The owner says no while Glance is copying: it ends up without any mark of ours."""
    async with rig_of(cloud, "store", FAST) as rig:
        cloud.emit = rig.hear
        cloud.seconds = 0.1
        image = cloud.upload()
        while not cloud.of(image.id):
            await asyncio.sleep(0.005)
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        await rig.quiet()
        await rig.resync()
        await rig.quiet()
        assert kept(cloud, image) == []
        assert cloud.locations[image.id]


@pytest.mark.parametrize("changes", [{"readonly": "False"}, {"image_owner": "somebody"}])
async def test_a_cache_entry_that_was_meddled_with_is_put_right(
    cloud: FakeCloud, changes: dict[str, str]
) -> None:
    async with rig_of(cloud, "cache", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        (entry,) = cloud.of(image.id)
        cloud.volumes[entry.id] = replace(entry, metadata={**entry.metadata, **changes})
        assert [one.key.image_id for one in await rig.resync()] == [image.id]
        await rig.quiet()
        assert cloud.volumes[entry.id].metadata == entry.metadata


async def test_an_entry_in_error_that_nobody_has_marked_makes_room_for_another(
    cloud: FakeCloud,
) -> None:
    async with rig_of(cloud, "cache", FAST) as rig:
        image = cloud.upload()
        broken = cloud.volume_of(
            PROJECT,
            name=f"image-{image.id}",
            volume_type="fast",
            status="error",
            metadata={"readonly": "True"},
            source_volid="throw-away",
        )
        assert isinstance(await rig.run(image.id), Done)
        assert broken.id not in cloud.volumes
        assert len(cloud.of(image.id)) == 1


# What the devcloud has found


async def test_a_cache_entry_is_no_clone_of_an_upload(cloud: FakeCloud) -> None:
    """Cinder makes its entries by cloning, as it makes the clones of uploads."""
    async with rig_of(cloud, "cache", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        (entry,) = cloud.of(image.id)
        assert entry.source_volid
        assert isinstance(await rig.complete(image.id), Done)
        assert await rig.resync() == []
        # One that Cinder has made for a user is nobody's to delete, however old
        own = cloud.upload()
        unmarked = cloud.volume_of(
            PROJECT,
            name=f"image-{own.id}",
            volume_type="slow",
            metadata={"readonly": "True"},
            source_volid=entry.id,
        )
        cloud.ahead = 7200.0
        await rig.complete(own.id)
        assert cloud.of(image.id) == [entry]
        assert unmarked.id in cloud.volumes


async def test_a_location_that_came_back_without_its_volume_goes(cloud: FakeCloud) -> None:
    """Glance writes the whole list: of two removals at once the second may undo half of the
    first."""
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload(properties={"image_volume_prewarm": "no"})
        dead = Location(url="cinder://cinder-fast/x", store="cinder-fast", volume_id=NOBODY)
        cloud.locations[image.id] = (*cloud.locations[image.id], dead)
        cloud.touch(image.id, stores=frozenset({"file", "cinder-fast"}))
        rig.deletions.note_volume(NOBODY)
        found = await rig.resync()
        assert [(one.key.handler, "no volume" in one.why) for one in found] == [("reclaim", True)]
        await rig.quiet()
        assert cloud.locations[image.id] == (Location(url="file:///x", store="file"),)
        assert await rig.resync() == []


async def test_the_last_location_stays_even_if_its_volume_is_gone(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload(properties={"image_volume_prewarm": "no"})
        only_location(cloud, image, NOBODY)
        assert isinstance(await reclaim(rig, image.id), Skip)
        assert isinstance(await rig.run(image.id), Skip)
        assert located(cloud, image.id) == [NOBODY]


async def test_a_removal_waits_for_an_import(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        cloud.touch(image.id, properties={"image_volume_prewarm": "no"}, import_locked=True)
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Again)
        assert not outcome.counted
        assert kept(cloud, image) == ["fast"]
        cloud.touch(image.id, import_locked=False)
        assert isinstance(await rig.run(image.id), Done)
        assert kept(cloud, image) == []


async def test_a_quota_for_one_is_filled_with_one(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store") as rig:
        image = cloud.upload()
        cloud.quota = 1
        assert isinstance(await rig.run(image.id), Done)
        await cloud.quiet()
        assert kept(cloud, image) == ["fast"]
        assert cloud.images[image.id].failed == frozenset()
        with pytest.raises(Blocked, match="quota has 0 GiB left"):
            await rig.run(image.id, "slow")


async def test_a_lost_image_that_is_brought_back_counts_no_more(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        (volume,) = cloud.of(image.id)
        only_location(cloud, image, volume.id)
        cloud.volumes[volume.id] = replace(volume, status="error")
        assert isinstance(await rig.run(image.id), Again)
        assert rig.count("images_beyond_repair") == 1
        cloud.volumes[volume.id] = volume
        assert await rig.resync() == []
        assert rig.count("images_beyond_repair") == 0


async def test_what_goes_is_no_time_to_warm(rig: Rig, cloud: FakeCloud) -> None:
    image = cloud.upload()
    await rig.quiet()
    warm = [rig.count("time_to_warm_seconds_count", target=target) for target in ("fast", "slow")]
    assert warm == [1.0, 1.0]
    cloud.set_by_user(image.id, image_volume_prewarm="no")
    await rig.quiet()
    cloud.delete_image(image.id)
    await rig.quiet()
    assert [
        rig.count("time_to_warm_seconds_count", target=target) for target in ("fast", "slow")
    ] == warm


async def test_each_volume_that_goes_is_counted_once(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "cache") as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        await rig.quiet()
        cloud.delete_image(image.id)
        await asyncio.gather(rig.run(image.id), rig.run(image.id, "slow"), reclaim(rig, image.id))
        await rig.quiet()
        assert kept(cloud, image) == []
        assert rig.count("reclaimed_volumes_total", reason="gone") == 2


async def test_a_location_without_a_store_is_left_alone(cloud: FakeCloud) -> None:
    """As it was before multi-store: cinder://<volume>. The volume is the image's data all the
    same."""
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        (volume,) = cloud.of(image.id)
        file, _ = cloud.locations[image.id]
        cloud.locations[image.id] = (file, Location.from_url(f"cinder://{volume.id}"))
        cloud.touch(image.id, properties={"image_volume_prewarm": "no"})
        outcome = await reclaim(rig, image.id)
        assert isinstance(outcome, Skip)
        assert "names no store" in outcome.reason
        assert volume.id in cloud.volumes
        assert cloud.torn == []


# What a trial has found


async def test_a_new_image_is_copied_once_it_is_left_alone(cloud: FakeCloud) -> None:
    """Glance's import writes the whole image at its end: what the owner changes meanwhile is
    undone."""
    async with rig_of(cloud, "store", FAST, policy=Policy(settle=0.3)) as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        for _ in range(4):
            await asyncio.sleep(0.1)
            cloud.set_by_user(image.id, name=str(cloud.calls.total()))
            assert cloud.calls["copy_image"] == 0
        await rig.quiet()
        assert kept(cloud, image) == ["fast"]


async def test_what_glance_undoes_is_told(
    cloud: FakeCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        cloud.seconds = 0.2
        image = cloud.upload(properties={"kept": "as it was"})
        making = asyncio.create_task(rig.run(image.id))
        while not cloud.images[image.id].import_locked:
            await asyncio.sleep(0.005)
        cloud.touch(
            image.id, visibility="private", properties={"kept": "as it was", "os_distro": "debian"}
        )
        await asyncio.sleep(0.1)
        cloud.touch(image.id, visibility="public", properties={"kept": "as it was"})
        await making
        (line,) = [
            line
            for line in capsys.readouterr().out.splitlines()
            if "changes_undone_by_glance" in line
        ]
        assert "['visibility', 'os_distro']" in line


async def test_a_copy_that_is_still_being_made_is_left_to_glance(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        unfinished = cloud.volume_of(
            PROJECT,
            name=f"image-{image.id}",
            volume_type="fast",
            metadata={"glance_image_id": image.id, "image_owner": PROJECT},
        )
        cloud.touch(image.id, import_locked=True, properties={"image_volume_prewarm": "no"})
        for outcome in (await rig.run(image.id), await reclaim(rig, image.id)):
            assert isinstance(outcome, Again)
            assert unfinished.id in cloud.volumes
        cloud.touch(image.id, import_locked=False)
        assert isinstance(await rig.run(image.id), Done)
        assert unfinished.id not in cloud.volumes


async def test_another_strategy_leaves_nothing_of_the_first(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "cache", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        (entry,) = cloud.of(image.id)
    cloud.cached = frozenset()
    async with rig_of(cloud, "store", FAST) as rig:
        await rig.resync()
        await rig.quiet()
        assert entry.id not in cloud.volumes
        assert located(cloud, image.id) == [volume.id for volume in cloud.of(image.id)]
        assert await rig.resync() == []
    cloud.cached = frozenset({"fast"})
    async with rig_of(cloud, "cache", FAST) as rig:
        assert await rig.resync() == []


async def test_a_budget_is_reached_by_what_can_go(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        cloud.emit = rig.hear
        images = [await uploaded(rig, cloud) for _ in range(4)]
        for image in images[:2]:
            # The least recently used ones are their images' only copies by now
            cloud.locations[image.id] = tuple(
                one for one in cloud.locations[image.id] if one.volume_id
            )
    async with rig_of(cloud, "store", replace(FAST, max_count=3)) as rig:
        await rig.resync()
        await rig.quiet()
        assert [kept(cloud, image) for image in images] == [["fast"], ["fast"], [], ["fast"]]


async def test_a_deactivated_image_is_neither_gone_nor_queued(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        cloud.touch(image.id, status="deactivated", created_epoch=cloud.now() - 7200.0)
        assert await rig.resync() == []


async def test_an_only_copy_is_not_promised_to_go(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        only_location(cloud, image, *located(cloud, image.id))
        cloud.touch(image.id, properties={"image_volume_prewarm": "no"})
        (found,) = await rig.resync()
        assert found.why.endswith("unless it is the image's only copy")
        await rig.quiet()
        assert kept(cloud, image) == ["fast"]
