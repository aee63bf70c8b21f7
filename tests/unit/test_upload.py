"""Uploads against the fake cloud: each way ends in an active image with one clone, whatever goes
wrong on the way."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import pytest
import structlog

from tests.unit.rigs import DeletedAtOnce
from worker.core import absence
from worker.core.cloud import GIB, Image, ImageTask, Location, Volume
from worker.core.errors import Blocked, Conflict, Temporary
from worker.core.outcome import Again, Done, Skip
from worker.core.target import OF, UPLOADED_BY, Policy, Reclaiming, Uploads
from worker.engine.retry import Backoff
from worker.testing.fake_cloud import PROJECT, FakeCloud, Fault, notification
from worker.testing.rig import FAST, LIMITS, SLOW, STORES, Rig, located

SOURCE = "image_volume_source"
STATUS = "image_volume_status"


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(stores=STORES)


@pytest.fixture
async def rig(cloud: FakeCloud) -> AsyncIterator[Rig]:
    async with Rig(cloud, targets=()) as rig:
        cloud.emit = rig.hear
        yield rig
        await rig.quiet()


def asked(cloud: FakeCloud, volume: Volume, **fields: object) -> Image:
    return cloud.queue(properties={SOURCE: volume.id}, **fields)


def check_complete(cloud: FakeCloud, image_id: str) -> Volume:
    """The image is active, and its one location is the only clone there is, in the internal
    project."""
    image = cloud.images[image_id]
    assert image.status == "active"
    (clone,) = cloud.of(image_id)
    assert located(cloud, image_id) == [clone.id]
    assert (clone.project_id, clone.foreign, clone.status) == (PROJECT, False, "available")
    assert clone.metadata["glance_image_id"] == image_id
    assert clone.metadata["image_owner"] == image.owner
    assert clone.metadata["image_size"] == str(image.size) == str(clone.size * GIB)
    assert clone.metadata["readonly"] == "True"
    return clone


async def until_complete(cloud: FakeCloud, image_id: str) -> None:
    """Return when the image is active and all is as it should be; a wait that nothing ends
    fails."""
    async with asyncio.timeout(10):
        while cloud.images[image_id].status != "active":
            await asyncio.sleep(0.001)
    check_complete(cloud, image_id)


async def test_a_property_is_enough(rig: Rig, cloud: FakeCloud) -> None:
    volume = cloud.volume_of("alice", size=3)
    image = asked(cloud, volume)
    await rig.quiet()
    assert check_complete(cloud, image.id).source_volid == volume.id
    assert rig.completed == ["property"]
    assert STATUS not in cloud.images[image.id].properties
    before = dict(cloud.calls)
    assert isinstance(await rig.complete(image.id), Done)
    assert {verb for verb, n in cloud.calls.items() if n != before.get(verb)} <= {
        "get_image", "find_volumes", "get_locations"}  # fmt: skip
    assert rig.completed == ["property"]


async def test_the_old_location_api_does_too(cloud: FakeCloud) -> None:
    cloud.new_locations, cloud.multiple_locations = False, True
    async with Rig(cloud, targets=()) as rig:
        image = asked(cloud, cloud.volume_of("alice"))
        assert isinstance(await rig.complete(image.id), Done)
        check_complete(cloud, image.id)
        assert cloud.calls["import_location"] == 0
        assert cloud.calls["add_location"] == 1


@pytest.mark.parametrize(("api", "verb"), [("old", "add_location"), ("new", "import_location")])
async def test_the_location_api_can_be_chosen(cloud: FakeCloud, api: str, verb: str) -> None:
    cloud.multiple_locations = True
    uploads = Uploads(location_api=api, quiet=0.0, untouched=0.0, tell_after=0.0)  # type: ignore[arg-type]
    async with Rig(cloud, targets=(), uploads=uploads) as rig:
        image = asked(cloud, cloud.volume_of("alice"))
        assert isinstance(await rig.complete(image.id), Done)
        assert cloud.calls[verb] == 1
        assert cloud.calls["imports_locations"] == 0


async def test_a_resync_alone_gets_there(rig: Rig, cloud: FakeCloud) -> None:
    cloud.emit = lambda _: None
    image = asked(cloud, cloud.volume_of("alice"))
    assert [missing.key.handler for missing in await rig.resync()] == ["upload"]
    await rig.quiet()
    check_complete(cloud, image.id)
    assert await rig.resync() == []


async def test_twenty_updates_in_a_second_make_one_clone(rig: Rig, cloud: FakeCloud) -> None:
    image = asked(cloud, cloud.volume_of("alice"))
    for number in range(20):
        cloud.set_by_user(image.id, number=str(number))
        await asyncio.sleep(0)
    await rig.quiet()
    check_complete(cloud, image.id)
    assert cloud.calls["create_volume"] == 1


async def test_two_images_of_one_volume_have_a_clone_each(rig: Rig, cloud: FakeCloud) -> None:
    volume = cloud.volume_of("alice")
    images = [asked(cloud, volume) for _ in range(2)]
    await rig.quiet()
    clones = {check_complete(cloud, image.id).id for image in images}
    assert len(clones) == 2


async def test_it_is_warm_elsewhere_afterwards_and_the_clone_serves_where_it_lies(
    cloud: FakeCloud,
) -> None:
    async with Rig(cloud, targets=(FAST, SLOW)) as rig:
        cloud.emit = rig.hear
        image = asked(cloud, cloud.volume_of("alice", volume_type="fast"))
        await rig.quiet()
        assert cloud.images[image.id].stores == {"cinder-fast", "cinder-slow"}
        tags = {v.volume_type: v.metadata["image_volume_worker"] for v in cloud.of(image.id)}
        assert tags == {"fast": "fast", "slow": "slow"}
        assert cloud.calls["create_volume"] == 1
        assert await rig.resync() == []


@pytest.mark.parametrize("visible", [True, False], ids=["another project's", "not there"])
async def test_anothers_volume_is_refused_as_if_it_were_not_there(
    rig: Rig, cloud: FakeCloud, visible: bool
) -> None:
    volume = cloud.volume_of("bob", encrypted=True)
    if not visible:
        del cloud.volumes[volume.id]
    image = asked(cloud, volume)
    await rig.quiet()
    assert cloud.images[image.id].status == "queued"
    assert (
        cloud.images[image.id].properties[STATUS]
        == "refused: the image's project has no volume of this id"
    )
    assert cloud.of(image.id) == []
    assert cloud.calls["get_volume"] == 2, (
        "the same requests for both: once, and once more for the property's update"
    )


async def test_a_refusal_is_withdrawn_once_it_works(rig: Rig, cloud: FakeCloud) -> None:
    volume = cloud.volume_of("alice", encrypted=True)
    image = asked(cloud, volume)
    await rig.quiet()
    assert cloud.images[image.id].properties[STATUS] == "refused: the volume is encrypted"
    other = cloud.volume_of("alice")
    cloud.set_by_user(image.id, **{SOURCE: other.id})
    await rig.quiet()
    assert check_complete(cloud, image.id).source_volid == other.id
    assert STATUS not in cloud.images[image.id].properties


async def test_a_refusal_is_withdrawn_though_glance_holds_the_image_a_moment_longer(
    rig: Rig, cloud: FakeCloud
) -> None:
    cloud.unlocked_after = 0.3
    image = asked(cloud, cloud.volume_of("alice", encrypted=True))
    await rig.quiet()
    cloud.set_by_user(image.id, **{SOURCE: cloud.volume_of("alice").id})
    await rig.quiet()
    check_complete(cloud, image.id)
    assert STATUS not in cloud.images[image.id].properties


async def test_a_refusal_is_withdrawn_though_glance_reads_the_image_for_long(
    cloud: FakeCloud,
) -> None:
    # Its task hashes the data. The end of the lock makes no notification
    async with Rig(cloud, targets=()) as rig:
        image = asked(cloud, cloud.volume_of("alice", encrypted=True))
        await rig.complete(image.id)
        assert STATUS in cloud.images[image.id].properties
        cloud.unlocked_after = 0.3
        cloud.set_by_user(image.id, **{SOURCE: cloud.volume_of("alice").id})
        outcome = await rig.complete(image.id)
        assert isinstance(outcome, Again)
        assert outcome.after
        assert STATUS in cloud.images[image.id].properties
        await asyncio.sleep(0.4)
        assert isinstance(await rig.complete(image.id), Done)
        check_complete(cloud, image.id)
        assert STATUS not in cloud.images[image.id].properties
        assert rig.completed == ["property"]


async def test_the_lock_of_an_import_that_died_is_taken_once_glance_gives_it_away(
    cloud: FakeCloud,
) -> None:
    """A Glance that lost its database while it added our location: the image stayed queued for
    ever."""
    async with Rig(cloud, targets=()) as rig:
        image = asked(cloud, cloud.volume_of("alice"))
        cloud.faults["import_location"] = Fault(Temporary("503"))
        with pytest.raises(Temporary):
            await rig.complete(image.id)
        cloud.touch(image.id, import_locked=True)
        calls = cloud.calls["import_location"]
        outcome = await rig.complete(image.id)
        assert isinstance(outcome, Again)
        assert not outcome.counted
        # It may well be at work
        assert cloud.calls["import_location"] == calls
        cloud.ahead += 400.0
        outcome = await rig.complete(image.id)
        assert isinstance(outcome, Again)
        assert not outcome.counted
        # Glance itself knows whether it is, and refuses
        assert cloud.calls["import_location"] == calls + 1
        assert cloud.images[image.id].status == "queued"
        cloud.dead_imports.add(image.id)
        assert isinstance(await rig.complete(image.id), Done)
        check_complete(cloud, image.id)


async def test_nothing_is_changed_of_an_image_that_an_import_holds(cloud: FakeCloud) -> None:
    async with Rig(cloud, targets=()) as rig:
        image = asked(cloud, cloud.volume_of("alice"))
        cloud.touch(image.id, import_locked=True)
        cloud.ahead += 400.0
        cloud.dead_imports.add(image.id)
        before, volumes = cloud.images[image.id], set(cloud.volumes)
        assert isinstance(await rig.complete(image.id), Again)
        assert (cloud.images[image.id], set(cloud.volumes)) == (before, volumes)


UEFI = {"hw_firmware_type": "uefi", "os_type": "linux"}


@pytest.mark.parametrize(
    "given", [{}, {"hw_firmware_type": "bios", "colour": "green"}], ids=["nothing", "its own"]
)
async def test_the_image_keeps_what_the_volume_knows_by_one_request(
    rig: Rig, cloud: FakeCloud, given: dict[str, str]
) -> None:
    core = {
        "min_disk": "1",
        "image_id": "x",
        "visibility": "public",
        "os_glance_x": "x",
        "image_volume_prewarm": "yes",
    }
    volume = cloud.volume_of("alice", image_properties={**UEFI, **core, STATUS: "x"})
    image = cloud.queue(properties={SOURCE: volume.id, **given})
    await rig.quiet()
    check_complete(cloud, image.id)
    bound = {SOURCE: f"{volume.id}/{image.id}"}
    assert cloud.images[image.id].properties == {**UEFI, **given, **bound}
    assert cloud.calls["set_properties"] == 1
    before = dict(cloud.calls)
    assert isinstance(await rig.complete(image.id), Done)
    assert cloud.calls["set_properties"] == before["set_properties"]


async def test_a_volume_that_was_made_from_no_image_costs_no_request(
    rig: Rig, cloud: FakeCloud
) -> None:
    volume, image = cloud.volume_of("alice"), cloud.queue()
    cloud.set_by_user(image.id, **{SOURCE: f"{volume.id}/{image.id}"})
    await rig.quiet()
    check_complete(cloud, image.id)
    assert cloud.calls["set_properties"] == 0


async def test_properties_that_glance_refuses_are_named_and_cost_neither_the_upload_nor_the_others(
    rig: Rig, cloud: FakeCloud
) -> None:
    many = {f"p{number:02}": "x" for number in range(20)}
    cloud.protected = {"p03", "p17"}
    volume = cloud.volume_of("alice", image_properties={**UEFI, **many, "smile": "\U0001f600"})
    image = asked(cloud, volume)
    with structlog.testing.capture_logs() as lines:
        await rig.quiet()
    check_complete(cloud, image.id)
    refused = cloud.protected | {"smile"}
    expected = {name: value for name, value in {**UEFI, **many}.items() if name not in refused}
    assert cloud.images[image.id].properties == {**expected, SOURCE: f"{volume.id}/{image.id}"}
    (line,) = [line for line in lines if line["event"] == "properties_refused"]
    assert (line["log_level"], line["names"]) == ("warning", sorted(refused))
    assert "4 byte unicode" in line["error"], "the last reason"
    assert cloud.calls["set_properties"] < 30


@pytest.mark.parametrize(
    "error", [Blocked("403"), Conflict("400"), Blocked("413")], ids=["403", "400", "413"]
)
async def test_a_glance_that_takes_no_property_at_all_gets_the_image_all_the_same(
    rig: Rig, cloud: FakeCloud, error: Exception
) -> None:
    many = {f"p{number:03}": "x" for number in range(200)}
    volume, image = cloud.volume_of("alice", image_properties=many), cloud.queue()
    cloud.faults["set_properties"] = Fault(error, times=999)
    cloud.set_by_user(image.id, **{SOURCE: f"{volume.id}/{image.id}"})
    with structlog.testing.capture_logs() as lines:
        await rig.quiet()
    check_complete(cloud, image.id)
    (line,) = [line for line in lines if line["event"] == "properties_refused"]
    assert line["names"] == sorted(many)
    assert cloud.calls["set_properties"] < 30


async def test_as_many_properties_are_kept_as_glance_has_room_for(
    rig: Rig, cloud: FakeCloud
) -> None:
    cloud.most_properties = 12
    volume = cloud.volume_of(
        "alice", image_properties={f"p{number:02}": "x" for number in range(20)}
    )
    image = asked(cloud, volume)
    await rig.quiet()
    check_complete(cloud, image.id)
    assert len(cloud.images[image.id].properties) == 12


class Hiding(FakeCloud):
    """Glance takes a property and does not show it to us."""

    async def set_properties(self, image_id: str, properties: Mapping[str, str]) -> None:
        shown = {name: value for name, value in properties.items() if name != "os_type"}
        await FakeCloud.set_properties(self, image_id, shown)


async def test_a_property_that_glance_does_not_show_is_set_once() -> None:
    cloud = Hiding(stores=STORES)
    async with Rig(cloud, targets=()) as rig:
        image = asked(cloud, cloud.volume_of("alice", image_properties=UEFI))
        assert isinstance(await rig.complete(image.id), Done)
        check_complete(cloud, image.id)
        assert cloud.calls["set_properties"] == 1


class Decisive(FakeCloud):
    """The user sets a property of the image right before the worker does."""

    async def set_readonly(self, volume_id: str) -> None:
        await FakeCloud.set_readonly(self, volume_id)
        for image_id in self.images:
            self.set_by_user(image_id, hw_firmware_type="bios")


async def test_what_the_user_sets_while_the_clone_is_made_wins() -> None:
    cloud = Decisive(stores=STORES)
    async with Rig(cloud, targets=()) as rig:
        image = asked(cloud, cloud.volume_of("alice", image_properties=UEFI))
        assert isinstance(await rig.complete(image.id), Done)
        check_complete(cloud, image.id)
        properties = cloud.images[image.id].properties
        assert (properties["hw_firmware_type"], properties["os_type"]) == ("bios", "linux")


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
async def test_a_glance_that_does_not_answer_is_asked_again_for_the_properties(
    rig: Rig, cloud: FakeCloud, done: bool
) -> None:
    cloud.faults["set_properties"] = Fault(Temporary("503"), times=2, done=done)
    image = asked(cloud, cloud.volume_of("alice", image_properties=UEFI))
    await rig.quiet()
    check_complete(cloud, image.id)
    assert UEFI.items() <= cloud.images[image.id].properties.items()


async def test_a_property_that_glance_can_not_store_is_given_up_in_the_end(
    cloud: FakeCloud,
) -> None:
    async with Rig(cloud, targets=()) as rig:
        image = asked(cloud, cloud.volume_of("alice", image_properties=UEFI))
        cloud.set_by_user(image.id, **{SOURCE: f"{image.properties[SOURCE]}/{image.id}"})
        cloud.faults["set_properties"] = Fault(Temporary("500"), times=99)
        with pytest.raises(Temporary):
            await rig.complete(image.id)
        cloud.ahead += 121.0
        assert isinstance(await rig.complete(image.id), Done)
        check_complete(cloud, image.id)


async def test_the_upload_that_cinder_left_keeps_what_cinder_has_given_it(
    rig: Rig, cloud: FakeCloud
) -> None:
    image = cloud.queue()
    cloud.cinder_clones(
        cloud.volume_of("alice", image_properties=UEFI).id, image.id, image_properties=UEFI
    )
    await rig.quiet()
    check_complete(cloud, image.id)
    assert cloud.calls["set_properties"] == 0


async def test_without_a_status_property_nothing_is_written(cloud: FakeCloud) -> None:
    async with Rig(cloud, targets=(), uploads=Uploads(status_property="", untouched=0.0)) as rig:
        image = asked(cloud, cloud.volume_of("bob"))
        assert isinstance(await rig.complete(image.id), Skip)
        assert cloud.calls["set_properties"] == 0


async def test_an_image_that_can_not_be_told_is_refused_all_the_same(
    rig: Rig, cloud: FakeCloud
) -> None:
    cloud.emit = lambda _: None
    cloud.faults["set_properties"] = Fault(Blocked("403"), times=9)
    image = asked(cloud, cloud.volume_of("bob"))
    assert isinstance(await rig.complete(image.id), Skip)


@pytest.mark.parametrize(
    "moment", ["deleted", "given away", "property", "withdrawn", "transferred", "data"]
)
async def test_what_changes_while_the_clone_is_made(cloud: FakeCloud, moment: str) -> None:
    cloud.seconds = 0.05
    # Cinder refuses to delete a volume that it still makes: six tries have to last longer
    async with Rig(cloud, targets=(), backoff=Backoff(shortest=0.05, longest=0.2)) as rig:
        cloud.emit = rig.hear
        volume, other = cloud.volume_of("alice"), cloud.volume_of("alice")
        image = asked(cloud, volume)
        while not cloud.of(image.id):
            await asyncio.sleep(0.001)
        match moment:
            case "deleted":
                cloud.delete_image(image.id)
            case "given away":
                cloud.touch(image.id, owner="bob")
            case "property":
                cloud.set_by_user(image.id, **{SOURCE: other.id})
            case "withdrawn":
                cloud.touch(image.id, properties={})
            case "transferred":
                cloud.volumes[volume.id] = replace(volume, project_id="bob")
            case "data":
                cloud.touch(image.id, status="active", size=GIB, stores=frozenset({"file"}))
                cloud.locations[image.id] = (Location(url="file:///x", store="file"),)
        await rig.quiet()
        # The one that was uploaded to itself has its leftover collected by the next comparison at
        # the latest
        await rig.resync()
        await rig.quiet()
        if moment == "property":
            assert check_complete(cloud, image.id).source_volid == other.id
            return
        assert cloud.of(image.id) == [], "nothing stays behind"
        if moment != "deleted":
            assert located(cloud, image.id) == []
            assert cloud.images[image.id].status == ("active" if moment == "data" else "queued")


async def test_a_source_deleted_while_it_was_cloned_is_no_loss(cloud: FakeCloud) -> None:
    cloud.seconds = 0.05
    async with Rig(cloud, targets=()) as rig:
        cloud.emit = rig.hear
        volume = cloud.volume_of("alice")
        image = asked(cloud, volume)
        while not cloud.of(image.id):
            await asyncio.sleep(0.001)
        del cloud.volumes[volume.id]
        await rig.quiet()
        check_complete(cloud, image.id)


async def test_a_users_volume_with_a_forged_name_and_metadata_is_never_registered(
    rig: Rig, cloud: FakeCloud
) -> None:
    image = cloud.queue(created_epoch=1.0)
    forged = {
        "glance_image_id": image.id,
        "image_owner": "alice",
        "image_volume_worker": "upload",
        "readonly": "True",
    }
    name = f"image-{image.id}"
    for project in ("alice", "bob"):
        cloud.volume_of(
            project, name=name, metadata=forged, source_volid=cloud.volume_of(project).id
        )
    cloud.emit(notification("volume.create.end", {
        "volume_id": next(iter(cloud.volumes)), "display_name": name, "metadata": [
            {"key": key, "value": value} for key, value in forged.items()]}))  # fmt: skip
    await rig.quiet()
    await rig.resync()
    await rig.quiet()
    assert cloud.images[image.id].status == "queued"
    assert cloud.calls["import_location"] == cloud.calls["create_volume"] == 0


async def test_the_upload_that_cinder_left_is_finished_after_the_grace(
    rig: Rig, cloud: FakeCloud
) -> None:
    image = cloud.queue()
    clone = cloud.cinder_clones(cloud.volume_of("alice").id, image.id)
    await asyncio.sleep(0.05)
    assert cloud.calls["import_location"] == 0
    await rig.quiet()
    assert check_complete(cloud, image.id).id == clone.id
    assert rig.completed == ["cinder"]
    assert cloud.calls["create_volume"] == 0


async def test_a_clone_of_cinders_has_the_age_of_its_source(cloud: FakeCloud) -> None:
    """Cinder gives it its source's created_at: of a volume of last year too it is this image's."""
    uploads = Uploads(grace=0.0, quiet=0.0, untouched=0.0, tell_after=0.0)
    async with Rig(cloud, uploads=uploads, policy=Policy(settle=0.0)) as rig:
        source = cloud.volume_of("alice", created_epoch=1.0, volume_type="fast")
        image = cloud.queue(created_epoch=time.time() - 100.0)
        clone = cloud.cinder_clones(source.id, image.id)
        assert clone.created_epoch == 1.0
        assert isinstance(await rig.complete(image.id), Done)
        assert check_complete(cloud, image.id).id == clone.id
        # It is also warm where it lies
        assert isinstance(await rig.run(image.id, "fast"), Done)
        assert clone.id in located(cloud, image.id)


async def test_a_clone_whose_location_was_sent_is_not_deleted_on_a_404_alone() -> None:
    """Its owner deletes the image before our next look at it; with delayed_delete the clone is its
    data."""
    cloud = DeletedAtOnce(stores=STORES, new_locations=False, multiple_locations=True, delayed=True)
    async with Rig(cloud, targets=()) as rig:
        image = asked(cloud, cloud.volume_of("alice"))
        await rig.complete(image.id)
        await rig.quiet()
        assert len(cloud.of(image.id)) == 1


async def test_a_glance_of_the_release_before_answered_only_for_a_while(cloud: FakeCloud) -> None:
    """In a rolling upgrade the first question reaches the old one."""
    cloud.new_locations = False
    async with Rig(cloud, targets=()) as rig:
        first, second = (asked(cloud, cloud.volume_of("alice")) for _ in range(2))
        with pytest.raises(Conflict, match="locations are invisible"):
            await rig.complete(first.id)
        cloud.new_locations = True
        assert isinstance(await rig.complete(second.id), Done)
        check_complete(cloud, second.id)


@pytest.mark.parametrize("rules", [{"enabled": False}, {"dry_run": True}])
async def test_an_image_that_has_its_data_waits_for_nobody(
    cloud: FakeCloud, rules: Mapping[str, bool]
) -> None:
    """A second clone, of a request whose answer was lost, may not be deleted."""
    async with Rig(cloud, targets=(), reclaiming=Reclaiming(**rules)) as rig:
        image = asked(cloud, cloud.volume_of("alice"))
        assert isinstance(await rig.complete(image.id), Done)
        (clone,) = cloud.of(image.id)
        claims = {
            name: text for name, text in clone.metadata.items() if name not in ("readonly", OF)
        }
        second = replace(clone, id=str(uuid.uuid4()), metadata=claims)
        cloud.volumes[second.id] = second
        with structlog.testing.capture_logs() as lines:
            assert isinstance(await rig.complete(image.id), Done)
        assert "clone_stays" in [line["event"] for line in lines]
        assert STATUS not in cloud.images[image.id].properties
        assert second.id in cloud.volumes


async def test_cinder_at_work_is_left_alone(rig: Rig, cloud: FakeCloud) -> None:
    image = cloud.queue(created_epoch=1.0)
    volume = cloud.volume_of("alice", status="uploading")
    cloud.cinder_clones(volume.id, image.id, created_epoch=1.0, updated_epoch=1.0)
    assert await rig.complete(image.id) == Again("Cinder's own upload is at work")
    assert cloud.calls["import_location"] == 0


@pytest.mark.parametrize("by", ["Cinder", "a person"])
async def test_only_cinders_clone_of_an_image_that_is_gone_is_reclaimed(
    cloud: FakeCloud, by: str
) -> None:
    # Cinder makes its clone read-only as soon as it is there
    metadata = {"readonly": "True"} if by == "Cinder" else {}
    async with Rig(cloud, reclaiming=Reclaiming(grace=0.0)) as rig:
        cloud.upload(visibility="private")
        image = cloud.queue()
        cloud.cinder_clones(cloud.volume_of("alice").id, image.id, metadata=metadata)
        cloud.delete_image(image.id)
        for _ in range(absence.LOOKS):
            assert "reclaim" in [missing.key.handler for missing in await rig.resync()]
            await rig.quiet()
        assert len(cloud.of(image.id)) == (by == "a person")


async def test_a_clone_stranded_in_the_owners_project_is_a_source(
    rig: Rig, cloud: FakeCloud
) -> None:
    cloud.emit = lambda _: None
    image = cloud.queue(created_epoch=time.time() - 300)
    stranded = cloud.volume_of("alice", name=f"image-{image.id}")
    await cloud.import_location(image.id, f"cinder://{stranded.id}")
    await cloud.quiet()
    assert cloud.images[image.id].status == "queued"
    assert [missing.key.handler for missing in await rig.resync()] == ["upload"]
    await rig.quiet()
    (clone,) = [volume for volume in cloud.of(image.id) if not volume.foreign]
    assert located(cloud, image.id) == [clone.id]
    assert clone.source_volid == stranded.id
    assert stranded.id in cloud.volumes, "what is the owner's stays"
    assert rig.completed == ["stranded"]


async def test_a_stranded_volume_of_another_project_is_no_source(
    rig: Rig, cloud: FakeCloud
) -> None:
    image = cloud.queue(created_epoch=time.time() - 300)
    theirs = cloud.volume_of("bob")
    cloud.image_tasks[image.id] = [
        ImageTask(id="t", type="location_import", status="failure", url=f"cinder://{theirs.id}")
    ]
    assert isinstance(await rig.complete(image.id), Skip)
    assert cloud.calls["create_volume"] == 0


async def test_glances_failure_is_tried_again_then_parked_with_its_reason(cloud: FakeCloud) -> None:
    async with Rig(cloud, targets=(), limits=replace(LIMITS, max_attempts=3)) as rig:
        cloud.emit = rig.hear
        image = asked(cloud, cloud.volume_of("alice"))
        cloud.blind = True
        await rig.quiet()
        (letter,) = rig.lanes.dead_letters()
        assert "Glance could not add the location: Internal Error" in letter.reason
        assert cloud.images[image.id].properties[STATUS].startswith("waiting: ")
        assert len(cloud.of(image.id)) == 1, "one clone, however often it was tried"


async def test_a_volume_that_can_not_be_cloned_leaves_nothing_and_is_tried_again(
    cloud: FakeCloud,
) -> None:
    async with Rig(cloud, targets=()) as rig:
        cloud.emit = rig.hear
        cloud.dead_types = {"fast"}
        image = asked(cloud, cloud.volume_of("alice", volume_type="fast"))
        while cloud.calls["create_volume"] < 2:
            await asyncio.sleep(0.001)
        cloud.dead_types = set()
        await rig.quiet()
        check_complete(cloud, image.id)


VERBS = ["get_image", "find_volumes", "get_volume", "create_volume", "set_readonly", "import_location", "get_locations",
         "list_stores", "imports_locations"]  # fmt: skip


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [Temporary("503"), Conflict("409")], ids=["503", "409"])
@pytest.mark.parametrize("verb", VERBS)
async def test_a_request_that_fails_costs_a_try_and_no_clone(
    rig: Rig, cloud: FakeCloud, verb: str, error: Exception, done: bool
) -> None:
    cloud.faults[verb] = Fault(error, times=2, done=done)
    image = asked(cloud, cloud.volume_of("alice"))
    await rig.quiet()
    check_complete(cloud, image.id)
    assert rig.lanes.dead_letters() == ()


async def test_killed_after_any_request_it_ends_the_same(cloud: FakeCloud) -> None:
    """The process ends at each of its requests in turn, before and after the request's effect."""
    for step in range(40):
        volume = cloud.volume_of("alice")
        image = asked(cloud, volume)
        async with Rig(cloud, targets=()) as first:
            trying = asyncio.create_task(first.complete(image.id))
            while sum(cloud.calls.values()) < step and not trying.done():
                await asyncio.sleep(0)
            trying.cancel()
            await asyncio.gather(trying, return_exceptions=True)
        await cloud.quiet()
        async with Rig(cloud, targets=()) as second:
            assert isinstance(await second.complete(image.id), Done)
            await second.complete(image.id)
        check_complete(cloud, image.id)
        cloud.calls.clear()


