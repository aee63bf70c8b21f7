"""Uploads on real services: by property and Cinder's own, what is refused, and what happens in the
middle."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from scripts.cloud.operate import (
    devcloud,
    groups,
    is_warm,
    of_image,
    sql,
    switched,
    switches,
    until,
)
from scripts.cloud.people import MIB, Person, data
from tests.devcloud import cinder_uses_new_location_api, has_new_location_api
from tests.worker_process import WorkerProcess

Worker = Callable[..., WorkerProcess]
Queued = Callable[..., str]
Volumes = Callable[..., str]
SOURCE, STATUS = "image_volume_source", "image_volume_status"
NOBODY = "11111111-1111-4111-8111-111111111111"
GIB = 1 << 30
KILLS = 10 if os.environ.get("LONG") else 5
# As short as Cinder's own work allows
UPLOADS = {"grace": 5}


def away(delete: Callable[[str], None], made: list[str]) -> None:
    """Delete what a test has made and may have deleted itself; Glance or Cinder may still be busy
    with it."""
    for one in made:
        deadline = time.monotonic() + 120
        while True:
            try:
                delete(one)
            except RuntimeError as error:
                if " 404 " in str(error):
                    break
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
            else:
                break


@pytest.fixture
def queued(alice: Person) -> Iterator[Queued]:
    """Makes image records of alice's without data, which are copied nowhere else unless said
    otherwise."""
    made: list[str] = []

    def make(source: str = "", *, prewarm: str = "no", **fields: Any) -> str:
        named = {SOURCE: source} if source else {}
        made.append(alice.queued("upload", image_volume_prewarm=prewarm, **named, **fields))
        return made[-1]

    yield make
    away(alice.delete_image, made)


@pytest.fixture
def uploaded(alice: Person) -> Iterator[Queued]:
    """Has Cinder itself upload volumes of alice's."""
    made: list[str] = []

    def upload(volume_id: str) -> str:
        made.append(alice.upload(volume_id, "upload"))
        return made[-1]

    yield upload
    away(alice.delete_image, made)


@pytest.fixture
def volumes(alice: Person) -> Iterator[Volumes]:
    """Makes empty volumes of alice's, or of whom is given."""
    made: list[tuple[Person, str]] = []

    def make(volume_type: str = "local-1", *, owner: Person = alice, **fields: Any) -> str:
        made.append((owner, owner.blank(volume_type, **fields)))
        return made[-1][1]

    yield make
    for owner, volume_id in made:
        away(owner.delete_volume, [volume_id])


@pytest.fixture(scope="module")
def other_types(devcloud_up: None) -> Iterator[tuple[str, str]]:
    """Two volume types on local-1 that no store of Glance serves; volumes of the second are
    encrypted."""
    cinder = Person("admin").connection.block_storage
    have = {
        row["name"]: row["id"] for row in cinder.get("/types?is_public=None").json()["volume_types"]
    }
    for name in ("unserved", "encrypted"):
        if name not in have:
            body = {
                "volume_type": {"name": name, "extra_specs": {"volume_backend_name": "local-1"}}
            }
            have[name] = cinder.post("/types", json=body).json()["volume_type"]["id"]
            if name == "encrypted":
                encryption = {"provider": "luks", "cipher": "aes-xts-plain64", "key_size": 256}
                encryption["control_location"] = "front-end"
                answer = cinder.post(
                    f"/types/{have[name]}/encryption", json={"encryption": encryption}
                )
                assert answer.status_code == 200, answer.text
    yield "unserved", "encrypted"
    for name in ("unserved", "encrypted"):
        until(lambda one=have[name]: cinder.delete(f"/types/{one}").status_code == 202)


def status(alice: Person, image_id: str) -> str:
    return str(alice.show(image_id)["status"])


def volume_status(person: Person, volume_id: str) -> str:
    return str(
        person.connection.block_storage.get(f"/volumes/{volume_id}").json()["volume"]["status"]
    )


