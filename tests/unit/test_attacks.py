"""Attacks on other people's images and volumes: each of them worked once."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from handlers import budget, image_volume, last_use
from handlers.resolve import resolve
from handlers.upload.handler import WIDTH
from handlers.upload.plan import UNPROVEN
from tests.unit.rigs import rig_of
from worker.core.cloud import GIB, Image, Location, NewVolume, Store, Volume
from worker.core.creation import NOTE
from worker.core.errors import Blocked, Conflict, NotFound, Temporary
from worker.core.job import Key
from worker.core.outcome import Again, Done, Skip
from worker.core.state import State
from worker.core.target import TAG, UPLOAD, UPLOADED_BY, Policy, Uploads
from worker.testing.fake_cloud import PROJECT, FakeCloud, Fault, notification
from worker.testing.rig import FAST, SLOW, STORES, Polls, Rig, located, using

QUICK = Policy(settle=0.0, rewarm_interval=0.0)


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(stores=dict(STORES))


class Shrinking(FakeCloud):
    """A Glance whose store `file` an operator takes away."""

    has_file = True

    async def list_stores(self) -> tuple[Store, ...]:
        stores = await super().list_stores()
        return tuple(store for store in stores if store.id != "file" or self.has_file)


# A store that keeps no volumes


@pytest.mark.parametrize("kind", ["file", "rbd", "cinder", ""])
def test_a_store_that_keeps_no_volumes_is_no_targets(kind: str) -> None:
    stores = (Store(id="named", type=kind), Store(id="cinder-fast", type="cinder"))
    target = replace(FAST, glance_store="named")
    if kind in ("cinder", ""):
        assert resolve(target, stores).glance_store == "named"
    else:
        with pytest.raises(Blocked, match=f"keeps no volumes: it is of type {kind}"):
            resolve(target, stores)


async def test_a_location_that_is_no_volume_is_never_removed(cloud: FakeCloud) -> None:
    """As of a Glance that does not tell the types of its stores."""

    class Silent(FakeCloud):
        async def list_stores(self) -> tuple[Store, ...]:
            return tuple(replace(store, type="") for store in await super().list_stores())

    cloud = Silent(stores=dict(STORES))
    wrong = replace(FAST, strategy="store", glance_store="file")
    right = replace(SLOW, strategy="store", glance_store="cinder-slow")
    async with Rig(cloud, targets=(wrong, right), policy=QUICK) as rig:
        image = cloud.upload(owner="alice", visibility="private")
        await rig.run(image.id, "slow")
        before = cloud.locations[image.id]
        for _ in range(12):
            outcome = await rig.run(image.id, "fast")
            cloud.ahead += 200.0
        assert isinstance(outcome, Skip)
        assert "is no volume, and is left alone" in outcome.reason
        assert cloud.locations[image.id] == before
        with pytest.raises(Conflict, match="it is no volume"):
            await rig.reclaim._deletion.remove_location(image.id, "file", "", confirmed=True)


async def test_a_store_that_glance_has_no_more_keeps_no_copy() -> None:
    cloud = Shrinking(stores=dict(STORES))
    async with Rig(cloud, targets=using("store", FAST), policy=QUICK) as rig:
        cloud.emit = rig.hear
        image = cloud.upload(owner="alice", visibility="private")
        await rig.quiet()
    cloud.has_file = False
    target = replace(FAST, max_count=1)
    async with Rig(cloud, targets=using("store", target), policy=QUICK) as rig:
        cloud.emit = rig.hear
        cloud.ahead += 10.0
        cloud.upload(owner="bob", visibility="private")
        await rig.quiet()
        assert located(cloud, image.id), "all that Glance can read of it"


async def test_nor_in_the_minutes_in_which_the_list_of_stores_is_remembered() -> None:
    cloud = Shrinking(stores=dict(STORES))
    async with Rig(cloud, targets=using("store", FAST), policy=QUICK) as rig:
        image = cloud.upload(owner="alice", visibility="private")
        assert isinstance(await rig.run(image.id), Done)
        cloud.has_file = False
        cloud.ahead += 60.0
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        assert isinstance(await rig.run(image.id), Skip)
        assert located(cloud, image.id), "all that Glance can read of it"


# A volume that goes to another project while it is cloned


@pytest.mark.parametrize("deleted", [True, False])
async def test_what_another_project_has_written_is_given_to_nobody(
    cloud: FakeCloud, deleted: bool
) -> None:
    async with Rig(cloud, targets=using("store", FAST)) as rig:
        volume = cloud.volume_of("mallory")
        image = cloud.queue(owner="mallory", properties={"image_volume_source": volume.id})
        cloud.seconds = 0.3
        working = asyncio.create_task(rig.complete(image.id))
        while not cloud.of(image.id):
            await asyncio.sleep(0.01)
        cloud.volumes[volume.id] = replace(cloud.volumes[volume.id], project_id="victim")
        seen = cloud.calls["get_volume"]
        while cloud.calls["get_volume"] < seen + 4:
            await asyncio.sleep(0.01)
        if deleted:
            del cloud.volumes[volume.id]
        await working
        assert cloud.images[image.id].status == "queued"
        assert not located(cloud, image.id)


async def test_nor_by_a_worker_that_was_away_meanwhile(cloud: FakeCloud) -> None:
    async with Rig(cloud, targets=using("store", FAST)) as rig:
        volume = cloud.volume_of("mallory")
        image = cloud.queue(owner="mallory", properties={"image_volume_source": volume.id})
        cloud.seconds = 0.1
        working = asyncio.create_task(rig.complete(image.id))
        while not cloud.of(image.id):
            await asyncio.sleep(0.01)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await asyncio.sleep(0.2)
        # Transferred, written to, cloned, and deleted
        del cloud.volumes[volume.id]
    async with Rig(cloud, targets=using("store", FAST)) as rig:
        outcome = await rig.complete(image.id)
        assert isinstance(outcome, Skip)
        assert "was deleted before the image was made of it" in outcome.reason
        assert cloud.images[image.id].status == "queued"
        # It may be all that is left of the owner's own data
        assert len(cloud.of(image.id)) == 1


# A project's share of a budget


def test_what_is_on_its_way_counts_for_its_project() -> None:
    target = replace(FAST, max_count=8, project_share=0.25)
    own = budget.Shelf(target, [], {one: budget.Coming(1, owner="mallory") for one in "ab"})
    others = budget.Shelf(
        target, [], {one: budget.Coming(1, owner=one) for one in ("alice", "bob")}
    )
    assert own._is_beyond_share(1, own._taken("mallory"))
    assert not others._is_beyond_share(1, others._taken("mallory"))


@pytest.mark.parametrize("strategy", ["store", "location", "cache"])
async def test_a_burst_of_one_project_keeps_to_its_share(strategy: str) -> None:
    cloud = FakeCloud(
        stores=dict(STORES),
        multiple_locations=True,
        cached=frozenset({"fast"} if strategy == "cache" else ()),
    )
    target = replace(FAST, max_count=8, max_concurrent=8)
    async with Rig(cloud, targets=using(strategy, target), policy=QUICK) as rig:  # type: ignore[arg-type]
        cloud.emit = rig.hear
        for number in range(8):
            cloud.upload(owner=f"victim-{number}", visibility="private")
            await rig.quiet()
        cloud.seconds = 0.05
        cloud.ahead += 10.0
        for _ in range(8):
            cloud.upload(owner="mallory", visibility="private")
        await rig.quiet()
        owners = Counter(image.owner for image in cloud.images.values() if cloud.of(image.id))
        # A quarter of eight; the first of a project may have anybody's room
        assert owners["mallory"] <= 2, owners


# Cinder's cache


@pytest.mark.parametrize("owners", ["mmm", "mnm"])
async def test_images_that_are_too_large_switch_no_cache_off(owners: str) -> None:
    cloud = FakeCloud(stores=dict(STORES), cached=frozenset({"fast"}), cache_max_gigabytes=100)
    async with Rig(cloud, targets=using("cache", FAST), policy=QUICK) as rig:
        cloud.emit = rig.hear
        cloud.upload(owner="alice", visibility="private")
        await rig.quiet()
        for owner in owners:
            cloud.upload(owner=owner, visibility="private", size=200 * GIB)
        await rig.quiet()
        later = [cloud.upload(owner=f"q{number}", visibility="private") for number in range(2)]
        async with asyncio.timeout(30):
            while not all(cloud.of(image.id) for image in later):
                await asyncio.sleep(0.01)
        assert not rig.prewarm.full()


async def test_what_cinder_was_to_make_an_entry_from_is_no_entry() -> None:
    cloud = FakeCloud(stores=dict(STORES), cached=frozenset({"fast"}))
    async with Rig(cloud, targets=using("cache", FAST), policy=QUICK) as rig:
        image = cloud.upload(size=2 * GIB)
        await rig.run(image.id)
        throw_away = cloud.volume_of(
            PROJECT, name=f"warm-{image.id}", size=200, volume_type="fast",
            metadata={TAG: "fast", image_volume.FRESH: "then"},
        )  # fmt: skip
        assert image_volume.is_entry(throw_away)
        assert await rig.prewarm._held_back._largest_entry(using("cache", FAST)[0]) == 2


class SharedPool(FakeCloud):
    """A Cinder whose type `fast2` leads to the pool of `fast`."""

    def hosts_of(self, volume_type: str) -> list[str]:
        return super().hosts_of("fast" if volume_type == "fast2" else volume_type)


@pytest.mark.parametrize("resyncs", [False, True])
async def test_locations_in_the_pool_switch_no_cache_off(resyncs: bool) -> None:
    cloud = SharedPool(stores={"cinder-fast2": "fast2"}, cached=frozenset({"fast"}))
    async with Rig(cloud, targets=(FAST,), policy=QUICK) as rig:
        for _ in range(3):
            host = cloud.hosts_of("fast")[0]
            source = cloud.volume_of("mallory", volume_type="fast2", host=host)
            wish = {"image_volume_source": source.id}
            image = cloud.queue(owner="mallory", visibility="private", properties=wish)
            cloud.ahead += 100.0
            await rig.complete(image.id)
            cloud.ahead += 100.0
            (clone,) = cloud.of(image.id)
            if resyncs:
                assert not await rig.resync()
            # Cinder clones that one
            assert await rig.run(image.id) == Done(clone.id, state=State.WARM)
        assert cloud.calls["create_volume"] == 3
        assert not rig.prewarm.full()
        await fill(cloud, rig, 2)


async def test_an_image_with_another_location_in_the_pool_is_no_proof_of_native_clones() -> None:
    cloud = SharedPool(
        stores={"cinder-fast2": "fast2"},
        cached=frozenset({"fast"}),
        rbd_stores=frozenset({"rbd"}),
    )
    async with Rig(cloud, targets=(FAST,), policy=QUICK) as rig:
        rbd = frozenset({"rbd"})
        image = cloud.upload(owner="mallory", visibility="private", stores=rbd)
        cloud.user_copies(image.id, "cinder-fast2", project="mallory")
        await cloud.quiet()
        cloud.ahead += 10.0
        assert isinstance(await rig.run(image.id), Done)
        assert not rig.prewarm.learned()
        for number in range(2):
            image = cloud.upload(owner=f"p{number}", visibility="private", stores=rbd)
            cloud.ahead += 10.0
            await rig.run(image.id)
            assert cloud.of(image.id)


async def test_an_entry_that_goes_at_once_is_no_proof_of_native_clones() -> None:
    class Full(FakeCloud):
        """A Cinder whose cache is full: what was cloned from is evicted for somebody else's."""

        watched = ""

        async def _create(self, volume_id: str, image_id: str) -> None:
            await super()._create(volume_id, image_id)
            if image_id == self.watched:
                for entry in [one for one in self.of(image_id) if one.source_volid]:
                    del self.volumes[entry.id]

    rbd = frozenset({"rbd"})
    cloud = Full(stores={}, cached=frozenset({"fast"}), rbd_stores=rbd)
    async with Rig(cloud, targets=(FAST,), policy=QUICK) as rig:
        image = cloud.upload(owner="mallory", visibility="private", stores=rbd)
        cloud.use(image.id, "fast", project="mallory")
        cloud.watched = image.id
        cloud.ahead += 10.0
        await rig.run(image.id)
        assert not any(rig.prewarm.learned().values())
        for later in await fill(cloud, rig, 2, stores=rbd):
            assert cloud.of(later.id)


