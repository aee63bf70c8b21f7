"""The rules for deleting, against the fake cloud: unknown is not empty, gone needs proof, ours is
what matches."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import structlog

from handlers import image_volume
from handlers.deletion import NotProven
from handlers.deletion.stuck import ATTACHED_FOR
from handlers.resolve import resolve
from worker.core import absence
from worker.core.cloud import GIB, Image, ImageTask, Location, Store, Volume
from worker.core.errors import Blocked, Conflict, Temporary
from worker.core.job import Key
from worker.core.outcome import Again, Done, Outcome, Skip
from worker.core.pool import VolumeType
from worker.core.target import OF, TAG, UPLOADED_BY, Policy, Reclaiming, Strategy, Target
from worker.diagnose.explain import probe
from worker.testing.fake_cloud import PROJECT, FakeCloud, Fault
from worker.testing.rig import FAST, SLOW, STORES, Polls, Rig, located, using

STRATEGIES = ["store", "location", "cache"]
GRACE = 86_400.0
LOOK = GRACE / (absence.LOOKS - 1)
DAY = Reclaiming(grace=GRACE)


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(stores=STORES, multiple_locations=True)


def rig_of(cloud: FakeCloud, strategy: str, *targets: Target, **parts: object) -> Rig:
    if strategy == "cache":
        cloud.cached = frozenset({"fast", "slow"})
    policy = parts.pop("policy", Policy(settle=0.0))
    return Rig(cloud, targets=using(strategy, *(targets or (FAST, SLOW))), policy=policy, **parts)  # type: ignore[arg-type]


async def warmed(rig: Rig, cloud: FakeCloud, **fields: object) -> Image:
    image = cloud.upload(**fields)
    await rig.resync()
    await rig.quiet()
    assert cloud.of(image.id)
    return image


async def look(rig: Rig, image_id: str) -> Outcome:
    return await rig.reclaim.reconcile(Key("reclaim", image_id), Polls())


async def looks(
    rig: Rig, cloud: FakeCloud, image_id: str, *, times: int, apart: float = LOOK
) -> Outcome:
    """So many looks for an image, so many seconds apart; what the last one came to."""
    outcome: Outcome = Done()
    for _ in range(times):
        outcome = await look(rig, image_id)
        cloud.ahead += apart
    return outcome


def snapshot(cloud: FakeCloud) -> dict[str, Volume]:
    """The volumes without what was noted of looks for their images."""
    return {
        volume.id: replace(
            volume, metadata={k: v for k, v in volume.metadata.items() if k != absence.MISSING}
        )
        for volume in cloud.volumes.values()
    }


# Unknown is not empty


@pytest.mark.parametrize("strategy", ["store", "location"])
async def test_hidden_locations_change_and_delete_nothing(cloud: FakeCloud, strategy: str) -> None:
    async with rig_of(cloud, strategy) as rig:
        image = await warmed(rig, cloud)
        for volume in cloud.of(image.id):
            cloud.volumes[volume.id] = replace(
                volume, metadata={**volume.metadata, "image_owner": "mallory"}
            )
        before = dict(cloud.volumes)
        cloud.hides_locations = True
        cloud.set_by_user(image.id, anything="else")
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Again)
        assert not outcome.counted
        assert "role service" in outcome.reason
        assert outcome.wake_on_notification, (
            "a comparison is reason enough to look again: they may be shown by then"
        )
        assert isinstance(await look(rig, image.id), Skip)
        assert cloud.volumes == before
        cloud.hides_locations = False
        assert isinstance(await rig.run(image.id), Done)
        assert {
            v.metadata["image_owner"] for v in cloud.of(image.id) if v.volume_type == "fast"
        } == {"alice"}


@pytest.mark.parametrize("strategy", ["store", "location"])
async def test_an_image_that_is_being_deleted_loses_nothing_to_us(
    cloud: FakeCloud, strategy: str
) -> None:
    """For a moment Glance answers an empty list of locations."""
    async with rig_of(cloud, strategy) as rig:
        image = await warmed(rig, cloud)
        cloud.emptied.add(image.id)
        before = dict(cloud.volumes)
        assert isinstance(await rig.run(image.id), Again)
        assert isinstance(await look(rig, image.id), Skip)
        assert cloud.volumes == before


@pytest.mark.parametrize("status", ["active", "deactivated", "saving"])
async def test_what_may_be_a_location_is_not_discarded_in_the_dark(
    cloud: FakeCloud, status: str
) -> None:
    """Of a queued image alone no location is no surprise."""
    async with rig_of(cloud, "store", FAST) as rig:
        image = await warmed(rig, cloud)
        (volume,) = cloud.of(image.id)
        cloud.touch(image.id, status=status)
        cloud.hides_locations = True
        with pytest.raises(Blocked, match="shows no locations"):
            await rig.reclaim._deletion.discard(image.id, volume, why="test")
        assert volume.id in cloud.volumes


@pytest.mark.parametrize("strategy", ["store", "location"])
async def test_hidden_locations_keep_what_is_not_wanted(cloud: FakeCloud, strategy: str) -> None:
    async with rig_of(cloud, strategy) as rig:
        image = await warmed(rig, cloud)
        cloud.hides_locations = True
        before = dict(cloud.volumes)
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Skip)
        assert image_volume.HIDDEN in outcome.reason
        assert isinstance(await look(rig, image.id), Skip)
        assert cloud.volumes == before


async def test_reclaim_switched_off_keeps_left_over_volumes(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST, reclaiming=Reclaiming(enabled=False)) as rig:
        image = await warmed(rig, cloud)
        (volume,) = cloud.of(image.id)
        twin = cloud.volume_of(
            PROJECT, name=volume.name, volume_type="fast", metadata=volume.metadata
        )
        cloud.ahead += image_volume.FRESH_FOR
        assert isinstance(await rig.run(image.id), Done)
        assert twin.id in cloud.volumes


async def test_a_left_over_volume_is_deleted_once_its_image_is_certain_to_be_there(
    cloud: FakeCloud,
) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = await warmed(rig, cloud)
        (volume,) = cloud.of(image.id)
        twin = cloud.volume_of(
            PROJECT, name=volume.name, volume_type="fast", metadata=volume.metadata
        )
        assert isinstance(await rig.run(image.id), Done)
        # Another worker may be about to make a location of it
        assert twin.id in cloud.volumes
        cloud.ahead += image_volume.FRESH_FOR
        assert isinstance(await rig.run(image.id), Done)
        assert twin.id not in cloud.volumes
        assert located(cloud, image.id) == [volume.id]


# Gone needs proof


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_policy_that_hides_private_images_deletes_nothing(
    cloud: FakeCloud, strategy: str
) -> None:
    async with rig_of(cloud, strategy, reclaiming=DAY) as rig:
        private, public = await warmed(rig, cloud, visibility="private"), await warmed(rig, cloud)
        before = snapshot(cloud)
        cloud.sees_all = False
        for _ in range(2 * absence.LOOKS):
            await rig.resync()
            await rig.quiet()
            for handler, key in (
                (rig.prewarm, Key("prewarm", private.id, "fast")),
                (rig.reclaim, Key("reclaim", private.id)),
            ):
                assert isinstance(await handler.reconcile(key, Polls()), Skip)
            cloud.ahead += LOOK
        assert snapshot(cloud) == before
        assert not any(absence.absence_of(volume).is_noted for volume in cloud.volumes.values())
        assert cloud.of(public.id)


class TwoHosts(FakeCloud):
    """Two Glance hosts behind a balancer, the second of which hides private images."""

    turn = 0
    hosts = 1

    async def get_image(self, image_id: str) -> Image:
        self.turn += 1
        self.sees_all = self.turn % self.hosts == 0
        try:
            return await super().get_image(image_id)
        finally:
            self.sees_all = True


async def test_one_glance_of_two_that_hides_private_images_deletes_nothing() -> None:
    """A balancer asks the two in turn: one of the proofs in each look meets the other host."""
    cloud = TwoHosts(stores=STORES)
    async with rig_of(cloud, "store", reclaiming=DAY) as rig:
        image = await warmed(rig, cloud, visibility="private")
        await warmed(rig, cloud, visibility="private")
        before = snapshot(cloud)
        cloud.hosts = 2
        for first in range(2):
            for _ in range(2 * absence.LOOKS):
                cloud.turn = first
                await look(rig, image.id)
                cloud.ahead += LOOK
        assert snapshot(cloud) == before
        assert max(absence.absence_of(volume).looks for volume in cloud.volumes.values()) == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_an_image_not_found_for_a_day_is_deleted(cloud: FakeCloud, strategy: str) -> None:
    async with rig_of(cloud, strategy, reclaiming=DAY) as rig:
        image = await warmed(rig, cloud)
        cloud.upload(visibility="private")
        cloud.lose(image.id)
        outcome = await looks(rig, cloud, image.id, times=absence.LOOKS - 1)
        assert isinstance(outcome, Skip)
        assert "not found at 4 of 5 looks" in outcome.reason
        assert len(cloud.of(image.id)) == 2
        with structlog.testing.capture_logs() as told:
            assert isinstance(await look(rig, image.id), Done)
        assert cloud.of(image.id) == []
        assert [line["why"] for line in told if line["event"] == "image_volume_deleted"] == [
            f"image is gone: not found at {absence.LOOKS} looks over {GRACE:.0f} s"
        ] * 2


async def test_looks_one_after_the_other_are_one_look(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", reclaiming=DAY) as rig:
        image = await warmed(rig, cloud)
        cloud.upload(visibility="private")
        cloud.lose(image.id)
        outcome = await looks(rig, cloud, image.id, times=20, apart=60.0)
        assert isinstance(outcome, Skip)
        assert "not found at 1 of 5 looks" in outcome.reason


async def test_looks_of_a_clock_that_was_ahead_count_for_nothing(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "cache", FAST, reclaiming=DAY) as rig:
        image = await warmed(rig, cloud)
        cloud.upload(visibility="private")
        cloud.lose(image.id)
        cloud.ahead += 365 * GRACE
        await looks(rig, cloud, image.id, times=absence.LOOKS - 1)
        cloud.ahead -= 366 * GRACE
        outcome = await looks(rig, cloud, image.id, times=absence.LOOKS - 1)
        assert isinstance(outcome, Skip)
        assert f"{absence.LOOKS - 1} of {absence.LOOKS}" in outcome.reason
        assert isinstance(await look(rig, image.id), Done)
        assert cloud.of(image.id) == []


async def test_looks_that_nobody_has_followed_for_days_count_for_nothing(cloud: FakeCloud) -> None:
    """The worker did not run, or Cinder's database was restored from a backup."""
    async with rig_of(cloud, "store", reclaiming=DAY) as rig:
        image = await warmed(rig, cloud)
        cloud.upload(visibility="private")
        cloud.lose(image.id)
        await looks(rig, cloud, image.id, times=absence.LOOKS - 1)
        cloud.ahead += 3 * GRACE
        outcome = await look(rig, image.id)
        assert isinstance(outcome, Skip)
        assert f"1 of {absence.LOOKS}" in outcome.reason
        assert len(cloud.of(image.id)) == 2


