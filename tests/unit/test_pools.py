"""A volume type over several pools: an image is warm when Cinder clones it in each of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from handlers.clone_path import CacheClone, Evidence, ImageVolumeClone, Pool, clone_path
from tests.fake_cloud import FakeCloud
from tests.rig import FAST, Rig
from worker.core import pool
from worker.core.cloud import Image
from worker.core.outcome import Done, Skip
from worker.core.state import State
from worker.core.target import Policy, Target


def spread(**more: object) -> FakeCloud:
    """A type over four pools, with Cinder's image-volume cache."""
    return FakeCloud(**({"pools": {"fast": 4}, "cached": frozenset({"fast"})} | more))  # type: ignore[arg-type]


def clones(cloud: FakeCloud, image: Image) -> dict[str, type]:
    """How Cinder would make a volume of the image in each pool."""
    image = cloud.images[image.id]
    # What the fake's Cinder made an entry for stands in its own table
    volumes = tuple(
        replace(v, metadata={**v.metadata, "image_volume_worker_updated_at": v.metadata["_cached_for"]})
        if "_cached_for" in v.metadata
        else v
        for v in cloud.of(image.id)
        if v.name.startswith("image-")
    )
    evidence = Evidence(locations=cloud.locations[image.id], volumes=volumes)
    return {host: type(clone_path(image, Pool(hosts=frozenset({host})), evidence)) for host in cloud.hosts_of("fast")}


def warmth(rig: Rig, image: Image) -> tuple[State, str]:
    cloud = rig.cloud
    (one,) = rig.prewarm.warmth(cloud.images[image.id], tuple(cloud.of(image.id)))
    return one.state, one.why


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
async def test_each_pool_gets_an_entry(fmt: str) -> None:
    cloud = spread()
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload(disk_format=fmt)
        await rig.resync()
        await rig.quiet()
        assert set(clones(cloud, image).values()) == {CacheClone}
        assert len(cloud.of(image.id)) == 4
        assert warmth(rig, image) == (State.WARM, "")
        assert await rig.resync() == []


async def test_what_glance_keeps_serves_one_pool_and_the_cache_the_others() -> None:
    cloud = spread(stores={"cinder-fast": "fast"})
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        assert sorted(kind.__name__ for kind in clones(cloud, image).values()) == [
            "CacheClone", "CacheClone", "CacheClone", "ImageVolumeClone",
        ]  # fmt: skip
        assert warmth(rig, image) == (State.WARM, "")
        assert await rig.resync() == []
        # An idle key costs no more than three calls, whatever the number of pools
        cloud.calls.clear()
        assert isinstance(await rig.run(image.id), Done)
        assert cloud.calls.total() <= 3, cloud.calls


async def test_pools_of_one_array_that_clones_across_need_one_image_volume() -> None:
    cloud = spread(stores={"cinder-fast": "fast"}, across=frozenset({"fast"}))
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        assert list(clones(cloud, image).values()).count(ImageVolumeClone) == 1
        assert len(cloud.of(image.id)) == 1
        assert warmth(rig, image) == (State.WARM, "")


@pytest.mark.parametrize(("changes", "why"), [({"named_pools": False}, "no way"), ({"makes_types": False}, "may not")])
async def test_where_no_pool_can_be_chosen_it_says_so(changes: dict[str, object], why: str) -> None:
    cloud = spread(stores={"cinder-fast": "fast"}, **changes)
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        state, reason = warmth(rig, image)
        assert state is State.PARTLY_WARM
        assert reason.startswith("warm in 1 of 4 pools; ")
        assert why in reason
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Skip)
        assert (outcome.state, outcome.reason) == (state, reason)
        assert len(cloud.of(image.id)) == 1
        # And no job without end comes of it
        assert await rig.resync() == []


async def test_without_the_right_to_see_pools_it_is_as_with_one() -> None:
    cloud = spread(tells_pools=False)
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        assert isinstance(await rig.run(image.id), Done)
        assert len(cloud.of(image.id)) == 1
        assert cloud.calls["create_private_type"] == 0