async def test_a_property_named_like_cinders_note_hides_no_native_clone() -> None:
    rbd = frozenset({"rbd"})
    cloud = FakeCloud(
        stores={}, rbd_stores=rbd, native=frozenset({"fast"}), cached=frozenset({"fast"})
    )
    async with Rig(cloud, targets=(FAST,), policy=QUICK) as rig:
        for _ in range(3):
            image = cloud.upload(
                owner="mallory", visibility="private", stores=rbd, properties={NOTE: "no"}
            )
            cloud.ahead += 10.0
            assert isinstance(await rig.run(image.id), Done)
        assert not rig.prewarm.full()
        assert list(rig.prewarm.learned().values()) == [[["rbd"]]]
        await fill(cloud, rig, 1, disk_format="qcow2", virtual_size=GIB, stores=rbd)


# The brake


async def test_announced_deletions_of_a_user_do_not_brake() -> None:
    cloud = FakeCloud(stores=dict(STORES), cached=frozenset({"fast"}))
    async with Rig(cloud, targets=using("cache", FAST), policy=QUICK) as rig:
        cloud.emit = rig.hear
        cloud.upload(owner="witness", visibility="private")
        await rig.quiet()
        for _ in range(6):
            image = cloud.upload(
                owner="mallory", visibility="private", properties={"image_volume_prewarm": "no"}
            )
            forged = {"glance_image_id": image.id}
            disk = cloud.use(image.id, "fast", project="mallory", metadata=forged)
            del cloud.volumes[disk.id]
            cloud.delete_image(image.id)
        await rig.quiet()
        for _ in range(3):
            await rig.resync()
            await rig.quiet()
        assert rig.reclaim._deletion.brake.reason == ""