def lock_of_a_dead_import(image_id: str) -> None:
    """Leave what a Glance that lost its database leaves: the lock of an import that has shown no
    sign of life for two hours."""
    task, long_ago = str(uuid.uuid4()), "UTC_TIMESTAMP() - INTERVAL 2 HOUR"
    sql(
        "glance",
        f"INSERT INTO tasks (id, type, status, owner, created_at, updated_at, deleted) "
        f"SELECT '{task}', 'location_import', 'processing', owner, {long_ago}, {long_ago}, 0 "
        f"FROM images WHERE id = '{image_id}'; "
        f"INSERT INTO task_info (task_id, input) VALUES ('{task}', '{{}}'); "
        f"INSERT INTO image_properties (image_id, name, value, created_at, deleted) "
        f"VALUES ('{image_id}', 'os_glance_import_task', '{task}', {long_ago}, 0); "
        f"UPDATE images SET created_at = {long_ago}, updated_at = {long_ago} "
        f"WHERE id = '{image_id}'",
    )


def until_active(alice: Person, image_id: str) -> None:
    until(lambda: status(alice, image_id) == "active", what=f"active: {alice.show(image_id)}")


def until_hashed(alice: Person, image_id: str, *, by_cinder: bool = False) -> None:
    """Return when Glance has read the image: Cinder restarted meanwhile would leave its volume
    attached for good.

    By the old location API it reads nothing.
    """
    if switches()["SECURE_HASH"] == "0":
        return
    if cinder_uses_new_location_api() if by_cinder else has_new_location_api():
        until(lambda: alice.show(image_id)["os_hash_value"], what="hashed")


def locations(operator: Person, image_id: str) -> list[str]:
    """The volumes that are the image's locations."""
    return [row["url"].rpartition("/")[2] for row in operator.locations(image_id)]


def check_clone(operator: Person, alice: Person, image_id: str) -> dict[str, Any]:
    """The one clone of an image that is its only location, with all that belongs to it."""
    (clone,) = [v for v in of_image(operator, image_id) if v["source_volid"]]
    assert clone["id"] in locations(operator, image_id)
    assert clone["metadata"]["glance_image_id"] == image_id
    assert clone["metadata"]["image_owner"] == alice.show(image_id)["owner"]
    assert (
        clone["metadata"]["image_size"]
        == str(alice.show(image_id)["size"])
        == str(clone["size"] * GIB)
    )
    assert clone["metadata"]["readonly"] == "True"
    return clone


def told(alice: Person, image_id: str) -> str:
    return str(alice.show(image_id).get(STATUS, ""))


@pytest.mark.usefixtures("hashed")
def test_a_volume_becomes_an_image_that_holds_its_bytes_and_is_warm_everywhere(
    worker: Worker, queued: Queued, alice: Person, bob: Person, operator: Person
) -> None:
    original = alice.image("original", image_volume_prewarm="no")
    try:
        with alice.temporary_volume(original, "local-1") as source, worker() as process:
            process.wait_ready()
            image_id = queued(source.id, prewarm="yes")
            until_active(alice, image_id)
            until(
                lambda: process.metric("uploads_completed_total", path="property") == 1,
                what="it is counted",
            )
            check_clone(operator, alice, image_id)
            # The image was smaller than its volume: what follows it there is zeros
            digest = hashlib.sha256(data(16).read_bytes())
            for _ in range(1024 - 16):
                digest.update(bytes(MIB))
            assert alice.sha256(image_id) == digest.hexdigest()
            assert alice.show(image_id)["size"] == GIB
            until(lambda: is_warm(operator, alice, image_id), what="warm")
            for volume_type in ("local-1", "local-2"):
                with bob.temporary_volume(image_id, volume_type) as made:
                    assert made.cloned
            assert told(alice, image_id) == ""
            away(alice.delete_image, [image_id])
            until(
                lambda: not of_image(operator, image_id), what="everything of a deleted image goes"
            )
            assert process.stop() == 0
    finally:
        alice.delete_image(original)


def custom_properties(alice: Person, image_id: str) -> dict[str, str]:
    """An image's own properties, without those that Glance makes itself and those of the worker."""
    base = set(alice.connection.image.get("/schemas/image").json()["properties"])
    # The schema describes some of the custom properties too
    base -= {
        "os_type",
        "os_distro",
        "os_version",
        "architecture",
        "kernel_id",
        "ramdisk_id",
        "instance_uuid",
    }
    skipped = (*base, "os_glance", "image_volume_", "stores")
    return {
        name: value for name, value in alice.show(image_id).items() if not name.startswith(skipped)
    }