async def test_what_the_brake_keeps_for_days_stays_proven(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", reclaiming=replace(DAY, max_at_once=1)) as rig:
        lost = [await warmed(rig, cloud) for _ in range(3)]
        cloud.upload(visibility="private")
        cloud.emit = lambda _: None
        for image in lost:
            cloud.lose(image.id)
        for _ in range(4 * absence.LOOKS):
            for image in lost:
                await look(rig, image.id)
            cloud.ahead += GRACE
        assert all(len(cloud.of(image.id)) == 2 for image in lost)
        outcome = await rig.reclaim.confirm(lost[0].id, Polls())
        assert isinstance(outcome, Done)
        assert cloud.of(lost[0].id) == []


async def test_an_image_that_comes_back_counts_from_the_beginning(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", reclaiming=DAY) as rig:
        image = await warmed(rig, cloud)
        before = snapshot(cloud)
        cloud.upload(visibility="private")
        cloud.lose(image.id)
        await looks(rig, cloud, image.id, times=absence.LOOKS - 1)
        cloud.find_again()
        (missing,) = [one for one in await rig.resync() if one.key.image_id == image.id]
        assert "the image is back" in missing.why
        await rig.quiet()
        assert not any(absence.absence_of(volume).is_noted for volume in cloud.volumes.values())
        cloud.lose(image.id)
        assert isinstance(await looks(rig, cloud, image.id, times=absence.LOOKS - 1), Skip)
        assert {
            volume_id: volume
            for volume_id, volume in snapshot(cloud).items()
            if volume_id in before
        }.keys() == before.keys()


async def test_without_another_projects_private_image_nothing_is_proven(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", reclaiming=DAY) as rig:
        image = await warmed(rig, cloud)
        cloud.upload(visibility="private", owner=PROJECT)
        cloud.lose(image.id)
        outcome = await looks(rig, cloud, image.id, times=2 * absence.LOOKS)
        assert isinstance(outcome, Skip)
        assert "private image of another project" in outcome.reason
        assert len(cloud.of(image.id)) == 2


async def test_a_deletion_that_was_heard_needs_no_day(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "cache", reclaiming=DAY) as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        await rig.quiet()
        assert len(cloud.of(image.id)) == 2
        cloud.delete_image(image.id)
        await rig.quiet()
        assert cloud.of(image.id) == []


@pytest.mark.parametrize("status", ["in-use", "attaching", "reserved"])
async def test_a_volume_that_a_dead_reader_keeps_attached_is_told_of(
    cloud: FakeCloud, status: str
) -> None:
    async with rig_of(cloud, "cache", FAST) as rig:
        image = await warmed(rig, cloud)
        (volume,) = cloud.of(image.id)
        cloud.volumes[volume.id] = replace(volume, status=status)
        cloud.lose(image.id)
        rig.deletions.note(image.id, "deleted")
        for ahead, times in ((0.0, 0), (ATTACHED_FOR, 1), (30.0, 0)):
            cloud.ahead += ahead
            with structlog.testing.capture_logs() as told:
                outcome = await look(rig, image.id)
            assert isinstance(outcome, Again)
            assert not outcome.counted
            lines = [line for line in told if line["event"] == "volume_stuck"]
            assert len(lines) == times
            for line in lines:
                assert f"--state error --detached {volume.id}" in line["advice"]
        # Freed, it goes
        cloud.volumes[volume.id] = replace(volume, status="error")
        assert isinstance(await look(rig, image.id), Done)
        assert cloud.of(image.id) == []


async def test_a_deletion_that_was_heard_of_an_image_that_is_there_deletes_nothing(
    cloud: FakeCloud,
) -> None:
    async with rig_of(cloud, "cache", reclaiming=DAY) as rig:
        image = await warmed(rig, cloud)
        before = dict(cloud.volumes)
        cloud.emit = rig.hear
        cloud.announce("image.delete", image.id, status="deleted")
        await rig.quiet()
        assert cloud.volumes == before
        # Nor is it remembered against the image
        cloud.lose(image.id)
        await look(rig, image.id)
        assert cloud.volumes == before


@pytest.mark.parametrize("strategy", ["store", "location"])
async def test_a_pending_deletion_keeps_the_data(cloud: FakeCloud, strategy: str) -> None:
    async with rig_of(cloud, strategy, reclaiming=DAY) as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        cloud.upload(visibility="private")
        await rig.quiet()
        before = snapshot(cloud)
        cloud.delayed = True
        cloud.delete_image(image.id)
        await rig.quiet()
        assert snapshot(cloud) == before
    # Another process, which has heard of nothing
    async with rig_of(cloud, strategy, reclaiming=DAY) as rig:
        outcome = await looks(rig, cloud, image.id, times=2 * absence.LOOKS)
        assert isinstance(outcome, Skip)
        assert "its deletion is pending" in outcome.reason
        assert snapshot(cloud) == before
        cloud.restore_image(image.id)
        await rig.resync()
        await rig.quiet()
        assert not any(absence.absence_of(volume).is_noted for volume in cloud.volumes.values())
        assert isinstance(await rig.run(image.id), Done)
        assert snapshot(cloud).keys() == before.keys()


# The brake


async def test_a_lost_database_deletes_nothing_before_an_operator_says_so(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST, reclaiming=DAY) as rig:
        cloud.upload(visibility="private")
        images = [cloud.upload() for _ in range(20)]
        await rig.resync()
        await rig.quiet()
        cloud.lose(*(image.id for image in images))
        before = snapshot(cloud)
        for _ in range(2 * absence.LOOKS):
            await rig.resync()
            await rig.quiet()
            cloud.ahead += LOOK
        assert snapshot(cloud) == before
        assert rig.count("reclaim_held_back") == 20
        assert rig.count("reclaim_brake") == 1
        outcome = await look(rig, images[0].id)
        assert isinstance(outcome, Skip)
        assert "20 of 21 Image-Volumes" in outcome.reason
        assert "reclaim --confirm" in outcome.reason
        for image in images:
            assert isinstance(await rig.reclaim.confirm(image.id, Polls()), Done)
        assert len(cloud.volumes) == 1
        await rig.resync()
        assert rig.count("reclaim_brake") == rig.count("reclaim_held_back") == 0


async def test_the_brake_counts_again_after_a_clock_was_ahead(cloud: FakeCloud) -> None:
    """Its count was two hours ahead, and it used that count until the clock got there."""
    async with Rig(cloud, targets=(FAST,)) as rig:
        brake = rig.reclaim._deletion.brake
        cloud.ahead += 7200.0
        await brake.check()
        counted = cloud.calls.total()
        await brake.check()
        assert cloud.calls.total() == counted
        cloud.ahead -= 7200.0
        await brake.check()
        assert cloud.calls.total() > counted


async def test_few_missing_images_are_no_reason_to_brake(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST, reclaiming=DAY) as rig:
        cloud.upload(visibility="private")
        images = [cloud.upload() for _ in range(20)]
        await rig.resync()
        await rig.quiet()
        cloud.lose(*(image.id for image in images[:5]))
        for _ in range(absence.LOOKS):
            await rig.resync()
            await rig.quiet()
            assert rig.count("reclaim_brake") == 0
            cloud.ahead += LOOK
        assert len(cloud.volumes) == 16


# Volumes of locations


async def without_volumes(
    rig: Rig, cloud: FakeCloud, *, images: int, besides: int = 1
) -> list[Image]:
    """Images whose volumes Cinder does not find any more, though nobody has deleted them."""
    made = [await warmed(rig, cloud) for _ in range(images)]
    for _ in range(besides):
        await warmed(rig, cloud)
    for image in made:
        (volume,) = cloud.of(image.id)
        cloud.elsewhere.add(volume.id)
    return made


@pytest.mark.parametrize("strategy", ["store", "location"])
async def test_a_volume_that_is_not_found_for_a_moment_keeps_its_location(
    cloud: FakeCloud, strategy: str
) -> None:
    async with rig_of(cloud, strategy, FAST) as rig:
        (image,) = await without_volumes(rig, cloud, images=1)
        before = cloud.locations[image.id]
        for _ in range(absence.LOOKS - 1):
            outcome = await rig.run(image.id)
            assert isinstance(outcome, Again)
            assert not outcome.counted
            assert "may be gone" in outcome.reason
            assert rig.count("missing_volumes") == 1
            cloud.ahead += 1.0 + (outcome.after or 0.0)
        cloud.elsewhere.clear()
        assert isinstance(await rig.run(image.id), Done)
        assert cloud.locations[image.id] == before
        await rig.resync()
        assert rig.count("missing_volumes") == 0


async def test_a_volume_that_is_not_found_for_long_is_made_again(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        (image,) = await without_volumes(rig, cloud, images=1)
        (lost,) = located(cloud, image.id)
        began = cloud.ahead
        while isinstance(outcome := await rig.run(image.id), Again):
            cloud.ahead += (outcome.after or 0.0) + 0.1
        assert isinstance(outcome, Done)
        assert 600.0 <= cloud.ahead - began < 610.0
        assert lost not in located(cloud, image.id)


async def test_a_login_that_sees_no_other_projects_volumes_believes_of_none_that_it_is_gone(
    cloud: FakeCloud,
) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        (image,) = await without_volumes(rig, cloud, images=1)
        before = located(cloud, image.id)
        cloud.sees_foreign = False
        for _ in range(10):
            outcome = await rig.run(image.id)
            assert isinstance(outcome, Again)
            cloud.ahead += (outcome.after or 0.0) + 0.1
        assert "any volume of another project" in outcome.reason
        assert located(cloud, image.id) == before
        cloud.sees_foreign = True
        assert isinstance(await rig.run(image.id), Done)
        assert located(cloud, image.id) != before


async def test_a_volume_whose_deletion_was_heard_of_is_made_again_at_once(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST, policy=Policy(settle=0.0, rewarm_interval=0.0)) as rig:
        cloud.emit = rig.hear
        image = await warmed(rig, cloud)
        await rig.quiet()
        (lost,) = located(cloud, image.id)
        cloud.remove_volume(lost)
        await rig.quiet()
        assert located(cloud, image.id) == [volume.id for volume in cloud.of(image.id)] != [lost]


async def test_a_volume_that_is_found_again_in_between_keeps_its_location(cloud: FakeCloud) -> None:
    """The plan saw it gone; it is ours, and the image has another location, so as a whole one it
    could go."""
    async with rig_of(cloud, "store", FAST) as rig:
        image = await warmed(rig, cloud)
        before = cloud.locations[image.id]
        with pytest.raises(NotProven, match="and then whole"):
            await rig.reclaim._deletion.remove_location(
                image.id, before[-1].store, before[-1].volume_id
            )
        assert cloud.locations[image.id] == before


async def test_where_cinder_shows_no_image_volume_at_all_none_is_gone(cloud: FakeCloud) -> None:
    """It may be another region's Cinder, or another project."""
    async with rig_of(cloud, "store", FAST) as rig:
        (image,) = await without_volumes(rig, cloud, images=1, besides=0)
        before = cloud.locations[image.id]
        for _ in range(2 * absence.LOOKS):
            outcome = await rig.run(image.id)
            assert isinstance(outcome, Again)
            assert "no proof" in outcome.reason
            cloud.ahead += 1.0 + (outcome.after or 0.0)
        assert "no proof" in await rig.reclaim.confirm_location(image.id, before[-1])
        assert cloud.locations[image.id] == before


async def test_a_lost_database_of_cinder_removes_no_location_before_an_operator_says_so(
    cloud: FakeCloud,
) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        images = await without_volumes(rig, cloud, images=6)
        before = dict(cloud.locations)
        with structlog.testing.capture_logs() as logs:
            for _ in range(2 * absence.LOOKS):
                for image in images:
                    assert isinstance(await rig.run(image.id), Again)
                cloud.ahead += 200.0
        # Once, and not each time that one of them waits
        assert [
            line["missing_locations"] for line in logs if line["event"] == "reclaim_braked"
        ] == [6]
        assert cloud.locations == before
        assert rig.count("missing_volumes") == 6
        assert rig.count("reclaim_brake") == 1
        outcome = await rig.run(images[0].id)
        assert isinstance(outcome, Again)
        assert "reclaim --confirm" in outcome.reason
        await rig.reclaim.prepare({})
        for image in images:
            (bare,) = await rig.reclaim.bare_locations(
                cloud.images[image.id], cloud.of(image.id)[:0]
            )
            assert await rig.reclaim.confirm_location(image.id, bare) == ""
        assert all(len(cloud.locations[image.id]) == 1 for image in images)
        await rig.resync()
        assert rig.count("missing_volumes") == rig.count("reclaim_brake") == 0


@pytest.mark.parametrize(("volumes", "limit"), [(0, 5), (100, 5), (200, 10), (1000, 50)])
def test_the_brake_is_a_share_and_at_least_five(volumes: int, limit: int) -> None:
    assert Reclaiming().limit(volumes) == limit


# Ours is what carries our marks and matches reality


async def test_two_stores_of_a_type_have_to_be_told_apart_by_the_operator() -> None:
    stores = tuple(
        Store(id=name, type="cinder", volume_type="fast") for name in ("here", "elsewhere")
    )
    with pytest.raises(Blocked, match="name the one of this region as glance_store"):
        resolve(FAST, stores)
    assert resolve(replace(FAST, glance_store="here"), stores).glance_store == "here"
    assert resolve(replace(FAST, strategy="cache"), stores).strategy == "cache"


@pytest.mark.parametrize("kind", ["fast", "", str(uuid.uuid4())])
async def test_a_store_of_another_type_is_no_targets(kind: str) -> None:
    """Its copies would be taken for retyped ones, and removed."""
    stores = tuple(Store(id=f"of-{one}", type="cinder", volume_type=one) for one in (kind, "slow"))
    assert resolve(replace(FAST, glance_store=f"of-{kind}"), stores).strategy == "store"
    other = replace(FAST, glance_store="of-slow")
    for strategy in ("auto", "store", "location"):
        with pytest.raises(Blocked, match="makes volumes of type slow: set volume_type = slow"):
            resolve(replace(other, strategy=strategy), stores)
    assert resolve(replace(other, strategy="cache"), stores).strategy == "cache"


async def test_a_location_in_a_store_of_no_target_is_unknown(cloud: FakeCloud) -> None:
    """Two regions behind one Glance: the other region's volume is not found here."""
    async with rig_of(cloud, "store", FAST) as rig:
        theirs = cloud.volume_of(PROJECT, name="x", volume_type="fast")
        cloud.elsewhere.add(theirs.id)
        image = cloud.upload(stores=frozenset({"cinder-elsewhere"}))
        cloud.locations[image.id] = (
            Location(url="file:///x", store="file"),
            Location(
                url=f"cinder://cinder-elsewhere/{theirs.id}",
                store="cinder-elsewhere",
                volume_id=theirs.id,
            ),
        )
        assert isinstance(await rig.run(image.id), Done)
        (ours,) = cloud.of(image.id)
        del cloud.volumes[ours.id]
        for _ in range(3):
            await rig.run(image.id)
        assert theirs.id in located(cloud, image.id)
        assert theirs.id in cloud.volumes
        assert rig.count("images_beyond_repair") == 0


async def test_another_images_volume_is_not_made_ours(cloud: FakeCloud) -> None:
    """With show_multiple_locations a user adds a public image's Image-Volume as a location of an
    own image."""
    async with rig_of(cloud, "store", FAST) as rig:
        public = await warmed(rig, cloud)
        (volume,) = cloud.of(public.id)
        own = cloud.upload(owner="mallory", visibility="private")
        cloud.locate(own.id, "cinder-fast", volume.id)
        outcome = await rig.run(own.id)
        assert isinstance(outcome, Skip)
        assert "not this image's" in outcome.reason
        assert cloud.volumes[volume.id] == volume
        cloud.set_by_user(own.id, image_volume_prewarm="no")
        await rig.run(own.id)
        await look(rig, own.id)
        assert cloud.volumes[volume.id] == volume


@pytest.mark.parametrize("strategy", ["location", "store"])
async def test_a_volume_older_than_its_image_is_another_images(
    cloud: FakeCloud, strategy: str
) -> None:
    """An id that is used again: OSSN-0075."""
    async with rig_of(cloud, strategy, FAST) as rig:
        image = await warmed(rig, cloud)
        (old,) = cloud.of(image.id)
        cloud.lose(image.id)
        cloud.ahead += 3600.0
        cloud.upload(id=image.id)
        assert isinstance(await rig.run(image.id), Done)
        assert cloud.volumes[old.id] == old
        assert old.id not in located(cloud, image.id)
        assert len(cloud.of(image.id)) == 2


async def test_a_retyped_image_volume_is_not_warm_and_is_made_again(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store") as rig:
        image = await warmed(rig, cloud)
        victim = next(volume for volume in cloud.of(image.id) if volume.volume_type == "fast")
        cloud.volumes[victim.id] = replace(victim, volume_type="slow", host="host@slow#slow")
        (missing,) = await rig.resync()
        assert "is of type slow, not fast" in missing.why
        await rig.quiet()
        assert sorted(volume.volume_type for volume in cloud.of(image.id)) == ["fast", "slow"]
        assert await rig.resync() == []


@pytest.mark.parametrize("strategy", ["location", "cache"])
async def test_a_target_of_another_type_than_before_gets_volumes_of_that_type(
    cloud: FakeCloud, strategy: str
) -> None:
    async with rig_of(cloud, strategy, FAST) as rig:
        image = await warmed(rig, cloud)
        (old,) = cloud.of(image.id)
    other = replace(using(strategy, SLOW)[0], name="fast")
    async with Rig(cloud, targets=(other,), policy=Policy(settle=0.0)) as rig:
        assert isinstance(await rig.run(image.id), Done)
        new = next(volume for volume in cloud.of(image.id) if volume.id != old.id)
        assert new.volume_type == "slow"
        assert cloud.volumes[old.id] == old


async def test_the_only_data_of_an_image_stays_though_it_was_retyped(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = await warmed(rig, cloud)
        (volume,) = cloud.of(image.id)
        cloud.locations[image.id] = tuple(one for one in cloud.locations[image.id] if one.volume_id)
        cloud.touch(image.id, stores=frozenset({"cinder-fast"}))
        moved = cloud.volumes[volume.id] = replace(volume, volume_type="slow")
        with pytest.raises(Conflict, match="no other location that would stay"):
            await rig.run(image.id)
        assert cloud.volumes[volume.id] == moved


async def test_two_copies_of_ours_do_not_vouch_for_each_other_when_both_were_retyped(
    cloud: FakeCloud,
) -> None:
    """Two workers would remove one each."""
    async with rig_of(cloud, "store") as rig:
        image = await warmed(rig, cloud)
        cloud.locations[image.id] = tuple(one for one in cloud.locations[image.id] if one.volume_id)
        cloud.touch(image.id, stores=frozenset(STORES))
        for volume in cloud.of(image.id):
            other = {"fast": "slow", "slow": "fast"}[volume.volume_type]
            cloud.volumes[volume.id] = replace(volume, volume_type=other)
        before = dict(cloud.volumes)
        for target in ("fast", "slow"):
            with pytest.raises(Conflict, match="no other location that would stay"):
                await rig.run(image.id, target)
        assert cloud.volumes == before


async def test_another_images_volume_is_no_copy_of_this_one(cloud: FakeCloud) -> None:
    """A user adds another image's volume as a location, and then wants the image nowhere."""
    async with rig_of(cloud, "store") as rig:
        bobs = cloud.volume_of(PROJECT, name="image-of-bob")
        image = await warmed(rig, cloud)
        cloud.locations[image.id] = tuple(one for one in cloud.locations[image.id] if one.volume_id)
        cloud.locate(image.id, "cinder-elsewhere", bobs.id)
        before = dict(cloud.volumes)
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Skip)
        assert "no other location that would stay" in outcome.reason
        await look(rig, image.id)
        assert cloud.volumes == before


# What can't be deleted


def stuck(cloud: FakeCloud, volume: Volume) -> None:
    cloud.volumes[volume.id] = replace(volume, status="error_deleting")


@pytest.mark.parametrize("strategy", ["location", "cache"])
async def test_a_volume_in_error_deleting_is_left_out(cloud: FakeCloud, strategy: str) -> None:
    async with rig_of(cloud, strategy, FAST) as rig:
        image = cloud.upload()
        prefix = "image" if strategy == "location" else "warm"
        metadata = image_volume.metadata_of(
            image, rig.prewarm.resolved[0] if rig.prewarm.resolved else FAST
        )
        old = cloud.volume_of(
            PROJECT, name=f"{prefix}-{image.id}", volume_type="fast", metadata=metadata
        )
        stuck(cloud, old)
        assert isinstance(await rig.run(image.id), Done)
        found = await rig.resync()
        assert any("see volume_stuck in the log" in one.why and old.id in one.why for one in found)
        with structlog.testing.capture_logs() as told:
            await rig.quiet()
        (line,) = [line for line in told if line["event"] == "volume_stuck"]
        assert f"openstack volume delete --force {old.id}" in line["advice"]


@pytest.mark.parametrize("status", ["error_deleting", "error_backing-up", "error_extending"])
async def test_a_located_volume_whose_data_may_be_whole_is_told_and_waited_for(
    cloud: FakeCloud, status: str
) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        image = await warmed(rig, cloud)
        (volume,) = cloud.of(image.id)
        cloud.volumes[volume.id] = replace(volume, status=status)
        with structlog.testing.capture_logs() as told:
            await look(rig, image.id)
        assert not [line for line in told if "delete" in str(line.get("advice"))]
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Again)
        assert not outcome.counted
        assert "openstack volume set --state available" in outcome.reason
        assert cloud.calls["remove_from_store"] == 0


async def test_a_clone_in_error_deleting_does_not_hold_up_an_upload(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST) as rig:
        source = cloud.volume_of("alice")
        image = cloud.queue(properties={"image_volume_source": source.id})
        metadata = {
            "image_owner": "alice",
            "image_volume_worker": "upload",
            "glance_image_id": image.id,
        }
        old = cloud.volume_of(
            PROJECT, name=f"image-{image.id}", source_volid=source.id, metadata=metadata
        )
        stuck(cloud, old)
        assert isinstance(await rig.complete(image.id), Done)
        assert cloud.images[image.id].status == "active"


def with_snapshot(cloud: FakeCloud, volume: Volume) -> None:
    cloud.depended_on.add(volume.id)


def handed_back(cloud: FakeCloud, volume: Volume) -> None:
    cloud.held_by_backend.add(volume.id)


@pytest.mark.parametrize(
    ("strategy", "hold"),
    [("store", with_snapshot), ("cache", with_snapshot), ("cache", handed_back)],
)
async def test_a_victim_that_can_not_be_deleted_is_not_the_only_one(
    cloud: FakeCloud, strategy: str, hold: Callable[[FakeCloud, Volume], None]
) -> None:
    async with rig_of(cloud, strategy, replace(FAST, max_count=2)) as rig:
        images = []
        for _ in range(2):
            cloud.ahead += 10.0
            images.append(await warmed(rig, cloud))
        (oldest,) = cloud.of(images[0].id)
        hold(cloud, oldest)
        cloud.ahead += 10.0
        third = cloud.upload()
        assert isinstance(await rig.run(third.id), Done)
        assert cloud.of(images[1].id) == []
        assert oldest.id in cloud.volumes
        # Nothing that could be deleted is older than the next one but the third
        cloud.ahead += 10.0
        for _ in range(4):
            cloud.ahead += 10.0
            image = cloud.upload()
            await rig.run(image.id)
            assert sum(volume.name.startswith("image-") for volume in cloud.volumes.values()) <= 2


@pytest.mark.parametrize("why", ["delayed", "busy"])
async def test_room_that_is_not_given_costs_one_image_its_copy(cloud: FakeCloud, why: str) -> None:
    """Glance removes the location, and the volume stays: by delayed deletion, or the driver's doing."""
    async with rig_of(cloud, "store", replace(FAST, max_count=3)) as rig:
        images = []
        for _ in range(3):
            cloud.ahead += 10.0
            images.append(await warmed(rig, cloud))
        (oldest,) = cloud.of(images[0].id)
        cloud.delayed = why == "delayed"
        cloud.held_by_backend |= {oldest.id} if why == "busy" else set()
        cloud.ahead += 10.0
        wanted = cloud.upload()

        def whole() -> list[bool]:
            return [bool(located(cloud, image.id)) for image in images]

        outcome = await rig.run(wanted.id)
        if why == "delayed":
            # Cinder itself is asked for it then
            assert isinstance(outcome, Done)
            assert whole() == [False, True, True]
            assert oldest.id not in cloud.volumes
            return
        for _ in range(3):
            assert isinstance(outcome, Skip)
            assert "what was to make room has not gone" in outcome.reason
            assert whole() == [False, True, True]
            outcome = await rig.run(cloud.upload().id)
        # One volume does not stop the target for good, nor do all images lose theirs at once
        cloud.ahead += 1000.0
        assert isinstance(await rig.run(wanted.id), Done)
        assert whole() == [False, False, True]


async def test_of_several_volumes_that_are_to_go_one_is_tried_first(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", replace(FAST, max_gigabytes=4)) as rig:
        images = []
        for _ in range(4):
            cloud.ahead += 10.0
            images.append(await warmed(rig, cloud))
        cloud.held_by_backend |= {volume.id for volume in cloud.volumes.values()}
        cloud.ahead += 10.0
        assert isinstance(await rig.run(cloud.upload(size=3 * GIB).id), Skip)
        assert [bool(located(cloud, image.id)) for image in images] == [False, True, True, True]


async def test_a_target_where_nothing_can_be_deleted_takes_nothing_more(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", replace(FAST, max_count=2)) as rig:
        for _ in range(2):
            cloud.ahead += 10.0
            image = await warmed(rig, cloud)
            for volume in cloud.of(image.id):
                cloud.depended_on.add(volume.id)
        for _ in range(8):
            cloud.ahead += 10.0
            outcome = await rig.run(cloud.upload().id)
            assert isinstance(outcome, Skip)
            assert "full" in outcome.reason
        assert len(cloud.volumes) == 2


async def test_a_volume_of_a_gone_image_that_is_not_ours_stays(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", FAST, reclaiming=DAY) as rig:
        cloud.upload(visibility="private")
        image = cloud.upload()
        marks = {"glance_image_id": image.id, "image_owner": "alice", "readonly": "True"}
        name = f"image-{image.id}"
        theirs = [
            cloud.volume_of(
                PROJECT,
                name=name,
                volume_type="fast",
                metadata={**marks, "image_volume_worker": "other"},
            ),
            cloud.volume_of(
                PROJECT,
                name=name,
                volume_type="slow",
                metadata={**marks, "image_volume_worker": "fast"},
            ),
            cloud.volume_of(PROJECT, name=name, volume_type="fast", metadata=marks),
        ]
        ours = cloud.volume_of(
            PROJECT,
            name=name,
            volume_type="fast",
            metadata={**marks, "image_volume_worker": "fast"},
        )
        cloud.lose(image.id)
        for _ in range(absence.LOOKS):
            await look(rig, image.id)
            cloud.ahead += LOOK
        assert ours.id not in cloud.volumes
        assert [cloud.volumes.get(volume.id) for volume in theirs] == theirs


# The last copy need not be a location


def uploaded(cloud: FakeCloud, store: str, *others: str) -> Image:
    """An image that its owner has uploaded into a cinder store, besides these other stores."""
    image = cloud.upload(stores=frozenset(others))
    if not others:
        cloud.locations[image.id] = ()
    volume = cloud.volume_of(
        PROJECT,
        name=image_volume.name_of(image.id),
        volume_type=cloud.stores[store],
        metadata={"glance_image_id": image.id, "image_size": "1", "image_owner": image.owner},
        created_epoch=image.created_epoch,
    )
    cloud.locate(image.id, store, volume.id)
    cloud.touch(image.id, stores=frozenset({store, *others}))
    return cloud.images[image.id]


def broken(cloud: FakeCloud, image_id: str) -> None:
    """Have every location of the image be in error, or gone."""
    for volume_id in located(cloud, image_id):
        cloud.volumes[volume_id] = replace(cloud.volumes[volume_id], status="error")


async def with_entry(rig: Rig, cloud: FakeCloud) -> tuple[Image, Volume]:
    """An image whose one location is somebody else's volume on slow, with an entry of Cinder's cache
    on fast."""
    image = uploaded(cloud, "cinder-slow")
    await rig.run(image.id)
    await rig.quiet()
    (entry,) = [one for one in cloud.of(image.id) if one.volume_type == "fast"]
    assert entry.id not in located(cloud, image.id)
    return image, entry


@pytest.mark.parametrize("way", ["evict", "the owner", "the policy"])
async def test_an_entry_that_is_the_last_copy_stays(cloud: FakeCloud, way: str) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "cache", FAST) as rig:
        image, entry = await with_entry(rig, cloud)
        broken(cloud, image.id)
        if way == "evict":
            outcome = await rig.prewarm._unwanted.delete(
                image, rig.parts.targets[0], why="an operator", by_operator=True
            )
            assert isinstance(outcome, Skip)
            assert "no location of the image is whole" in outcome.reason
        elif way == "the owner":
            cloud.set_by_user(image.id, image_volume_prewarm="no")
        else:
            cloud.touch(image.id, visibility="private")
        await rig.run(image.id)
        await look(rig, image.id)
        assert entry.id in cloud.volumes


async def test_a_change_of_an_image_that_cannot_be_read_keeps_its_entry(cloud: FakeCloud) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "cache", FAST) as rig:
        image, entry = await with_entry(rig, cloud)
        broken(cloud, image.id)
        cloud.ahead += 600.0
        cloud.set_by_user(image.id, os_distro="debian")
        cloud.ahead += 600.0
        cloud.calls.clear()
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Again)
        assert f"Volume {entry.id} has the data" in outcome.reason
        assert cloud.calls["create_volume"] == 0
        assert entry.id in cloud.volumes


@pytest.mark.parametrize("stays", [True, False])
async def test_a_throw_away_volume_that_is_the_last_copy_stays(
    cloud: FakeCloud, stays: bool
) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "cache", FAST) as rig:
        image = uploaded(cloud, "cinder-slow")
        left = cloud.volume_of(
            PROJECT,
            name=image_volume.warming_name_of(image.id),
            volume_type="fast",
            metadata={TAG: "fast", image_volume.FRESH: image.updated_at},
            created_epoch=cloud.now(),
        )
        cloud.cached = frozenset()
        if stays:
            broken(cloud, image.id)
        # By the one that made it, by another one, and by a comparison once it is old
        for ahead in (10.0, 600.0, 30_000.0):
            cloud.ahead += ahead
            with contextlib.suppress(Conflict):
                await rig.run(image.id)
            await rig.resync()
            await rig.quiet()
        assert (left.id in cloud.volumes) == stays


async def test_an_entry_of_another_type_in_the_pool_may_be_the_last_copy(cloud: FakeCloud) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "cache", FAST) as rig:
        image = uploaded(cloud, "cinder-slow")
        host = cloud.hosts_of("fast")[0]
        theirs = cloud.volume_of("bob", name="disk", volume_type="gold", host=host)
        entry = cloud._cinder_clones(
            theirs,
            image_volume.name_of(image.id),
            {"readonly": "True", "_cached_for": image.updated_at},
        )
        broken(cloud, image.id)
        cloud.ahead += 600.0
        cloud.set_by_user(image.id, os_distro="debian")
        cloud.ahead += 600.0
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Again)
        assert f"Volume {entry.id} has the data" in outcome.reason
        assert cloud.calls["create_volume"] == 0


async def test_a_renamed_target_keeps_its_entries(cloud: FakeCloud) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "cache", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        (entry,) = cloud.of(image.id)
    cloud.ahead += 600.0
    async with rig_of(cloud, "cache", replace(FAST, name="renamed")) as rig:
        cloud.calls.clear()
        for _ in range(3):
            assert isinstance(await rig.run(image.id, "renamed"), Done)
        assert cloud.calls["create_volume"] <= 1
        (kept,) = cloud.of(image.id)
        assert (kept.id, kept.metadata[TAG]) == (entry.id, "renamed")
        assert not await rig.resync()


async def test_two_targets_in_a_pool_share_an_entry_and_do_not_fight(cloud: FakeCloud) -> None:
    class SharedPool(FakeCloud):
        def hosts_of(self, volume_type: str) -> list[str]:
            return super().hosts_of("fast")

        async def describe_volume_types(self) -> tuple[VolumeType, ...]:
            specs = {"volume_backend_name": "fast"}
            return tuple(VolumeType(id=name, name=name, specs=specs) for name in sorted(self.types))

    cloud = SharedPool(cached=frozenset({"fast"}), types={"fast", "slow"})
    cloud.emit = lambda _: None
    async with rig_of(cloud, "cache", FAST, SLOW) as rig:
        image = cloud.upload()
        for _ in range(3):
            for target in ("fast", "slow"):
                assert isinstance(await rig.run(image.id, target), Done)
        assert cloud.calls["create_volume"] == 1
        (kept,) = cloud.of(image.id)
        assert kept.metadata[TAG] == "fast"
        assert not await rig.resync()


@pytest.mark.parametrize("strategy", ["store", "cache"])
async def test_a_location_may_have_any_name(cloud: FakeCloud, strategy: Strategy) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, strategy, FAST) as rig:
        image = cloud.upload()
        name = image_volume.warming_name_of(image.id)
        cloud.locate(image.id, "cinder-fast", cloud.volume_of("mallory", name=name).id)
        cloud.touch(image.id, stores=frozenset({"file", "cinder-fast"}))
        cloud.cached = frozenset()
        async with asyncio.timeout(10):
            await rig.run(image.id)
        assert cloud.calls["get_volume"] < 20