# One volume that somebody has retyped


@pytest.mark.parametrize("strategy", ["store", "location"])
async def test_one_encrypted_volume_says_nothing_about_the_target(strategy: str) -> None:
    cloud = FakeCloud(stores=dict(STORES), multiple_locations=True)
    cloud.types.add("luks")
    async with rig_of(cloud, strategy, FAST, policy=QUICK) as rig:
        cloud.emit = rig.hear
        images: list[Image] = [cloud.upload(owner=f"p{n}", visibility="private") for n in range(4)]
        await rig.quiet()
        (retyped,) = cloud.of(images[0].id)
        cloud.volumes[retyped.id] = replace(retyped, volume_type="luks", encrypted=True)
        for _ in range(3):
            await rig.resync()
            await rig.quiet()
            assert all(cloud.of(image.id) for image in images[1:])
        assert [one.volume_type for one in cloud.of(images[0].id)] == ["fast"]


# Marks that users write on their volumes


@pytest.mark.parametrize("planted", [{TAG: UPLOAD}, {"image_owner": "mallory"}])
@pytest.mark.parametrize("later", [0.0, 4000.0])
async def test_an_entry_of_cinders_with_a_users_marks_stays(
    planted: dict[str, str], later: float
) -> None:
    cloud = FakeCloud(stores=dict(STORES), cached=frozenset({"slow"}))
    async with Rig(cloud, targets=(), policy=QUICK) as rig:
        cloud.emit = rig.hear
        image = cloud.upload(owner="admin", visibility="public")
        cloud.use(image.id, "slow", project="mallory", metadata=planted)
        (entry,) = cloud.of(image.id)
        await rig.quiet()
        cloud.ahead += later
        await rig.resync()
        await rig.quiet()
        assert cloud.of(image.id) == [entry]


async def test_an_entry_stays_also_if_its_volume_is_asked_for(cloud: FakeCloud) -> None:
    """Of an active image, which has all its data."""
    cloud.cached = frozenset({"slow"})
    async with Rig(cloud, targets=(), policy=QUICK) as rig:
        image = cloud.upload(owner="mallory", visibility="private")
        planted = {TAG: UPLOAD, UPLOADED_BY: "mallory"}
        volume = cloud.use(image.id, "slow", project="mallory", metadata=planted)
        (entry,) = cloud.of(image.id)
        cloud.set_by_user(image.id, image_volume_source=volume.id)
        cloud.ahead += 100.0
        await rig.complete(image.id)
        await rig.resync()
        await rig.quiet()
        assert [one.id for one in cloud.of(image.id)] == [entry.id]


async def test_a_clone_that_cinder_is_at_work_on_stays(cloud: FakeCloud) -> None:
    planted = {TAG: UPLOAD}
    async with Rig(cloud, targets=using("store", FAST)) as rig:
        source = cloud.volume_of("mallory", metadata=planted)
        # An administrator's, of a volume that is another project's
        image = cloud.queue(owner="admin", visibility="private")
        cloud.volumes[source.id] = replace(source, status="uploading")
        cloud.ahead += 100.0
        clone = cloud.cinder_clones(source.id, image.id, metadata=planted)
        cloud.ahead += 100.0
        assert await rig.complete(image.id) == Skip(UNPROVEN)
        assert clone.id in cloud.volumes


# An id in other letters


class Insensitive(FakeCloud):
    """A Glance on MySQL, which compares ids without their case."""

    def _image(self, image_id: str) -> Image:
        return super()._image(image_id.lower())


async def test_an_id_in_capitals_is_no_second_image() -> None:
    cloud = Insensitive(stores=dict(STORES))
    async with Rig(cloud, targets=using("store", FAST), policy=QUICK) as rig:
        image = cloud.upload(visibility="public")
        await rig.run(image.id.upper())
        assert not cloud.of(image.id)
        assert isinstance(await rig.run(image.id), Done)
        before = cloud.of(image.id)
        for handler in (rig.prewarm, rig.upload, rig.reclaim):
            await handler.reconcile(Key(handler.name, image.id.upper(), "fast"), Polls())
        assert cloud.of(image.id) == before


# A budget


def caching(**limits: int) -> FakeCloud:
    return FakeCloud(stores=dict(STORES), cached=frozenset({"fast"}), **limits)  # type: ignore[arg-type]


async def fill(
    cloud: FakeCloud, rig: Rig, count: int, owner: str = "", **fields: Any
) -> list[Image]:
    """Make images of as many projects warm, or of one."""
    images = []
    for _ in range(count):
        image = cloud.upload(owner=owner or f"p{len(cloud.images)}", visibility="private", **fields)
        cloud.ahead += 10.0
        assert isinstance(await rig.run(image.id), Done)
        images.append(image)
    return images


def warm(cloud: FakeCloud, images: list[Image]) -> int:
    return sum(bool(cloud.of(image.id)) for image in images)


async def test_what_is_never_allocated_pushes_nobody_out() -> None:
    cloud = caching()
    target = replace(FAST, max_gigabytes=60)
    async with Rig(cloud, targets=using("cache", target), policy=QUICK) as rig:
        others = await fill(cloud, rig, 9, size=6 * GIB)
        large = cloud.upload(owner="mallory", visibility="private", size=1, min_disk=60)
        cloud.ahead += 10.0
        assert isinstance(await rig.run(large.id), Done)
        assert warm(cloud, others) == 9


async def test_the_first_image_of_a_project_does_not_sweep_the_target() -> None:
    cloud = caching()
    target = replace(FAST, max_gigabytes=60)
    async with Rig(cloud, targets=using("cache", target), policy=QUICK) as rig:
        others = await fill(cloud, rig, 10, size=6 * GIB)
        large = cloud.upload(owner="mallory", visibility="private", size=60 * GIB)
        cloud.ahead += 10.0
        outcome = await rig.run(large.id)
        assert isinstance(outcome, Skip)
        assert "takes the place of one other at most" in outcome.reason
        assert warm(cloud, others) == 10


async def test_images_of_which_nothing_comes_push_out_no_more_than_a_share() -> None:
    cloud = caching(cache_max_gigabytes=100)
    target = replace(FAST, max_gigabytes=60)
    async with Rig(cloud, targets=using("cache", target), policy=QUICK) as rig:
        others = await fill(cloud, rig, 10, size=6 * GIB)
        # Cinder keeps no entry as large as this any more
        cloud.cache_max_gigabytes = 11
        for _ in range(6):
            image = cloud.upload(owner="mallory", visibility="private", size=12 * GIB)
            cloud.ahead += 10.0
            await rig.run(image.id)
            cloud.delete_image(image.id)
        assert warm(cloud, others) >= 7