@pytest.mark.usefixtures("unhashed")
def test_an_image_keeps_what_its_volume_knows_as_by_cinders_own_upload(
    worker: Worker,
    queued: Queued,
    uploaded: Queued,
    volumes: Volumes,
    images: Callable[..., str],
    alice: Person,
    bob: Person,
    operator: Person,
) -> None:
    given = {
        "hw_firmware_type": "uefi",
        "os_type": "linux",
        "hw_disk_bus": "scsi",
        "a/odd~name": "kept",
    }
    original = images("original", image_volume_prewarm="no", min_disk=1, min_ram=64, **given)
    with alice.temporary_volume(original, "local-1") as source:
        by_cinder = uploaded(source.id)
        until_active(alice, by_cinder)
        until(
            lambda: volume_status(alice, source.id) == "available",
            what="Cinder is done with the source",
        )
        assert custom_properties(alice, by_cinder) == given
        # A user may write anything here: none of it may be given more than its owner could do
        forged = {"visibility": "public", "owner": bob.project_id, "os_glance_x": "x", "image_volume_prewarm": "yes",
                  "locations": "[]", "status": "active", "signature_verified": "True"}  # fmt: skip
        alice.act(source.id, "os-set_image_metadata", metadata=forged)
        cloned = volumes("local-1", source_volid=source.id)
        with worker() as process:
            process.wait_ready()
            plain = queued(source.id)
            own = queued(source.id, hw_firmware_type="bios", colour="green")
            of_clone = queued(cloned)
            for image_id in (plain, own, of_clone):
                until_active(alice, image_id)
                check_clone(operator, alice, image_id)
            assert custom_properties(alice, plain) == custom_properties(alice, of_clone) == given
            assert custom_properties(alice, own) == given | {
                "hw_firmware_type": "bios",
                "colour": "green",
            }
            shown = alice.show(plain)
            like_cinders = alice.show(by_cinder)
            for name in ("min_disk", "min_ram"):
                assert shown[name] == like_cinders[name]
            assert (shown["visibility"], shown["owner"]) == ("community", alice.project_id)
            assert shown["image_volume_prewarm"] == "no"
            assert not process.events("properties_refused")
            with alice.temporary_volume(plain, "local-1") as made:
                volume = alice.connection.block_storage.get(f"/volumes/{made.id}").json()["volume"]
                assert volume["volume_image_metadata"]["hw_firmware_type"] == "uefi"
                assert made.cloned
            assert process.stop() == 0


@pytest.mark.usefixtures("unhashed")
def test_properties_that_glance_refuses_cost_no_upload(
    worker: Worker, queued: Queued, volumes: Volumes, alice: Person, operator: Person
) -> None:
    source = volumes()
    # Glance takes 128 properties by default, and no name of more than 255 letters
    metadata = {f"p{number:03}": "x" for number in range(130)} | {"hw_firmware_type": "uefi"}
    alice.act(source, "os-set_image_metadata", metadata=metadata)
    with worker() as process:
        process.wait_ready()
        image_id = queued(source)
        until_active(alice, image_id)
        check_clone(operator, alice, image_id)
        assert custom_properties(alice, image_id)["hw_firmware_type"] == "uefi"
        refused = [name for line in process.events("properties_refused") for name in line["names"]]
        assert refused
        assert set(refused).isdisjoint(custom_properties(alice, image_id))
        assert set(refused) | set(custom_properties(alice, image_id)) == set(metadata)