async def test_an_upload_costs_so_many_requests(rig: Rig, cloud: FakeCloud) -> None:
    image = asked(cloud, cloud.volume_of("alice"))
    await rig.quiet()
    check_complete(cloud, image.id)
    reads = {"get_image", "get_volume", "get_locations", "find_volumes", "list_tasks"}
    assert {verb: n for verb, n in cloud.calls.items() if verb not in reads} == dict.fromkeys(
        (
            "list_stores",
            "create_volume",
            "set_properties",
            "set_readonly",
            "imports_locations",
            "import_location",
        ),
        1,
    ) | {
        # The clone's marks are its own only beside its own id, which Cinder chooses; and that it
        # became a location is noted after that
        "set_metadata": 2
    }
    assert sum(cloud.calls.values()) <= 22


async def test_a_normal_upload_of_data_costs_two_looks(rig: Rig, cloud: FakeCloud) -> None:
    image = cloud.queue()
    await asyncio.sleep(0.02)
    cloud.touch(image.id, status="active", size=GIB, stores=frozenset({"file"}))
    await rig.quiet()
    assert cloud.calls["get_image"] == 2
    assert cloud.calls["find_volumes"] == 1
    assert cloud.calls["create_volume"] == 0


async def test_a_property_that_is_set_during_the_grace_is_news(cloud: FakeCloud) -> None:
    async with Rig(
        cloud, targets=(), uploads=Uploads(grace=600.0, quiet=0.02, untouched=0.0, tell_after=0.0)
    ) as rig:
        cloud.emit = rig.hear
        image, volume = cloud.queue(), cloud.volume_of("alice")
        while not rig.runner.queue.due():
            await asyncio.sleep(0.001)
        cloud.set_by_user(image.id, **{SOURCE: volume.id})
        await until_complete(cloud, image.id)