@pytest.mark.parametrize(("strategy", "stays"), [("cache", False), ("location", True)])
async def test_a_deactivated_images_entry_makes_room_and_its_location_is_named(
    strategy: str, stays: bool
) -> None:
    cached = frozenset({"fast"} if strategy == "cache" else ())
    cloud = FakeCloud(stores=dict(STORES), multiple_locations=True, cached=cached)
    async with rig_of(cloud, strategy, replace(FAST, max_gigabytes=4), policy=QUICK) as rig:
        first = cloud.upload(owner="mallory", visibility="private", size=4 * GIB)
        cloud.ahead += 10.0
        await rig.run(first.id)
        cloud.touch(first.id, status="deactivated")
        second = cloud.upload(owner="alice", visibility="private", size=GIB)
        cloud.ahead += 10.0
        outcome = await rig.run(second.id)
        assert bool(cloud.of(first.id)) == stays
        if stays:
            assert isinstance(outcome, Skip)
            assert f"4 GiB of it cannot be evicted: image {first.id})" in outcome.reason


async def test_deactivated_images_keep_nobody_else_from_room(cloud: FakeCloud) -> None:
    target = replace(FAST, max_count=20)
    async with Rig(cloud, targets=using("store", target), policy=QUICK) as rig:
        for image in await fill(cloud, rig, 5, owner="mallory"):
            cloud.touch(image.id, status="deactivated")
        await fill(cloud, rig, 15)
        # Each of them has its room at once
        before = cloud.calls["get_image"]
        await fill(cloud, rig, 6)
        assert cloud.calls["get_image"] - before < 60


@pytest.mark.parametrize("owner", ["mallory", ""])
async def test_for_whom_nothing_had_to_go_nothing_counts(cloud: FakeCloud, owner: str) -> None:
    """While removals stay without an answer, nobody loses a copy; nor his share for a day."""
    target = replace(FAST, max_count=20)
    async with Rig(cloud, targets=using("store", target), policy=QUICK) as rig:
        others = await fill(cloud, rig, 20)
        cloud.faults["remove_from_store"] = Fault(Temporary("no answer"), times=99)
        for _ in range(6):
            image = cloud.upload(owner=owner or f"p{len(cloud.images)}", visibility="private")
            cloud.ahead += 10.0
            assert isinstance(await rig.run(image.id), Skip)
        del cloud.faults["remove_from_store"]
        cloud.ahead += 21_700.0
        for image in await fill(cloud, rig, 5, owner=owner):
            assert cloud.of(image.id)
        assert warm(cloud, others) == 15


async def test_a_victim_that_cannot_be_looked_at_keeps_nobody_from_room() -> None:
    class Sick(FakeCloud):
        sick = ""

        async def get_locations(self, image_id: str) -> tuple[Location, ...] | None:
            if image_id == self.sick:
                raise Temporary("500")
            return await super().get_locations(image_id)

    cloud = Sick(stores=dict(STORES))
    async with Rig(cloud, targets=using("store", replace(FAST, max_count=3)), policy=QUICK) as rig:
        (first, *_) = await fill(cloud, rig, 3)
        cloud.sick = first.id
        await fill(cloud, rig, 3)
        assert cloud.of(first.id)


async def test_victims_that_nobody_can_look_at_are_no_full_target(cloud: FakeCloud) -> None:
    target = replace(FAST, max_count=1)
    async with Rig(cloud, targets=using("store", target), policy=QUICK) as rig:
        await fill(cloud, rig, 1)
        later = cloud.upload(owner="bob", visibility="private")
        cloud.ahead += 10.0
        cloud.faults["get_locations"] = Fault(Temporary("down"))
        with pytest.raises(Temporary, match="down"):
            await rig.run(later.id)


async def test_a_smaller_budget_is_kept_in_spite_of_deactivated_images(cloud: FakeCloud) -> None:
    async with Rig(cloud, targets=using("store", FAST), policy=QUICK) as rig:
        images = await fill(cloud, rig, 5, owner="mallory")
        others = await fill(cloud, rig, 15)
        for image in images:
            cloud.touch(image.id, status="deactivated")
    fewer = using("store", replace(FAST, max_count=16))
    async with Rig(cloud, targets=fewer, policy=QUICK) as rig:
        for _ in range(3):
            await rig.resync()
            await rig.quiet()
            cloud.ahead += 3600.0
        assert warm(cloud, images + others) == 16


async def test_room_on_a_target_whose_copy_was_refused_is_given_back(cloud: FakeCloud) -> None:
    cloud.refused_stores = {"cinder-slow": Blocked("403")}
    targets = using("store", FAST, replace(SLOW, max_count=1))
    async with Rig(cloud, targets=targets, policy=QUICK) as rig:
        image = cloud.upload(owner="mallory", visibility="private")
        cloud.ahead += 10.0
        assert isinstance(await rig.run(image.id), Done)
        assert not rig.prewarm._reservations._coming["slow"]


@pytest.mark.parametrize("ahead", [False, True])
async def test_a_use_that_is_yet_to_come_keeps_nothing_for_ever(
    cloud: FakeCloud, ahead: bool
) -> None:
    year = 365 * 86_400.0
    async with Rig(cloud, targets=using("store", replace(FAST, max_count=1)), policy=QUICK) as rig:
        (first,) = await fill(cloud, rig, 1)
        (volume,) = cloud.of(first.id)
        at = datetime.fromtimestamp(cloud.now() + ahead * year, UTC).isoformat(timespec="seconds")
        await cloud.set_metadata(volume.id, {last_use.USED: at})
        await fill(cloud, rig, 1)
        assert not cloud.of(first.id)


# Copies without end


@pytest.mark.parametrize("strategy", ["store", "location", "cache"])
async def test_who_takes_a_wish_back_again_and_again_gets_one_copy_an_interval(
    strategy: str,
) -> None:
    cloud = FakeCloud(
        stores=dict(STORES),
        multiple_locations=True,
        cached=frozenset({"fast"} if strategy == "cache" else ()),
    )
    policy = Policy(settle=0.0, rewarm_interval=600.0)
    async with rig_of(cloud, strategy, FAST, policy=policy) as rig:
        image = cloud.upload(owner="mallory", visibility="private")
        for _ in range(10):
            cloud.ahead += 10.0
            await rig.run(image.id)
            cloud.set_by_user(image.id, image_volume_prewarm="no")
            await rig.run(image.id)
            assert not cloud.of(image.id)
            cloud.set_by_user(image.id, image_volume_prewarm="maybe")
        assert cloud.calls["copy_image"] + cloud.calls["create_volume"] == 1
        cloud.ahead += 600.0
        assert isinstance(await rig.run(image.id), Done)