@pytest.mark.parametrize(
    ("strategy", "verb", "way"),
    [
        ("cache", "delete_volume", "gone"),
        ("cache", "delete_volume", "evict"),
        ("store", "remove_from_store", "evict"),
        ("store", "remove_from_store", "broken"),
    ],
)
async def test_a_deletion_whose_answer_is_lost_is_told(
    cloud: FakeCloud, strategy: Strategy, verb: str, way: str
) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, strategy, FAST) as rig:
        image = cloud.upload(visibility="private")
        cloud.upload(visibility="private")
        await rig.run(image.id)
        (volume,) = cloud.of(image.id)
        cloud.faults[verb] = Fault(Temporary("no answer"), done=True)
        with structlog.testing.capture_logs() as lines, contextlib.suppress(Temporary):
            if way == "evict":
                cloud.set_by_user(image.id, image_volume_prewarm="no")
                await rig.run(image.id)
            elif way == "gone":
                cloud.delete_image(image.id)
                rig.parts.deletions.note(image.id, "deleted")
                await look(rig, image.id)
            else:
                cloud.volumes[volume.id] = replace(volume, status="error")
                await rig.run(image.id)
        told = [line for line in lines if line["event"] == "deletion_unanswered"]
        assert [line["volume_id"] for line in told] == [volume.id]
        assert told[0]["why"]