async def test_another_volume_ends_the_wait_for_one_in_use(cloud: FakeCloud) -> None:
    async with Rig(cloud, targets=(), limits=LIMITS) as rig:
        rig.runner._backoff = replace(rig.runner._backoff, shortest=600.0, longest=600.0)
        cloud.emit = rig.hear
        image = asked(cloud, cloud.volume_of("alice", status="in-use"))
        while not rig.runner.queue.due():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert (
            cloud.images[image.id].properties[STATUS] == "waiting: the volume is in-use, detach it"
        )
        assert cloud.calls["set_properties"] == 1
        cloud.set_by_user(image.id, **{SOURCE: cloud.volume_of("alice").id})
        await until_complete(cloud, image.id)


async def test_a_property_that_is_set_while_the_image_is_looked_at_is_news(
    cloud: FakeCloud,
) -> None:
    async with Rig(
        cloud, targets=(), uploads=Uploads(grace=600.0, quiet=0.02, untouched=0.0, tell_after=0.0)
    ) as rig:
        cloud.emit = rig.hear
        image, volume = cloud.queue(), cloud.volume_of("alice")
        while not cloud.calls["get_image"]:
            await asyncio.sleep(0)
        # Read already, but not settled yet
        cloud.set_by_user(image.id, **{SOURCE: volume.id})
        await until_complete(cloud, image.id)


