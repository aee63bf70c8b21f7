"""Strategies `location` and `cache` on real services, with the switches that they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from scripts.cloud.operate import TARGETS, groups, is_warm, of_image, sql, switched, until
from scripts.cloud.people import CINDER_LOG, Person
from tests.cloud.test_upkeep import locations
from tests.worker_process import WorkerProcess

Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]


@pytest.fixture(scope="module")
def old_locations(devcloud_up: None) -> Iterator[None]:
    with switched("OLD_LOCATIONS=1"):
        yield


@pytest.fixture(scope="module")
def image_cache(devcloud_up: None) -> Iterator[None]:
    with switched("IMAGE_CACHE=1"):
        yield


@pytest.mark.usefixtures("old_locations")
def test_location(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person
) -> None:
    with worker(groups(strategy="location")) as process:
        process.wait_ready()
        image_id = images()
        until(lambda: is_warm(operator, alice, image_id), what="warm")
        for volume_type in TARGETS:
            with bob.temporary_volume(image_id, volume_type) as made:
                assert made.cloned
        # Somebody deletes one under us: the image's location is broken, and mended
        broken = of_image(operator, image_id)[0]
        until(lambda: is_idle(operator, image_id), what="nobody reads them")
        operator.delete_volume(broken["id"])
        until(
            lambda: (
                broken["id"] not in ids(operator, image_id) and is_warm(operator, alice, image_id)
            ),
            what="mended",
        )
        alice.delete_image(image_id)
        until(lambda: not of_image(operator, image_id), what="gone")


@pytest.mark.usefixtures("old_locations")
def test_location_killed_and_deleted_in_the_middle(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    process = worker(groups(strategy="location"))
    process.start()
    process.wait_ready()
    kept, deleted = images(mebibytes=256), images(mebibytes=256)
    until(
        lambda: of_image(operator, kept) and of_image(operator, deleted),
        what="volumes are being made",
    )
    process.kill()
    alice.delete_image(deleted)
    process.start()
    until(lambda: is_warm(operator, alice, kept), what="warm")
    until(lambda: not of_image(operator, deleted), what="gone")
    assert process.stop() == 0


@pytest.mark.usefixtures("old_locations")
def test_what_a_restored_database_of_cinders_shows_again_is_no_location_again(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    looking = {"reclaim": {"grace": 4}, "resync": {"interval": 10}}
    with worker(groups(strategy="location", **looking)) as process:
        process.wait_ready()
        # The proof that Cinder shows everything: other volumes of these stores, and somebody's
        beside, image_id = images(), images()
        witness = alice.blank(volume_type="local-1")
        for one in (beside, image_id):
            until(lambda one=one: is_warm(operator, alice, one), what="warm")
        deleted = ids(operator, image_id)
        alice.property(image_id, "image_volume_prewarm", "no")
        until(lambda: not of_image(operator, image_id), what="evicted")
        alice.property(image_id, "image_volume_prewarm", "yes")
        until(lambda: is_warm(operator, alice, image_id), what="warm again")
        until(lambda: is_idle(operator, image_id), what="nobody reads them")
        made_since = ids(operator, image_id)
        show(deleted, status="available", deleted=0)
        show(made_since, status="deleted", deleted=1)
        alice.property(image_id, "anything", "changed")

        old = deleted | made_since
        until(lambda: len(locations(operator, image_id) - old) == len(TARGETS), what="made anew")
        assert not locations(operator, image_id) & old
        alice.delete_volume(witness)
        for volume_id in deleted:
            operator.delete_volume(volume_id)
        alice.delete_image(image_id)
        until(lambda: not of_image(operator, image_id), what="gone")


def show(volume_ids: set[str], *, status: str, deleted: int) -> None:
    """Have Cinder's database show volumes, or not, as a restored one would."""
    listed = ", ".join(f"'{one}'" for one in volume_ids)
    sql("cinder", f"update volumes set status='{status}', deleted={deleted} where id in ({listed})")
    for table in ("volume_metadata", "volume_admin_metadata"):
        sql("cinder", f"update {table} set deleted={deleted} where volume_id in ({listed})")