async def test_a_store_of_which_cinder_shows_nothing_may_be_another_regions(
    cloud: FakeCloud,
) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "store", FAST) as rig:
        for _ in range(3):
            await rig.run(cloud.upload().id)
    async with rig_of(cloud, "store", FAST, SLOW) as rig:
        images = [uploaded(cloud, "cinder-slow", "file") for _ in range(2)]
        theirs = [volume for image in images for volume in cloud.of(image.id)]
        cloud.elsewhere |= {volume.id for volume in theirs}
        outcome: Outcome = Done()
        for _ in range(absence.LOOKS + 1):
            for image in images:
                outcome = await rig.run(image.id, "slow")
            cloud.ahead += 200.0
        assert isinstance(outcome, Again)
        assert all(volume.id in cloud.volumes for volume in theirs)


@pytest.mark.parametrize("by", ["resync", "a job"])
async def test_a_volume_that_came_back_is_not_gone_by_what_was_announced_before(
    cloud: FakeCloud, by: str
) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        (volume,) = cloud.of(image.id)
        rig.deletions.note_volume(volume.id)
        # An administrator has restored it under its id
        if by == "resync":
            await rig.resync()
            await rig.quiet()
        else:
            await rig.run(image.id)
        cloud.elsewhere.add(volume.id)
        await rig.run(image.id)
        assert volume.id in cloud.volumes
        assert volume.id in located(cloud, image.id)