@pytest.mark.parametrize("strategy", ["store", "location"])
async def test_who_removes_it_and_changes_the_image_gets_one_copy_an_interval(
    strategy: str,
) -> None:
    cloud = FakeCloud(stores=dict(STORES), multiple_locations=True)
    policy = Policy(settle=0.0, rewarm_interval=600.0)
    async with rig_of(cloud, strategy, FAST, policy=policy) as rig:
        image = cloud.upload(owner="mallory", visibility="private")
        for number in range(10):
            cloud.ahead += 10.0
            await rig.run(image.id)
            # As its owner may: DELETE /v2/stores/cinder-fast/IMAGE
            for volume in cloud.of(image.id):
                await cloud.remove_from_store(image.id, "cinder-fast")
                rig.deletions.note_volume(volume.id)
            cloud.set_by_user(image.id, x=str(number))
        assert cloud.calls["copy_image"] + cloud.calls["create_volume"] == 1
        cloud.ahead += 600.0
        assert isinstance(await rig.run(image.id), Done)


@pytest.mark.parametrize("strategy", ["cache", "location"])
async def test_volumes_that_somebody_deletes_at_once_are_not_made_without_end(
    strategy: str,
) -> None:
    class Sweeping(FakeCloud):
        async def _create(self, volume_id: str, image_id: str) -> None:
            self.volumes.pop(volume_id, None)

    cloud = Sweeping(stores=dict(STORES), cached=frozenset({"fast"}), multiple_locations=True)
    async with rig_of(cloud, strategy, FAST, policy=QUICK) as rig:
        image = cloud.upload()
        cloud.ahead += 10.0
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Again)
        assert outcome.counted
        assert cloud.calls["create_volume"] <= 3


@pytest.mark.parametrize("strategy", ["cache", "location"])
@pytest.mark.parametrize("healthy", [True, False])
async def test_an_image_that_cinder_cannot_make_a_volume_of_is_left_for_a_day(
    healthy: bool, strategy: str
) -> None:
    """Unless it makes none of others either: then it is Cinder's fault, and may end soon."""

    class Refusing(FakeCloud):
        bad: frozenset[str] = frozenset()

        async def _create(self, volume_id: str, image_id: str) -> None:
            if image_id in self.bad:
                self.volumes[volume_id] = replace(self.volumes[volume_id], status="error")
            else:
                await super()._create(volume_id, image_id)

    cloud = Refusing(stores=dict(STORES), cached=frozenset({"fast"}), multiple_locations=True)
    async with rig_of(cloud, strategy, FAST, policy=QUICK) as rig:
        broken = cloud.upload(owner="mallory", visibility="private", virtual_size=GIB)
        cloud.bad = frozenset({broken.id})
        for number in range(40):
            cloud.ahead += 900.0
            await rig.run(broken.id)
            if healthy and not number % 10:
                await fill(cloud, rig, 1)
        tries = cloud.calls["create_volume"] - 4 * healthy
        assert tries == (3 if healthy else 40)
        shown = {image_id: why for image_id, _, why in rig.prewarm.held_back()}
        if healthy:
            assert "Cinder could not make volume" in shown[broken.id]
        else:
            assert not shown


async def test_who_changes_an_image_that_cinder_does_not_cache_gets_one_try_an_interval() -> None:
    cloud = caching(cache_max_gigabytes=10)
    policy = Policy(settle=0.0, rewarm_interval=600.0)
    async with Rig(cloud, targets=using("cache", FAST), policy=policy) as rig:
        image = cloud.upload(owner="mallory", visibility="private", size=20 * GIB)
        for number in range(10):
            cloud.ahead += 10.0
            await rig.run(image.id)
            cloud.set_by_user(image.id, x=str(number))
        assert cloud.calls["create_volume"] == 1


# Turns


async def test_who_claims_others_images_does_not_have_them_wait(cloud: FakeCloud) -> None:
    cloud.seconds = 0.05
    target = replace(FAST, max_concurrent=1)
    async with Rig(cloud, targets=using("store", target), policy=QUICK) as rig:

        def hear(event_type: str, project: str, **payload: object) -> None:
            rig.hear(notification(event_type, payload | {"owner": project, "tenant_id": project}))

        image = cloud.queue(owner="admin", visibility="public")
        for _ in range(10):
            theirs = cloud.upload(owner="mallory", visibility="private")
            hear("image.activate", "mallory", id=theirs.id, status="active", properties={})
        claim = [{"key": "glance_image_id", "value": image.id}]
        volume = cloud.volume_of("mallory")
        hear(
            "volume.create.end", "mallory", volume_id=volume.id, display_name="x",
            status="available", metadata=claim,
        )  # fmt: skip
        await asyncio.sleep(0.02)
        cloud.touch(image.id, status="active", size=GIB, stores=frozenset({"file"}))
        cloud.locations[image.id] = (Location(url="file:///x", store="file"),)
        hear("image.activate", "admin", id=image.id, status="active", properties={})
        while not located(cloud, image.id):
            await asyncio.sleep(0.01)
        warm_by_then = [
            one for one in cloud.images.values() if one.owner == "mallory" and cloud.of(one.id)
        ]
        assert len(warm_by_then) < 5
        await rig.crash()


async def test_images_that_are_changed_without_end_hold_no_slots_of_uploads(
    cloud: FakeCloud,
) -> None:
    rules = Uploads(grace=60.0, quiet=0.3, untouched=0.3, tell_after=1.0)
    async with Rig(cloud, targets=using("store", FAST), policy=QUICK, uploads=rules) as rig:
        cloud.emit = rig.hear

        def ask(owner: str) -> Image:
            wish = {"image_volume_source": cloud.volume_of(owner).id}
            image = cloud.queue(owner=owner, visibility="private", properties=wish)
            cloud.announce("image.create", image.id)
            return image

        async def change(image: Image) -> None:
            for number in itertools.count():
                cloud.set_by_user(image.id, x=str(number))
                await asyncio.sleep(0.1)

        async with asyncio.timeout(30):
            images = [ask("mallory") for _ in range(WIDTH)]
            restless = [asyncio.create_task(change(image)) for image in images]
            await asyncio.sleep(1.0)
            asked = [ask("bob") for _ in range(3)]
            while not all(cloud.images[image.id].status == "active" for image in asked):
                await asyncio.sleep(0.01)
            # They went on being changed all the time
            assert {cloud.images[image.id].status for image in images} == {"queued"}
            for task in restless:
                task.cancel()


async def test_who_changes_the_volume_gets_a_clone_a_try() -> None:
    class Toggling(FakeCloud):
        async def create_volume(self, new: NewVolume) -> Volume:
            clone = await super().create_volume(new)
            number = self.calls["create_volume"] % 2
            cloud.set_by_user(image.id, image_volume_source=volumes[number].id)
            return clone

    cloud = Toggling(stores=dict(STORES))
    async with Rig(cloud, targets=using("store", FAST), policy=QUICK) as rig:
        volumes = [cloud.volume_of("mallory") for _ in range(2)]
        wish = {"image_volume_source": volumes[0].id}
        image = cloud.queue(owner="mallory", properties=wish)
        cloud.ahead += 100.0
        for tries in range(1, 4):
            assert isinstance(await rig.complete(image.id), Again)
            assert cloud.calls["create_volume"] == tries
            cloud.ahead += 100.0