@pytest.mark.usefixtures("unhashed")
def test_what_is_refused_leaves_nothing_and_tells_nothing_of_others(
    worker: Worker,
    other_types: tuple[str, str],
    queued: Queued,
    volumes: Volumes,
    bob: Person,
    alice: Person,
    operator: Person,
) -> None:
    unserved, encrypted = other_types
    with worker() as process:
        process.wait_ready()
        own = volumes()
        refused = {
            queued(volumes(owner=bob)): "the image's project has no volume of this id",
            queued(NOBODY): "the image's project has no volume of this id",
            queued("../../../v3/volumes"): "the image's project has no volume of this id",
            queued(volumes(encrypted)): "the volume is encrypted",
            queued(volumes(unserved)): f"no store of Glance serves volumes of type {unserved}",
            queued(
                own, disk_format="qcow2"
            ): "only raw/bare images can be made of a volume, this one is qcow2/bare",
        }
        before = {v["id"] for v in operator.volumes()}
        for image_id, reason in refused.items():
            until(lambda image=image_id: told(alice, image), what=reason)
            assert told(alice, image_id) == f"refused: {reason}"
        # Two that look the same from outside, whatever the reason
        theirs, nobodys = list(refused)[:2]
        shown = [alice.show(image_id) for image_id in (theirs, nobodys)]
        for one in shown:
            for differs in ("id", "self", "file", "created_at", "updated_at", SOURCE):
                del one[differs]
        assert shown[0] == shown[1]
        assert {status(alice, image_id) for image_id in refused} == {"queued"}
        # What an earlier test has left may go meanwhile
        assert {v["id"] for v in operator.volumes()} <= before
        # The right volume in its place, and it goes on
        alice.property(theirs, SOURCE, own)
        until_active(alice, theirs)
        until(lambda: not told(alice, theirs), what="the refusal is withdrawn")
        assert process.stop() == 0


@pytest.mark.usefixtures("unhashed")
def test_images_that_somebody_works_on_are_left_alone(
    worker: Worker, queued: Queued, volumes: Volumes, alice: Person, operator: Person
) -> None:
    own = volumes()
    with_data, staged = queued(own, prewarm="yes"), queued(own)
    glance = alice.connection.image
    octets = {"Content-Type": "application/octet-stream"}
    assert (
        glance.put(f"/images/{with_data}/file", data=b"x" * MIB, headers=octets).status_code == 204
    )
    assert glance.put(f"/images/{staged}/stage", data=b"x" * MIB, headers=octets).status_code == 204
    plain = queued()
    with worker() as process:
        process.wait_ready()
        process.run("resync")
        until(
            lambda: any(
                v["metadata"].get("image_volume_worker") for v in of_image(operator, with_data)
            ),
            what="warm",
        )
        assert (status(alice, staged), status(alice, plain)) == ("uploading", "queued")
        assert alice.show(with_data)["size"] == MIB
        assert not [v for image_id in (with_data, staged, plain) for v in of_image(operator, image_id) if
                    v["source_volid"]]  # fmt: skip


@pytest.mark.usefixtures("unhashed")
def test_what_changes_while_the_clone_is_made(
    worker: Worker, queued: Queued, volumes: Volumes, alice: Person, bob: Person, operator: Person
) -> None:
    sources = [volumes() for _ in range(4)]
    other = volumes()
    with worker() as process:
        process.wait_ready()
        made = [queued() for _ in sources]
        deleted, changed, given_away, without_volume = made
        # The clones wait for their making
        devcloud("stop", "cinder-volume")
        try:
            for image_id, source in zip(made, sources, strict=True):
                alice.property(image_id, SOURCE, source)
            for image_id in made:
                until(
                    lambda image=image_id: of_image(operator, image), what="the clone is asked for"
                )
            alice.delete_image(deleted)
            alice.property(changed, SOURCE, other)
            operator.property(given_away, "owner", bob.project_id)
            with contextlib.suppress(RuntimeError):
                alice.connection.block_storage.delete(f"/volumes/{sources[-1]}")
        finally:
            devcloud("start", "cinder-volume")
        try:
            until(lambda: not of_image(operator, deleted), what="nothing of the deleted one stays")
            until_active(alice, changed)
            assert check_clone(operator, alice, changed)["source_volid"] == other
            until(
                lambda: not of_image(operator, given_away),
                what="nothing of the one that was given away stays",
            )
            no_such = "refused: the image's project has no volume of this id"
            until(lambda: told(operator, given_away) == no_such, what="its owner is told")
            assert (status(operator, given_away), locations(operator, given_away)) == ("queued", [])
        finally:
            operator.property(given_away, "owner", alice.project_id)
        # The volume was deleted before it was cloned, or is cloned as if it had not been
        until(
            lambda: status(alice, without_volume) == "active" or told(alice, without_volume),
            what="an end",
        )
        if status(alice, without_volume) == "active":
            check_clone(operator, alice, without_volume)
        else:
            until(lambda: not of_image(operator, without_volume), what="nothing stays")