async def test_what_an_image_hands_on_is_no_wish(rig: Rig, cloud: FakeCloud) -> None:
    first = asked(cloud, cloud.volume_of("alice"))
    await rig.quiet()
    handed_on = cloud.images[first.id].properties
    assert handed_on[SOURCE].endswith(f"/{first.id}")
    # Cinder makes an image of a volume made from it, and Nova a snapshot
    second = cloud.queue(properties=handed_on)
    await rig.quiet()
    await rig.resync()
    await rig.quiet()
    assert cloud.images[second.id].status == "queued"
    assert cloud.of(second.id) == []
    assert cloud.calls["create_volume"] == 1
    # Its owner may still ask for a volume
    cloud.set_by_user(second.id, **{SOURCE: cloud.volume_of("alice").id})
    await rig.quiet()
    check_complete(cloud, second.id)


async def test_a_property_set_on_an_active_image_is_bound_to_it(rig: Rig, cloud: FakeCloud) -> None:
    image = cloud.upload(properties={SOURCE: cloud.volume_of("alice").id})
    await rig.quiet()
    assert cloud.images[image.id].properties[SOURCE].endswith(f"/{image.id}")
    assert cloud.calls["create_volume"] == 0


# Data that is sent for an image that the worker looks at


CAREFUL = Uploads(grace=0.2, quiet=0.02, untouched=0.3, tell_after=0.3)