# A clone that only claims to be ours


@pytest.mark.parametrize("then", ["transferred", "deleted", "kept"])
async def test_a_clone_that_was_not_marked_yet_is_nobodys_once_nobody_asks(
    cloud: FakeCloud, then: str
) -> None:
    async with Rig(cloud, targets=using("store", FAST)) as rig:
        source = cloud.volume_of("mallory")
        wish = {"image_volume_source": source.id}
        image = cloud.queue(owner="mallory", visibility="private", properties=wish)
        cloud.ahead += 100.0
        # Cinder makes the clone, and its answer is lost
        cloud.faults["create_volume"] = Fault(Temporary("no answer"), done=True)
        with pytest.raises(Temporary):
            await rig.complete(image.id)
        await cloud.quiet()
        cloud.touch(image.id, properties={})
        if then == "transferred":
            # Who has it now may write on it before Cinder copies it
            cloud.volumes[source.id] = replace(source, project_id="bob")
        elif then == "deleted":
            del cloud.volumes[source.id]
        for _ in range(3):
            cloud.ahead += 100.0
            assert await rig.complete(image.id) == Skip(UNPROVEN)
        assert len(cloud.of(image.id)) == 1
        # The owner asks for it again
        cloud.touch(image.id, properties=wish)
        if then == "kept":
            assert isinstance(await rig.complete(image.id), Done)
        else:
            assert isinstance(await rig.complete(image.id), Skip | Again)
        assert (cloud.images[image.id].status == "active") == (then == "kept")


async def test_a_404_of_a_moment_costs_no_clone_that_is_all_there_is(cloud: FakeCloud) -> None:
    cloud.seconds = 0.1
    async with Rig(cloud, targets=using("store", FAST)) as rig:
        source = cloud.volume_of("alice")
        wish = {"image_volume_source": source.id}
        image = cloud.queue(owner="alice", visibility="private", properties=wish)
        cloud.ahead += 100.0
        at_work = asyncio.create_task(rig.complete(image.id))
        while not any(one.status == "available" for one in cloud.of(image.id)):
            await asyncio.sleep(0.0005)
        cloud.remove_volume(source.id)
        cloud.sees_all = False
        assert isinstance(await at_work, Skip)
        assert len(cloud.of(image.id)) == 1


# A Glance that is slow


async def test_removals_without_an_answer_do_not_cost_everybody_a_copy() -> None:
    class Slow(FakeCloud):
        async def remove_from_store(self, image_id: str, store: str) -> None:
            self._spawn(self._later(image_id, store))
            raise Temporary("504")

        async def _later(self, image_id: str, store: str) -> None:
            await asyncio.sleep(0.3)
            await super().remove_from_store(image_id, store)

    cloud = Slow(stores=dict(STORES))
    target = replace(FAST, max_count=10)
    async with Rig(cloud, targets=using("store", target), policy=QUICK) as rig:
        others = await fill(cloud, rig, 10)
        image = cloud.upload(owner="mallory", visibility="private")
        cloud.ahead += 10.0
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Skip)
        assert "what was to make room has not gone" in outcome.reason
        await cloud.quiet()
        assert warm(cloud, others) == 7


@pytest.mark.parametrize("why", ["depended_on", "held_by_backend"])
async def test_copies_that_cannot_go_do_not_keep_a_target_full(why: str) -> None:
    """As many as stop the search for room: the next ones choose others."""
    cloud = caching() if why == "held_by_backend" else FakeCloud(stores=dict(STORES))
    target = replace(FAST, max_count=10)
    strategy = "cache" if why == "held_by_backend" else "store"
    async with rig_of(cloud, strategy, target, policy=QUICK) as rig:
        others = await fill(cloud, rig, 10)
        for image in others[:3]:
            getattr(cloud, why).add(cloud.of(image.id)[0].id)
        outcomes = []
        for number in range(4):
            image = cloud.upload(owner=f"bob{number}", visibility="private")
            cloud.ahead += 10.0
            outcomes.append(type(await rig.run(image.id)))
            cloud.ahead += 900.0
        assert outcomes == [Skip, Done, Done, Done]


# The last copy


async def test_an_entry_is_not_made_anew_once_glance_has_lost_the_store_of_the_data() -> None:
    cloud = Shrinking(stores={"cinder-slow": "slow"}, cached=frozenset({"fast"}))
    async with Rig(cloud, targets=using("cache", FAST), policy=QUICK) as rig:
        image = cloud.upload(owner="alice", visibility="private")
        await rig.run(image.id)
        cloud.has_file = False
        # By which Cinder's entry is out of date: it deletes it before it downloads the image
        cloud.ahead += 7200.0
        cloud.set_by_user(image.id, x="1")
        before = cloud.calls["create_volume"]
        cloud.ahead += 7200.0
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Again)
        assert outcome.reason.startswith("nobody can repair it")
        # By its store: a URL may have a password
        assert "(store file)" in outcome.reason
        assert cloud.calls["create_volume"] == before


def test_a_location_names_its_volume_whatever_the_letters() -> None:
    assert Location.from_url("cinder://fast/ABC-1").volume_id == "abc-1"


# Restored databases


async def test_a_volume_that_was_a_location_before_is_none_again(cloud: FakeCloud) -> None:
    """As after a restore of Cinder's database: the volume has no data any more."""
    cloud.multiple_locations = True
    async with Rig(cloud, targets=using("location", FAST), policy=QUICK) as rig:
        image = cloud.upload()
        assert isinstance(await rig.run(image.id), Done)
        (first,) = cloud.of(image.id)
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        await rig.run(image.id)
        cloud.set_by_user(image.id, image_volume_prewarm="yes")
        assert isinstance(await rig.run(image.id), Done)
        (second,) = cloud.of(image.id)
    async with Rig(cloud, targets=using("location", FAST), policy=QUICK) as rig:
        rig.lose(second.id)
        cloud.volumes[first.id] = first
        cloud.ahead += image_volume.FRESH_FOR
        assert isinstance(await rig.run(image.id), Done)
        (third,) = cloud.of(image.id)
        assert located(cloud, image.id) == [third.id]
        assert third.id not in (first.id, second.id)


async def test_a_store_that_is_back_takes_uploads_and_copies_at_once(cloud: FakeCloud) -> None:
    fast = cloud.stores
    async with Rig(cloud, targets=using("store", FAST), policy=QUICK) as rig:
        image = cloud.upload()
        volume = cloud.volume_of("alice", volume_type="fast")
        wish = cloud.queue(owner="alice", properties={"image_volume_source": volume.id})
        cloud.stores = {"cinder-slow": "slow"}
        with pytest.raises(Blocked, match="has no store cinder-fast"):
            await rig.run(image.id)
        assert isinstance(await rig.complete(wish.id), Skip)
        cloud.stores = fast
        cloud.ahead += 10.0
        assert isinstance(await rig.complete(wish.id), Done)
        assert isinstance(await rig.run(image.id), Done)
        assert cloud.images[wish.id].status == "active"