@pytest.mark.usefixtures("unhashed")
def test_a_users_own_volume_with_the_name_and_metadata_of_a_clone_is_never_registered(
    worker: Worker, queued: Queued, volumes: Volumes, alice: Person, bob: Person, operator: Person
) -> None:
    image_id = queued()
    project = alice.project_id
    forged = {
        "glance_image_id": image_id,
        "image_owner": project,
        "image_size": "1",
        "image_volume_worker": "upload",
    }
    with worker(groups(uploads=UPLOADS)) as process:
        process.wait_ready()
        for owner in (alice, bob):
            source = volumes(owner=owner)
            volumes(owner=owner, source_volid=source, name=f"image-{image_id}", metadata=forged)
        time.sleep(UPLOADS["grace"] + 1)
        process.run("resync")
        until(
            lambda: any(
                line["image_id"] == image_id and "no property" in line["reason"]
                for line in process.events("job_skipped")
            ),
            what="looked at after the grace",
        )
        assert status(alice, image_id) == "queued"
        assert of_image(operator, image_id) == []


@pytest.mark.usefixtures("unhashed")
@pytest.mark.long
def test_many_images_of_one_volume_updated_many_times_have_one_clone_each(
    worker: Worker, queued: Queued, volumes: Volumes, alice: Person, operator: Person
) -> None:
    source = volumes()
    with worker(groups(work={"url": "amqp://openstack:devcloud@127.0.0.1:5672/worker"})) as process:
        process.wait_ready()
        made = [queued(source), queued(source)]
        for number in range(20):
            with contextlib.suppress(RuntimeError):
                alice.property(made[0], "number", str(number))
        for image_id in made:
            until_active(alice, image_id)
        assert len({check_clone(operator, alice, image_id)["id"] for image_id in made}) == 2
        assert len(process.events("clone_creating")) == 2


@pytest.mark.usefixtures("unhashed")
def test_a_volume_in_use_is_waited_for_or_cloned_as_configured(
    worker: Worker, queued: Queued, volumes: Volumes, alice: Person, operator: Person
) -> None:
    source = volumes()
    with alice.attached(source):
        assert volume_status(alice, source) == "in-use"
        with worker(groups(uploads={"allow_in_use": "true"})) as process:
            process.wait_ready()
            image_id = queued(source)
            until_active(alice, image_id)
            check_clone(operator, alice, image_id)
    with worker() as process:
        process.wait_ready()
        with alice.attached(source):
            image_id = queued(source)
            until(
                lambda: told(alice, image_id) == "waiting: the volume is in-use, detach it",
                what="told",
            )
            assert of_image(operator, image_id) == []
        until_active(alice, image_id)
        until(lambda: not told(alice, image_id), what="it says so no more")


@pytest.mark.usefixtures("unhashed")
def test_a_full_quota_is_said_and_waited_for(
    worker: Worker, queued: Queued, volumes: Volumes, alice: Person, operator: Person
) -> None:
    source, admin = volumes(), Person("admin")
    admin.limit(operator.project_id, 0)
    try:
        with worker() as process:
            process.wait_ready()
            image_id = queued(source)
            until(
                lambda: told(alice, image_id) == "waiting: the cloud's operator has to act",
                what="told",
            )
            assert any("413" in line["reason"] for line in process.events("job_again"))
            assert of_image(operator, image_id) == []
            admin.limit(operator.project_id, None)
            until_active(alice, image_id)
    finally:
        admin.limit(operator.project_id, None)


