"""Marks that a clone has from its source: Cinder hands on what users write on their volumes, and
whoever writes ours there gets nothing by it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from handlers import image_volume, last_use
from handlers.actions import LookAtLocations, SetMetadata
from handlers.prewarm.actions import CreateVolume
from handlers.prewarm.seen import Seen
from handlers.prewarm.strategies import location
from tests.unit.rigs import rig_of
from worker.core import absence, target
from worker.core.cloud import Image, Location, NewVolume, Volume, own
from worker.core.outcome import Again, Done
from worker.core.target import OF, TAG, UPLOAD, UPLOADED_BY, WISHED, Policy, Reclaiming, Uploads
from worker.testing.fake_cloud import PROJECT, FakeCloud
from worker.testing.rig import FAST, STORES, Rig, located, using

CLONE = Volume(
    id="c1", name="image-x", status="available", volume_type="fast", size=1, source_volid="v1"
)
MARKS = {TAG: "fast", image_volume.ORIGIN: "prewarm", image_volume.FRESH: "then"}
KEYS = {
    TAG, OF, UPLOADED_BY, image_volume.ORIGIN, image_volume.FRESH, image_volume.ANEW, last_use.USED,
    absence.MISSING, WISHED, image_volume.LOCATED,
}  # fmt: skip
DAY = Reclaiming(grace=86_400.0)


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(stores=dict(STORES))


@pytest.mark.parametrize(
    ("metadata", "shown"),
    [
        ({**MARKS, "x": "y"}, {"x": "y"}),
        ({**MARKS, OF: "v1"}, {}),
        ({**MARKS, OF: "c1"}, {**MARKS, OF: "c1"}),
        # Keys of users, who choose their names too
        (
            {f"{TAG}/../../other": "x", f"{TAG}_x": "y"},
            {f"{TAG}/../../other": "x", f"{TAG}_x": "y"},
        ),
        # Else a user's disk keeps Cinder's entry of the image for ever
        ({**MARKS, absence.MISSING: "pending_delete"}, {}),
        # A claim, until the clone is marked by its own id
        (
            {**MARKS, TAG: UPLOAD, UPLOADED_BY: "alice"},
            {TAG: UPLOAD, UPLOADED_BY: "alice"},
        ),
    ],
)
def test_a_clone_has_only_marks_beside_its_own_id(
    metadata: dict[str, str], shown: dict[str, str]
) -> None:
    seen = own(replace(CLONE, metadata=metadata))
    assert seen.metadata == shown
    assert seen.inherited == (set() if seen.metadata.get(OF) else KEYS & metadata.keys())
    plain = replace(CLONE, source_volid="", metadata=metadata)
    assert own(plain) == plain


def test_what_makes_marks_a_clones_own_leaves_no_other_of_them() -> None:
    clone = own(replace(CLONE, metadata={**MARKS, absence.MISSING: "5 then", "x": "y"}))
    change = SetMetadata.of(clone, {TAG: "slow"})
    assert change.metadata == {TAG: "slow", OF: "c1"}
    assert change.drop == {image_volume.ORIGIN, image_volume.FRESH, absence.MISSING}
    assert change.written(clone) == replace(
        clone, metadata={"x": "y", TAG: "slow", OF: "c1"}, inherited=frozenset()
    )
    # That it is one for an upload is not lost when something else is noted on it
    clone = own(replace(CLONE, metadata={TAG: UPLOAD, UPLOADED_BY: "alice"}))
    change = SetMetadata.of(clone, {absence.MISSING: "1 now"})
    assert change.metadata == {TAG: UPLOAD, absence.MISSING: "1 now", OF: "c1"}
    assert change.drop == {UPLOADED_BY}


def test_every_key_that_the_worker_writes_is_a_mark() -> None:
    assert target.MARKS == KEYS


async def test_nobodys_uploads_push_images_off_a_target(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "store", replace(FAST, max_count=3)) as rig:
        cloud.emit = rig.hear
        good = [cloud.upload() for _ in range(3)]
        await rig.quiet()
        cloud.emit = lambda _: None
        for _ in range(3):
            source = cloud.volume_of("mallory", metadata=MARKS)
            image = cloud.queue(owner="mallory", visibility="private")
            clone = cloud.cinder_clones(source.id, image.id)
            cloud.locate(image.id, "cinder-fast", clone.id)
        cloud.emit = rig.hear
        for _ in range(2):
            await rig.resync()
            await rig.quiet()
        assert all(located(cloud, image.id) for image in good)


async def test_nobody_uses_up_what_another_project_may_upload(cloud: FakeCloud) -> None:
    cloud.cached = frozenset({"slow"})
    rules = Uploads(grace=0.2, quiet=0.02, untouched=0.0, tell_after=0.0, project_gigabytes=1)
    async with Rig(cloud, uploads=rules) as rig:
        theirs = cloud.upload(owner="mallory", visibility="private")
        forged = {TAG: UPLOAD, UPLOADED_BY: "alice", "image_owner": "alice"}
        cloud.use(theirs.id, "slow", project="mallory", metadata=forged)
        assert len(cloud.of(theirs.id)) == 1
        wanted = cloud.queue(properties={"image_volume_source": cloud.volume_of("alice").id})
        assert isinstance(await rig.complete(wanted.id), Done)


async def test_an_entry_is_one_whatever_its_metadata_claims(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "cache", FAST) as rig:
        cloud.emit = rig.hear
        images = []
        for claims in (
            {},
            {"glance_image_id": ""},
            {"glance_image_id": "", **MARKS},
            {"glance_image_id": "of another one"},
            {"image_owner": "x"},
        ):
            cloud.emit = lambda _: None
            image = cloud.upload(owner="mallory")
            images.append(image)
            metadata = {name: text or image.id for name, text in claims.items()}
            cloud.use(image.id, "fast", project="mallory", metadata=metadata)
            cloud.emit = rig.hear
        await rig.resync()
        await rig.quiet()
        assert not rig.prewarm.full()
        for image in images:
            (entry,) = cloud.of(image.id)
            assert entry.metadata[OF] == entry.id
            assert entry.metadata[image_volume.FRESH] == cloud.images[image.id].updated_at
            assert (
                not entry.metadata.get("image_size") or entry.metadata["image_owner"] == "mallory"
            )


async def test_an_entry_that_claims_to_be_ours_or_a_location_is_reclaimed(cloud: FakeCloud) -> None:
    async with rig_of(cloud, "cache", FAST, reclaiming=DAY) as rig:
        cloud.upload(visibility="private")
        image = cloud.upload(
            owner="mallory", visibility="private", properties={"image_volume_prewarm": "no"}
        )
        forged = {TAG: "nowhere", "glance_image_id": image.id}
        cloud.use(image.id, "fast", project="mallory", metadata=forged)
        cloud.emit = rig.hear
        cloud.delete_image(image.id)
        for _ in range(absence.LOOKS + 1):
            await rig.quiet()
            cloud.ahead += 86_400.0 / (absence.LOOKS - 1) + 1.0
            await rig.resync()
        await rig.quiet()
        assert cloud.of(image.id) == []


def made_of_an_entry(cloud: FakeCloud, entry: Volume) -> tuple[Image, Volume]:
    """`openstack image create --volume ENTRY`, as an operator does to save an image's data."""
    image = cloud.queue(owner=PROJECT, visibility="private")
    clone = cloud.cinder_clones(entry.id, image.id)
    kept = {name: text for name, text in clone.metadata.items() if name != "_cached_for"}
    cloud.volumes[clone.id] = replace(
        clone, metadata={**kept, "image_owner": PROJECT, "glance_image_id": image.id}
    )
    cloud.locate(image.id, "cinder-fast", clone.id)
    return image, clone