@pytest.mark.parametrize("named", ["own", "another's"])
@pytest.mark.parametrize("pause", [0.0, 0.02, 0.1])
async def test_data_that_is_sent_right_after_the_record_is_never_harmed(
    cloud: FakeCloud, named: str, pause: float
) -> None:
    cloud.patching = 0.05
    async with Rig(cloud, targets=(), uploads=CAREFUL) as rig:
        cloud.emit = rig.hear
        source = cloud.volume_of("alice" if named == "own" else "bob", image_properties=UEFI)
        images = [asked(cloud, source) for _ in range(5)]
        await asyncio.sleep(pause)
        await asyncio.gather(*(cloud.send(image.id, seconds=0.05) for image in images))
        await asyncio.sleep(0.5)
        await rig.quiet()
        for image in images:
            assert cloud.images[image.id].status == "active"
            assert (
                cloud.images[image.id].properties[STATUS]
                == "not made from the volume: data was uploaded"
            )
            assert cloud.of(image.id) == []


async def test_its_owner_is_told_all_the_same_if_nothing_is_sent(cloud: FakeCloud) -> None:
    async with Rig(cloud, targets=(), uploads=CAREFUL) as rig:
        cloud.emit = rig.hear
        image = asked(cloud, cloud.volume_of("bob"))
        await asyncio.sleep(0.1)
        assert STATUS not in cloud.images[image.id].properties
        async with asyncio.timeout(5):
            while STATUS not in cloud.images[image.id].properties:
                await asyncio.sleep(0.01)
        assert cloud.images[image.id].properties[STATUS].startswith("refused")