@pytest.mark.usefixtures("unhashed")
def test_killed_at_any_moment_every_upload_ends_active_with_one_clone(
    worker: Worker, queued: Queued, volumes: Volumes, alice: Person, operator: Person
) -> None:
    source = volumes()
    seed = random.randrange(1 << 30)
    moments = random.Random(seed)
    process = worker()
    made: list[str] = []
    # An upload takes about a second: from its first request to after its last
    step = 1.2 / KILLS
    for number in range(KILLS):
        process.start()
        process.wait_ready()
        made.append(queued(source))
        time.sleep(number * step + moments.uniform(0.0, step))
        process.kill()
    process.start()
    for image_id in made:
        until_active(alice, image_id)
    # A second clone, if a killed worker made one, goes once the image is active
    for image_id in made:
        until(
            lambda image=image_id: len(of_image(operator, image)) == 1,
            what=f"one clone, seed {seed}",
        )
        check_clone(operator, alice, image_id)
    process.wait_ready()
    assert process.stop() == 0


@pytest.fixture(scope="module")
def cinders_own(devcloud_up: None) -> Iterator[None]:
    """Cinder's own optimized upload is on."""
    with switched("UPLOAD_CLONE=1", "UPLOAD_INTERNAL=1"):
        yield


def aged(*volume_ids: str) -> None:
    """Make volumes an hour old. Cinder's clones get the created_at of their source."""
    named = ", ".join(f"'{volume_id}'" for volume_id in volume_ids)
    sql(
        "cinder",
        "update volumes set created_at = created_at - interval 1 hour, "
        f"updated_at = updated_at - interval 1 hour where id in ({named})",
    )


def left_half_done(
    alice: Person, operator: Person, sources: Iterable[str], uploaded: Queued
) -> list[str]:
    """Images that Cinder has made clones for and then could not give the locations to: Glance was
    away."""
    aged(*sources)
    devcloud("stop", "cinder-volume")
    made = {source: uploaded(source) for source in sources}
    devcloud("stop", "glance-api")
    try:
        devcloud("start", "cinder-volume")
        for source in made:
            until(
                lambda one=source: volume_status(alice, one) == "available",
                what="Cinder has given up",
            )
    finally:
        devcloud("start", "glance-api")
    for image_id in made.values():
        assert status(alice, image_id) == "queued"
        (clone,) = of_image(operator, image_id)
        assert clone["status"] == "available"
    return list(made.values())


@pytest.mark.usefixtures("hashed")
@pytest.mark.usefixtures("cinders_own")
def test_the_upload_that_cinder_left_half_done_is_finished_or_reclaimed(
    worker: Worker,
    uploaded: Queued,
    volumes: Volumes,
    images: Callable[..., str],
    alice: Person,
    operator: Person,
) -> None:
    finished, deleted = left_half_done(alice, operator, (volumes(), volumes()), uploaded)
    alice.delete_image(deleted)
    # By which it is proven that the deleted one is gone: nobody has heard of that
    images(visibility="private", image_volume_prewarm="no")
    (clone,) = of_image(operator, finished)
    with worker(groups(uploads=UPLOADS, reclaim={"grace": 0}, resync={"interval": 10})) as process:
        process.wait_ready()
        until_active(alice, finished)
        assert clone["id"] in locations(operator, finished)
        until(
            lambda: process.metric("uploads_completed_total", path="cinder") == 1,
            what="it is counted",
        )
        until(
            lambda: not of_image(operator, deleted),
            what="the clone of a deleted image is reclaimed",
        )
        check_clone(operator, alice, finished)
        until_hashed(alice, finished)


@pytest.mark.usefixtures("hashed")
@pytest.mark.usefixtures("cinders_own")
def test_cinder_at_work_is_left_alone(
    worker: Worker, uploaded: Queued, volumes: Volumes, alice: Person, operator: Person
) -> None:
    source = volumes()
    aged(source)
    with worker(groups(uploads=UPLOADS)) as process:
        process.wait_ready()
        made = []
        for _ in range(2):
            made.append(uploaded(source))
            until_active(alice, made[-1])
            until(lambda: volume_status(alice, source) == "available")
        until(lambda: all(is_warm(operator, alice, image_id) for image_id in made), what="warm")
        assert process.metric("uploads_completed_total") == 0
        assert process.events("clone_creating") == process.events("clone_deleted") == []
        for image_id in made:
            until_hashed(alice, image_id, by_cinder=True)


