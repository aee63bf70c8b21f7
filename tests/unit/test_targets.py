"""Targets: one that is encrypted or whose volume type is gone, and how much is allocated on one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from handlers.target_store import TargetStores
from tests.unit.rigs import rig_of
from worker.core.cloud import GIB, NewVolume
from worker.core.errors import Blocked, Conflict
from worker.core.job import Key
from worker.core.outcome import Done, Skip
from worker.core.pool import VolumeType
from worker.core.target import Policy
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import FAST, SLOW, STORES, Polls, Rig, located, using

STRATEGIES = ["store", "location", "cache"]


POLICY = Policy(settle=0.0)


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(stores=STORES, multiple_locations=True)


def types_of(cloud: FakeCloud, image_id: str) -> list[str]:
    return [volume.volume_type for volume in cloud.of(image_id)]


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_nothing_is_made_on_a_target_whose_type_is_encrypted(
    cloud: FakeCloud, strategy: str
) -> None:
    cloud.encrypted_types = {"fast"}
    async with rig_of(cloud, strategy, policy=POLICY) as rig:
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
async def test_an_encrypted_volume_never_serves_where_cinder_does_not_tell(
    cloud: FakeCloud, strategy: str
) -> None:
    cloud.encrypted_types, cloud.tells_encryption = {"fast"}, False
    async with rig_of(cloud, strategy, policy=POLICY) as rig:
        image = cloud.upload()
        with pytest.raises(Blocked, match="encrypted"):
            await rig.run(image.id, "fast")
        await cloud.quiet()
        assert "fast" not in types_of(cloud, image.id)
        assert not {
            cloud.volumes[volume_id].volume_type for volume_id in located(cloud, image.id)
        } & {"fast"}
        # And no second one is made to find out the same
        cloud.calls.clear()
        other = cloud.upload()
        assert isinstance(await rig.run(other.id, "fast"), Skip)
        assert cloud.calls["create_volume"] + cloud.calls["copy_image"] == 0
        assert isinstance(await rig.run(other.id, "slow"), Done)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_encrypted_copies_of_earlier_releases_are_deleted(
    cloud: FakeCloud, strategy: str
) -> None:
    async with rig_of(cloud, strategy, policy=POLICY) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        assert sorted(types_of(cloud, image.id)) == ["fast", "slow"]
    cloud.encrypted_types = {"fast"}
    for volume in cloud.of(image.id):
        cloud.volumes[volume.id] = replace(volume, encrypted=volume.volume_type == "fast")
    async with rig_of(cloud, strategy, policy=POLICY) as rig:
        await rig.resync()
        await rig.quiet()
        assert types_of(cloud, image.id) == ["slow"]
        assert cloud.has_data(image.id)


@pytest.mark.parametrize("strategy", ["store", "location"])
async def test_an_encrypted_location_of_somebody_elses_is_named_and_left(
    cloud: FakeCloud, strategy: str
) -> None:
    async with rig_of(cloud, strategy, policy=POLICY) as rig:
        image = cloud.upload()
        mine = cloud.volume_of(
            "internal-project", volume_type="fast", encrypted=True, name=f"image-{image.id}"
        )
        cloud.locate(image.id, "cinder-fast", mine.id)
        outcome = await rig.run(image.id, "fast")
        assert isinstance(outcome, Skip)
        assert mine.id in outcome.reason
        assert "ciphertext" in outcome.reason
        assert located(cloud, image.id) == [mine.id]


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_type_that_is_gone_is_its_own_targets_trouble(
    cloud: FakeCloud, strategy: str
) -> None:
    async with rig_of(cloud, strategy, policy=POLICY) as rig:
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


# How much is allocated


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_what_is_allocated_is_bounded(cloud: FakeCloud, strategy: str) -> None:
    cloud.cached = frozenset({"fast"} if strategy == "cache" else ())
    policy = Policy(settle=0.0, max_size=100 * GIB)
    async with Rig(cloud, targets=using(strategy, FAST), policy=policy) as rig:
        bomb = cloud.upload(size=1, min_disk=16_000)
        plain = cloud.upload(size=2 * GIB, min_disk=20)
        await rig.resync()
        await rig.quiet()
        sizes = {volume.size for volume in cloud.of(plain.id)}
        # An entry of Cinder's cache is as large as the data
        assert sizes == ({20} if strategy == "location" else {2})
        # Glance's store makes a volume of 1 GiB for it
        assert {volume.size for volume in cloud.of(bomb.id)} == (
            {1} if strategy == "store" else set()
        )
        outcome = await rig.run(bomb.id)
        assert isinstance(outcome, Done if strategy == "store" else Skip)


async def test_a_strategy_that_was_not_known_yet_bounds_too(cloud: FakeCloud) -> None:
    cloud.stores, cloud.cached = {}, frozenset({"fast"})
    async with Rig(cloud, targets=(FAST,), policy=Policy(settle=0.0, max_size=100 * GIB)) as rig:
        bomb = cloud.upload(size=1, min_disk=16_000)
        assert isinstance(await rig.run(bomb.id), Skip)
        assert cloud.of(bomb.id) == []


async def test_a_copy_by_glance_takes_its_size_of_budget_and_quota(cloud: FakeCloud) -> None:
    budgeted = replace(FAST, max_gigabytes=4)
    async with Rig(cloud, targets=using("store", budgeted), policy=Policy(settle=0.0)) as rig:
        cloud.quota = 4
        images = [cloud.upload(size=2 * GIB, min_disk=20) for _ in range(2)]
        for image in images:
            assert isinstance(await rig.run(image.id), Done)
        assert sum(volume.size for volume in cloud.volumes.values()) == 4


async def test_cinder_makes_no_volume_that_is_too_small(cloud: FakeCloud) -> None:
    image = cloud.upload(size=1, min_disk=3)
    with pytest.raises(Conflict):
        await cloud.create_volume(
            NewVolume(name="small", size=2, volume_type="fast", image_id=image.id)
        )


async def test_handlers_share_one_look_at_stores_and_types(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store") as rig:
        image = cloud.upload()
        await rig.run(image.id, "fast")
        await rig.reclaim.reconcile(Key("reclaim", image.id), Polls())
        assert (cloud.calls["list_stores"], cloud.calls["describe_volume_types"]) == (1, 1)


class Tiers(FakeCloud):
    """Several volume types lead to the pool of `fast`: `gold`, `luks`, which is encrypted, and
    `secret`, of which Cinder does not tell whether it is."""

    async def describe_volume_types(self) -> tuple[VolumeType, ...]:
        specs = {"volume_backend_name": "fast"}
        more = (VolumeType(id=f"{name}-id", name=name, specs=specs) for name in TIERS)
        return (*await super().describe_volume_types(), *more)

    async def encrypts(self, type_id: str) -> bool:
        if type_id == "secret-id":
            raise Blocked("403")
        return type_id == "luks-id" or (
            not type_id.endswith("-id") and await super().encrypts(type_id)
        )


TIERS = ("gold", "luks", "secret")


@pytest.mark.parametrize(
    ("named", "served"),
    [
        ((), {"gold-id": "fast", "luks-id": "", "secret-id": "", "fast": "", "gone": ""}),
        # An operator knows better than a login that may not see, and not better than Cinder
        (("secret", "luks"), {"gold-id": "fast", "luks-id": "", "secret-id": "fast"}),
    ],
)
async def test_types_that_lead_to_the_same_pools_are_served_there(
    named: tuple[str, ...], served: dict[str, str]
) -> None:
    target = replace(FAST, volume_types=frozenset(named))
    async with Rig(Tiers(stores=dict(STORES)), targets=(target, SLOW)) as rig:
        await rig.prewarm.prepare({})
        [host] = rig.cloud.hosts_of("fast")
        sharing = rig.parts.shared(TargetStores).sharing
        assert {one: sharing.target_of(one, host) for one in served} == served
        elsewhere = {one: sharing.target_of(one, "h@b#other") for one in ("gold-id", "luks-id")}
        assert elsewhere == {"gold-id": "", "luks-id": ""}


async def test_a_volume_of_a_type_that_shares_the_pool_is_a_use() -> None:
    cloud = Tiers(stores=dict(STORES))
    policy = Policy(when="used", settle=0.0, rewarm_interval=0.1)
    async with Rig(cloud, targets=(FAST, SLOW), policy=policy) as rig:
        await rig.prewarm.prepare({})
        image = cloud.upload()
        cloud.emit = rig.hear
        for _ in range(2):
            volume = cloud.use(image.id, "fast")
            # As it is announced: with the id of its own type
            cloud.volumes[volume.id] = replace(volume, volume_type="gold-id")
            cloud._announce_volume("volume.create.end", cloud.volumes[volume.id], image_id=image.id)
        await rig.quiet()
        assert [one.volume_type for one in cloud.of(image.id)] == ["fast"]
