"""A volume type over several pools: an image is warm when Cinder clones it in each of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from handlers import image_volume
from handlers.clone_path import CacheClone, Evidence, ImageVolumeClone, Pool, clone_path
from handlers.marks import is_ours
from handlers.prewarm import Prewarm
from handlers.resolve import find_places
from worker.core import pool
from worker.core.cloud import Image
from worker.core.errors import Temporary
from worker.core.outcome import Again, Done, Skip
from worker.core.state import State
from worker.core.target import Policy, Target
from worker.openstack import parse
from worker.testing.fake_cloud import FakeCloud, Fault
from worker.testing.rig import FAST, SLOW, STORES, Rig


def spread(**more: object) -> FakeCloud:
    """A type over four pools, with Cinder's image-volume cache."""
    return FakeCloud(**({"pools": {"fast": 4}, "cached": frozenset({"fast"})} | more))  # type: ignore[arg-type]


def clones(cloud: FakeCloud, image: Image) -> dict[str, type]:
    """How Cinder would make a volume of the image in each pool."""
    image = cloud.images[image.id]
    # What the fake's Cinder made an entry for stands in its own table
    volumes = tuple(
        replace(
            v, metadata={**v.metadata, "image_volume_worker_updated_at": v.metadata["_cached_for"]}
        )
        if "_cached_for" in v.metadata
        else v
        for v in cloud.of(image.id)
        if v.name.startswith("image-")
    )
    evidence = Evidence(locations=cloud.locations[image.id], volumes=volumes)
    return {
        host: type(clone_path(image, Pool(hosts=frozenset({host})), evidence))
        for host in cloud.hosts_of("fast")
    }


def warmth(rig: Rig, image: Image) -> tuple[State, str]:
    cloud = rig.cloud
    (one,) = rig.prewarm.warmth(cloud.images[image.id], tuple(cloud.of(image.id)))
    return one.state, one.why


def sampled(rig: Rig, name: str) -> dict[tuple[str, str], float]:
    """The values of a metric of targets and states."""
    (family,) = (one for one in rig.metrics.registry.collect() if one.name == name)
    return {
        (one.labels["target"], one.labels["state"]): one.value
        for one in family.samples
        if one.value
    }


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
        assert sampled(rig, "image_volume_worker_pools") == {("fast", "selectable"): 4.0}


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


async def test_of_two_arrays_that_clone_across_only_one_has_locations() -> None:
    cloud = FakeCloud(
        stores=STORES,
        pools={"fast": 2, "slow": 2},
        across=frozenset({"fast", "slow"}),
        cached=frozenset({"fast", "slow"}),
    )
    async with Rig(cloud, targets=[SLOW, FAST], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        assert cloud.images[image.id].stores == frozenset({"file", "cinder-slow"})
        assert {volume.volume_type for volume in cloud.of(image.id)} == {"slow", "fast"}
        assert await rig.resync() == []
    # While the first array is down no image is copied to the other one
    cloud.pools = {"fast": 2, "slow": 0}
    async with Rig(cloud, targets=[SLOW, FAST], policy=Policy(settle=0.0)) as rig:
        late = cloud.upload()
        await rig.run(late.id, "fast")
        assert cloud.images[late.id].stores == frozenset({"file"})
    cloud.pools = {"fast": 2, "slow": 2}
    # Whoever names the strategy has the say
    async with Rig(
        cloud, targets=[SLOW, replace(FAST, strategy="store")], policy=Policy(settle=0.0)
    ) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        assert cloud.images[image.id].stores == frozenset({"file", "cinder-slow", "cinder-fast"})


@pytest.mark.parametrize(
    ("changes", "why"), [({"named_pools": False}, "no way"), ({"makes_types": False}, "may not")]
)
async def test_where_no_pool_can_be_chosen_it_says_so(changes: dict[str, object], why: str) -> None:
    cloud = spread(stores={"cinder-fast": "fast"}, **changes)
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        state, reason = warmth(rig, image)
        assert state is State.PARTLY_WARM
        assert reason.startswith("warm in 1 of 4 pools; ")
        rig.metrics.states()
        assert sampled(rig, "image_volume_worker_images") == {("fast", "partly_warm"): 1.0}
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
        assert {volume.host for volume in cloud.of(image.id)} == {
            "host@fast#fast",
            "host@fast#fastb",
        }


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
        for _ in range(3):
            await rig.resync()
            assert len(cloud.private_types) == 4, "a job may be about to use them"
        cloud.ahead += 600.0
        await rig.resync()
        assert cloud.private_types == {}


async def test_a_type_that_was_made_again_meanwhile_counts_anew() -> None:
    """Somebody may be making a volume of it: without its type Cinder would list no volumes."""
    cloud = spread()
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        cloud.set_by_user(image.id, image_volume_prewarm="no")
        await rig.resync()
        await rig.quiet()
        await rig.resync()
        assert not cloud.of(image.id)
        cloud.ahead += 600.0
        # A job is about to make volumes, and Cinder has no room at the moment
        cloud.set_by_user(image.id, image_volume_prewarm="yes")
        cloud.faults["create_volume"] = Fault(Temporary("503"), times=8)
        with pytest.raises(Temporary):
            await rig.run(image.id)
        await rig.resync()
        assert cloud.private_types


async def test_commands_that_look_delete_no_type() -> None:
    cloud = spread()
    await cloud.create_private_type(
        "image-volume-worker:host@fast#fast", {"volume_backend_name": "fast"}
    )
    rig = Rig(cloud, targets=[FAST])
    looking = Prewarm(replace(rig.parts, keeps_order=False))
    for _ in range(3):
        await looking.prepare({})
    assert len(cloud.private_types) == 1


async def test_a_private_type_that_somebody_has_deleted_is_made_again() -> None:
    cloud = spread()
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        await rig.run(cloud.upload().id)
        cloud.private_types.clear()
        image = cloud.upload()
        assert isinstance(await rig.run(image.id), Again)
        assert isinstance(await rig.run(image.id), Done)
        assert len(cloud.of(image.id)) == 4


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


async def test_a_private_type_that_leads_elsewhere_is_named_and_nothing_is_made_there() -> None:
    cloud = spread()
    cloud.private_types["image-volume-worker:host@fast#fastb"] = {
        "volume_backend_name": "fast",
        "pool_name": "fastc",
    }
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Skip)
        assert (
            "warm in 3 of 4 pools; not in host@fast#fastb: volume type image-volume-worker:"
            in outcome.reason
        )
        assert cloud.calls["create_volume"] == 3