@pytest.mark.usefixtures("hashed")
@pytest.mark.usefixtures("cinders_own")
@pytest.mark.needs_optimized_upload
def test_a_property_that_cinder_hands_on_is_no_wish(
    worker: Worker,
    queued: Queued,
    uploaded: Queued,
    volumes: Volumes,
    alice: Person,
    operator: Person,
) -> None:
    with worker(groups(uploads=UPLOADS)) as process:
        process.wait_ready()
        first = queued(volumes())
        until_active(alice, first)
        with alice.temporary_volume(first, "local-1") as made:
            second = uploaded(made.id)
            until_active(alice, second)
            # Cinder has handed on what the first image's property says
            assert alice.show(second)[SOURCE] == alice.show(first)[SOURCE]
            (clone,) = of_image(operator, second)
            assert clone["source_volid"] == made.id
            assert locations(operator, second) == [clone["id"]]
            assert told(alice, second) == ""
            assert len(process.events("clone_creating")) == 1
            until_hashed(alice, first)
            until_hashed(alice, second, by_cinder=True)
            until(lambda: volume_status(alice, made.id) == "available")


@pytest.mark.usefixtures("unhashed")
@pytest.mark.long
def test_a_source_deleted_at_once_leaves_nothing(
    worker: Worker, queued: Queued, alice: Person, operator: Person
) -> None:
    with worker() as process:
        process.wait_ready()
        made = []
        for number in range(4):
            source = alice.blank("local-1")
            made.append(queued(source))
            time.sleep(0.05 * number)
            alice.delete_volume(source)
        for image_id in made:
            until(
                lambda image=image_id: (
                    status(alice, image) == "active" or told(alice, image).startswith("refused")
                )
            )
            # A clone whose source was not seen for long stays for an operator to look at
            early = "deleted before the image was made" in told(alice, image_id)
            if status(alice, image_id) == "queued" and not early:
                until(lambda image=image_id: not of_image(operator, image), what="nothing stays")


@pytest.mark.usefixtures("hashed")
@pytest.mark.needs_cinder_with_new_location_api
def test_the_clone_that_cinder_left_in_the_owners_project_is_a_source(
    worker: Worker, uploaded: Queued, volumes: Volumes, alice: Person, operator: Person
) -> None:
    source = volumes()
    devcloud("set", "UPLOAD_CLONE=1", "UPLOAD_INTERNAL=0")
    try:
        image_id = uploaded(source)
        name = f"image-{image_id}"
        until(
            lambda: [
                v for v in alice.volumes() if v["name"] == name and v["status"] == "available"
            ],
            what="a clone",
        )
        (stranded,) = [v["id"] for v in alice.volumes() if v["name"] == name]
        tasks = f"/images/{image_id}/tasks"
        until(
            lambda: any(
                task["status"] == "failure"
                for task in operator.connection.image.get(tasks).json()["tasks"]
            )
        )
        assert status(alice, image_id) == "queued"
        with worker(groups(uploads=UPLOADS)) as process:
            process.wait_ready()
            until_active(alice, image_id)
            clone = check_clone(operator, alice, image_id)
            assert clone["source_volid"] == stranded
            until(
                lambda: process.metric("uploads_completed_total", path="stranded") == 1,
                what="it is counted",
            )
            # What is the owner's stays, and the log says so
            assert stranded in {v["id"] for v in alice.volumes()}
            assert any(
                line["volume_id"] == stranded for line in process.events("volume_left_to_owner")
            )
        until_hashed(alice, image_id)
        # Cinder restarted meanwhile would leave it as it is for good
        until(
            lambda: volume_status(alice, source) == "available",
            what="Cinder is done with the source",
        )
        alice.delete_volume(stranded)
    finally:
        devcloud("set", "UPLOAD_CLONE=0", "UPLOAD_INTERNAL=0")


@pytest.mark.usefixtures("unhashed")
def test_the_old_location_api_does_too(
    worker: Worker, queued: Queued, volumes: Volumes, alice: Person, operator: Person
) -> None:
    source = volumes()
    with switched("OLD_LOCATIONS=1"), worker(groups(uploads={"location_api": "old"})) as process:
        process.wait_ready()
        image_id = queued(source)
        until_active(alice, image_id)
        check_clone(operator, alice, image_id)
        assert [line["location_api"] for line in process.events("location_added")] == ["old"]
        until(
            lambda: of_image(operator, image_id)[0]["status"] == "available", what="nobody reads it"
        )