# Lost data is reported


class Draining(FakeCloud):
    """A Glance of which an administrator removes the original at the moment in which we remove the
    copy: it lets both go."""

    drains = False

    async def remove_from_store(self, image_id: str, store: str) -> None:
        await super().remove_from_store(image_id, store)
        if self.drains:
            for location in self.locations[image_id]:
                self.volumes.pop(location.volume_id, None)


async def test_an_image_that_lost_its_data_meanwhile_is_named() -> None:
    cloud = Draining(stores=dict(STORES))
    async with Rig(cloud, targets=using("store", FAST, SLOW), policy=QUICK) as rig:
        image = cloud.upload()
        cloud.user_copies(image.id, "cinder-slow")
        await rig.quiet()
        cloud.locations[image.id] = cloud.locations[image.id][1:]
        cloud.touch(image.id, stores=frozenset({"cinder-slow"}))
        (original,) = cloud.of(image.id)
        assert isinstance(await rig.run(image.id), Done)
        cloud.drains = True
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        with capture_logs() as logs:
            await rig.run(image.id)
        assert [one["log_level"] for one in logs if one["event"] == "no_whole_location"] == [
            "error"
        ]
        assert located(cloud, image.id) == [original.id]
        assert not cloud.of(image.id)


async def test_nor_is_it_forgotten_at_the_next_resync(cloud: FakeCloud) -> None:
    async with Rig(cloud, targets=using("store", FAST), policy=QUICK) as rig:
        image = cloud.upload(properties={"image_volume_prewarm": "no"})
        cloud.user_copies(image.id, "cinder-fast")
        await rig.quiet()
        file, copy = cloud.locations[image.id]
        lost = cloud.volumes.pop(copy.volume_id)
        cloud.locations[image.id] = (copy,)
        cloud.touch(image.id, stores=frozenset({"cinder-fast"}))
        with capture_logs() as logs:
            await rig.resync()
            await rig.quiet()
        assert "no_whole_location" in {one["event"] for one in logs}
        assert rig.count("images_beyond_repair") == 1
        cloud.volumes[lost.id] = lost
        await rig.run(image.id)
        await rig.resync()
        await rig.quiet()
        assert rig.count("images_beyond_repair") == 0
        assert cloud.locations[image.id] == (copy,)
        assert file.store == "file"


# Another image's volume is never this image's


@pytest.mark.parametrize("budget", [False, True])
async def test_a_copy_of_an_earlier_image_with_the_same_id_stays(
    cloud: FakeCloud, budget: bool
) -> None:
    """As after a restore of Glance's database: somebody uses the id again."""
    target = replace(FAST, max_count=1) if budget else FAST
    async with Rig(cloud, targets=using("store", target), policy=QUICK) as rig:
        earlier = cloud.upload(owner="alice")
        assert isinstance(await rig.run(earlier.id), Done)
        (copy,) = cloud.of(earlier.id)
        cloud.lose(earlier.id)
        cloud.ahead += 1000.0
        image = cloud.upload(id=earlier.id, owner="bob")
        if budget:
            cloud.ahead += 10.0
            assert isinstance(await rig.run(cloud.upload().id), Skip)
        else:
            cloud.set_by_user(image.id, image_volume_prewarm="no")
            await rig.run(image.id)
        await rig.resync()
        await rig.quiet()
        assert copy.id in cloud.volumes


class Unfiltered(FakeCloud):
    """A Cinder behind a proxy that drops the query, or answers with what it was asked before."""

    drops = False

    async def find_volumes(self, name: str) -> tuple[Volume, ...]:
        found = await super().find_volumes(name)
        return tuple(self.volumes.values()) if self.drops else found


@pytest.mark.parametrize("strategy", ["store", "location", "cache"])
async def test_an_answer_with_volumes_of_others_costs_them_nothing(strategy: Any) -> None:
    cloud = Unfiltered(stores=dict(STORES), multiple_locations=True)
    async with rig_of(cloud, strategy, FAST) as rig:
        images = [cloud.upload() for _ in range(3)]
        for image in images:
            assert isinstance(await rig.run(image.id), Done)
    cloud.drops = True
    async with rig_of(cloud, strategy, FAST) as rig:
        cloud.set_by_user(images[0].id, image_volume_prewarm="no")
        await rig.run(images[0].id)
        cloud.delete_image(images[1].id)
        key = Key("reclaim", images[1].id)
        rig.deletions.note(images[1].id, "deleted")
        await rig.reclaim.reconcile(key, Polls())
        assert len(cloud.of(images[2].id)) == 1
        assert not cloud.torn


async def test_what_is_larger_than_the_quota_of_one_volume_evicts_nothing(
    cloud: FakeCloud,
) -> None:
    target = replace(FAST, max_count=2)
    async with Rig(cloud, targets=using("store", target), policy=QUICK) as rig:
        small = [cloud.upload() for _ in range(2)]
        for image in small:
            assert isinstance(await rig.run(image.id), Done)
        cloud.per_volume_quota = 1
        cloud.ahead += 10.0
        with pytest.raises(Blocked, match="raise per_volume_gigabytes"):
            await rig.run(cloud.upload(size=2 * GIB).id)
        assert all(located(cloud, image.id) for image in small)
        # In the place of one of them
        assert isinstance(await rig.run(cloud.upload().id), Done)


# Restored backups


def restored(volume: Volume, cloud: FakeCloud) -> Volume:
    """A volume into which Cinder has restored a backup of this one: its name and its metadata come
    back, its read-only flag does not."""
    kept = {name: text for name, text in volume.metadata.items() if name != "readonly"}
    return replace(
        volume,
        id=volume.id[:-4] + "0000",
        status="available",
        created_epoch=cloud.now(),
        updated_epoch=cloud.now(),
        metadata={**kept, "src_backup_id": "b1"},
    )


@pytest.mark.parametrize("strategy", ["store", "location"])
@pytest.mark.parametrize("found", [True, False])
async def test_what_an_operator_has_restored_from_a_backup_stays(
    strategy: Any, found: bool
) -> None:
    cloud = FakeCloud(stores=dict(STORES), multiple_locations=True)
    async with rig_of(cloud, strategy, FAST) as rig:
        cloud.emit = rig.hear
        cloud.upload(owner="bob", visibility="private", properties={"image_volume_prewarm": "no"})
        image = cloud.upload(owner="alice")
        await rig.quiet()
        (copy,) = cloud.of(image.id)
        if not found:
            cloud.delete_image(image.id)
            await rig.quiet()
            assert not cloud.of(image.id)
        back = restored(copy, cloud)
        cloud.volumes[back.id] = back
        for _ in range(8):
            cloud.ahead += 21_600.0
            await rig.resync()
            await rig.quiet()
        if found:
            assert located(cloud, image.id) == [copy.id]
            cloud.set_by_user(image.id, image_volume_prewarm="no")
            await rig.quiet()
            assert not located(cloud, image.id)
        assert cloud.volumes[back.id] == back


