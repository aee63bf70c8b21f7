"""An image is wanted by uses of it and by its owner's wish, not by what others have inherited of
it."""

from __future__ import annotations

import pytest

from worker.core.errors import Blocked
from worker.core.target import Policy
from worker.testing.fake_cloud import FakeCloud, Fault
from worker.testing.rig import FAST, STORES, Rig, using


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(stores=STORES)


def rig_of(cloud: FakeCloud) -> Rig:
    return Rig(cloud, targets=using("store", FAST), policy=Policy(settle=0.0, when="used"))


INHERITED = [{"snapshot_id": "a-snapshot"}, {"source_volid": "a-volume"}]


@pytest.mark.parametrize("fields", INHERITED, ids=["restored", "cloned"])
async def test_restores_and_clones_make_no_image_wanted(
    cloud: FakeCloud, fields: dict[str, str]
) -> None:
    async with rig_of(cloud) as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        for _ in range(3):
            cloud.use(image.id, "fast", **fields)
            await rig.quiet()
        assert cloud.of(image.id) == []
        assert rig.uses.count(image.id, "fast") == 0


@pytest.mark.parametrize("fields", INHERITED, ids=["restored", "cloned"])
async def test_two_real_uses_among_them_do(cloud: FakeCloud, fields: dict[str, str]) -> None:
    async with rig_of(cloud) as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        for _ in range(3):
            cloud.use(image.id, "fast", **fields)
            await rig.quiet()
        cloud.use(image.id, "fast")
        await rig.quiet()
        assert cloud.of(image.id) == []
        cloud.use(image.id, "fast")
        await rig.quiet()
        assert len(cloud.of(image.id)) == 1


@pytest.mark.parametrize("fields", INHERITED, ids=["restored", "cloned"])
async def test_they_are_no_last_use_either(cloud: FakeCloud, fields: dict[str, str]) -> None:
    async with Rig(cloud, targets=using("store", FAST), policy=Policy(settle=0.0)) as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        await rig.quiet()
        cloud.use(image.id, "fast", **fields)
        await rig.quiet()
        (volume,) = cloud.of(image.id)
        assert "image_volume_worker_used_at" not in volume.metadata


async def test_a_volume_that_is_gone_when_it_is_asked_for_does_not_count(cloud: FakeCloud) -> None:
    async with rig_of(cloud) as rig:
        image = cloud.upload()
        heard: list[bytes] = []
        cloud.emit = heard.append
        for _ in range(3):
            del cloud.volumes[cloud.use(image.id, "fast").id]
        for body in heard:
            rig.hear(body)
        await rig.quiet()
        assert cloud.of(image.id) == []


async def test_a_volume_that_we_may_not_look_at_hinders_nothing(cloud: FakeCloud) -> None:
    async with Rig(cloud, targets=using("store", FAST), policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        cloud.emit = rig.hear
        cloud.faults["get_volume"] = Fault(Blocked("403"))
        cloud.use(image.id, "fast")
        await rig.quiet()
        assert len(cloud.of(image.id)) == 1
        assert rig.uses.count(image.id, "fast") == 0


async def test_a_yes_that_a_snapshot_has_inherited_is_no_wish(cloud: FakeCloud) -> None:
    policy = Policy(settle=0.0, visibilities=frozenset({"public"}), min_size=1000)
    async with Rig(cloud, targets=using("store", FAST), policy=policy) as rig:
        wish = {"image_volume_prewarm": "yes"}
        golden = cloud.upload(visibility="public", properties=wish)
        # Nova makes snapshots of a server with the properties of its image
        nova = {"image_type": "snapshot", "base_image_ref": golden.id}
        snapshots = [
            cloud.upload(visibility="private", owner="bob", size=10, properties=wish | nova)
            for _ in range(3)
        ]
        small = cloud.upload(visibility="private", size=10)
        cloud.set_by_user(small.id, image_volume_prewarm=f"yes/{small.id}")
        cloned = cloud.upload(
            visibility="private", properties=dict(cloud.images[small.id].properties)
        )
        await rig.resync()
        await rig.quiet()
        assert len(cloud.of(golden.id)) == len(cloud.of(small.id)) == 1
        assert [cloud.of(image.id) for image in (*snapshots, cloned)] == [[]] * 4


async def test_nor_is_it_one_where_an_image_waits_for_uses(cloud: FakeCloud) -> None:
    async with rig_of(cloud) as rig:
        inherited = cloud.upload(visibility="private", properties={"image_volume_prewarm": "yes"})
        await rig.resync()
        await rig.quiet()
        assert cloud.of(inherited.id) == []
        cloud.set_by_user(inherited.id, image_volume_prewarm=f"yes/{inherited.id}")
        await rig.resync()
        await rig.quiet()
        assert len(cloud.of(inherited.id)) == 1
