"""The rules for deleting, on real services: what is hidden, pending, lost, retyped, or somebody
else's stays."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from scripts.cloud.operate import devcloud, of_image, sql, switched
from scripts.cloud.people import Person
from tests.cloud.test_upkeep import (  # noqa: F401  fixtures
    ORIGIN,
    RESYNC,
    TAG,
    Images,
    Worker,
    discard,
    ids,
    kept,
    locations,
    look_again,
    nothing_left,
    on,
    reasons,
    settings,
    soon,
    status,
    stores,
    told,
    warmed,
    warmed_on,
)

MISSING = "image_volume_worker_missing"
LOOKS = 5
# Looks for an image count this many seconds apart then
GRACE = 4.0
SHORT = {"grace": GRACE}


def lose(*image_ids: str) -> None:
    """Glance's database does not know these images any more, without anybody deleting them."""
    sql(
        "glance",
        f"update images set deleted = 1, status = 'deleted' where id in ({listed(image_ids)})",
    )


def find_again(*image_ids: str) -> None:
    sql(
        "glance",
        f"update images set deleted = 0, status = 'active' where id in ({listed(image_ids)})",
    )


def listed(image_ids: tuple[str, ...]) -> str:
    return ", ".join(f"'{image_id}'" for image_id in image_ids)


def note(operator: Person, image_id: str) -> set[str]:
    """What is noted of looks for an image on its volumes."""
    return {volume["metadata"].get(MISSING, "") for volume in of_image(operator, image_id)}


@pytest.fixture
def private(images: Images) -> str:
    """A private image of alice's, by which the worker proves that it is shown everything."""
    return images("witness", visibility="private", image_volume_prewarm="no")


# Unknown is not empty


@pytest.fixture
def service_only() -> Iterator[None]:
    with switched("SERVICE_ONLY=1"):
        yield


@pytest.mark.needs_new_location_api
def test_hidden_locations_change_and_delete_nothing(
    worker: Worker, images: Images, alice: Person, operator: Person, request: pytest.FixtureRequest
) -> None:
    image_id = images()
    with worker(settings()) as process:
        process.wait_ready()
        before = warmed(operator, alice, image_id)
    request.getfixturevalue("service_only")
    with worker(settings(cloud={"name": "nosvc"}, resync=RESYNC)) as process:
        soon(lambda: "role service" in str(process.probe("/readyz")), what="unready")
        assert process.probe("/readyz")[0] == 503
        alice.property(image_id, "anything", "changed")
        soon(lambda: "role service" in reasons(process, "job_again", image_id), what="it waits")
        soon(lambda: len(process.events("resynced")) > 1, what="compared")
        assert {
            target: volume["id"] for target, volume in kept(operator, image_id).items()
        } == before
    assert locations(operator, image_id) == set(before.values())


@pytest.fixture
def delayed_delete() -> Iterator[None]:
    with switched("DELAYED_DELETE=1"):
        yield


@pytest.mark.usefixtures("delayed_delete")
def test_a_deletion_that_is_pending_keeps_the_data(
    worker: Worker, images: Images, alice: Person, operator: Person, private: str
) -> None:
    """Prewarm looks at the image while its locations are gone already; reclaim hears of a 404."""
    for reclaim in (True, False):
        check_a_pending_deletion(worker, images, alice, operator, reclaim=reclaim)


def check_a_pending_deletion(
    worker: Worker, images: Images, alice: Person, operator: Person, *, reclaim: bool
) -> None:
    with worker(settings(reclaim={"enabled": reclaim, **SHORT})) as process:
        process.wait_ready()
        image_id = images()
        before = warmed(operator, alice, image_id)
        alice.property(image_id, "anything", "changed")
        alice.delete_image(image_id)
        if reclaim:
            look_again(process)
            soon(lambda: note(operator, image_id) == {"pending_delete"}, what="it is noted")
        # Looks that would count, and more of them than a deletion needs
        for _ in range(LOOKS + 2):
            look_again(process)
            time.sleep(GRACE / 3)
        assert ids(operator, image_id) == set(before.values())
        # docs/upkeep.md: an image whose deletion is pending is brought back
        # The image last: a comparison in between must not find it without its locations
        for table, column, status in (
            ("image_properties", "image_id", ""),
            ("image_locations", "image_id", ", status = 'active'"),
            ("images", "id", ", status = 'active'"),
        ):
            sql(
                "glance",
                f"update {table} set deleted = 0, deleted_at = null{status} where {column} = "
                f"'{image_id}'",
            )
        assert locations(operator, image_id) == set(before.values())
        if reclaim:
            look_again(process)
            soon(lambda: note(operator, image_id) == {""}, what="the note is taken back")
        with alice.temporary_volume(image_id, "local-1") as made:
            assert made.cloned
    sql("glance", f"update images set status = 'active' where id = '{image_id}'")


