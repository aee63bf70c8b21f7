"""Targets that can't be used: one that is encrypted, one whose volume type is gone; the others go on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fake_cloud import FakeCloud
from tests.rig import FAST, SLOW, STORES, Rig, located, using
from worker.errors import Blocked
from worker.outcome import Done, Skip
from worker.target import Policy

STRATEGIES = ["store", "location", "cache"]


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(stores=STORES, multiple_locations=True)


def rig_of(cloud: FakeCloud, strategy: str) -> Rig:
    cloud.cached = frozenset({"fast", "slow"} if strategy == "cache" else ())
    return Rig(cloud, targets=using(strategy, FAST, SLOW), policy=Policy(settle=0.0))


def types_of(cloud: FakeCloud, image_id: str) -> list[str]:
    return [volume.volume_type for volume in cloud.of(image_id)]


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_nothing_is_made_on_a_target_whose_type_is_encrypted(cloud: FakeCloud, strategy: str) -> None:
    cloud.encrypted_types = {"fast"}
    async with rig_of(cloud, strategy) as rig:
        image = cloud.upload()
        found = await rig.resync()
        assert [missing.key.target for missing in found] == ["slow"]
        outcome = await rig.run(image.id, "fast")
        assert isinstance(outcome, Skip)
        assert "volumes of type fast are encrypted" in outcome.reason
        await rig.quiet()
        assert types_of(cloud, image.id) == ["slow"]
        assert cloud.calls["create_volume"] + cloud.calls["copy_image"] == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_an_encrypted_volume_never_serves_where_cinder_does_not_tell(cloud: FakeCloud, strategy: str) -> None:
    cloud.encrypted_types, cloud.tells_encryption = {"fast"}, False
    async with rig_of(cloud, strategy) as rig:
        image = cloud.upload()
        with pytest.raises(Blocked, match="encrypted"):
            await rig.run(image.id, "fast")
        await cloud.quiet()
        assert "fast" not in types_of(cloud, image.id)
        assert not {cloud.volumes[volume_id].volume_type for volume_id in located(cloud, image.id)} & {"fast"}
        # And no second one is made to find out the same
        cloud.calls.clear()
        other = cloud.upload()
        assert isinstance(await rig.run(other.id, "fast"), Skip)
        assert cloud.calls["create_volume"] + cloud.calls["copy_image"] == 0
        assert isinstance(await rig.run(other.id, "slow"), Done)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_encrypted_copies_of_earlier_releases_are_deleted(cloud: FakeCloud, strategy: str) -> None:
    async with rig_of(cloud, strategy) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        assert sorted(types_of(cloud, image.id)) == ["fast", "slow"]
    cloud.encrypted_types = {"fast"}
    for volume in cloud.of(image.id):
        cloud.volumes[volume.id] = replace(volume, encrypted=volume.volume_type == "fast")
    async with rig_of(cloud, strategy) as rig:
        await rig.resync()
        await rig.quiet()
        assert types_of(cloud, image.id) == ["slow"]
        assert cloud.has_data(image.id)


@pytest.mark.parametrize("strategy", ["store", "location"])
async def test_an_encrypted_location_of_somebody_elses_is_named_and_left(cloud: FakeCloud, strategy: str) -> None:
    async with rig_of(cloud, strategy) as rig:
        image = cloud.upload()
        mine = cloud.volume_of("internal-project", volume_type="fast", encrypted=True, name=f"image-{image.id}")
        cloud.locate(image.id, "cinder-fast", mine.id)
        outcome = await rig.run(image.id, "fast")
        assert isinstance(outcome, Skip)
        assert mine.id in outcome.reason
        assert "ciphertext" in outcome.reason
        assert located(cloud, image.id) == [mine.id]


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_type_that_is_gone_is_its_own_targets_trouble(cloud: FakeCloud, strategy: str) -> None:
    async with rig_of(cloud, strategy) as rig:
        cloud.emit = rig.hear
        first = cloud.upload()
        await rig.quiet()
        cloud.types.remove("fast")
        # As of the next comparison; what is warm there is left as it is
        assert await rig.resync() == []
        second = cloud.upload()
        await rig.quiet()
        outcome = await rig.run(second.id, "fast")
        assert isinstance(outcome, Skip)
        assert "Cinder has no type 'fast'" in outcome.reason
        assert sorted(types_of(cloud, first.id)) == ["fast", "slow"]
        assert types_of(cloud, second.id) == ["slow"]
        assert "fast" in rig.prewarm.unusable["fast"]
        assert "slow" not in rig.prewarm.unusable
        # It is back: the next comparison makes up for it
        cloud.types.add("fast")
        assert [missing.key.target for missing in await rig.resync()] == ["fast"]
        await rig.quiet()
        assert sorted(types_of(cloud, second.id)) == ["fast", "slow"]