@pytest.mark.parametrize("how", ["hidden", "pending"])
async def test_the_only_copy_of_an_image_that_was_made_of_an_entry_stays(
    cloud: FakeCloud, how: str
) -> None:
    cloud.delayed = how == "pending"
    policy = Policy(settle=0.0, rewarm_interval=0.0, visibilities=frozenset({"public"}))
    async with rig_of(cloud, "cache", FAST, policy=policy, reclaiming=DAY) as rig:
        cloud.upload(visibility="private")
        cloud.emit = rig.hear
        warm = cloud.upload()
        await rig.quiet()
        (entry,) = cloud.of(warm.id)
        cloud.emit = lambda _: None
        image, clone = made_of_an_entry(cloud, entry)
        cloud.emit = rig.hear
        if how == "hidden":
            cloud.hides_locations = True
        else:
            cloud.delete_image(image.id)
        for _ in range(absence.LOOKS + 1):
            await rig.resync()
            await rig.quiet()
            cloud.ahead += 86_400.0 / (absence.LOOKS - 1) + 1.0
        assert clone.id in cloud.volumes
        assert not cloud.torn


def test_no_clone_becomes_a_location_by_the_strategy_of_that_name() -> None:
    on = using("location", FAST)[0]
    image = FakeCloud(stores=dict(STORES)).upload()
    entry = Volume(
        id="e1", name=f"image-{image.id}", status="available", volume_type="fast", size=1,
        source_volid="w1", created_epoch=image.created_epoch,
        metadata={**image_volume.metadata_of(image, on), **MARKS, OF: "e1", "readonly": "True"},
    )  # fmt: skip
    seen = Seen(
        image=image, now=image.created_epoch, settle=0.0, rewarm_interval=0.0, volumes=(entry,)
    )
    # It may be the last copy, which Cinder deletes then
    assert isinstance(location.plan(seen, on), LookAtLocations)
    whole = (Location(url="file:///x", store="file"),)
    assert isinstance(location.plan(replace(seen, locations=whole), on), CreateVolume)