async def test_a_volume_that_goes_astray_is_not_made_again_before_a_day(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cloud, lead = spread(), FakeCloud.hosts_of

    def astray(self: FakeCloud, volume_type: str) -> list[str]:
        return ["host@fast#fasta"] if volume_type.endswith("#fastb") else lead(self, volume_type)

    monkeypatch.setattr(FakeCloud, "hosts_of", astray)
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        for _ in range(3):
            outcome = await rig.run(image.id)
            assert isinstance(outcome, Skip)
            assert "leads to another pool: host@fast#fasta" in outcome.reason
        assert cloud.calls["create_volume"] == 4
        assert await rig.resync() == []
        assert not [volume for volume in cloud.of(image.id) if volume.name.startswith("warm-")]


@pytest.mark.parametrize("stores", [{}, {"cinder-fast": "fast"}])
@pytest.mark.parametrize("fault", ["hosts are down", "refused", "none", "unanswered"])
async def test_pools_that_are_not_told_of_for_a_while_lose_nothing(
    monkeypatch: pytest.MonkeyPatch, stores: dict[str, str], fault: str
) -> None:
    cloud = spread(stores=stores)
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        before = {volume.id: volume.host for volume in cloud.of(image.id)}
        assert len(before) == 4

    async def pools(self: FakeCloud) -> tuple[pool.Pool, ...]:
        if fault == "unanswered":
            raise Temporary("503")
        return () if fault == "none" else await tell(self)

    tell = FakeCloud.list_pools
    monkeypatch.setattr(FakeCloud, "list_pools", pools)
    cloud.tells_pools = fault != "refused"
    if fault == "hosts are down":
        cloud.pools = {"fast": 1}
    # Another process, that has never seen them
    for one in (rig, Rig(cloud, targets=[FAST], policy=Policy(settle=0.0))):
        async with one:
            await one.resync()
            await one.quiet()
            await one.run(image.id)
            assert {volume.id: volume.host for volume in cloud.of(image.id)} == before
            # Nor is anything made where it is, or what cannot be seen called missing
            cloud.pools, cloud.tells_pools = {"fast": 4}, True
            monkeypatch.setattr(FakeCloud, "list_pools", tell)
            assert await one.resync() == []
            assert warmth(one, image) == (State.WARM, "")
            monkeypatch.setattr(FakeCloud, "list_pools", pools)


async def test_what_lies_in_a_pool_that_does_not_count_is_no_clone_in_the_one_that_does() -> None:
    cloud = spread()
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        await rig.run(image.id)
    gone = [volume for volume in cloud.of(image.id) if volume.host == "host@fast#fast"]
    for volume in gone:
        del cloud.volumes[volume.id]
    chosen = replace(FAST, pools=("*#fast",))
    async with Rig(cloud, targets=[chosen], policy=Policy(settle=0.0)) as rig:
        await rig.resync()
        assert warmth(rig, image)[0] is State.COLD
        await rig.quiet()
        await rig.resync()
        assert warmth(rig, image) == (State.WARM, "")
        # And those in the pools that are left out go
        await rig.quiet()
        assert {volume.host for volume in cloud.of(image.id)} == {"host@fast#fast"}
        assert await rig.resync() == []


@pytest.mark.parametrize("most", [1, 2])
async def test_a_budget_for_fewer_than_all_pools_makes_and_deletes_nothing_without_end(
    most: int,
) -> None:
    cloud = spread()
    async with Rig(
        cloud, targets=[replace(FAST, max_count=most)], policy=Policy(settle=0.0)
    ) as rig:
        image = cloud.upload()
        for _ in range(4):
            await rig.resync()
            await rig.quiet()
        assert len(cloud.of(image.id)) == most
        assert cloud.calls["create_volume"] == most
        state, why = warmth(rig, image)
        assert state is State.PARTLY_WARM
        assert f"warm in {most} of 4 pools" in why
        assert await rig.resync() == []


async def test_nothing_is_evicted_for_an_image_that_cannot_be_placed() -> None:
    cloud, target = spread(), replace(FAST, max_count=4)
    async with Rig(cloud, targets=[target], policy=Policy(settle=0.0)) as rig:
        old = cloud.upload()
        await rig.run(old.id)
    cloud.private_types.clear()
    cloud.makes_types = False
    async with Rig(cloud, targets=[target], policy=Policy(settle=0.0)) as rig:
        new = cloud.upload(created_epoch=cloud.now() + 60)
        outcome = await rig.run(new.id)
        assert isinstance(outcome, Skip)
        assert "may not make private volume types" in outcome.reason
        assert len(cloud.of(old.id)) == 4


async def test_our_entries_are_ours_whatever_their_private_type() -> None:
    cloud = spread()
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        await rig.run(image.id)
        targets = {target.name: target for target in rig.parts.targets}
        assert all(is_ours(volume, targets) for volume in cloud.of(image.id))


async def test_what_is_cloned_by_the_driver_of_one_pool_is_not_so_in_another() -> None:
    cloud = FakeCloud(
        rbd_stores=frozenset({"rbd"}),
        native=frozenset({"fast"}),
        cached=frozenset({"fast", "slow"}),
        loose=frozenset({"fast"}),
        types={"fast", "slow"},
    )
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        images = [cloud.upload(stores=frozenset({"rbd"})) for _ in range(2)]
        for image in images:
            assert isinstance(await rig.run(image.id), Done)
            assert [volume.host for volume in cloud.of(image.id)] == ["host@slow#slow"]
        assert await rig.resync() == []
        # Two to find out, and one for each image in the pool where its driver downloads
        assert cloud.calls["create_volume"] == 4


async def test_the_image_volume_of_another_target_in_the_same_pool_serves() -> None:
    cloud = FakeCloud(
        stores={"cinder-fast": "fast"},
        cached=frozenset({"fast", "slow"}),
        loose=frozenset({"slow"}),
        types={"fast", "slow"},
    )
    async with Rig(cloud, targets=[FAST, SLOW], policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        assert isinstance(await rig.run(image.id, "fast"), Done)
        assert isinstance(await rig.run(image.id, "slow"), Done)
        assert sorted(volume.host for volume in cloud.of(image.id)) == [
            "host@fast#fast",
            "host@slow#slow",
        ]
        assert cloud.calls["create_volume"] == 1
        assert await rig.resync() == []


async def test_an_image_that_nobody_has_used_yet_makes_no_types() -> None:
    cloud = spread()
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0, when="used")) as rig:
        image = cloud.upload()
        outcome = await rig.run(image.id)
        assert isinstance(outcome, Skip)
        assert outcome.state is State.UNUSED
        assert cloud.calls["create_private_type"] == 0
        await rig.resync()
        assert warmth(rig, image)[0] is State.UNUSED