@pytest.mark.usefixtures("unhashed")
def test_an_upload_beyond_the_bound_of_its_project_waits_for_room(
    worker: Worker, queued: Queued, volumes: Volumes, alice: Person, operator: Person
) -> None:
    source = volumes()
    with worker(groups(uploads={"project_gigabytes": 1})) as process:
        process.wait_ready()
        first = queued(source)
        until_active(alice, first)
        second = queued(source)
        until(lambda: told(alice, second).startswith("waiting: the project has 1 GiB"), what="told")
        assert status(alice, second) == "queued"
        assert not of_image(operator, second)
        alice.connection.image.delete(f"/images/{first}")
        until_active(alice, second)
        check_clone(operator, alice, second)


NOT_MADE = "not made from the volume: data was uploaded"


@pytest.mark.usefixtures("unhashed")
def test_data_that_is_sent_right_after_the_record_is_never_harmed(
    worker: Worker, queued: Queued, volumes: Volumes, alice: Person, bob: Person, operator: Person
) -> None:
    """As `openstack image create` in a script does: a record, and an empty upload at once."""
    glance, octets = alice.connection.image, {"Content-Type": "application/octet-stream"}
    own, theirs = volumes(), volumes(owner=bob)
    with worker() as process:
        process.wait_ready()
        made: dict[str, int] = {}
        for number in range(16):
            image_id = queued(own if number % 2 else theirs)
            # Sooner and later than the worker's first look, and than its first change
            time.sleep((0.0, 0.02, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0)[number // 2])
            made[image_id] = glance.put(
                f"/images/{image_id}/file", data=b"", headers=octets
            ).status_code
        assert set(made.values()) == {204}
        for image_id in made:
            until(
                lambda image=image_id: told(alice, image) == NOT_MADE,
                what=f"{image_id} is told",
            )
        assert {status(alice, image_id) for image_id in made} == {"active"}
        until(
            lambda: not any(of_image(operator, image_id) for image_id in made),
            what="nothing is left",
        )
        # Where a change of ours met the data all the same, Glance has not kept the image saving
        changed = {line["image_id"] for line in process.events("image_changed_during_upload")}
        assert {status(alice, image_id) for image_id in changed} <= {"active"}
        assert process.stop() == 0


@pytest.mark.usefixtures("unhashed")
def test_an_image_that_is_saving_is_named_with_its_time(
    worker: Worker, queued: Queued, alice: Person
) -> None:
    image_id = queued(NOBODY)
    arrives = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield b"x" * MIB
        arrives.wait(60)
        yield b"x" * MIB

    def send() -> None:
        octets = {"Content-Type": "application/octet-stream"}
        Person("alice").connection.image.put(
            f"/images/{image_id}/file", data=slowly(), headers=octets
        )

    sending = threading.Thread(target=send)
    sending.start()
    try:
        until(lambda: status(alice, image_id) == "saving")
        assert "saving for 0 minutes" in worker().run("explain", image_id, "-f", "value").stdout
    finally:
        arrives.set()
        sending.join()
    assert (status(alice, image_id), alice.show(image_id)["size"]) == ("active", 2 * MIB)


@pytest.mark.needs_new_location_api
def test_an_upload_whose_import_died_is_taken_up_again(
    worker: Worker, alice: Person, operator: Person, queued: Queued, volumes: Volumes
) -> None:
    source = volumes()
    image_id = queued()
    alice.property(image_id, SOURCE, f"{source}/{image_id}")
    # As the worker had made it by then
    marks = {"glance_image_id": image_id, "image_owner": alice.project_id, "image_size": str(GIB)}
    clone = operator.blank(
        "local-1",
        source_volid=source,
        name=f"image-{image_id}",
        metadata={**marks, "image_volume_worker": "upload"},
    )
    lock_of_a_dead_import(image_id)
    with worker(groups(uploads=UPLOADS)) as process:
        process.wait_ready()
        until_active(alice, image_id)
        assert [one["id"] for one in of_image(operator, image_id)] == [clone]
        assert process.events("location_added")