class Interrupted(FakeCloud):
    """Data begins to arrive between the first look at an image and the second."""

    async def get_image(self, image_id: str) -> Image:
        if self.calls["get_image"] == 1:
            self.touch(image_id, status="saving")
        return await FakeCloud.get_image(self, image_id)


async def test_an_image_that_is_another_one_by_now_is_not_changed() -> None:
    cloud = Interrupted(stores=STORES)
    async with Rig(cloud, targets=()) as rig:
        await rig.complete(asked(cloud, cloud.volume_of("bob")).id)
        assert cloud.calls["get_image"] == 2
        assert cloud.calls["set_properties"] == 0


async def test_an_operators_trouble_is_told_as_soon_as_it_may_be(cloud: FakeCloud) -> None:
    cloud.quota = 0
    async with Rig(cloud, targets=(), uploads=CAREFUL) as rig:
        image = asked(cloud, cloud.volume_of("alice"))
        for _ in range(2):
            # Not as rarely as what an operator has to mend is tried again; the first change is the
            # property's binding
            outcome = await rig.complete(image.id)
            assert isinstance(outcome, Again)
            assert 0.0 < (outcome.after or 0.0) <= 0.3
            await asyncio.sleep(0.31)
        with pytest.raises(Blocked):
            await rig.complete(image.id)
        assert cloud.images[image.id].properties[STATUS].startswith("waiting")