def during(cloud: FakeCloud, volume: Volume, **changes: Any) -> None:
    """Have Glance list the import that made a volume; it has failed."""
    image_id, began = image_volume.image_of(volume), volume.created_epoch
    task = ImageTask(
        id="import", type="api_image_import", status="failure", stores=frozenset({"cinder-fast"}),
        created_epoch=began - 5.0, updated_epoch=began + 5.0,
    )  # fmt: skip
    cloud.image_tasks[image_id] = [replace(task, **changes)]


async def test_what_no_import_of_this_glance_has_made_stays(cloud: FakeCloud) -> None:
    """Its database was restored from a backup: it knows the location no more that the data is."""
    cloud.emit = lambda _: None
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        left = cloud.volume_of(
            PROJECT,
            name=image_volume.name_of(image.id),
            volume_type="fast",
            metadata={"glance_image_id": image.id, "image_size": "1", "image_owner": PROJECT},
            created_epoch=cloud.now(),
        )
        began = left.created_epoch - 7 * 3600.0
        assert not cloud.image_tasks.get(image.id)
        for changes in (
            None,
            {"created_epoch": began, "updated_epoch": began + 60.0},
            {"stores": frozenset({"cinder-slow"})},
            {"status": "processing", "created_epoch": began},
            {"type": "location_import"},
        ):
            if changes is not None:
                during(cloud, left, **changes)
            with structlog.testing.capture_logs() as logs:
                await look(rig, image.id)
            told = [line["volume_id"] for line in logs if line["event"] == "left_over_stays"]
            assert told == [left.id]
            assert left.id in cloud.volumes
        during(cloud, left)
        await look(rig, image.id)
        assert left.id not in cloud.volumes


