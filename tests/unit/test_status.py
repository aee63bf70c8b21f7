"""Status: what it shows is what is there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fake_cloud import PROJECT, FakeCloud
from tests.rig import FAST, SLOW, STORES, Rig
from worker import status
from worker.cloud import GIB, Location
from worker.status import Row
from worker.target import Policy, Target

NOWHERE = "00000009-0000-4000-8000-000000000000"


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(stores=STORES)


def rig_of(cloud: FakeCloud, *targets: Target, policy: Policy | None = None) -> Rig:
    return Rig(cloud, targets=targets or (FAST, SLOW), policy=policy or Policy(settle=0.0))


async def shown(rig: Rig, image_id: str = "") -> dict[str, Row]:
    """The rows by target, of all images or of one."""
    overview = status.overview(rig.cloud, rig.prewarm, (rig.reclaim, rig.upload))
    return {row.target: row async for row in overview if image_id in ("", row.image_id)}


async def test_warm_and_cold(cloud: FakeCloud) -> None:
    async with rig_of(cloud) as rig:
        image = cloud.upload(size=2 * GIB)
        before = await shown(rig)
        assert {target: row.state for target, row in before.items()} == {"fast": "cold", "slow": "cold"}
        assert before["fast"].why == "not in store cinder-fast"
        await rig.run(image.id)
        await rig.run(image.id, "slow")
        after = await shown(rig)
        (volume,) = [volume for volume in cloud.of(image.id) if volume.volume_type == "fast"]
        assert (after["fast"].state, after["fast"].volume_id, after["fast"].size) == ("warm", volume.id, 2)
        assert after["fast"].since.endswith("Z")
        assert after["fast"].used == ""


async def test_not_wanted_full_and_unused(cloud: FakeCloud) -> None:
    image = cloud.upload(size=2 * GIB)
    async with rig_of(cloud, replace(FAST, max_gigabytes=1), policy=Policy(settle=0.0)) as rig:
        row = (await shown(rig))["fast"]
        assert row.state == "full"
        assert "max_gigabytes = 1" in row.why
    async with rig_of(cloud, FAST, policy=Policy(when="used")) as rig:
        assert (await shown(rig))["fast"].state == "unused"
    async with rig_of(cloud, FAST, policy=Policy(max_size=GIB)) as rig:
        row = (await shown(rig))["fast"]
        assert row.state == "unwanted"
        assert "max_size" in row.why
    assert cloud.of(image.id) == []


@pytest.mark.parametrize("copies", [1, 2])
async def test_lost(cloud: FakeCloud, copies: int) -> None:
    async with rig_of(cloud, FAST) as rig:
        image = cloud.upload()
        location = Location(url=f"cinder://cinder-fast/{NOWHERE}", store="cinder-fast", volume_id=NOWHERE)
        file = Location(url="file:///x", store="file")
        cloud.locations[image.id] = (location, file)[:copies]
        cloud.touch(image.id, stores=frozenset({"cinder-fast", "file"}) if copies > 1 else frozenset({"cinder-fast"}))
        row = (await shown(rig))["fast"]
        assert row.state == ("lost" if copies == 1 else "cold")
        assert ("nobody can repair" in row.why) is (copies == 1)


async def test_what_is_left(cloud: FakeCloud) -> None:
    async with rig_of(cloud, FAST) as rig:
        gone, declined, queued = cloud.upload(), cloud.upload(), cloud.queue(owner="alice")
        source = cloud.volume_of("alice")
        cloud.set_by_user(queued.id, image_volume_source=source.id)
        await rig.run(gone.id)
        await rig.run(declined.id)
        del cloud.images[gone.id]
        cloud.set_by_user(declined.id, image_volume_prewarm="no")
        assert [(row.state, row.size) for row in (await shown(rig, gone.id)).values()] == [("gone", 1)]
        states = [row.state async for row in status.overview(cloud, rig.prewarm, (rig.reclaim, rig.upload))]
        assert sorted(states) == ["gone", "left over", "unwanted", "upload"]
        (upload,) = (await shown(rig, queued.id)).values()
        assert "property names its source" in upload.why


async def test_the_last_use_is_shown(cloud: FakeCloud) -> None:
    async with rig_of(cloud, FAST) as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        await rig.quiet()
        cloud.use(image.id, "fast")
        await rig.quiet()
        row = (await shown(rig))["fast"]
        assert row.state == "warm"
        assert row.used.startswith("20")


async def test_it_changes_nothing(cloud: FakeCloud) -> None:
    async with rig_of(cloud) as rig:
        cloud.volume_of(PROJECT, name=f"image-{cloud.upload().id}")
        cloud.queue()
        before = (dict(cloud.volumes), dict(cloud.images), dict(cloud.locations))
        await shown(rig)
        assert before == (cloud.volumes, cloud.images, cloud.locations)
        assert set(cloud.calls) == {"list_images", "list_volumes", "list_stores"}


def test_counts() -> None:
    rows = [
        Row(image_id="a", target="fast", state="warm", size=2),
        Row(image_id="b", target="fast", state="warm", size=3),
        Row(image_id="b", target="slow", state="cold"),
    ]
    assert list(status.tell(rows)) == [("fast", "warm", 2, 5), ("slow", "cold", 1, 0)]