async def test_entries_that_an_older_version_has_marked_stay_and_are_marked_anew(
    cloud: FakeCloud,
) -> None:
    async with rig_of(cloud, "cache", FAST) as rig:
        cloud.emit = rig.hear
        images = [cloud.upload() for _ in range(3)]
        await rig.quiet()
        entries = {image.id: cloud.of(image.id)[0] for image in images}
        for entry in entries.values():
            kept = {name: text for name, text in entry.metadata.items() if name != OF}
            cloud.volumes[entry.id] = replace(entry, metadata=kept)
        # So old that an upload's clone without a location would go
        cloud.ahead += 86_400.0
        await rig.resync()
        await rig.quiet()
        for image in images:
            (entry,) = cloud.of(image.id)
            assert entry.id == entries[image.id].id
            assert entry.metadata[OF] == entry.id
        assert await rig.resync() == []


async def test_a_clone_that_is_older_than_its_image_is_not_made_again(cloud: FakeCloud) -> None:
    """Cinder's clock is behind, or it is of an image that had this id before."""
    async with Rig(cloud, targets=()) as rig:
        source = cloud.volume_of("alice")
        image = cloud.queue(properties={"image_volume_source": source.id})
        old = await cloud.create_volume(
            NewVolume(
                name=f"image-{image.id}", size=1, source_volid=source.id,
                metadata={TAG: UPLOAD, UPLOADED_BY: "alice", "image_owner": "alice"},
            )
        )  # fmt: skip
        await cloud.quiet()
        cloud.volumes[old.id] = replace(
            cloud.volumes[old.id], created_epoch=image.created_epoch - 300.0
        )
        outcome = await rig.complete(image.id)
        assert isinstance(outcome, Again)
        assert not outcome.counted
        assert f"clone {old.id} is older than the image" in outcome.reason
        assert [volume.id for volume in cloud.of(image.id)] == [old.id]
