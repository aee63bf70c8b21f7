"""The same cases against the fake cloud and the devcloud: what the handlers' tests rest on is what
the services do."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from handlers import image_volume
from scripts.cloud.people import HOME, Person
from worker.core.cloud import Cloud, Image, NewVolume, Quota, Volume
from worker.core.creation import NOTE
from worker.core.errors import Blocked, Conflict, NotFound, Temporary
from worker.core.pool import places_of, pools_of
from worker.core.target import TAG
from worker.observe.metrics import Metrics
from worker.openstack.cloud import OpenStackCloud
from worker.openstack.login import connect
from worker.testing.fake_cloud import FakeCloud

STORE, TYPE = "cinder-1", "local-1"
NOBODY = "11111111-1111-4111-8111-111111111111"


@dataclass(frozen=True, slots=True)
class Bed:
    """A cloud under test, and how a user makes and deletes an image there, begins one, and makes a
    volume.

    `limit` leaves the internal project so much more of what a quota counts, None for no limit;
    `share` makes an image that is shared with a project. `status` sets a volume's status as an
    administrator, `snapshot` makes a snapshot of a volume, or takes it away again. `send` sends a
    queued image's data, which takes so many seconds; `restore` makes a volume of a snapshot of a
    volume. `keep` makes a volume bootable, and Cinder keep this of an image of the volume's.
    """

    cloud: Cloud
    upload: Callable[..., Awaitable[str]]
    delete: Callable[[str], Awaitable[None]]
    queue: Callable[..., Awaitable[str]]
    volume: Callable[[], Awaitable[str]]
    limit: Callable[..., Awaitable[None]]
    share: Callable[[str], Awaitable[str]]
    status: Callable[[str, str], Awaitable[None]]
    snapshot: Callable[..., Awaitable[None]]
    send: Callable[..., Awaitable[None]]
    restore: Callable[[str], Awaitable[str]]
    keep: Callable[[str, dict[str, str]], Awaitable[None]]


@pytest.fixture(params=["fake", "devcloud"])
async def bed(request: pytest.FixtureRequest) -> AsyncIterator[Bed]:
    if request.param == "fake":
        fake = FakeCloud(stores={"cinder-1": "local-1", "cinder-2": "local-2"}, seconds=0.2)

        async def fake_upload(mebibytes: int = 16, **fields: object) -> str:
            # A hidden image is listed like the others
            fields.pop("os_hidden", None)
            note = {NOTE: str(fields.pop(NOTE))} if NOTE in fields else {}
            return fake.upload(size=mebibytes << 20, properties=note, **fields).id

        async def fake_delete(image_id: str) -> None:
            fake.delete_image(image_id)

        async def fake_queue(**properties: str) -> str:
            return fake.queue(owner="alice", properties=properties).id

        async def fake_volume() -> str:
            return fake.volume_of("alice", volume_type=TYPE).id

        async def fake_limit(left: int | None, name: str = "gigabytes") -> None:
            assert name == "gigabytes"
            used = sum([volume.size async for volume in fake.list_volumes()])
            fake.quota = None if left is None else used + left

        async def fake_share(project_id: str) -> str:
            image_id = fake.upload(visibility="shared").id
            fake.members[image_id] = {project_id: "pending"}
            return image_id

        async def fake_status(volume_id: str, status: str) -> None:
            fake.volumes[volume_id] = replace(fake.volumes[volume_id], status=status)

        async def fake_snapshot(volume_id: str, *, there: bool = True) -> None:
            (fake.depended_on.add if there else fake.depended_on.discard)(volume_id)

        async def fake_send(image_id: str, seconds: float) -> None:
            await fake.send(image_id, size=2, seconds=seconds)

        async def fake_restore(volume_id: str) -> str:
            return fake.volume_of(
                "alice", volume_type=TYPE, snapshot_id=f"snapshot-of-{volume_id}"
            ).id

        async def fake_keep(volume_id: str, properties: dict[str, str]) -> None:
            fake.volumes[volume_id] = replace(fake.volumes[volume_id], image_properties=properties)

        users = (fake_upload, fake_delete, fake_queue, fake_volume, fake_limit, fake_share)
        admins = (fake_status, fake_snapshot)
        yield Bed(fake, *users, *admins, fake_send, fake_restore, fake_keep)
        await fake.quiet()
        return
    if not (HOME / "clouds.yaml").exists():
        pytest.fail("no devcloud: scripts/devcloud up")
    os.environ["OS_CLIENT_CONFIG_FILE"] = str(HOME / "clouds.yaml")
    alice, admin, operator = Person("alice"), Person("admin"), Person("operator")
    cloud = OpenStackCloud(
        connection=connect(name="operator", timeout=60.0, concurrency=4),
        metrics=Metrics(),
        concurrency=16,
        timeout=60.0,
    )
    made: list[str] = []
    volumes: list[str] = []

    async def upload(mebibytes: int = 16, **fields: object) -> str:
        name = f"contract-{uuid.uuid4().hex[:8]}"
        made.append(await asyncio.to_thread(alice.image, name, mebibytes=mebibytes, **fields))
        return made[-1]

    async def delete(image_id: str) -> None:
        made.remove(image_id)
        await asyncio.to_thread(alice.delete_image, image_id)

    async def queue(**properties: str) -> str:
        made.append(
            await asyncio.to_thread(alice.queued, f"contract-{uuid.uuid4().hex[:8]}", **properties)
        )
        return made[-1]

    async def volume() -> str:
        volumes.append(await asyncio.to_thread(alice.blank, TYPE))
        return volumes[-1]

    limited: set[str] = set()

    async def limit(left: int | None, name: str = "gigabytes") -> None:
        limited.add(name)
        await asyncio.to_thread(admin.limit, (await cloud.identity()).project_id, left, name)

    async def share(project_id: str) -> str:
        made.append(await asyncio.to_thread(alice.image, "contract-shared", visibility="shared"))
        body = {"member": project_id}
        await asyncio.to_thread(
            alice.connection.image.post, f"/images/{made[-1]}/members", json=body
        )
        return made[-1]

    async def status(volume_id: str, status: str) -> None:
        await asyncio.to_thread(admin.act, volume_id, "os-reset_status", status=status)

    snapshots: dict[str, str] = {}

    async def snapshot(volume_id: str, *, there: bool = True) -> None:
        cinder = admin.connection.block_storage
        if not there:
            url = f"/snapshots/{snapshots.pop(volume_id)}"
            await asyncio.to_thread(cinder.delete, url)

            async def gone() -> bool:
                return (await asyncio.to_thread(cinder.get, url)).status_code == 404

            await until(gone)
            return
        body = {"snapshot": {"volume_id": volume_id, "force": True, "name": "contract"}}
        answer = await asyncio.to_thread(
            operator.connection.block_storage.post, "/snapshots", json=body
        )
        snapshots[volume_id] = answer.json()["snapshot"]["id"]

        async def made() -> bool:
            shown = await asyncio.to_thread(cinder.get, f"/snapshots/{snapshots[volume_id]}")
            return bool(shown.json()["snapshot"]["status"] == "available")

        await until(made)

    async def send(image_id: str, seconds: float) -> None:
        def slowly() -> Iterator[bytes]:
            yield b"x"
            time.sleep(seconds)
            yield b"x"

        headers = {"Content-Type": "application/octet-stream"}
        url = f"/images/{image_id}/file"
        answer = await asyncio.to_thread(
            alice.connection.image.put, url, data=slowly(), headers=headers
        )
        assert answer.status_code == 204, answer.text

    async def restore(volume_id: str) -> str:
        cinder = alice.connection.block_storage
        body = {"snapshot": {"volume_id": volume_id}}
        answer = await asyncio.to_thread(cinder.post, "/snapshots", json=body)
        url = f"/snapshots/{answer.json()['snapshot']['id']}"

        async def taken() -> bool:
            return bool(cinder.get(url).json()["snapshot"]["status"] == "available")

        async def forgotten() -> bool:
            return bool(cinder.get(url).status_code == 404)

        await until(taken)
        snapshot_id = url.rpartition("/")[2]
        volumes.append(await asyncio.to_thread(lambda: alice.blank(TYPE, snapshot_id=snapshot_id)))
        cinder.delete(url)
        await until(forgotten)
        return volumes[-1]

    async def keep(volume_id: str, properties: dict[str, str]) -> None:
        # Of a volume that is not bootable Cinder hands nothing on to its clones
        await asyncio.to_thread(alice.act, volume_id, "os-set_bootable", bootable=True)
        await asyncio.to_thread(alice.act, volume_id, "os-set_image_metadata", metadata=properties)

    yield Bed(
        cloud, upload, delete, queue, volume, limit, share, status, snapshot, send, restore, keep
    )
    for name in limited:
        await limit(None, name)
    for image_id in tuple(made):
        await delete(image_id)
    for volume_id in volumes:
        await asyncio.to_thread(alice.delete_volume, volume_id)
    alice.connection.close()
    admin.connection.close()
    operator.connection.close()
    cloud.close()


async def until(check: Callable[[], Awaitable[bool]], *, seconds: float = 240.0) -> None:
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.1)


async def copied(bed: Bed, image_id: str, *stores: str) -> Image:
    await bed.cloud.copy_image(image_id, stores)

    async def done() -> bool:
        return not (await bed.cloud.get_image(image_id)).import_locked

    await until(done)
    return await bed.cloud.get_image(image_id)


def new_volume(image_id: str, name: str, *, volume_type: str = TYPE) -> NewVolume:
    return NewVolume(
        name=name,
        size=1,
        volume_type=volume_type,
        image_id=image_id,
        metadata={"glance_image_id": image_id},
    )


async def available(bed: Bed, volume_id: str) -> Volume:
    async def done() -> bool:
        return (await bed.cloud.get_volume(volume_id)).status == "available"

    await until(done)
    return await bed.cloud.get_volume(volume_id)


async def gone(bed: Bed, volume_id: str) -> None:
    async def done() -> bool:
        try:
            await bed.cloud.get_volume(volume_id)
        except NotFound:
            return True
        return False

    await until(done)


async def test_an_active_image_is_shown_and_listed(bed: Bed) -> None:
    image_id = await bed.upload()
    image = await bed.cloud.get_image(image_id)
    assert (image.status, image.disk_format, image.container_format) == ("active", "raw", "bare")
    assert image.size == 16 << 20
    assert image.stores == {"file"}
    assert image.owner
    assert image.updated_at
    assert not image.import_locked
    listed = {one.id: one async for one in bed.cloud.list_images()}
    assert listed[image_id].stores == {"file"}
    assert listed[image_id].owner == image.owner
    locations = await bed.cloud.get_locations(image_id)
    assert [location.volume_id for location in locations] == [""]


async def test_what_is_not_there_is_not_found(bed: Bed) -> None:
    for asked in (
        bed.cloud.get_image(NOBODY),
        bed.cloud.get_locations(NOBODY),
        bed.cloud.get_volume(NOBODY),
        bed.cloud.delete_volume(NOBODY),
        bed.cloud.set_metadata(NOBODY, {"a": "b"}),
        bed.cloud.set_readonly(NOBODY),
        bed.cloud.copy_image(NOBODY, [STORE]),
        bed.cloud.remove_from_store(NOBODY, STORE),
        bed.cloud.create_volume(NewVolume(name="nothing", size=1, source_volid=NOBODY)),
        bed.cloud.import_location(NOBODY, f"cinder://{STORE}/{NOBODY}"),
        bed.cloud.list_tasks(NOBODY),
        bed.cloud.set_properties(NOBODY, {"a": "b"}),
    ):
        with pytest.raises(NotFound):
            await asked
    assert await bed.cloud.find_volumes(f"image-{NOBODY}") == ()


async def test_an_id_in_other_letters_is_none(bed: Bed) -> None:
    image_id = await bed.upload()
    # On MySQL Glance finds the image all the same
    with pytest.raises(NotFound):
        await bed.cloud.get_image(image_id.upper())


async def test_a_deleted_image_is_not_found(bed: Bed) -> None:
    image_id = await bed.upload()
    await bed.delete(image_id)
    with pytest.raises(NotFound):
        await bed.cloud.get_image(image_id)
    assert image_id not in [one.id async for one in bed.cloud.list_images()]


async def test_stores_tell_their_volume_type(bed: Bed) -> None:
    stores = {store.id: store for store in await bed.cloud.list_stores()}
    assert stores["cinder-1"].type == "cinder"
    assert stores["cinder-1"].volume_type == "local-1"
    assert stores["file"].volume_type == ""


async def test_a_copy_becomes_a_location_and_a_volume_with_our_project_as_owner(bed: Bed) -> None:
    image_id = await bed.upload()
    before = await bed.cloud.get_image(image_id)
    await bed.cloud.copy_image(image_id, [STORE, "cinder-2"])
    during = await bed.cloud.get_image(image_id)
    assert during.import_locked
    with pytest.raises(Conflict):
        await bed.cloud.copy_image(image_id, ["cinder-2"])

    async def done() -> bool:
        return not (await bed.cloud.get_image(image_id)).import_locked

    await until(done)
    image = await bed.cloud.get_image(image_id)
    assert image.stores == {"file", "cinder-1", "cinder-2"}
    assert image.importing == image.failed == frozenset()
    assert image.updated_at != before.updated_at
    tasks = await bed.cloud.list_tasks(image_id)
    (task,) = [task for task in tasks if "cinder-1" in task.stores]
    assert (task.type, task.stores) == ("api_image_import", {"cinder-1", "cinder-2"})
    located = {
        location.store: location.volume_id for location in await bed.cloud.get_locations(image_id)
    }
    found = {volume.id: volume for volume in await bed.cloud.find_volumes(f"image-{image_id}")}
    assert set(found) == {located["cinder-1"], located["cinder-2"]}
    volume = found[located["cinder-1"]]
    assert volume.volume_type == TYPE
    assert volume.metadata["glance_image_id"] == image_id
    assert volume.metadata["image_size"] == str(16 << 20)
    assert volume.metadata["readonly"] == "True"
    assert volume.metadata["image_owner"] != image.owner
    await bed.cloud.set_metadata(
        volume.id, {"image_owner": image.owner, "image_volume_worker": "t"}
    )
    after = (await available(bed, volume.id)).metadata
    assert after["image_owner"] == image.owner
    assert after["glance_image_id"] == image_id
    with pytest.raises(Conflict):
        await bed.cloud.copy_image(image_id, [STORE])
    await bed.delete(image_id)
    for volume_id in found:
        await gone(bed, volume_id)


async def test_a_copy_into_a_store_that_is_not_there_is_refused(bed: Bed) -> None:
    image_id = await bed.upload()
    with pytest.raises((Conflict, NotFound, Blocked)):
        await bed.cloud.copy_image(image_id, ["nowhere"])


async def test_a_store_can_be_left_again_but_not_the_last_one(bed: Bed) -> None:
    image_id = await bed.upload()
    await copied(bed, image_id, STORE)
    (volume,) = await bed.cloud.find_volumes(f"image-{image_id}")
    await available(bed, volume.id)
    await bed.cloud.remove_from_store(image_id, STORE)
    await gone(bed, volume.id)
    assert (await bed.cloud.get_image(image_id)).stores == {"file"}
    with pytest.raises((Conflict, Blocked)):
        await bed.cloud.remove_from_store(image_id, "file")
    assert (await bed.cloud.get_image(image_id)).stores == {"file"}


async def test_a_location_whose_volume_is_gone_can_be_removed(bed: Bed) -> None:
    image_id = await bed.upload()
    await copied(bed, image_id, STORE)
    (volume,) = await bed.cloud.find_volumes(f"image-{image_id}")
    await available(bed, volume.id)
    await bed.cloud.delete_volume(volume.id)
    await gone(bed, volume.id)
    assert (await bed.cloud.get_image(image_id)).stores == {"file", STORE}
    await bed.cloud.remove_from_store(image_id, STORE)
    assert (await bed.cloud.get_image(image_id)).stores == {"file"}
    # And the image can be copied there again
    assert (await copied(bed, image_id, STORE)).stores == {"file", STORE}


async def test_hidden_images_are_listed(bed: Bed) -> None:
    image_id = await bed.upload(os_hidden=True)
    assert [one.id async for one in bed.cloud.list_images()].count(image_id) == 1
    assert (await bed.cloud.get_image(image_id)).status == "active"


async def test_a_private_image_of_another_project_is_a_witness(bed: Bed) -> None:
    image_id = await bed.upload(visibility="private")
    witness = await bed.cloud.get_image(await bed.cloud.find_witness())
    assert witness.visibility == "private"
    assert witness.owner == (await bed.cloud.get_image(image_id)).owner


async def test_a_volume_of_another_project_is_a_witness(bed: Bed) -> None:
    await bed.volume()
    witness = await bed.cloud.get_volume(await bed.cloud.find_volume_witness())
    assert witness.foreign


async def test_cinder_refuses_to_delete_what_has_a_snapshot_or_could_not_be_deleted(
    bed: Bed,
) -> None:
    volume_id = await made_of_nothing(bed, "refused")
    await available(bed, volume_id)
    await bed.status(volume_id, "error_deleting")
    with pytest.raises(Conflict):
        await bed.cloud.delete_volume(volume_id)
    await bed.status(volume_id, "available")
    await bed.snapshot(volume_id)
    with pytest.raises(Conflict):
        await bed.cloud.delete_volume(volume_id)
    await bed.snapshot(volume_id, there=False)
    await bed.cloud.delete_volume(volume_id)
    await gone(bed, volume_id)


@pytest.mark.parametrize("why", ["snapshot", "error_deleting"])
async def test_glance_fails_to_remove_a_location_that_cinder_keeps(bed: Bed, why: str) -> None:
    image_id = await bed.upload()
    await copied(bed, image_id, STORE)
    (volume,) = await bed.cloud.find_volumes(f"image-{image_id}")
    await available(bed, volume.id)
    await (bed.snapshot(volume.id) if why == "snapshot" else bed.status(volume.id, why))
    with pytest.raises(Temporary):
        await bed.cloud.remove_from_store(image_id, STORE)
    assert (await bed.cloud.get_image(image_id)).stores == {"file", STORE}
    await (
        bed.snapshot(volume.id, there=False)
        if why == "snapshot"
        else bed.status(volume.id, "available")
    )
    await bed.cloud.remove_from_store(image_id, STORE)
    await gone(bed, volume.id)


async def test_a_volume_carries_its_metadata_from_the_first_moment(bed: Bed) -> None:
    # Large enough that making a volume of it takes seconds
    image_id = await bed.upload(mebibytes=512)
    name = f"warm-{image_id}"
    volume = await bed.cloud.create_volume(new_volume(image_id, name))
    assert volume.status == "creating"
    assert volume.metadata["glance_image_id"] == image_id
    assert [one.id for one in await bed.cloud.find_volumes(name)] == [volume.id]
    assert await bed.cloud.find_volumes(name[:-1]) == ()
    assert volume.id in [one.id async for one in bed.cloud.list_volumes()]

    async def scheduled() -> bool:
        return bool((await bed.cloud.get_volume(volume.id)).host)

    # Before that Cinder lets it go: nobody has begun to make it
    await until(scheduled)
    with pytest.raises(Conflict):
        await bed.cloud.delete_volume(volume.id)
    ready = await available(bed, volume.id)
    assert not ready.foreign
    assert ready.host
    assert "readonly" not in ready.metadata
    await bed.cloud.set_readonly(volume.id)
    assert (await bed.cloud.get_volume(volume.id)).metadata["readonly"] == "True"
    await bed.cloud.delete_volume(volume.id)
    await gone(bed, volume.id)


@pytest.mark.parametrize("named", [False, True])
async def test_cinder_notes_a_download_and_an_images_property_looks_like_its_note(
    bed: Bed, named: bool
) -> None:
    image_id = await bed.upload(**({NOTE: "no"} if named else {}))
    image = await copied(bed, image_id, STORE)
    [location] = [one for one in await bed.cloud.get_locations(image_id) or () if one.volume_id]
    await bed.cloud.set_metadata(location.volume_id, {"image_owner": image.owner})
    made = await bed.cloud.create_volume(new_volume(image_id, f"warm-{image_id}"))
    # Cinder clones the location
    volume = await available(bed, made.id)
    assert volume.downloaded is named
    assert not image_volume.was_downloaded(volume, image)
    await bed.cloud.delete_volume(made.id)
    await gone(bed, made.id)


async def test_volumes_of_a_name_come_oldest_first(bed: Bed) -> None:
    image_id = await bed.upload()
    name = f"image-{image_id}"
    first = await bed.cloud.create_volume(new_volume(image_id, name))
    await asyncio.sleep(1.1)
    second = await bed.cloud.create_volume(new_volume(image_id, name))
    found = await bed.cloud.find_volumes(name)
    assert [volume.id for volume in found] == [first.id, second.id]
    assert found[0].created_at < found[1].created_at
    for volume in found:
        await available(bed, volume.id)
        await bed.cloud.delete_volume(volume.id)
        await gone(bed, volume.id)


async def needs_new_location_api(bed: Bed) -> None:
    """Skips the test where Glance has none."""
    if not await bed.cloud.imports_locations():
        pytest.skip("Glance of this release has no New Location API")


async def made_of_nothing(bed: Bed, name: str, **metadata: str) -> str:
    return (
        await bed.cloud.create_volume(
            NewVolume(name=name, size=1, volume_type=TYPE, metadata=metadata)
        )
    ).id


async def test_volumes_are_listed_by_our_tag(bed: Bed) -> None:
    # The values differ in each run: nothing else on the devcloud has them
    ours, others = f"t{uuid.uuid4().hex}", f"t{uuid.uuid4().hex}"
    tagged = await made_of_nothing(bed, "tagged", **{TAG: ours, "colour": "green"})
    differently = await made_of_nothing(bed, "tagged-differently", **{TAG: others})
    elsewhere = await made_of_nothing(bed, "not-tagged", colour=ours)
    made = {tagged, differently, elsewhere}
    try:
        assert [volume.id async for volume in bed.cloud.list_volumes(ours)] == [tagged]
        assert [volume.id async for volume in bed.cloud.list_volumes(others)] == [differently]
        # Part of a value is another value
        assert [volume.id async for volume in bed.cloud.list_volumes(ours[:-1])] == []
        assert made <= {volume.id async for volume in bed.cloud.list_volumes()}
        (volume,) = [volume async for volume in bed.cloud.list_volumes(ours)]
        assert volume.metadata.items() >= {TAG: ours, "colour": "green"}.items()
        # It is still listed once it carries more
        await available(bed, tagged)
        await bed.cloud.set_metadata(tagged, {"more": "yes"})
        assert [volume.id async for volume in bed.cloud.list_volumes(ours)] == [tagged]
    finally:
        for volume_id in made:
            await available(bed, volume_id)
            await bed.cloud.delete_volume(volume_id)
            await gone(bed, volume_id)


async def test_a_users_volume_with_our_tag_is_not_listed(bed: Bed) -> None:
    volume_id, tag = await bed.volume(), f"t{uuid.uuid4().hex}"
    await bed.cloud.set_metadata(volume_id, {TAG: tag})
    assert (await bed.cloud.get_volume(volume_id)).metadata[TAG] == tag
    assert [volume.id async for volume in bed.cloud.list_volumes(tag)] == []


async def test_a_quota_tells_what_is_left(bed: Bed) -> None:
    assert await bed.cloud.get_quota(TYPE) == Quota(volumes=None, gigabytes=None)
    await bed.limit(1)
    assert await bed.cloud.get_quota(TYPE) == Quota(volumes=None, gigabytes=1)
    volume_id = await made_of_nothing(bed, "quota")
    try:
        assert (await bed.cloud.get_quota(TYPE)).gigabytes == 0
        with pytest.raises(Blocked):
            await made_of_nothing(bed, "quota")
    finally:
        await available(bed, volume_id)
        await bed.cloud.delete_volume(volume_id)
        await gone(bed, volume_id)

    async def given_back() -> bool:
        """Cinder shows a volume no more a moment before it gives back what it took."""
        return (await bed.cloud.get_quota(TYPE)).gigabytes == 1

    await until(given_back)
    await bed.limit(None)
    assert (await bed.cloud.get_quota(TYPE)).gigabytes is None


# The fake has one limit for everything
@pytest.mark.parametrize("bed", ["devcloud"], indirect=True)
async def test_a_volume_type_has_limits_of_its_own(bed: Bed) -> None:
    await bed.limit(1, f"gigabytes_{TYPE}")
    await bed.limit(3, "gigabytes")
    await bed.limit(2, "volumes")
    assert await bed.cloud.get_quota(TYPE) == Quota(volumes=2, gigabytes=1)
    assert await bed.cloud.get_quota("local-2") == Quota(volumes=2, gigabytes=3)
    await bed.limit(5, f"gigabytes_{TYPE}")
    await bed.limit(0, f"volumes_{TYPE}")
    assert await bed.cloud.get_quota(TYPE) == Quota(volumes=0, gigabytes=3)
    with pytest.raises(Blocked):
        await made_of_nothing(bed, "quota")


async def test_a_location_is_refused_where_locations_are_hidden(bed: Bed) -> None:
    image_id = await bed.upload()
    with pytest.raises((Conflict, Blocked)):
        await bed.cloud.add_location(image_id, f"cinder://{STORE}/{NOBODY}")
    assert (await bed.cloud.get_image(image_id)).stores == {"file"}


async def cloned(bed: Bed, image_id: str, source_id: str) -> Volume:
    source = await bed.cloud.get_volume(source_id)
    new = NewVolume(
        name=f"image-{image_id}",
        size=source.size,
        source_volid=source_id,
        metadata={
            "glance_image_id": image_id,
            "image_owner": source.project_id,
            "image_size": str(1 << 30),
        },
    )
    return await available(bed, (await bed.cloud.create_volume(new)).id)


async def unlocked(bed: Bed, image_id: str) -> Image:
    async def done() -> bool:
        return not (await bed.cloud.get_image(image_id)).import_locked

    await until(done)
    return await bed.cloud.get_image(image_id)


async def test_an_image_that_waits_for_its_data_is_shown_and_listed(bed: Bed) -> None:
    image_id = await bed.queue(colour="green")
    image = await bed.cloud.get_image(image_id)
    assert (image.status, image.size, image.import_locked) == ("queued", 0, False)
    assert abs(image.created_epoch - time.time()) < 60
    assert image.properties["colour"] == "green"
    assert not image.stores
    listed = {one.id: one async for one in bed.cloud.list_images()}
    assert listed[image_id].status == "queued"
    assert listed[image_id].created_epoch == image.created_epoch
    assert await bed.cloud.get_locations(image_id) is None
    assert await bed.cloud.list_tasks(image_id) == ()


async def test_properties_are_set_changed_and_taken_away(bed: Bed) -> None:
    image_id = await bed.queue(colour="green")
    for value in ("red", "blue"):
        await bed.cloud.set_properties(image_id, {"a/state~": value, "hw_firmware_type": "uefi"})
        image = await bed.cloud.get_image(image_id)
        assert image.properties == {
            "a/state~": value,
            "hw_firmware_type": "uefi",
            "colour": "green",
        }
        assert image.status == "queued"
    await bed.cloud.set_properties(image_id, {"a/state~": "", "os_type": "linux"})
    left = {"hw_firmware_type": "uefi", "colour": "green", "os_type": "linux"}
    assert (await bed.cloud.get_image(image_id)).properties == left


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        ({"os_glance_x": "x"}, Blocked),
        ({"smile": "\U0001f600"}, Conflict),
        ({f"p{number}": "x" for number in range(128)}, Blocked),
    ],
    ids=["reserved", "not valid", "too many"],
)
async def test_properties_are_set_all_or_none(
    bed: Bed, refused: dict[str, str], error: type[Exception]
) -> None:
    image_id = await bed.queue(colour="green")
    before = await bed.cloud.get_image(image_id)
    with pytest.raises(error):
        await bed.cloud.set_properties(image_id, {"os_type": "linux"} | refused)
    assert await bed.cloud.get_image(image_id) == before


async def test_a_volume_tells_what_is_kept_of_its_image_and_so_does_its_clone(bed: Bed) -> None:
    image_id, source_id = await bed.queue(), await bed.volume()
    assert (await bed.cloud.get_volume(source_id)).image_properties == {}
    kept = {"hw_firmware_type": "uefi", "image_name": "original"}
    await bed.keep(source_id, kept)
    source = await bed.cloud.get_volume(source_id)
    assert source.image_properties == kept
    clone = await cloned(bed, image_id, source_id)
    assert clone.image_properties == kept
    (found,) = await bed.cloud.find_volumes(clone.name)
    assert found.image_properties == kept
    listed = {volume.id: volume async for volume in bed.cloud.list_volumes()}
    assert listed[clone.id].image_properties == {}
    await bed.cloud.delete_volume(clone.id)
    await gone(bed, clone.id)


async def test_members_of_a_shared_image(bed: Bed) -> None:
    image_id = await bed.share("11112222333344445555666677778888")
    assert await bed.cloud.list_members(image_id) == {"11112222333344445555666677778888": "pending"}
    with pytest.raises(NotFound):
        await bed.cloud.list_members("00000009-0000-4000-8000-000000000000")


async def test_a_users_volume_is_foreign_and_its_clone_is_ours(bed: Bed) -> None:
    image_id, source_id = await bed.queue(), await bed.volume()
    source = await bed.cloud.get_volume(source_id)
    assert (source.status, source.foreign, source.encrypted, source.source_volid) == (
        "available",
        True,
        False,
        "",
    )
    assert source.project_id == (await bed.cloud.get_image(image_id)).owner
    assert source_id not in [one.id async for one in bed.cloud.list_volumes()]
    assert source_id not in [one.id for one in await bed.cloud.find_volumes(source.name)]
    clone = await cloned(bed, image_id, source_id)
    assert (clone.foreign, clone.source_volid, clone.volume_type) == (False, source_id, TYPE)
    assert clone.project_id != source.project_id
    assert clone.metadata["glance_image_id"] == image_id
    assert clone.updated_epoch >= clone.created_epoch > 0
    (found,) = await bed.cloud.find_volumes(f"image-{image_id}")
    assert (found.id, found.source_volid) == (clone.id, source_id)
    await bed.cloud.delete_volume(clone.id)
    await gone(bed, clone.id)


async def test_a_clone_becomes_the_data_of_an_image_and_goes_with_it(bed: Bed) -> None:
    await needs_new_location_api(bed)
    image_id, source_id = await bed.queue(), await bed.volume()
    clone = await cloned(bed, image_id, source_id)
    await bed.cloud.import_location(image_id, f"cinder://{STORE}/{clone.id}")
    with pytest.raises(Conflict):
        await bed.cloud.import_location(image_id, f"cinder://{STORE}/{clone.id}")
    image = await unlocked(bed, image_id)
    assert (image.status, image.size, image.stores) == ("active", 1 << 30, {STORE})
    assert [location.volume_id for location in await bed.cloud.get_locations(image_id)] == [
        clone.id
    ]
    (task,) = await bed.cloud.list_tasks(image_id)
    assert (task.type, task.status, task.url) == (
        "location_import",
        "success",
        f"cinder://{STORE}/{clone.id}",
    )
    with pytest.raises(Conflict):
        await bed.cloud.import_location(image_id, f"cinder://{STORE}/{clone.id}")
    await available(bed, clone.id)
    await bed.delete(image_id)
    await gone(bed, clone.id)
    assert (await bed.cloud.get_volume(source_id)).status == "available"


async def test_the_last_location_of_an_image_stays_with_its_volume(bed: Bed) -> None:
    await needs_new_location_api(bed)
    image_id, source_id = await bed.queue(), await bed.volume()
    clone = await cloned(bed, image_id, source_id)
    await bed.cloud.import_location(image_id, f"cinder://{STORE}/{clone.id}")
    await unlocked(bed, image_id)
    await available(bed, clone.id)
    # Glance answers 403, which is Blocked; the fake says Conflict
    with pytest.raises((Blocked, Conflict)):
        await bed.cloud.remove_from_store(image_id, STORE)
    image = await bed.cloud.get_image(image_id)
    assert (image.status, image.stores) == ("active", {STORE})
    assert [location.volume_id for location in await bed.cloud.get_locations(image_id)] == [
        clone.id
    ]
    assert (await bed.cloud.get_volume(clone.id)).status == "available"


async def test_a_location_that_the_stores_login_can_not_see_fails_and_only_the_task_says_so(
    bed: Bed,
) -> None:
    await needs_new_location_api(bed)
    image_id, source_id = await bed.queue(), await bed.volume()
    await bed.cloud.import_location(image_id, f"cinder://{STORE}/{source_id}")
    assert (await unlocked(bed, image_id)).status == "queued"
    (task,) = await bed.cloud.list_tasks(image_id)
    assert (task.type, task.status, task.url) == (
        "location_import",
        "failure",
        f"cinder://{STORE}/{source_id}",
    )
    assert task.message
    # And the image can be tried again
    clone = await cloned(bed, image_id, source_id)
    await bed.cloud.import_location(image_id, f"cinder://{STORE}/{clone.id}")
    assert (await unlocked(bed, image_id)).status == "active"
    answers = {task.url: task.status for task in await bed.cloud.list_tasks(image_id)}
    assert answers == {
        f"cinder://{STORE}/{source_id}": "failure",
        f"cinder://{STORE}/{clone.id}": "success",
    }
    await available(bed, clone.id)


async def test_volume_types_and_whether_they_encrypt(bed: Bed) -> None:
    types = {one.name: one.id for one in await bed.cloud.describe_volume_types()}
    assert {"local-1", "local-2"} <= types.keys()
    assert await bed.cloud.encrypts(types["local-1"]) is False


async def test_a_private_type_leads_to_one_pool(bed: Bed) -> None:
    pools = await bed.cloud.list_pools()
    assert await bed.cloud.list_down() == frozenset()
    named = {one.name: one for one in await bed.cloud.describe_volume_types()}
    leading = pools_of(named[TYPE], pools)
    place = places_of(leading, pools)[0]
    assert place.specs
    name = f"contract-{uuid.uuid4().hex[:8]}"
    await bed.cloud.create_private_type(name, dict(place.specs))
    with pytest.raises(Conflict):
        await bed.cloud.create_private_type(name, dict(place.specs))
    (type_id,) = (one.id for one in await bed.cloud.describe_volume_types() if one.name == name)
    try:
        new = NewVolume(name=name, size=1, volume_type=name, availability_zone=place.zone)
        volume = await bed.cloud.create_volume(new)
        volume = await available(bed, volume.id)
        assert (volume.host, volume.volume_type) == (place.name, name)
        with pytest.raises((Blocked, Conflict)):
            await bed.cloud.delete_volume_type(type_id)
        await bed.cloud.delete_volume(volume.id)
        await gone(bed, volume.id)
    finally:
        await bed.cloud.delete_volume_type(type_id)
    with pytest.raises(NotFound):
        await bed.cloud.delete_volume_type(type_id)
    with pytest.raises(NotFound):
        await bed.cloud.create_volume(new)


async def test_cinder_goes_by_min_disk_and_glances_store_by_the_size(bed: Bed) -> None:
    image_id = await bed.upload(min_disk=2)
    with pytest.raises((Conflict, Blocked)):
        await bed.cloud.create_volume(new_volume(image_id, f"image-{image_id}"))
    await copied(bed, image_id, STORE)
    (volume,) = await bed.cloud.find_volumes(f"image-{image_id}")
    assert volume.size == 1
    await available(bed, volume.id)


async def test_an_image_that_gets_data_is_listed_and_takes_no_more(bed: Bed) -> None:
    image_id = await bed.queue()
    sending = asyncio.create_task(bed.send(image_id, 12.0))

    async def saving() -> bool:
        return (await bed.cloud.get_image(image_id)).status == "saving"

    await until(saving)
    assert {one.id: one.status async for one in bed.cloud.list_images()}[image_id] == "saving"
    if await bed.cloud.imports_locations():
        with pytest.raises(Conflict):
            await bed.cloud.import_location(image_id, f"cinder://{STORE}/{NOBODY}")
    await sending
    image = await bed.cloud.get_image(image_id)
    assert (image.status, image.size) == ("active", 2)


async def test_a_restored_volume_names_its_snapshot(bed: Bed) -> None:
    volume_id = await bed.volume()
    assert (await bed.cloud.get_volume(volume_id)).snapshot_id == ""
    assert (await bed.cloud.get_volume(await bed.restore(volume_id))).snapshot_id