@pytest.mark.parametrize("owner", ["alice", PROJECT])
@pytest.mark.parametrize("finished", [False, True])
async def test_what_may_have_been_somebodys_location_is_not_left_over(
    cloud: FakeCloud, owner: str, finished: bool
) -> None:
    """With delayed_delete Glance keeps the data of a location that was removed."""
    cloud.emit = lambda _: None
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload()
        metadata = {"glance_image_id": image.id, "image_size": "1", "image_owner": owner}
        left = cloud.volume_of(
            PROJECT,
            name=image_volume.name_of(image.id),
            volume_type="fast",
            metadata=metadata | ({"readonly": "True"} if finished else {}),
            created_epoch=cloud.now(),
        )
        during(cloud, left)
        await look(rig, image.id)
        assert (left.id in cloud.volumes) == (finished and owner == "alice")


@pytest.mark.parametrize("status", ["error", "error_extending"])
async def test_an_entry_whose_data_may_be_whole_is_not_broken(
    cloud: FakeCloud, status: str
) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "cache", FAST) as rig:
        image, entry = await with_entry(rig, cloud)
        broken(cloud, image.id)
        cloud.volumes[entry.id] = replace(cloud.volumes[entry.id], status=status)
        for _ in range(2):
            with contextlib.suppress(Conflict):
                await rig.run(image.id)
            cloud.ahead += 600.0
            cloud.set_by_user(image.id, x=str(cloud.ahead))
        assert (entry.id in cloud.volumes) == (status != "error")