# Gone needs proof


@pytest.fixture
def blind_admin() -> Iterator[None]:
    with switched("BLIND_ADMIN=1"):
        yield


def test_a_policy_that_hides_private_images_deletes_nothing(
    worker: Worker,
    images: Images,
    alice: Person,
    operator: Person,
    private: str,
    request: pytest.FixtureRequest,
) -> None:
    # Where Glance lists no image at all a resync believes nothing
    image_id, _ = images(visibility="private"), images(image_volume_prewarm="no")
    with worker(settings()) as process:
        process.wait_ready()
        before = warmed(operator, alice, image_id)
    request.getfixturevalue("blind_admin")
    with worker(settings(reclaim={"grace": 0}, resync=RESYNC)) as process:
        process.wait_ready()
        for _ in range(LOOKS + 2):
            look_again(process)
        soon(
            lambda: "private image of another project" in reasons(process, "job_skipped", image_id),
            what="no proof",
        )
        assert {
            target: volume["id"] for target, volume in kept(operator, image_id).items()
        } == before
        assert note(operator, image_id) == {""}


def test_a_database_that_lost_images_stops_at_the_brake_until_an_operator_confirms(
    worker: Worker, images: Images, alice: Person, operator: Person, private: str
) -> None:
    chosen = settings(targets=("local-1",), reclaim={"max_at_once": "2", **SHORT})
    with worker(chosen) as process:
        process.wait_ready()
        made = [images() for _ in range(4)]
        before = {image_id: warmed_on(operator, image_id) for image_id in made}
        lose(*made)
        try:
            for _ in range(LOOKS + 2):
                look_again(process)
                time.sleep(GRACE / 3)
            soon(lambda: process.events("reclaim_braked"), what="the brake is told")
            soon(lambda: process.metric("reclaim_brake") == 1, what="and counted")
            assert process.metric("reclaim_held_back") == 4
            assert {image_id: on(operator, image_id) for image_id in made} == before
            shown = process.run("reclaim", "-f", "value")
            assert all(volume_id in shown.stdout for volume_id in before.values()), shown
            assert "brake" in shown.stdout
            # Two of them come back
            find_again(*made[:2])
            done = process.run("reclaim", "--confirm", "-f", "value")
            assert done.returncode == 0, done.stderr
            soon(
                lambda: not ids(operator, made[2]) | ids(operator, made[3]),
                what="what is confirmed is deleted",
            )
            assert [on(operator, image_id) for image_id in made[:2]] == [
                before[image_id] for image_id in made[:2]
            ]
            look_again(process)
            soon(lambda: process.metric("reclaim_brake") == 0, what="the brake is off")
            soon(lambda: note(operator, made[0]) == {""}, what="the note is taken back")
        finally:
            find_again(*made)


@contextlib.contextmanager
def without_rows(*volume_ids: str) -> Iterator[None]:
    """Cinder's database does not know these volumes, without anybody having deleted them."""
    where = f"where id in ({listed(volume_ids)})"
    sql("cinder", f"update volumes set deleted = 1 {where}")
    try:
        yield
    finally:
        sql("cinder", f"update volumes set deleted = 0 {where}")


