"""Which strategy serves an image on a target, and that nothing is made of what Cinder clones by
itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from worker.core.cloud import Volume
from worker.core.outcome import Done, Skip
from worker.core.state import State
from worker.core.target import Policy, Target
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import FAST, Rig

NAMED = replace(FAST, native_stores=("rbd",))


def ceph(**more: object) -> FakeCloud:
    """Ceph on both sides: Glance keeps images in an rbd store, and Cinder's driver clones from
    there."""
    return FakeCloud(rbd_stores=frozenset({"rbd"}), native=frozenset({"fast"}), **more)  # type: ignore[arg-type]


def states(rig: Rig) -> set[State]:
    images = rig.cloud.images.values()
    return {
        one.state
        for image in images
        for one in rig.prewarm.warmth(image, tuple(rig.cloud.of(image.id)))
    }


async def test_nothing_is_made_where_the_operator_names_the_store() -> None:
    cloud = ceph()
    async with Rig(cloud, targets=[NAMED], policy=Policy(settle=0.0)) as rig:
        images = [cloud.upload(stores=frozenset({"rbd"})) for _ in range(5)]
        for image in images:
            assert isinstance(outcome := await rig.run(image.id), Done)
            assert outcome.state is State.WARM
        assert await rig.resync() == []
        assert cloud.calls["create_volume"] == 0


async def test_one_volume_shows_what_nobody_has_named() -> None:
    cloud = ceph()
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        images = [cloud.upload(stores=frozenset({"rbd"})) for _ in range(5)]
        for image in images:
            outcome = await rig.run(image.id)
            assert isinstance(outcome, Done)
            assert outcome.state is State.WARM
        # A second one of the same image has confirmed it
        assert cloud.calls["create_volume"] == 2
        assert not cloud.volumes
        assert await rig.resync() == []
        assert states(rig) == {State.WARM}
        # After a day it is tried once more: an administrator may have changed something
        cloud.ahead += 90_000.0
        assert len(await rig.resync()) == 5
        await rig.quiet()
        assert cloud.calls["create_volume"] == 4
        assert states(rig) == {State.WARM}


async def test_of_images_at_once_one_alone_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud, shown, find = ceph(), asyncio.Event(), FakeCloud.find_volumes

    async def slowly(self: FakeCloud, name: str) -> tuple[Volume, ...]:
        if late.id in name:
            await shown.wait()
        return await find(self, name)

    monkeypatch.setattr(FakeCloud, "find_volumes", slowly)
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        *images, late = (cloud.upload(stores=frozenset({"rbd"})) for _ in range(5))
        begun = asyncio.create_task(rig.run(late.id))
        outcomes = await asyncio.gather(*(rig.run(image.id) for image in images))
        shown.set()
        assert all(isinstance(outcome, Done) for outcome in (*outcomes, await begun))
        assert cloud.calls["create_volume"] == 2


async def test_an_image_in_another_store_is_not_taken_for_one_that_is_cloned() -> None:
    cloud = ceph(cached=frozenset({"fast"}))
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        await rig.run(cloud.upload(stores=frozenset({"rbd"})).id)
        assert not cloud.volumes
        other = cloud.upload(stores=frozenset({"file"}))
        assert isinstance(await rig.run(other.id), Done)
        assert [volume.name for volume in cloud.volumes.values()] == [f"image-{other.id}"]


async def test_an_image_is_copied_into_the_store_of_the_targets_cluster() -> None:
    cloud = ceph()
    cloud.rbd_stores = frozenset({"rbd", "far"})
    async with Rig(
        cloud, targets=[replace(NAMED, native_stores=("far",))], policy=Policy(settle=0.0)
    ) as rig:
        image = cloud.upload(stores=frozenset({"rbd"}))
        await rig.resync()
        await rig.quiet()
        assert cloud.images[image.id].stores == {"rbd", "far"}
        assert cloud.calls["create_volume"] == 0
        assert states(rig) == {State.WARM}


@pytest.mark.parametrize("fmt", ["qcow2", "vmdk"])
async def test_what_no_store_can_serve_goes_by_the_cache_of_the_same_target(fmt: str) -> None:
    cloud = FakeCloud(stores={"cinder-fast": "fast"}, cached=frozenset({"fast"}))
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        raw, other = cloud.upload(), cloud.upload(disk_format=fmt)
        await rig.resync()
        await rig.quiet()
        assert cloud.images[raw.id].stores == {"file", "cinder-fast"}
        assert cloud.images[other.id].stores == {"file"}
        assert [volume.name for volume in cloud.of(other.id)] == [f"image-{other.id}"]
        assert await rig.resync() == []
        assert states(rig) == {State.WARM}


async def test_where_the_cache_is_off_a_few_tries_tell_and_raw_images_go_on() -> None:
    cloud = FakeCloud(stores={"cinder-fast": "fast"})
    async with Rig(cloud, targets=[FAST], policy=Policy(settle=0.0)) as rig:
        for _ in range(10):
            cloud.upload(disk_format="qcow2")
        await rig.resync()
        await rig.quiet()
        await rig.resync()
        await rig.quiet()
        assert cloud.calls["create_volume"] <= 6
        raw = cloud.upload()
        assert isinstance(await rig.run(raw.id), Done)
        late = await rig.run(cloud.upload(disk_format="qcow2").id)
        assert isinstance(late, Skip)
        assert late.state is State.FULL
        assert "image_volume_cache_enabled" in late.reason
        assert states(rig) <= {State.WARM, State.FULL, State.HELD_BACK}


def test_formats_follow_the_strategy() -> None:
    assert Target(name="a", volume_type="x", strategy="store").formats == {"raw"}
    assert "qcow2" in Target(name="a", volume_type="x", strategy="cache").formats
    assert "qcow2" in Target(name="a", volume_type="x").formats
    assert Target(name="a", volume_type="x", disk_formats=frozenset({"iso"})).formats == {"iso"}