async def test_only_the_pools_that_are_chosen() -> None:
    cloud = spread()
    target = replace(FAST, pools=("*#fast", "*#fast[bc]"), exclude_pools=("*#fastc",))
    async with Rig(cloud, targets=[target], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        assert isinstance(await rig.run(image.id), Done)
        assert {volume.host for volume in cloud.of(image.id)} == {"host@fast#fast", "host@fast#fastb"}


async def test_an_unwanted_image_leaves_no_entry_and_no_type() -> None:
    cloud = spread()
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        assert len(cloud.private_types) == 4
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        await rig.resync()
        await rig.quiet()
        assert cloud.of(image.id) == []
        await rig.resync()
        assert cloud.private_types == {}


async def test_a_deleted_image_leaves_nothing_in_any_pool() -> None:
    cloud = spread()
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        await rig.quiet()
        assert len(cloud.of(image.id)) == 4
        cloud.delete_image(image.id)
        await rig.quiet()
        assert cloud.of(image.id) == []


async def test_a_private_type_that_leads_elsewhere_is_named_and_nothing_is_made_without_end() -> None:
    cloud = spread()
    cloud.private_types["image-volume-worker:host@fast#fastb"] = {"volume_backend_name": "fast", "pool_name": "fastc"}
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        outcome = await rig.run(image.id)
        assert "has led to host@fast#fastc" in str(outcome)
        assert cloud.calls["create_volume"] <= 4
        assert not [volume for volume in cloud.of(image.id) if volume.name.startswith("warm-")]


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ({"volume_backend_name": "lvm"}, ["a@lvm#one", "b@lvm#two"]),
        ({"volume_backend_name": "lvm", "pool_name": "two"}, ["b@lvm#two"]),
        ({"capabilities:volume_backend_name": "<or> nfs <or> lvm"}, ["a@lvm#one", "b@lvm#two", "c@nfs#x"]),
        ({"multiattach": "<is> True"}, ["c@nfs#x"]),
        ({"nobody:reports": "this"}, ["a@lvm#one", "b@lvm#two", "c@nfs#x"]),
        ({"reported_by": "nobody"}, []),
        ({}, ["a@lvm#one", "b@lvm#two", "c@nfs#x"]),
    ],
)
def test_the_pools_that_a_type_leads_to(specs: dict[str, str], expected: list[str]) -> None:
    pools = [
        pool.Pool(name="a@lvm#one", backend_name="lvm", capabilities={"pool_name": "one", "multiattach": False}),
        pool.Pool(name="b@lvm#two", backend_name="lvm", capabilities={"pool_name": "two", "multiattach": False}),
        pool.Pool(name="c@nfs#x", backend_name="nfs", capabilities={"multiattach": True}),
    ]
    found = pool.pools_of(pool.VolumeType(id="1", name="t", specs=specs), pools)
    assert [one.name for one in found] == expected


def test_only_a_pool_with_a_name_of_its_own_can_be_chosen() -> None:
    def named(host: str, name: str, *, across: bool = False) -> pool.Pool:
        return pool.Pool(name=host, backend_name="lvm", clones_across=across, capabilities={"pool_name": name})

    distinct = [named("a@lvm#one", "one"), named("a@lvm#two", "two")]
    assert [place.specs for place in pool.places_of(distinct, distinct)] == [
        (("volume_backend_name", "lvm"), ("pool_name", "one")),
        (("volume_backend_name", "lvm"), ("pool_name", "two")),
    ]
    # LVM on two hosts
    alike = [named("a@lvm#vg", "vg"), named("b@lvm#vg", "vg")]
    assert [place.specs for place in pool.places_of(alike, alike)] == [(), ()]
    # Two arrays that clone across their own pools
    arrays = [named(f"h@{array}#{number}", f"{array}{number}", across=True) for array in "xy" for number in "12"]
    assert [place.hosts for place in pool.places_of(arrays, arrays)] == [("h@x#1", "h@x#2"), ("h@y#1", "h@y#2")]


def test_patterns_choose_pools() -> None:
    assert Target(name="a", volume_type="x").takes("h@b#p")
    assert not Target(name="a", volume_type="x", pools=("h@c#*",)).takes("h@b#p")
    assert not Target(name="a", volume_type="x", pools=("*",), exclude_pools=("*#p",)).takes("h@b#p")