def test_a_database_that_lost_volumes_costs_no_location_before_an_operator_confirms(
    worker: Worker, images: Images, operator: Person
) -> None:
    chosen = settings(targets=("local-1",), reclaim={"max_at_once": "2", **SHORT})
    with worker(chosen) as process:
        process.wait_ready()
        made = [images() for _ in range(4)]
        before = {image_id: warmed_on(operator, image_id) for image_id in made}

        def located() -> list[set[str]]:
            return [locations(operator, image_id) for image_id in made]

        as_it_was = located()
        missing = [before[image_id] for image_id in made[:3]]
        with without_rows(*missing):
            look_again(process)
            soon(lambda: process.metric("missing_volumes") == 3, what="counted")
            soon(lambda: process.metric("reclaim_brake") == 1, what="the brake holds")
            soon(lambda: "the brake" in reasons(process, "job_again", made[0]), what="and is told")
            assert located() == as_it_was
            shown = process.run("reclaim", "-f", "value")
            assert all(volume_id in shown.stdout for volume_id in missing), shown
        look_again(process)
        soon(
            lambda: process.metric("missing_volumes") == process.metric("reclaim_brake") == 0,
            what="taken back",
        )
        assert located() == as_it_was
        with without_rows(*missing):
            # To confirm that images are gone says nothing of volumes
            done = process.run("reclaim", "--confirm", "-f", "value")
            assert "confirmed" not in done.stdout, done
            assert located() == as_it_was
            done = process.run("reclaim", "--confirm", "--locations", "-f", "value")
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("confirmed") == 3, done
            look_again(process)
            for image_id in made[:3]:
                assert warmed_on(operator, image_id) not in missing
            assert located()[3] == as_it_was[3]
        for volume_id in missing:
            operator.delete_volume(volume_id)


def test_a_copy_stays_while_the_backend_of_the_original_is_down(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings()) as process:
        process.wait_ready()
        image_id = images(store="cinder-1")
        before = warmed(operator, alice, image_id)
        devcloud("stop", "cinder-volume")
        try:
            # Else Cinder notices it after a minute
            beat = "updated_at = updated_at - interval 1 hour"
            sql("cinder", f"update services set {beat} where host like '%@local-1'")
            alice.property(image_id, "image_volume_prewarm", "no")
            soon(
                lambda: "no other location" in reasons(process, "job_skipped", image_id),
                what="the copy stays",
            )
            assert locations(operator, image_id) == set(before.values())
        finally:
            devcloud("start", "cinder-volume")
        look_again(process)
        soon(
            lambda: locations(operator, image_id) == {before["local-1"]},
            what="once it is up again, the copy goes",
        )


def test_hidden_images_are_images(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings()) as process:
        process.wait_ready()
        image_id = images(os_hidden=True)
        before = warmed(operator, alice, image_id)
        shown = process.run("resync", "--dry-run", "-f", "value")
        assert image_id not in shown.stdout, shown
        look_again(process)
        assert {
            target: volume["id"] for target, volume in kept(operator, image_id).items()
        } == before
        for volume_id in before.values():
            operator.delete_volume(volume_id)
        alice.property(image_id, "anything", "changed")
        assert set(warmed(operator, alice, image_id).values()).isdisjoint(before.values())


# Ours is what carries our marks and matches reality


def test_a_retyped_image_volume_is_not_warm_and_is_made_again(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings()) as process:
        process.wait_ready()
        image_id = images()
        before = warmed(operator, alice, image_id)
        operator.act(
            before["local-1"], "os-retype", new_type="local-2", migration_policy="on-demand"
        )

        def retyped() -> bool:
            answer = operator.connection.block_storage.get(f"/volumes/{before['local-1']}").json()[
                "volume"
            ]
            return bool(answer["volume_type"] == "local-2" and answer["status"] == "available")

        soon(retyped, what="retyped")
        shown = process.run("resync", "--dry-run", "-f", "value")
        assert "is of type local-2, not local-1" in shown.stdout, shown
        look_again(process)
        soon(lambda: on(operator, image_id) not in ("", before["local-1"]), what="made again")
        warmed(operator, alice, image_id)
        with alice.temporary_volume(image_id, "local-1") as made:
            assert made.cloned