async def test_a_clone_that_was_a_location_is_no_entry(cloud: FakeCloud) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "cache", FAST) as rig:
        cloud.cached = frozenset()
        image = cloud.upload()
        clone = cloud.volume_of(
            PROJECT, name=image_volume.name_of(image.id), volume_type="fast", source_volid="theirs",
            created_epoch=cloud.now(),
        )  # fmt: skip
        metadata = image_volume.metadata_of(image, FAST) | {UPLOADED_BY: "alice", OF: clone.id}
        cloud.volumes[clone.id] = replace(clone, metadata=metadata | {"readonly": "True"})
        for way in ("yes", "no"):
            cloud.set_by_user(image.id, image_volume_prewarm=way)
            cloud.ahead += 600.0
            await rig.run(image.id)
        assert clone.id in cloud.volumes
        assert image_volume.ORIGIN not in cloud.volumes[clone.id].metadata


class Shrinking(FakeCloud):
    """A Glance whose store `without` an operator takes away."""

    without = ""

    async def list_stores(self) -> tuple[Store, ...]:
        return tuple(store for store in await super().list_stores() if store.id != self.without)


@pytest.mark.parametrize("by", ["the worker", "a probe"])
async def test_an_entry_is_the_last_copy_once_the_store_is_gone(by: str) -> None:
    cloud = Shrinking(stores=dict(STORES))
    cloud.emit = lambda _: None
    async with rig_of(cloud, "cache", FAST) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        cloud.without = "file"
        cloud.ahead += 60.0
        cloud.set_by_user(image.id, os_distro="debian")
        cloud.calls.clear()
        if by == "a probe":
            shown = cloud.images[image.id]
            check = await probe.probe(cloud, shown, FAST, take=None, lying=None, within=5.0)
            assert "may have the last copy" in check.detail
        else:
            assert isinstance(await rig.run(image.id), Again)
        assert cloud.calls["create_volume"] == 0


@pytest.mark.parametrize("store", ["file", "cinder-slow"])
async def test_a_copy_is_the_last_one_once_the_store_of_the_other_is_gone(store: str) -> None:
    """Glance was started without it a moment ago. A volume that Cinder has is of no use to it."""
    cloud = Shrinking(stores=dict(STORES))
    cloud.emit = lambda _: None
    async with rig_of(cloud, "store", FAST) as rig:
        image = cloud.upload() if store == "file" else uploaded(cloud, store)
        await rig.run(image.id)
        await rig.quiet()
        (copy,) = [one for one in cloud.of(image.id) if one.volume_type == "fast"]
        cloud.without = store
        cloud.ahead += 3.0
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        await rig.run(image.id)
        await look(rig, image.id)
        assert copy.id in cloud.volumes
        # The store is back
        cloud.without = ""
        cloud.ahead += 3.0
        await rig.run(image.id)
        assert copy.id not in cloud.volumes


@pytest.mark.parametrize("last", [True, False])
async def test_a_dry_run_tells_of_no_last_copy(cloud: FakeCloud, last: bool) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "store", FAST, reclaiming=Reclaiming(dry_run=True)) as rig:
        image = uploaded(cloud, "cinder-slow")
        await rig.run(image.id)
        await rig.quiet()
        (copy,) = [one for one in cloud.of(image.id) if one.volume_type == "fast"]
        if last:
            (original,) = [one for one in cloud.of(image.id) if one.volume_type == "slow"]
            cloud.volumes[original.id] = replace(original, status="error")
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        with structlog.testing.capture_logs() as logs:
            await rig.run(image.id)
            await look(rig, image.id)
        told = {line["volume_id"] for line in logs if line["event"] == "volume_would_be_deleted"}
        assert told == (set() if last else {copy.id})
        assert copy.id in cloud.volumes


@pytest.mark.parametrize("verb", ["find_volumes", "get_locations", "get_volume"])
async def test_a_probe_asks_again_where_it_got_no_answer(cloud: FakeCloud, verb: str) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "cache", FAST) as rig:
        image, _ = await with_entry(rig, cloud)
        cloud.calls.clear()
        cloud.faults[verb] = Fault(Temporary("503"))
        check = await probe.probe(cloud, image, FAST, take=None, lying=None, within=5.0)
        assert check.advice == "ask again"
        assert cloud.calls["create_volume"] == 0