# Answers that a proxy keeps


class Stale(FakeCloud):
    """A Glance behind a proxy that answers with the locations of a moment ago."""

    remembered: tuple[Location, ...] | None = None

    async def get_locations(self, image_id: str) -> tuple[Location, ...] | None:
        return self.remembered or await super().get_locations(image_id)


async def test_a_stale_list_of_locations_deletes_no_location() -> None:
    cloud = Stale(stores=dict(STORES))
    async with Rig(cloud, targets=using("store", FAST), policy=QUICK) as rig:
        image = cloud.upload()
        before = cloud.locations[image.id]
        assert isinstance(await rig.run(image.id), Done)
        (copy,) = cloud.of(image.id)
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        cloud.remembered = before
        await rig.run(image.id)
        assert cloud.of(image.id) == [copy]
        cloud.remembered = None
        await rig.run(image.id)
        assert not cloud.of(image.id)
        assert cloud.locations[image.id] == before
        assert not cloud.torn


async def test_a_deletion_that_is_answered_with_404_is_told() -> None:
    class Twice(FakeCloud):
        async def remove_from_store(self, image_id: str, store: str) -> None:
            await super().remove_from_store(image_id, store)
            raise NotFound("a proxy has asked twice")

    copy, told = await evicted(Twice(stores=dict(STORES)))
    assert told["already_deleted"] == [copy]


async def evicted(cloud: FakeCloud) -> tuple[str, dict[str, list[str]]]:
    """A copy that was to be evicted, and the volumes that the log names by event."""
    async with Rig(cloud, targets=using("store", FAST), policy=QUICK) as rig:
        image = cloud.upload()
        assert isinstance(await rig.run(image.id), Done)
        (copy,) = cloud.of(image.id)
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        with capture_logs() as logs:
            await rig.run(image.id)
    told: dict[str, list[str]] = {}
    for one in logs:
        told.setdefault(one["event"], []).append(one.get("volume_id", ""))
    return copy.id, told


async def test_a_copy_is_the_last_one_while_the_backend_of_the_other_is_down(
    cloud: FakeCloud,
) -> None:
    async with Rig(cloud, targets=using("store", FAST, SLOW), policy=QUICK) as rig:
        image = cloud.upload()
        cloud.user_copies(image.id, "cinder-slow")
        await rig.quiet()
        cloud.locations[image.id] = cloud.locations[image.id][1:]
        assert isinstance(await rig.run(image.id), Done)
        cloud.down = {"host@slow"}
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        await rig.run(image.id)
        assert len(located(cloud, image.id)) == 2
        cloud.down = set()
        cloud.ahead += 10.0
        await rig.run(image.id)
        assert len(located(cloud, image.id)) == 1


@pytest.mark.parametrize("error", [Temporary("503"), NotFound("gone"), Blocked("403")])
async def test_an_eviction_is_told_whatever_comes_after_it(error: Exception) -> None:
    class Away(FakeCloud):
        is_away = False

        async def remove_from_store(self, image_id: str, store: str) -> None:
            await super().remove_from_store(image_id, store)
            self.is_away = True

        async def get_locations(self, image_id: str) -> tuple[Location, ...] | None:
            if self.is_away:
                raise error
            return await super().get_locations(image_id)

    copy, told = await evicted(Away(stores=dict(STORES)))
    assert told["image_volume_evicted"] == [copy]


async def test_an_uploads_clone_that_was_the_images_data_stays(cloud: FakeCloud) -> None:
    """As after a restore of Glance's database: the image waits for its data again."""
    async with Rig(cloud, targets=using("store", FAST), policy=QUICK) as rig:
        volume = cloud.volume_of("alice", volume_type="fast")
        image = cloud.queue(owner="alice")
        wish = {"image_volume_source": volume.id}
        cloud.set_by_user(image.id, **wish)
        cloud.ahead += 10.0
        assert isinstance(await rig.complete(image.id), Done)
        (clone,) = cloud.of(image.id)
        assert located(cloud, image.id) == [clone.id]
        del cloud.volumes[volume.id]
        cloud.images[image.id] = image
        cloud.locations[image.id] = ()
        cloud.ahead += 1000.0
        outcome = await rig.complete(image.id)
        assert isinstance(outcome, Skip)
        assert "it was the image's data before" in outcome.reason
        await rig.resync()
        await rig.quiet()
        assert [one.id for one in cloud.of(image.id)] == [clone.id]
        cloud.set_by_user(image.id, **wish)
        cloud.ahead += 10.0
        assert isinstance(await rig.complete(image.id), Done)
        assert located(cloud, image.id) == [clone.id]


@pytest.mark.parametrize("what", ["store", "backend"])
async def test_a_clock_that_was_set_back_keeps_no_old_answer(what: str) -> None:
    cloud = Shrinking(stores=dict(STORES))
    async with Rig(cloud, targets=using("store", FAST, SLOW), policy=QUICK) as rig:
        images = [cloud.upload(owner="alice") for _ in range(2)]
        for image in images:
            assert isinstance(await rig.run(image.id, "slow"), Done)
            if what == "backend":
                # What others have made
                (other,) = [one for one in cloud.of(image.id) if one.volume_type == "slow"]
                marks = {k: v for k, v in other.metadata.items() if k != image_volume.ORIGIN}
                cloud.volumes[other.id] = replace(other, metadata=marks | {"image_owner": "alice"})
                cloud.locations[image.id] = cloud.locations[image.id][1:]
            assert isinstance(await rig.run(image.id), Done)
            cloud.set_by_user(image.id, image_volume_prewarm="no")
        await rig.run(images[0].id)
        assert "fast" not in {one.volume_type for one in cloud.of(images[0].id)}
        cloud.ahead -= 50.0
        cloud.has_file, cloud.down = what != "store", {"host@slow"} if what == "backend" else set()
        await rig.run(images[1].id)
        assert "fast" in {one.volume_type for one in cloud.of(images[1].id)}


async def test_a_users_marks_of_an_upload_hide_no_entry_of_cinders() -> None:
    cloud = caching()
    async with rig_of(cloud, "cache", FAST) as rig:
        image = cloud.upload(owner="alice", disk_format="qcow2", virtual_size=GIB)
        marks = {
            TAG: UPLOAD,
            UPLOADED_BY: "alice",
            "glance_image_id": image.id,
            "image_owner": "alice",
        }
        cloud.use(image.id, "fast", project="mallory", metadata=marks)
        (entry,) = cloud.of(image.id)
        assert entry.inherited or TAG in entry.metadata
        for _ in range(3):
            assert isinstance(await rig.run(image.id), Done)
            cloud.ahead += 700.0
        assert [one.id for one in cloud.of(image.id)] == [entry.id]
        assert cloud.calls["create_volume"] <= 1