def test_two_stores_of_a_type_have_to_be_told_apart_and_the_other_regions_location_stays(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    chosen = settings(targets=("local-2",))
    with switched("TWIN_STORE=1"):
        with worker(chosen) as process:
            process.wait_ready()
            assert [
                "name the one of this region" in line["error"]
                for line in process.events("target_unusable")
            ] == [True]
            image_id = images()
            soon(
                lambda: "name the one of this region" in reasons(process, "job_again", image_id),
                what="it is told",
            )
            assert stores(alice, image_id) == {"file"}
        named = settings(targets=("local-2",), each={"glance_store": "cinder-2"}, resync=RESYNC)
        other = images("other", store="cinder-twin")
        (theirs,) = locations(operator, other)
        # As if it was in another region: here Cinder does not know it
        sql("cinder", f"update volumes set deleted = 1 where id = '{theirs}'")
        try:
            with worker(named) as process:
                process.wait_ready()
                warmed_on(operator, image_id, "local-2")
                look_again(process)
                look_again(process)
                assert theirs in locations(operator, other)
                assert process.metric("images_beyond_repair") == 0
                assert not process.events("broken_location_removed")
        finally:
            sql("cinder", f"update volumes set deleted = 0 where id = '{theirs}'")
        # The worker may have asked for a copy of it, which Glance reads from there
        soon(lambda: not alice.show(other).get("os_glance_import_task"), what="Glance is done")
        soon(lambda: status(operator, theirs) == "available", what="nobody reads it")
        alice.delete_image(other)
        alice.delete_image(image_id)


def test_a_store_that_glance_has_no_more_spoils_no_other_targets_copy(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    chosen = dict(settings())
    chosen["target:local-2"] = {**chosen["target:local-2"], "glance_store": "cinder-twin"}
    with worker(chosen) as process:
        with switched("TWIN_STORE=1"):
            process.wait_ready()
            before = images("before")
            soon(
                lambda: {"cinder-1", "cinder-twin"} <= stores(alice, before), what="a copy in both"
            )
            soon(lambda: not alice.show(before).get("os_glance_import_task"), what="Glance is done")
            alice.delete_image(before)
        # The worker still knows both stores
        image_id = images()
        soon(lambda: "cinder-1" in stores(alice, image_id), what="the good target has its copy")
        began = [line["stores"] for line in told(process, "image_copy_began", image_id)]
        assert began[-1] == ["cinder-1"], began


# What can't be deleted


@pytest.fixture
def stuck(admin: Person, operator: Person) -> Iterator[Callable[[str], None]]:
    """Puts volumes into the status error_deleting; they are deleted in the end."""
    made: list[str] = []

    def break_it(volume_id: str) -> None:
        made.append(volume_id)
        admin.act(volume_id, "os-reset_status", status="error_deleting")

    yield break_it
    for volume_id in made:
        with contextlib.suppress(RuntimeError):
            admin.act(volume_id, "os-reset_status", status="available")
        discard(operator, volume_id)


def test_volumes_in_error_deleting_are_left_out_and_told(
    worker: Worker, alice: Person, operator: Person, images: Images, stuck: Callable[[str], None]
) -> None:
    source = alice.blank("local-1")
    upload = alice.queued("upload", image_volume_prewarm="no", image_volume_source=source)
    marks = {"glance_image_id": upload, "image_owner": alice.project_id, TAG: "upload"}
    clone = operator.blank("local-1", name=f"image-{upload}", metadata=marks, source_volid=source)
    stuck(clone)
    try:
        with worker(settings(targets=("local-1",))) as process:
            process.wait_ready()
            soon(lambda: alice.show(upload)["status"] == "active", what="the upload is completed")
            look_again(process)
            soon(
                lambda: clone in {line["volume_id"] for line in process.events("volume_stuck")},
                what="the volume is told of",
            )
            (line, *_) = process.events("volume_stuck")
            assert f"openstack volume delete --force {clone}" in line["advice"]
            shown = process.run("resync", "--dry-run", "-f", "value")
            assert "see volume_stuck in the log" in shown.stdout, shown
    finally:
        alice.delete_image(upload)
        discard(alice, source)


def test_a_volume_that_can_not_be_deleted_is_not_the_only_one_to_make_room(
    worker: Worker, images: Images, operator: Person
) -> None:
    with worker(settings(targets=("local-1",), each={"max_count": 2})) as process:
        process.wait_ready()
        first = images()
        oldest = warmed_on(operator, first)
        second = images()
        warmed_on(operator, second)
        cinder = operator.connection.block_storage
        body = {"snapshot": {"volume_id": oldest, "force": True, "name": "held"}}
        snapshot = cinder.post("/snapshots", json=body).json()["snapshot"]["id"]
        try:
            third = images()
            warmed_on(operator, third)
            soon(lambda: not of_image(operator, second), what="the second makes room")
            assert on(operator, first) == oldest
            assert [line["volume_id"] for line in process.events("image_volume_not_evicted")] == [
                oldest
            ]
        finally:
            cinder.delete(f"/snapshots/{snapshot}")
            soon(
                lambda: cinder.get(f"/snapshots/{snapshot}").status_code == 404,
                what="the snapshot is gone",
            )


# What an import leaves


def test_what_a_cut_off_import_left_is_deleted_at_once(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings(targets=("local-1",))) as process:
        process.wait_ready()
        image_id = images()
        good = warmed_on(operator, image_id)
        marks = {
            "glance_image_id": image_id,
            "image_owner": operator.project_id,
            "image_size": str(16 << 20),
        }
        left = operator.blank("local-1", name=f"image-{image_id}", metadata=marks)
        look_again(process)
        soon(lambda: status(operator, left) == "gone", what="what was left is deleted")
        assert on(operator, image_id) == good
        assert stores(alice, image_id) == {"file", "cinder-1"}


# Locations that users may set. At the end of the file: the switch restarts Glance, and stays on
# until the last test


@pytest.fixture(scope="module")
def old_locations(devcloud_up: None) -> Iterator[None]:
    with switched("OLD_LOCATIONS=1"):
        yield


@pytest.mark.usefixtures("old_locations")
def test_another_images_volume_is_not_made_ours(
    worker: Worker, images: Images, others: Images, alice: Person, bob: Person, operator: Person
) -> None:
    # On another target Glance would copy his image there, out of her volume, and still do so when
    # he deletes it
    with worker(settings(targets=("local-1",))) as process:
        process.wait_ready()
        image_id = images()
        before = {"local-1": warmed_on(operator, image_id)}
        own = bob.queued("mine")
        try:
            value = {"url": f"cinder://cinder-1/{before['local-1']}", "metadata": {}}
            patch = [{"op": "add", "path": "/locations/-", "value": value}]
            headers = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
            answer = bob.connection.image.patch(f"/images/{own}", json=patch, headers=headers)
            assert answer.status_code == 200, answer.text
            soon(
                lambda: "not this image's" in reasons(process, "job_skipped", own),
                what="it is told",
            )
            for _ in range(2):
                look_again(process)
            volume = kept(operator, image_id)["local-1"]
            assert volume["id"] == before["local-1"]
            assert volume["metadata"]["image_owner"] == alice.project_id
            assert volume["metadata"]["glance_image_id"] == image_id
            with bob.temporary_volume(image_id, "local-1") as made:
                assert made.cloned
        finally:
            # Deleting it would delete the volume: its owner takes the location out of the database
            # first
            sql("glance", f"delete from image_locations where image_id = '{own}'")
            bob.delete_image(own)


@pytest.mark.usefixtures("old_locations")
def test_a_volume_older_than_its_image_is_another_images(
    worker: Worker, alice: Person, operator: Person, images: Images
) -> None:
    """Neither adopted nor evicted: as after somebody has used the id of a lost image again."""
    image_id = str(uuid.uuid4())
    marks = {
        "glance_image_id": image_id,
        "image_owner": alice.project_id,
        "image_size": str(16 << 20),
    }
    marks |= {TAG: "local-1", ORIGIN: "prewarm"}
    old = operator.blank("local-1", name=f"image-{image_id}", metadata=marks)
    sql(
        "cinder", f"update volumes set created_at = created_at - interval 1 hour where id = '{old}'"
    )
    chosen = settings("location", targets=("local-1",))
    with worker(chosen) as process:
        process.wait_ready()
        assert images(id=image_id) == image_id
        soon(lambda: locations(operator, image_id), what="warm")
        assert old not in locations(operator, image_id)
        assert status(operator, old) == "available"
        assert process.events("volume_is_not_the_images")
        alice.property(image_id, "image_volume_prewarm", "no")
        soon(lambda: not locations(operator, image_id), what="what was made of it goes")
        look_again(process)
        assert status(operator, old) == "available"
