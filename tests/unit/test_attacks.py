"""Attacks on other people's images and volumes: each of them worked once."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from handlers import budget
from handlers.resolve import resolve
from tests.unit.rigs import rig_of
from worker.core.cloud import GIB, Image, Store
from worker.core.errors import Blocked, Conflict
from worker.core.outcome import Skip
from worker.core.target import Policy
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import FAST, SLOW, STORES, Rig, located, using

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
        await rig.quiet()
        assert all(cloud.of(image.id) for image in later)


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