def test_the_zones_of_a_type_and_of_a_target() -> None:
    def lvm(zone: str) -> pool.Pool:
        return pool.Pool(name=f"{zone}@lvm#vg", backend_name="lvm", zone=zone)

    pools = (lvm("az1"), lvm("az2"), lvm("az3"))
    limited = pool.VolumeType(id="1", name="fast", specs={"RESKEY:availability_zones": "az1, az2"})
    assert [one.zone for one in find_places(FAST, [limited], pools)] == ["az1", "az2"]
    assert [
        one.zone for one in find_places(replace(FAST, availability_zone="az2"), [limited], pools)
    ] == ["az2"]
    everywhere = pool.VolumeType(id="1", name="fast")
    assert len(find_places(FAST, [everywhere], pools)) == 3
    # Who may not see services does not know
    blind = tuple(replace(one, zone="") for one in pools)
    assert len(find_places(replace(FAST, availability_zone="az2"), [everywhere], blind)) == 3


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ({"volume_backend_name": "lvm"}, ["a@lvm#one", "b@lvm#two"]),
        ({"volume_backend_name": "lvm", "pool_name": "two"}, ["b@lvm#two"]),
        (
            {"capabilities:volume_backend_name": "<or> nfs <or> lvm"},
            ["a@lvm#one", "b@lvm#two", "c@nfs#x"],
        ),
        ({"multiattach": "<is> True"}, ["c@nfs#x"]),
        ({"nobody:reports": "this"}, ["a@lvm#one", "b@lvm#two", "c@nfs#x"]),
        ({"reported_by": "nobody"}, []),
        ({}, ["a@lvm#one", "b@lvm#two", "c@nfs#x"]),
    ],
)
def test_the_pools_that_a_type_leads_to(specs: dict[str, str], expected: list[str]) -> None:
    pools = [
        pool.Pool(
            name="a@lvm#one",
            backend_name="lvm",
            capabilities={"pool_name": "one", "multiattach": False},
        ),
        pool.Pool(
            name="b@lvm#two",
            backend_name="lvm",
            capabilities={"pool_name": "two", "multiattach": False},
        ),
        pool.Pool(name="c@nfs#x", backend_name="nfs", capabilities={"multiattach": True}),
    ]
    found = pool.pools_of(pool.VolumeType(id="1", name="t", specs=specs), pools)
    assert [one.name for one in found] == expected