@pytest.mark.parametrize("tells", [True, False])
async def test_a_location_that_is_not_the_images_is_no_copy_of_it(
    cloud: FakeCloud, tells: bool
) -> None:
    cloud.emit = lambda _: None
    cloud.tells_pools = tells
    async with rig_of(cloud, "cache", FAST) as rig:
        image, entry = await with_entry(rig, cloud)
        broken(cloud, image.id)
        cloud.locate(image.id, "cinder-slow", cloud.volume_of("alice", volume_type="slow").id)
        cloud.ahead += 600.0
        cloud.set_by_user(image.id, os_distro="debian")
        cloud.ahead += 600.0
        if not tells:
            # Of a type that leads to the same pool, which is not known
            cloud.volumes[entry.id] = replace(cloud.volumes[entry.id], volume_type="gold")
        cloud.calls.clear()
        assert isinstance(await rig.run(image.id), Again)
        assert cloud.calls["create_volume"] == 0


async def test_a_lost_location_is_repaired_however_many_entries_there_are(
    cloud: FakeCloud,
) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "store", FAST) as rig:
        first, *_ = [cloud.upload() for _ in range(3)]
        await rig.resync()
        await rig.quiet()
        cloud.cached = frozenset({"fast"})
        for _ in range(30):
            cloud.use(cloud.upload(visibility="private").id, "fast")
        cloud.volumes = dict(reversed(cloud.volumes.items()))
        (lost,) = cloud.of(first.id)
        del cloud.volumes[lost.id]
        for _ in range(absence.LOOKS + 2):
            await rig.run(first.id)
            cloud.ahead += 200.0
        (made,) = cloud.of(first.id)
        assert made.id != lost.id


@pytest.mark.parametrize("cached", [True, False])
async def test_an_image_in_another_region_gets_its_entry_and_leaves_nothing(
    cloud: FakeCloud, cached: bool
) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "cache", FAST) as rig:
        image = uploaded(cloud, "cinder-slow")
        cloud.elsewhere |= set(located(cloud, image.id))
        if cached:
            # Somebody has made a volume of it here
            cloud.ahead += 10.0
            cloud.use(image.id, "fast")
        else:
            cloud.cached = frozenset()
        for _ in range(3):
            cloud.ahead += 4000.0
            outcome = await rig.run(image.id)
        assert isinstance(outcome, Done if cached else Skip)
        assert not [one for one in cloud.of(image.id) if image_volume.is_throw_away(one)]


async def test_an_entry_of_another_type_goes_with_its_image(cloud: FakeCloud) -> None:
    cloud.emit = lambda _: None
    cloud.types = {"fast", "slow", "gold"}
    async with rig_of(cloud, "cache", FAST, reclaiming=Reclaiming(grace=GRACE)) as rig:
        cloud.upload(visibility="private", owner="bob")
        image = cloud.upload()
        cloud.use(image.id, "gold", host=cloud.hosts_of("fast")[0])
        (entry,) = cloud.of(image.id)
        assert isinstance(await rig.run(image.id), Done)
        assert image.id not in [missing.key.image_id for missing in await rig.resync()]
        await rig.quiet()
        assert [one.id for one in cloud.of(image.id)] == [entry.id]
        cloud.lose(image.id)
        for _ in range(absence.LOOKS + 1):
            await look(rig, image.id)
            cloud.ahead += LOOK
        assert not cloud.of(image.id)


async def test_one_look_that_shows_no_locations_costs_no_entry(cloud: FakeCloud) -> None:
    class Blinking(FakeCloud):
        blinks = 0

        async def get_locations(self, image_id: str) -> tuple[Location, ...] | None:
            found = await super().get_locations(image_id)
            self.blinks -= 1
            return None if self.blinks >= 0 else found

    cloud = Blinking(stores=dict(STORES), multiple_locations=True)
    cloud.emit = lambda _: None
    async with rig_of(cloud, "cache", FAST) as rig:
        image, entry = await with_entry(rig, cloud)
        broken(cloud, image.id)
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        cloud.blinks = 1
        await rig.run(image.id)
        assert entry.id in cloud.volumes


@pytest.mark.parametrize("others", [(), using("store", SLOW)])
async def test_where_locations_are_needed_a_login_that_lost_them_keeps_entries(
    cloud: FakeCloud, others: tuple[Target, ...]
) -> None:
    cloud.emit = lambda _: None
    cloud.cached = frozenset({"fast"})
    policy = Policy(settle=0.0, rewarm_interval=0.0)
    async with Rig(cloud, targets=using("cache", FAST), policy=policy) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        (entry,) = cloud.of(image.id)
    cloud.hides_locations = True
    # After a restart nobody knows that they were shown
    async with Rig(cloud, targets=(*using("cache", FAST), *others), policy=policy) as rig:
        cloud.ahead += 600.0
        cloud.set_by_user(image.id, os_distro="debian")
        cloud.ahead += 600.0
        cloud.calls.clear()
        await rig.run(image.id)
        assert not (others and cloud.calls["create_volume"])
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        await rig.run(image.id)
        assert (entry.id in cloud.volumes) == bool(others)


async def test_entries_of_a_renamed_target_come_into_its_budget(cloud: FakeCloud) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "cache", FAST) as rig:
        for _ in range(3):
            cloud.upload()
        await rig.resync()
        await rig.quiet()
    cloud.ahead += 600.0
    renamed = replace(FAST, name="renamed", max_count=1)
    async with rig_of(cloud, "cache", renamed) as rig:
        for _ in range(2):
            await rig.resync()
            await rig.quiet()
        assert len(cloud.volumes) == 1


async def test_what_an_import_left_stays_while_no_location_is_whole(cloud: FakeCloud) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "store", FAST) as rig:
        image = uploaded(cloud, "cinder-fast")
        left = cloud.volume_of(
            PROJECT,
            name=image_volume.name_of(image.id),
            volume_type="fast",
            metadata={"glance_image_id": image.id, "image_size": "1", "image_owner": PROJECT},
            created_epoch=image.created_epoch,
        )
        during(cloud, left)
        broken(cloud, image.id)
        await look(rig, image.id)
        assert left.id in cloud.volumes
        for volume_id in located(cloud, image.id):
            cloud.volumes[volume_id] = replace(cloud.volumes[volume_id], status="available")
        await look(rig, image.id)
        assert left.id not in cloud.volumes


@pytest.mark.parametrize("rules", [Reclaiming(enabled=False), Reclaiming(dry_run=True)])
async def test_reclaim_switched_off_removes_no_broken_location(
    cloud: FakeCloud, rules: Reclaiming
) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "store", FAST, reclaiming=rules) as rig:
        image = uploaded(cloud, "cinder-fast", "file")
        broken(cloud, image.id)
        before = located(cloud, image.id)
        with pytest.raises(Blocked, match="does not let it be removed"):
            await rig.run(image.id)
        assert located(cloud, image.id) == before


async def test_an_announced_deletion_is_void_once_the_image_was_found_again(
    cloud: FakeCloud,
) -> None:
    """Its row in Glance's database was restored, and a moment's 404 later is nothing announced."""
    async with rig_of(cloud, "cache", FAST) as rig:
        image = await warmed(rig, cloud)
        rig.deletions.note(image.id, "deleted")
        await rig.run(image.id)
        (entry,) = cloud.of(image.id)
        cloud.emit = lambda _: None
        cloud.lose(image.id)
        assert isinstance(await look(rig, image.id), Skip)
        assert entry.id in cloud.volumes


async def test_a_clone_that_an_operator_has_made_stays(cloud: FakeCloud) -> None:
    cloud.emit = lambda _: None
    async with rig_of(cloud, "store", FAST) as rig:
        image = await warmed(rig, cloud)
        (warm,) = [one for one in cloud.of(image.id) if one.volume_type == "fast"]
        clone = cloud.volume_of(
            PROJECT, name=image_volume.name_of(image.id), source_volid=warm.id, metadata={}
        )
        cloud.delete_image(image.id)
        rig.parts.deletions.note(image.id, "deleted")
        await look(rig, image.id)
        assert clone.id in cloud.volumes