@pytest.mark.usefixtures("old_locations")
@pytest.mark.parametrize("newest_first", [True, False])
def test_of_two_locations_in_a_pool_cinder_clones_the_newest_volume(
    images: Images, bob: Person, operator: Person, admin: Person, newest_first: bool
) -> None:
    # As `clone_path` takes it to be
    image_id = images()
    made = {operator.volume(image_id, "local-1").id for _ in range(2)}
    # Of two that were made within one second Cinder takes the higher id
    older, newer = (
        volume["id"]
        for volume in sorted(
            (one for one in operator.volumes() if one["id"] in made),
            key=lambda volume: (volume["created_at"], volume["id"]),
        )
    )
    owner = {"metadata": {"image_owner": admin.show(image_id)["owner"]}}
    for volume_id in (older, newer):
        url = f"/volumes/{volume_id}/metadata"
        operator.connection.block_storage.post(url, json=owner).raise_for_status()
    try:
        for volume_id in (newer, older) if newest_first else (older, newer):
            location = {"url": f"cinder://cinder-1/{volume_id}", "metadata": {"store": "cinder-1"}}
            admin.property(image_id, "locations/-", location)
        offset = CINDER_LOG.stat().st_size
        with bob.temporary_volume(image_id, "local-1") as clone:
            assert clone.cloned
        log = CINDER_LOG.read_bytes()[offset:].decode()
        assert f"Will clone a volume from the image volume {newer}" in log
    finally:
        admin.delete_image(image_id)
        for volume in operator.volumes():
            if volume["id"] in made and volume["status"] != "deleting":
                operator.delete_volume(volume["id"])


@pytest.mark.usefixtures("image_cache")
def test_cache(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person
) -> None:
    with worker(groups(strategy="cache")) as process:
        process.wait_ready()
        image_id = images(min_disk=2)
        until(lambda: is_warm(operator, alice, image_id, locations=False), what="warm")
        # As large as the data is, not as the volume that was made to have Cinder make it
        assert {volume["size"] for volume in of_image(operator, image_id)} == {1}
        for volume_type in TARGETS:
            with bob.temporary_volume(image_id, volume_type, gibibytes=2) as made:
                assert made.cloned
        # Any change makes Cinder's entry stale: it is made anew once the image is quiet, before a
        # user has to wait
        before = ids(operator, image_id)
        alice.property(image_id, "anything", "changed")
        until(
            lambda: (
                not ids(operator, image_id) & before
                and is_warm(operator, alice, image_id, locations=False)
            ),
            what="warm again",
        )
        with bob.temporary_volume(image_id, "local-1", gibibytes=2) as made:
            assert made.cloned
        # Cinder keeps the entries of deleted images for ever; we don't
        alice.delete_image(image_id)
        until(lambda: not of_image(operator, image_id), what="gone")


def ids(operator: Person, image_id: str) -> set[str]:
    """The ids of an image's volumes in the internal project."""
    return {volume["id"] for volume in of_image(operator, image_id)}


def is_idle(operator: Person, image_id: str) -> bool:
    """Whether nobody has attached the image's volumes."""
    return all(volume["status"] == "available" for volume in of_image(operator, image_id))


@pytest.mark.usefixtures("image_cache")
def test_what_users_write_on_their_volumes_is_nothing_on_cinders_entries(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person
) -> None:
    """Cinder hands a volume's metadata on to the entry that it makes of it."""
    image_id = images(disk_format="qcow2")
    forged = {
        "image_volume_worker": "local-1", "image_volume_worker_origin": "prewarm",
        "image_volume_worker_updated_at": "now", "glance_image_id": image_id, "x": "y",
    }  # fmt: skip
    fields = {"imageRef": image_id, "volume_type": "local-1", "metadata": forged}
    made = alice.blank(**fields)
    try:
        until(lambda: of_image(operator, image_id), what="an entry")
        (entry,) = of_image(operator, image_id)
        # As our fake has it
        assert entry["metadata"].items() >= forged.items()
        assert entry["source_volid"] == made
        with worker(groups(strategy="cache")) as process:
            process.wait_ready()
            until(
                lambda: process.states(image_id) == dict.fromkeys(TARGETS, "warm"),
                what=lambda: str(process.states(image_id)),
            )
            # The throw-away volumes are on their way out
            until(lambda: len(of_image(operator, image_id)) == len(TARGETS), what="only entries")
            found = {one["id"]: one["metadata"] for one in of_image(operator, image_id)}
            assert all(marks["image_volume_worker_of"] == own for own, marks in found.items())
            assert found[entry["id"]]["image_volume_worker_updated_at"] != "now"
            with bob.temporary_volume(image_id, "local-1") as volume:
                assert volume.cloned
            alice.delete_image(image_id)
            until(lambda: not of_image(operator, image_id), what="gone")
    finally:
        alice.delete_volume(made)