def test_only_a_pool_with_a_name_of_its_own_can_be_chosen() -> None:
    def named(host: str, name: str, *, across: bool = False) -> pool.Pool:
        return pool.Pool(
            name=host, backend_name="lvm", clones_across=across, capabilities={"pool_name": name}
        )

    distinct = [named("a@lvm#one", "one"), named("a@lvm#two", "two")]
    assert [place.specs for place in pool.places_of(distinct, distinct)] == [
        (("volume_backend_name", "lvm"), ("pool_name", "one")),
        (("volume_backend_name", "lvm"), ("pool_name", "two")),
    ]
    alike = [named("a@lvm#vg", "vg"), named("b@lvm#vg", "vg")]
    assert [place.specs for place in pool.places_of(alike, alike)] == [(), ()]
    # A type of several backends
    backends = [named("a@fast#vg", "vg"), replace(named("a@slow#vg", "vg"), backend_name="slow")]
    assert [place.specs for place in pool.places_of(backends, backends)] == [
        (("volume_backend_name", "lvm"), ("pool_name", "vg")),
        (("volume_backend_name", "slow"), ("pool_name", "vg")),
    ]
    # LVM on two hosts
    hosts = [
        replace(
            one,
            capabilities={
                **one.capabilities,
                "location_info": f"LVMVolumeDriver:{one.backend}:vg:thin:0",
            },
        )
        for one in alike
    ]
    assert [dict(place.specs) for place in pool.places_of(hosts, hosts)] == [
        {
            "volume_backend_name": "lvm",
            "pool_name": "vg",
            "location_info": f"LVMVolumeDriver:{host}@lvm:vg:thin:0",
        }
        for host in "ab"
    ]
    # Two arrays that clone across their own pools
    arrays = [
        named(f"h@{array}#{number}", f"{array}{number}", across=True)
        for array in "xy"
        for number in "12"
    ]
    assert [place.hosts for place in pool.places_of(arrays, arrays)] == [
        ("h@x#1", "h@x#2"),
        ("h@y#1", "h@y#2"),
    ]