async def test_an_image_that_saves_for_hours_is_found_by_a_resync(
    rig: Rig, cloud: FakeCloud
) -> None:
    cloud.emit = lambda _: None
    stuck = asked(cloud, cloud.volume_of("alice"))
    cloud.touch(stuck.id, status="saving")
    assert await rig.resync() == []
    cloud.ahead += 7200.0
    (missing,) = await rig.resync()
    assert "saving for 120 minutes" in missing.why


async def test_a_project_gets_no_more_than_its_gigabytes(cloud: FakeCloud) -> None:
    rules = Uploads(grace=0.2, quiet=0.02, untouched=0.0, tell_after=0.0, project_gigabytes=2)
    # Prewarm takes the clones over on its targets
    async with Rig(cloud, uploads=rules, policy=Policy(settle=0.0)) as rig:
        first, second, third = (asked(cloud, cloud.volume_of("alice")) for _ in range(3))
        others = asked(cloud, cloud.volume_of("bob"), owner="bob")
        for image in (first, second, others):
            assert isinstance(await rig.complete(image.id), Done)
            await rig.run(image.id, "fast")
        # Cinder's own upload hands on what bob has written on his volume
        (bobs,) = cloud.of(others.id)
        await cloud.set_metadata(bobs.id, {UPLOADED_BY: "alice"})
        outcome = await rig.complete(third.id)
        assert isinstance(outcome, Again)
        assert not outcome.counted
        assert (
            cloud.images[third.id].properties[STATUS].startswith("waiting: the project has 2 GiB")
        )
        assert not cloud.of(third.id)
        # An image that goes makes room
        cloud.delete_image(first.id)
        assert isinstance(await rig.complete(third.id), Done)
        check_complete(cloud, third.id)
        assert STATUS not in cloud.images[third.id].properties