def test_patterns_choose_pools() -> None:
    assert Target(name="a", volume_type="x").takes("h@b#p")
    assert not Target(name="a", volume_type="x", pools=("h@c#*",)).takes("h@b#p")
    assert not Target(name="a", volume_type="x", pools=("*",), exclude_pools=("*#p",)).takes(
        "h@b#p"
    )


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("fast", True),
        ("slow", False),
        ("fast or not", False),
        ("<or> slow <or> fast", True),
        ("<or> slow <or> other", False),
        ("<in> as", True),
        ("s== fast", True),
        ("s!= fast", False),
    ],
)
def test_extra_specs(wanted: str, expected: bool) -> None:
    assert pool.matches("fast", wanted) is expected


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (True, "<is> true", True),
        ("yes", "<is> True", True),
        # Cinder compares the text with the truth value
        (True, "True", False),
        (20, "= 10", True),
        ("20.5", ">= 21", False),
        (3, "== 3", True),
        (3, "!= 3", False),
        ("much", ">= 1", False),
        (True, "s== True", False),
        ("b", "s> a", True),
        (None, "s!= a", False),
        (5, "<in> 5", False),
    ],
)
def test_extra_specs_of_other_kinds(value: object, wanted: str, expected: bool) -> None:
    assert pool.matches(value, wanted) is expected


def test_a_list_and_a_nested_capability() -> None:
    one = pool.Pool(
        name="h@b#p",
        backend_name="b",
        capabilities={"tiers": ["gold", "silver"], "qos": {"iops": {"max": 500}}},
    )
    for specs, expected in (
        ({"tiers": "silver"}, True),
        ({"tiers": "tin"}, False),
        ({"capabilities:qos:iops:max": ">= 400"}, True),
        ({"capabilities:qos:iops:min": ">= 400"}, False),
        ({"qos:iops:max": ">= 900"}, True),
    ):
        assert (
            bool(pool.pools_of(pool.VolumeType(id="1", name="t", specs=specs), [one])) is expected
        ), specs


@pytest.mark.parametrize(
    ("host", "meant"),
    [
        ("h1@ssd#a", "h1@ssd#a"),
        # Services of a cluster: volumes have a host, pools the cluster's name
        ("h7@rbd#rbd", "cluster@rbd#rbd"),
        ("h7@ssd#a", ""),
        ("h7@nfs#a", ""),
        ("", ""),
        ("rbd#rbd", ""),
    ],
)
def test_the_pool_that_a_notification_means(host: str, meant: str) -> None:
    names = ["h1@ssd#a", "h2@ssd#a", "cluster@rbd#rbd"]
    assert pool.pool_of_notification(host, names) == meant


def test_a_volume_lies_in_the_pool_of_its_cluster() -> None:
    fields: dict[str, object] = {
        "id": "1",
        "status": "available",
        "size": 1,
        "os-vol-host-attr:host": "h7@rbd#rbd",
    }
    assert parse.volume(fields).host == "h7@rbd#rbd"
    assert parse.volume({**fields, "cluster_name": None}).host == "h7@rbd#rbd"
    assert parse.volume({**fields, "cluster_name": "cluster@rbd#rbd"}).host == "cluster@rbd#rbd"
    # Not placed yet
    unplaced = parse.volume({**fields, "os-vol-host-attr:host": None, "cluster_name": None})
    assert (unplaced.host, unplaced.scheduled) == ("", False)


@pytest.mark.parametrize("chosen", [("*#fast",), ("*#fastb",)])
async def test_of_a_type_with_several_pools_only_the_one_that_a_target_takes_is_used(
    chosen: tuple[str, ...],
) -> None:
    cloud = spread()
    target = replace(FAST, pools=chosen)
    async with Rig(cloud, targets=[target], policy=Policy(settle=0.0)) as rig:
        images = [cloud.upload(disk_format="qcow2") for _ in range(3)]
        await rig.resync()
        await rig.quiet()
        for image in images:
            assert [one.host for one in cloud.of(image.id)] == [f"host@fast{chosen[0][1:]}"]
            assert warmth(rig, image) == (State.WARM, "")
        assert await rig.resync() == []


async def test_what_is_called_like_a_placing_type_and_is_none_stays() -> None:
    """A public type, or one with extra specs that the worker does not write."""
    cloud = spread()
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        specs = {"volume_backend_name": "fast", "pool_name": "fast"}
        names = [image_volume.placing_type(name) for name in ("host@fast#fast", "finance", "h@b#p")]
        cloud.private_types = {names[0]: specs, names[1]: specs, names[2]: specs | {"x": "y"}}
        cloud.public_types = {names[0]}
        for _ in range(3):
            await rig.resync()
            await rig.quiet()
        assert set(cloud.private_types) == set(names)
        cloud.public_types = set()
        for _ in range(3):
            cloud.ahead += 600.0
            await rig.resync()
            await rig.quiet()
        assert set(cloud.private_types) == set(names[1:])
