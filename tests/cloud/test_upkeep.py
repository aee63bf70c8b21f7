"""What keeps it true on real services: re-warming, repair, reclaim, budgets, what must not go,
popularity."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.cloud.operate import TARGETS, Groups, groups, is_warm, of_image, sql, switched, until
from scripts.cloud.people import HOME, Person, data
from tests.cloud.proxy import Proxy
from tests.devcloud import FORKED
from tests.worker_process import WorkerProcess, configuration

log = logging.getLogger(__name__)
Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]
TAG, ORIGIN, USED = (
    "image_volume_worker",
    "image_volume_worker_origin",
    "image_volume_worker_used_at",
)
NOBODY = "11111111-1111-4111-8111-111111111111"
# The shortest there is
RESYNC = {"interval": 10}
SETTLED = ("available", "error", "gone")


@pytest.fixture(scope="module")
def image_cache(devcloud_up: None) -> Iterator[None]:
    with switched("IMAGE_CACHE=1"):
        yield


@pytest.fixture(autouse=True)
def nothing_left(operator: Person) -> Iterator[None]:
    """Deletes what a killed worker has left: Cinder's cache would keep the entries of deleted
    images for ever."""
    before = {volume["id"] for volume in operator.volumes()}
    yield
    for volume in operator.volumes():
        if volume["id"] not in before:
            soon(lambda one=volume["id"]: status(operator, one) in SETTLED, what="settled")
            discard(operator, volume["id"])


@pytest.fixture
def no_limit(admin: Person, operator: Person) -> Iterator[Callable[..., None]]:
    """Limits the internal project's quota; there is none again at the end."""
    names: set[str] = set()

    def limit(left: int | None, name: str) -> None:
        names.add(name)
        admin.limit(operator.project_id, left, name)

    yield limit
    for name in names:
        admin.limit(operator.project_id, None, name)


def settings(
    strategy: str = "store",
    *,
    targets: tuple[str, ...] = TARGETS,
    prewarm: Mapping[str, object] | None = None,
    each: Mapping[str, object] | None = None,
    **more: Mapping[str, object],
) -> Groups:
    """The configuration of a worker with these targets; `each` of them has these options."""
    chosen = {name: dict(options) for name, options in groups(strategy=strategy).items()}
    for name in TARGETS:
        if name not in targets:
            del chosen[f"target:{name}"]
        else:
            chosen[f"target:{name}"] |= each or {}
    chosen["prewarm"] |= {"targets": ",".join(targets), **(prewarm or {})}
    for group, options in more.items():
        chosen[group] = chosen.get(group, {}) | dict(options)
    return chosen


def soon(check: Callable[[], object], *, what: str) -> None:
    until(check, seconds=240.0, what=what)


def configure(process: WorkerProcess, chosen: Groups) -> None:
    """Give a worker another configuration, to be read by its next start or reload."""
    process.config_path.write_text(
        configuration({**chosen, "probes": {"bind": f"127.0.0.1:{process.port}"}})
    )


def look_again(process: WorkerProcess) -> None:
    """Have a worker compare everything once more, by a reload, and wait until it has."""
    before = len(process.lines())
    process.signal(signal.SIGHUP)

    def resynced() -> bool:
        # The daemon that is being replaced may end with one of its own
        events = [line["event"] for line in process.lines()[before:]]
        return "started" in events and "resynced" in events[events.index("started") :]

    soon(resynced, what="resynced")


def ids(operator: Person, image_id: str) -> set[str]:
    return {volume["id"] for volume in of_image(operator, image_id)}


def kept(operator: Person, image_id: str) -> dict[str, dict[str, Any]]:
    """The image's volumes that are marked as a target's and serve, by target."""
    return {
        volume["metadata"][TAG]: volume
        for volume in of_image(operator, image_id)
        if volume["status"] in ("available", "in-use")
        and volume["metadata"].get(TAG)
        and is_readonly(volume)
    }


def is_readonly(volume: Mapping[str, Any]) -> bool:
    return bool(volume["metadata"].get("readonly") == "True")


def on(operator: Person, image_id: str, target: str = "local-1") -> str:
    """The id of the image's Image-Volume on a target; "" if there is none that serves."""
    return str(kept(operator, image_id).get(target, {}).get("id", ""))


def is_idle(operator: Person, image_id: str) -> bool:
    """Whether nobody has attached the image's volumes."""
    return all(volume["status"] == "available" for volume in of_image(operator, image_id))


def warmed(
    operator: Person, alice: Person, image_id: str, *, locations: bool = True
) -> dict[str, str]:
    """Wait until the image is warm and nobody reads it; its Image-Volumes by target."""
    soon(
        lambda: (
            is_warm(operator, alice, image_id, locations=locations) and is_idle(operator, image_id)
        ),
        what=f"warm: {image_id}",
    )
    return {target: volume["id"] for target, volume in kept(operator, image_id).items()}


def warmed_on(operator: Person, image_id: str, target: str = "local-1") -> str:
    """The same on one target."""
    soon(
        lambda: on(operator, image_id, target) and is_idle(operator, image_id),
        what=f"warm on {target}: {image_id}",
    )
    return on(operator, image_id, target)


def status(person: Person, volume_id: str) -> str:
    """A volume's status, `gone` if there is no such volume."""
    answer = person.connection.block_storage.get(f"/volumes/{volume_id}")
    return "gone" if answer.status_code == 404 else str(answer.json()["volume"]["status"])


def stores(alice: Person, image_id: str) -> set[str]:
    return set(alice.show(image_id)["stores"].split(","))


def locations(operator: Person, image_id: str) -> set[str]:
    """The volumes that are the image's locations."""
    rows = operator.locations(image_id)
    return {row["url"].rpartition("/")[2] for row in rows if row["url"].startswith("cinder://")}


def told(process: WorkerProcess, event: str, image_id: str) -> list[dict[str, Any]]:
    """The log lines with this word about an image."""
    return [
        line
        for line in process.events(event)
        if line.get("of_image_id", line.get("image_id")) == image_id
    ]


def about(process: WorkerProcess, event: str, image_id: str) -> list[dict[str, Any]]:
    """The same, but for those of its upload."""
    return [line for line in told(process, event, image_id) if line.get("handler") != "upload"]


def deleted(process: WorkerProcess, image_id: str) -> set[str]:
    """The volumes of an image that a worker says it has deleted, whichever handler came first."""
    return {line["volume_id"] for line in told(process, "image_volume_deleted", image_id)}


def reasons(process: WorkerProcess, event: str, image_id: str) -> str:
    return "\n".join(str(line["reason"]) for line in about(process, event, image_id))


def discard(person: Person, volume_id: str) -> None:
    """Delete a volume that may be gone already."""
    with contextlib.suppress(RuntimeError):
        person.delete_volume(volume_id)


# Re-warming


def test_a_volume_deleted_under_us_is_made_again(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings()) as process:
        process.wait_ready()
        image_id = images()
        before = warmed(operator, alice, image_id)
        operator.delete_volume(before["local-1"])
        soon(lambda: on(operator, image_id) not in ("", before["local-1"]), what="made again")
        after = warmed(operator, alice, image_id)
        assert after["local-2"] == before["local-2"]
        assert locations(operator, image_id) == set(after.values())
        assert [line["store"] for line in process.events("broken_location_removed")] == ["cinder-1"]
        assert process.metric("rewarms_total", target="local-1", reason="broken") == 1
        assert process.metric("rewarms_total") == 1


def test_a_volume_in_error_is_found_by_a_resync_and_made_again(
    worker: Worker, images: Images, alice: Person, operator: Person, admin: Person
) -> None:
    with worker(settings(resync=RESYNC)) as process:
        process.wait_ready()
        image_id = images()
        before = warmed(operator, alice, image_id)
        admin.act(before["local-2"], "os-reset_status", status="error")
        soon(
            lambda: on(operator, image_id, "local-2") not in ("", before["local-2"]),
            what="made again",
        )
        after = warmed(operator, alice, image_id)
        assert after["local-1"] == before["local-1"]
        assert process.metric("rewarms_total", target="local-2", reason="broken") == 1


def test_a_target_that_is_added_is_served(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings(targets=("local-1",))) as process:
        process.wait_ready()
        image_id = images()
        first = warmed_on(operator, image_id)
        assert stores(alice, image_id) == {"file", "cinder-1"}
        configure(process, settings())
        process.signal(signal.SIGHUP)
        assert warmed(operator, alice, image_id)["local-1"] == first


def test_an_image_that_is_made_visible_or_shared_becomes_warm(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings(prewarm={"visibilities": "public,community,shared"})) as process:
        process.wait_ready()
        made = {visibility: images(visibility="private") for visibility in ("community", "shared")}
        for image_id in made.values():
            soon(lambda one=image_id: len(about(process, "job_skipped", one)) >= 2, what="refused")
            assert "visibility private is not among" in reasons(process, "job_skipped", image_id)
            assert not of_image(operator, image_id)
        for visibility, image_id in made.items():
            alice.property(image_id, "visibility", visibility)
        for image_id in made.values():
            warmed(operator, alice, image_id)


# Repair


def test_metadata_and_flags_that_somebody_has_changed_are_put_right(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person
) -> None:
    with worker(settings()) as process:
        process.wait_ready()
        first, second = images(), images()
        volumes = {**warmed(operator, alice, first)}
        one, two = volumes["local-1"], volumes["local-2"]
        three, four = (warmed(operator, alice, second)[target] for target in TARGETS)
        cinder = operator.connection.block_storage
        for volume_id, wrong in {one: {"image_owner": NOBODY}, two: {TAG: "elsewhere"}}.items():
            assert (
                cinder.post(f"/volumes/{volume_id}/metadata", json={"metadata": wrong}).status_code
                == 200
            )
        assert cinder.delete(f"/volumes/{three}/metadata/glance_image_id").status_code == 200
        operator.act(four, "os-update_readonly_flag", readonly=False)
        broken = {
            volume["id"]: volume
            for volume in (*of_image(operator, first), *of_image(operator, second))
        }
        assert [is_whole(broken[volume_id], alice) for volume_id in (one, two, three, four)] == [
            False
        ] * 4
        look_again(process)
        soon(
            lambda: all(
                is_whole(volume, alice)
                for image in (first, second)
                for volume in of_image(operator, image)
            ),
            what="put right",
        )
        # By no other means than that
        assert ids(operator, first) | ids(operator, second) == {one, two, three, four}
        for target in TARGETS:
            with bob.temporary_volume(first, target) as made:
                assert made.cloned


def test_metadata_that_cinder_has_twice_is_put_right(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    """Two writes at once leave two rows of one key: no write of it changes what Cinder shows from
    then on."""
    with worker(settings()) as process:
        process.wait_ready()
        image_id = images()
        volume_id = warmed(operator, alice, image_id)["local-1"]
        columns = "created_at, deleted, volume_id, `key`, value"
        row = f"UTC_TIMESTAMP(), 0, '{volume_id}', 'image_owner', '{NOBODY}'"
        sql("cinder", f"INSERT INTO volume_metadata ({columns}) VALUES ({row})")

        def whole() -> bool:
            return is_whole(
                next(one for one in of_image(operator, image_id) if one["id"] == volume_id), alice
            )

        assert not whole()
        look_again(process)
        soon(whole, what="put right")
        assert [line["names"] for line in process.events("metadata_doubled")] == [["image_owner"]]


def is_whole(volume: Mapping[str, Any], alice: Person) -> bool:
    """Whether an Image-Volume carries what Cinder needs to clone it for everyone."""
    image_id = volume["name"].removeprefix("image-")
    right = {
        "glance_image_id": image_id,
        "image_owner": alice.project_id,
        TAG: volume["volume_type"],
    }
    return is_readonly(volume) and right.items() <= volume["metadata"].items()


@pytest.mark.parametrize("how", ["deleted", "error"])
def test_a_lost_image_is_named_and_not_touched(
    worker: Worker, images: Images, alice: Person, operator: Person, admin: Person, how: str
) -> None:
    with worker(
        settings(
            targets=("local-1",), resync=RESYNC, work={"max_attempts": 2, "park_retry_after": 1}
        )
    ) as process:
        process.wait_ready()
        image_id = images(store="cinder-1")
        assert stores(alice, image_id) == {"cinder-1"}
        volume_id = warmed_on(operator, image_id)
        assert process.metric("images_beyond_repair") == 0
        if how == "deleted":
            operator.delete_volume(volume_id)
        else:
            admin.act(volume_id, "os-reset_status", status="error")
        soon(lambda: process.metric("images_beyond_repair") == 1, what="lost")

        def lost() -> list[dict[str, Any]]:
            # A look before may have met the volume while Cinder was still deleting it
            said = about(process, "job_again", image_id)
            return [line for line in said if "nobody can repair" in line["reason"]]

        soon(lost, what="said")
        again = lost()[0]
        assert volume_id in again["reason"]
        assert again["target"] == "local-1"
        # Looked at again, it is not touched either, and counts once
        soon(lambda: about(process, "job_parked", image_id), what="given up")
        assert about(process, "job_parked", image_id)[0]["reason"] == again["reason"]
        assert process.metric("images_beyond_repair") == 1
        assert stores(alice, image_id) == {"cinder-1"}
        assert locations(operator, image_id) == {volume_id}
        assert process.events("broken_location_removed") == process.events("image_copy_began") == []
        shown = process.run("status", "--state", "lost", "-f", "json")
        assert [(row["Image"], row["Target"]) for row in json.loads(shown.stdout)] == [
            (image_id, "local-1")
        ]
        assert "nobody can repair" in shown.stdout
        alice.delete_image(image_id)
        soon(lambda: process.metric("images_beyond_repair") == 0, what="gone")
        soon(lambda: not of_image(operator, image_id), what="its volume too")


def test_what_a_dead_glance_keeps_attached_stays_warm(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person, admin: Person
) -> None:
    with worker(settings(targets=("local-1",), resync=RESYNC)) as process:
        process.wait_ready()
        image_id = images()
        volume_id = warmed_on(operator, image_id)
        admin.act(volume_id, "os-reset_status", status="reserved")
        try:
            with bob.temporary_volume(image_id, "local-1") as made:
                assert made.cloned
            before = len(process.events("resynced"))
            soon(lambda: len(process.events("resynced")) > before + 1, what="compared again")
            soon(
                lambda: process.metric("images", target="local-1", state="warm") == 1,
                what="it counts as warm",
            )
            assert process.run("explain", image_id).returncode == 0
        finally:
            admin.act(volume_id, "os-reset_status", status="available")


def test_a_lost_image_that_is_restored_as_the_log_advises_counts_no_more(
    worker: Worker, images: Images, alice: Person, operator: Person, admin: Person
) -> None:
    with worker(
        settings(targets=("local-1",), resync=RESYNC, work={"park_retry_after": 1})
    ) as process:
        process.wait_ready()
        image_id = images(store="cinder-1")
        volume_id = warmed_on(operator, image_id)
        admin.act(volume_id, "os-reset_status", status="error")
        soon(lambda: process.metric("images_beyond_repair") == 1, what="lost")
        admin.act(volume_id, "os-reset_status", status="available")
        soon(lambda: process.metric("images_beyond_repair") == 0, what="restored")
        assert on(operator, image_id) == volume_id


def test_a_broken_original_is_made_again_where_another_copy_is_whole(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings()) as process:
        process.wait_ready()
        image_id = images(store="cinder-1")
        before = warmed(operator, alice, image_id)
        digest = alice.sha256(image_id)
        soon(lambda: status(operator, before["local-1"]) == "available", what="Glance has read it")
        operator.delete_volume(before["local-1"])
        soon(lambda: on(operator, image_id) not in ("", before["local-1"]), what="made again")
        after = warmed(operator, alice, image_id)
        assert after["local-2"] == before["local-2"]
        assert process.metric("images_beyond_repair") == 0
        assert process.events("job_parked") == []
        assert alice.sha256(image_id) == digest


def test_of_two_volumes_the_located_one_stays(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings()) as process:
        process.wait_ready()
        image_id = images()
        before = warmed(operator, alice, image_id)
        metadata = {
            TAG: "local-1",
            ORIGIN: "prewarm",
            "glance_image_id": image_id,
            "image_owner": alice.project_id,
        }
        assert process.stop() == 0
        # It has no location and is older nor newer than what resync sees: only the location tells
        # them apart
        second = operator.blank("local-1", name=f"image-{image_id}", metadata=metadata)
        operator.act(second, "os-update_readonly_flag", readonly=True)
        # A fresh one may be about to become a location
        sql(
            "glance",
            f"update images set created_at = created_at - interval 1 hour where id = '{image_id}'",
        )
        sql(
            "cinder",
            f"update volumes set created_at = created_at - interval 10 minute where id = "
            f"'{second}'",
        )
        process.start()
        soon(lambda: second not in ids(operator, image_id), what="the second goes")
        assert warmed(operator, alice, image_id) == before
        assert locations(operator, image_id) == set(before.values())


# Reclaim


def test_an_image_deleted_takes_its_image_volumes_along(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings()) as process:
        process.wait_ready()
        image_id = images()
        warmed(operator, alice, image_id)
        metadata = dict(kept(operator, image_id)["local-1"]["metadata"])
        alice.delete_image(image_id)
        log.info("store: everything gone after %.1f s", seconds_until_gone(operator, image_id))
        assert process.events("job_parked") == []
        # A volume as Cinder restores it from a backup
        del metadata["readonly"]
        marks = metadata | {"src_backup_id": str(uuid.uuid4())}
        restored = operator.blank("local-1", name=f"image-{image_id}", metadata=marks)
        look_again(process)
        time.sleep(2)
        assert status(operator, restored) == "available"
        assert not deleted(process, image_id) & {restored}


def seconds_until_gone(operator: Person, image_id: str) -> float:
    began = time.monotonic()
    soon(lambda: not of_image(operator, image_id), what="everything of the image goes")
    return time.monotonic() - began


def test_what_its_owner_wants_no_more_goes_and_comes_back(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings()) as process:
        process.wait_ready()
        image_id = images()
        before = warmed(operator, alice, image_id)
        alice.property(image_id, "image_volume_prewarm", "no")
        soon(lambda: not of_image(operator, image_id), what="gone")
        assert "file" in stores(alice, image_id)
        soon(
            lambda: process.metric("reclaimed_volumes_total", reason="unwanted") == 2,
            what="counted",
        )
        assert {
            line["volume_id"] for line in about(process, "image_volume_evicted", image_id)
        } == set(before.values())
        assert alice.sha256(image_id) == hashlib.sha256(data(16).read_bytes()).hexdigest()
        alice.property(image_id, "image_volume_prewarm", "yes")
        assert not set(warmed(operator, alice, image_id).values()) & set(before.values())


def test_what_a_new_rule_excludes_goes_after_a_restart(
    worker: Worker, images: Images, others: Images, alice: Person, bob: Person, operator: Person
) -> None:
    with worker(settings()) as process:
        process.wait_ready()
        excluded, wanted = images(), others()
        warmed(operator, alice, excluded)
        before = warmed(operator, bob, wanted)
        assert process.stop() == 0
        configure(process, settings(prewarm={"exclude_projects": alice.project_id}))
        process.start()
        soon(lambda: not of_image(operator, excluded), what="gone")
        assert "file" in stores(alice, excluded)
        assert warmed(operator, bob, wanted) == before


@pytest.mark.long
def test_two_targets_that_let_go_at_once_leave_no_location_without_a_volume(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings()) as process:
        process.wait_ready()
        made = [images() for _ in range(5)]
        for image_id in made:
            warmed(operator, alice, image_id)
        for image_id in made:
            alice.property(image_id, "image_volume_prewarm", "no")
        soon(lambda: not any(of_image(operator, image_id) for image_id in made), what="gone")
        # Glance writes the whole list of locations each time
        time.sleep(5)
        soon(
            lambda: [stores(alice, image_id) for image_id in made] == [{"file"}] * len(made),
            what="no location is left",
        )


def test_what_goes_is_no_time_to_warm(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings()) as process:
        process.wait_ready()
        # An image that a comparison finds before its notification is heard counts no time
        soon(lambda: len(process.events("resynced")) >= 2, what="resynced")
        image_id = images()
        warmed(operator, alice, image_id)
        soon(lambda: process.metric("time_to_warm_seconds_count") == 2, what="warm on both")
        alice.property(image_id, "image_volume_prewarm", "no")
        soon(lambda: not of_image(operator, image_id), what="gone")
        time.sleep(2)
        assert process.metric("time_to_warm_seconds_count") == 2


# Budgets


def check_the_least_recently_used_goes(
    process: WorkerProcess, images: Images, bob: Person, operator: Person, *, restart: bool
) -> str:
    """Fill a target with two, use the first, add a third; the id of the image that had to go."""
    process.wait_ready()
    first = images()
    kept_one = warmed_on(operator, first)
    second = images()
    warmed_on(operator, second)
    with bob.temporary_volume(first, "local-1") as made:
        assert made.cloned
        soon(
            lambda: USED in kept(operator, first)["local-1"]["metadata"],
            what="the use is written down",
        )
        assert USED not in kept(operator, second)["local-1"]["metadata"]
    if restart:
        assert process.stop() == 0
        process.start()
        process.wait_ready()
    third = images()
    warmed_on(operator, third)
    soon(lambda: not of_image(operator, second), what="the second goes")
    # And it stays so
    look_again(process)
    time.sleep(3)
    assert not of_image(operator, second)
    assert on(operator, first) == kept_one
    assert on(operator, third)
    assert [line["of_image_id"] for line in process.events("image_volume_evicted")] == [second]
    return second


@pytest.mark.parametrize(
    "restart",
    [
        pytest.param(False, id="running"),
        pytest.param(True, id="restarted", marks=pytest.mark.long),
    ],
)
def test_the_least_recently_used_makes_room(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person, restart: bool
) -> None:
    with worker(settings(targets=("local-1",), each={"max_count": 2})) as process:
        second = check_the_least_recently_used_goes(process, images, bob, operator, restart=restart)
        assert stores(alice, second) == {"file"}
        if not restart:
            assert process.metric("reclaimed_volumes_total", reason="budget") == 1


@pytest.mark.long
def test_what_does_not_fit_is_skipped_and_nothing_is_thrown_out_for_it(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings(targets=("local-1",), each={"max_gigabytes": 1})) as process:
        process.wait_ready()
        older = images(image_volume_prewarm="no")
        # Times of Glance and Cinder are whole seconds
        time.sleep(1.1)
        small = images()
        volume_id = warmed_on(operator, small)
        large = images(min_disk=2, mebibytes=1025)
        # Looked at before its upload has ended it is skipped as well, for that
        soon(lambda: "max_gigabytes = 1" in reasons(process, "job_skipped", large), what="skipped")
        # It would fit, but what is there is newer
        alice.property(older, "image_volume_prewarm", "yes")
        soon(
            lambda: "is full (1 of 1 GiB)" in reasons(process, "job_skipped", older), what="no room"
        )
        look_again(process)
        time.sleep(2)
        assert process.events("image_volume_evicted") == []
        assert on(operator, small) == volume_id
        for image_id in (older, large):
            assert not of_image(operator, image_id)
            assert stores(alice, image_id) == {"file"}


@pytest.mark.parametrize(
    "name",
    [
        "gigabytes",
        "volumes",
        "gigabytes_local-1",
    ],
)
def test_a_quota_that_is_used_up_is_named_and_nothing_is_begun(
    worker: Worker,
    images: Images,
    alice: Person,
    operator: Person,
    no_limit: Callable[..., None],
    name: str,
) -> None:
    no_limit(0, name)
    with worker(settings()) as process:
        process.wait_ready()
        image_id = images()
        limited = ("local-1",) if name.endswith("local-1") else TARGETS

        def failures() -> list[dict[str, Any]]:
            # A wait is no failure, and counts no try
            return [line for line in about(process, "job_again", image_id) if line["attempt"]]

        soon(
            lambda: {line["target"] for line in failures()} >= set(limited),
            what="the quota is named",
        )
        for line in failures():
            assert "the internal project's quota has 0" in line["reason"]
            assert f"raise {name.partition('_')[0]}" in line["reason"]
        time.sleep(2)
        if len(limited) == 1:
            warmed_on(operator, image_id, "local-2")
        begun = {store for line in process.events("image_copy_began") for store in line["stores"]}
        assert begun == ({"cinder-2"} if len(limited) == 1 else set())
        assert {volume["volume_type"] for volume in of_image(operator, image_id)} == set(
            TARGETS
        ) - set(limited)
        no_limit(None, name)
        warmed(operator, alice, image_id)


def test_an_image_that_is_larger_than_the_quota_of_one_volume_evicts_nothing(
    worker: Worker, images: Images, operator: Person, no_limit: Callable[..., None]
) -> None:
    no_limit(1, "per_volume_gigabytes")
    with worker(settings(targets=("local-1",), each={"max_count": 1})) as process:
        process.wait_ready()
        small = images()
        before = warmed_on(operator, small)
        large = images(mebibytes=1025)
        soon(
            lambda: "raise per_volume_gigabytes" in reasons(process, "job_again", large),
            what="the quota is named",
        )
        assert on(operator, small) == before
        assert not of_image(operator, large)
        assert not told(process, "image_volume_evicted", small)


def test_a_quota_with_room_for_one_is_filled_with_one(
    worker: Worker, images: Images, alice: Person, operator: Person, no_limit: Callable[..., None]
) -> None:
    no_limit(1, "gigabytes")
    with worker(settings()) as process:
        process.wait_ready()
        image_id = images()
        full = "the internal project's quota has 0 GiB left"
        soon(
            lambda: full in reasons(process, "job_again", image_id) and kept(operator, image_id),
            what="one is there, and for the other the quota is named",
        )
        assert [len(line["stores"]) for line in process.events("image_copy_began")] == [1]
        no_limit(None, "gigabytes")
        warmed(operator, alice, image_id)


# What must not go


def test_only_what_is_ours_goes(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    # Where Glance lists no image at all a resync believes nothing
    image_id, _ = images(image_volume_prewarm="no"), images(image_volume_prewarm="no")
    with worker(settings()) as process:
        # From here on its queue hears of the deletion
        process.wait_ready()
    alice.delete_image(image_id)
    claims = {
        TAG: "local-1",
        ORIGIN: "prewarm",
        "glance_image_id": image_id,
        "image_owner": alice.project_id,
    }
    named, staying, going = {"name": f"image-{image_id}"}, dict[str, Person](), list[str]()
    try:
        staying[operator.blank("local-1", **named)] = operator
        staying[operator.blank("local-1", **named, metadata={"glance_image_id": NOBODY})] = operator
        staying[operator.blank("local-1", name=f"image-{image_id}-old", metadata=claims)] = operator
        staying[alice.blank("local-1", **named, metadata=claims)] = alice
        going += [
            operator.blank("local-1", name=f"{kind}-{image_id}", metadata=claims)
            for kind in ("image", "warm")
        ]
        with worker(settings()) as process:
            process.wait_ready()
            soon(
                lambda: not set(going) & {volume["id"] for volume in operator.volumes()},
                what="ours go",
            )
            soon(lambda: deleted(process, image_id) == set(going), what="and it says so")
            look_again(process)
            time.sleep(3)
            assert deleted(process, image_id) == set(going)
        have = {
            volume["id"]: volume["status"]
            for person in (alice, operator)
            for volume in person.volumes()
        }
        assert {have.get(volume_id) for volume_id in staying} == {"available"}
    finally:
        for volume_id, owner in staying.items():
            discard(owner, volume_id)
        for volume_id in going:
            discard(operator, volume_id)


def test_the_only_data_of_an_image_stays_where_it_is(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings()) as process:
        process.wait_ready()
        image_id = images(store="cinder-1")
        before = warmed(operator, alice, image_id)
        alice.property(image_id, "image_volume_prewarm", "no")
        soon(lambda: stores(alice, image_id) == {"cinder-1"}, what="the copy goes")
        look_again(process)
        time.sleep(3)
        assert locations(operator, image_id) == {before["local-1"]}
        soon(lambda: ids(operator, image_id) == {before["local-1"]}, what="and its volume")
        assert alice.sha256(image_id) == hashlib.sha256(data(16).read_bytes()).hexdigest()


def test_a_proxy_that_drops_the_query_costs_other_images_nothing(
    tmp_path: Path, images: Images, alice: Person, operator: Person
) -> None:
    clouds = yaml.safe_load((HOME / "clouds.yaml").read_text())
    with Proxy("http://127.0.0.1:8776") as cinder:
        url = f"{cinder.url}/v3/{operator.project_id}"
        clouds["clouds"]["operator"]["block_storage_endpoint_override"] = url
        file = tmp_path / "clouds.yaml"
        file.write_text(yaml.safe_dump(clouds))
        with WorkerProcess(tmp_path, settings(), clouds=file, forked=FORKED) as process:
            process.wait_ready()
            unwanted, other = images(store="cinder-1"), images(store="cinder-1")
            for image_id in (unwanted, other):
                warmed(operator, alice, image_id)
            before = ids(operator, other)
            cinder.rewrite = lambda path: re.sub("name=[^&]*&?", "", path)
            alice.property(unwanted, "image_volume_prewarm", "no")
            soon(lambda: stores(alice, unwanted) == {"cinder-1"}, what="its own copy goes")
            look_again(process)
            assert ids(operator, other) == before
            assert locations(operator, other) == before


def test_an_answer_that_may_not_be_glances_is_not_believed(
    tmp_path: Path, images: Images, alice: Person, operator: Person
) -> None:
    clouds = yaml.safe_load((HOME / "clouds.yaml").read_text())
    with Proxy("http://127.0.0.1:9292") as glance:
        clouds["clouds"]["operator"]["image_endpoint_override"] = glance.url
        file = tmp_path / "clouds.yaml"
        file.write_text(yaml.safe_dump(clouds))
        with WorkerProcess(tmp_path, settings(), clouds=file, forked=FORKED) as process:
            process.wait_ready()
            image_id = images()
            before = warmed(operator, alice, image_id)
            glance.fault = lambda method, path: 404 if path == f"/v2/images/{image_id}" else None
            alice.property(image_id, "anything", "changed")
            soon(
                lambda: "not the service's own 404" in reasons(process, "job_again", image_id),
                what="it waits",
            )
            assert glance.faults > 0
            glance.fault = lambda method, path: None
            assert warmed(operator, alice, image_id) == before
            assert (
                process.events("image_volume_deleted")
                == process.events("image_volume_evicted")
                == []
            )


# Popularity


def test_an_image_becomes_warm_where_it_is_used_twice(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person
) -> None:
    with worker(settings(prewarm={"when": "used"})) as process:
        process.wait_ready()
        image_id, asked = images(), images()
        alice.property(asked, "image_volume_prewarm", f"yes/{asked}")
        for target in TARGETS:
            why = f"no second volume was made of the image on target {target} yet"
            soon(
                lambda why=why: why in reasons(process, "job_skipped", image_id),
                what=f"skipped on {target}",
            )
        warmed(operator, alice, asked)
        assert not of_image(operator, image_id)
        skipped = len(about(process, "job_skipped", image_id))
        with bob.temporary_volume(image_id, "local-1") as made:
            assert not made.cloned
            soon(
                lambda: len(about(process, "job_skipped", image_id)) > skipped,
                what="the use was heard of",
            )
        # Once on each target is not twice on one
        with bob.temporary_volume(image_id, "local-2"):
            soon(
                lambda: len(about(process, "job_skipped", image_id)) > skipped + 1,
                what="the other use too",
            )
        time.sleep(2)
        assert stores(alice, image_id) == {"file"}
        with alice.temporary_volume(image_id, "local-1"):
            warmed_on(operator, image_id)
        time.sleep(2)
        assert stores(alice, image_id) == {"file", "cinder-1"}
        assert set(kept(operator, image_id)) == {"local-1"}
        with bob.temporary_volume(image_id, "local-1") as made:
            assert made.cloned


# Cinder's image-volume cache. At the end of the file: the switch restarts Cinder, and stays on
# until the last test


@pytest.mark.usefixtures("image_cache")
@pytest.mark.long
def test_an_image_changed_all_the_time_is_not_made_warm_all_the_time(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person
) -> None:
    # The interval is longer than a slow machine takes for all the changes
    with worker(settings("cache", prewarm={"settle": 0.2, "rewarm_interval": 45})) as process:
        process.wait_ready()
        image_id = images()
        before = set(warmed(operator, alice, image_id, locations=False).values())

        def renewed(rewarms: int) -> bool:
            return (
                process.metric("rewarms_total", reason="changed") == rewarms
                and not ids(operator, image_id) & before
                and is_warm(operator, alice, image_id, locations=False)
            )

        # The first change is made up for at once, on both targets
        alice.property(image_id, "anything", "first")
        soon(lambda: renewed(2), what="warm again")
        before = ids(operator, image_id)
        for change in range(6):
            alice.property(image_id, "anything", str(change))
            time.sleep(1)
        assert process.metric("rewarms_total") == 2
        for target in TARGETS:
            assert process.metric("rewarms_held_back_total", target=target) > 0
        # Afterwards, when the interval is over, it is once
        soon(lambda: renewed(4), what="warm once more")
        with bob.temporary_volume(image_id, "local-1") as made:
            assert made.cloned
        time.sleep(2)
        assert process.metric("rewarms_total") == 4


@pytest.mark.usefixtures("image_cache")
def test_a_cache_entry_that_is_deleted_or_evicted_is_made_again(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person
) -> None:
    with worker(settings("cache")) as process:
        process.wait_ready()
        image_id = images()
        before = warmed(operator, alice, image_id, locations=False)
        operator.delete_volume(before["local-1"])
        soon(lambda: on(operator, image_id) not in ("", before["local-1"]), what="made again")
        after = warmed(operator, alice, image_id, locations=False)
        assert after["local-2"] == before["local-2"]
        with bob.temporary_volume(image_id, "local-1") as made:
            assert made.cloned


@pytest.mark.usefixtures("image_cache")
def test_a_deleted_images_cache_entries_go_within_seconds_also_while_they_are_cloned(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person
) -> None:
    made: list[str] = []
    try:
        with worker(settings("cache")) as process:
            process.wait_ready()
            quiet, cloned = images(), images()
            before = {
                one: set(warmed(operator, alice, one, locations=False).values())
                for one in (quiet, cloned)
            }
            alice.delete_image(quiet)
            log.info("cache: everything gone after %.1f s", seconds_until_gone(operator, quiet))
            for target in TARGETS * 2:
                body = {"size": 1, "imageRef": cloned, "volume_type": target, "name": "clone"}
                answer = bob.connection.block_storage.post("/volumes", json={"volume": body})
                made.append(answer.json()["volume"]["id"])
            alice.delete_image(cloned)
            log.info(
                "cache, being cloned: everything gone after %.1f s",
                seconds_until_gone(operator, cloned),
            )
            soon(lambda: deleted(process, quiet) == before[quiet], what="the log says so")
            # Cinder itself deletes an entry that is older than its image's last change, and being
            # deleted is one
            assert deleted(process, cloned) <= before[cloned]
            soon(
                lambda: (
                    process.metric("reclaimed_volumes_total", reason="gone")
                    == len(deleted(process, quiet) | deleted(process, cloned))
                ),
                what="counted",
            )
            assert process.events("job_parked") == []
    finally:
        for volume_id in made:
            soon(lambda one=volume_id: status(bob, one) in SETTLED, what="settled")
            bob.delete_volume(volume_id)


@pytest.mark.usefixtures("image_cache")
def test_an_entry_that_cinder_does_not_let_go_of_is_waited_for_without_noise(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    cinder = operator.connection.block_storage
    with worker(settings("cache", cloud={"poll_max": 0.5})) as process:
        process.wait_ready()
        image_id = images()
        before = warmed(operator, alice, image_id, locations=False)
        body = {"snapshot": {"volume_id": before["local-1"], "name": "holds", "force": True}}
        answer = cinder.post("/snapshots", json=body)
        assert answer.status_code == 202, answer.text
        snapshot = f"/snapshots/{answer.json()['snapshot']['id']}"
        try:
            soon(
                lambda: cinder.get(snapshot).json()["snapshot"]["status"] == "available",
                what="a snapshot",
            )
            alice.delete_image(image_id)
            soon(
                lambda: before["local-1"] in reasons(process, "job_again", image_id),
                what="it waits",
            )
            soon(lambda: ids(operator, image_id) == {before["local-1"]}, what="the other one goes")
            began = len(process.log.read_text().splitlines())
            time.sleep(20)
        finally:
            assert cinder.delete(snapshot).status_code == 202
        soon(lambda: not of_image(operator, image_id), what="gone")
        noise = [line for line in process.log.read_text().splitlines()[began:] if image_id in line]
        assert len(noise) <= 4, noise
        assert process.events("job_parked") == []


@pytest.mark.usefixtures("image_cache")
def test_an_entry_that_is_the_last_copy_of_an_images_data_stays(
    worker: Worker, images: Images, alice: Person, operator: Person, admin: Person
) -> None:
    """The owner's own copy is in error; then they want it warm no more, and change it."""
    with worker(settings("cache", targets=("local-1",))) as process:
        process.wait_ready()
        image_id = images(store="cinder-2")
        entry = warmed_on(operator, image_id)
        soon(lambda: len(ids(operator, image_id)) == 2, what="the throw-away volume is gone")
        (located,) = ids(operator, image_id) - {entry}
        admin.act(located, "os-reset_status", status="error")
        done = process.run("evict", image_id, "--target", "local-1", timeout=300)
        assert done.returncode == 0, done.stderr
        assert status(operator, entry) == "available"
        alice.property(image_id, "os_distro", "debian")
        soon(
            lambda: f"Volume {entry} has the data" in reasons(process, "job_parked", image_id),
            what="told",
        )
        alice.property(image_id, "image_volume_prewarm", "no")
        look_again(process)
        assert status(operator, entry) == "available"
        assert ids(operator, image_id) == {entry, located}, "no throw-away volume was made"
        admin.act(located, "os-reset_status", status="available")


@pytest.mark.usefixtures("image_cache")
def test_a_resync_leaves_entries_that_are_fresh_alone(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings("cache")) as process:
        process.wait_ready()
        image_id = images()
        before = warmed(operator, alice, image_id, locations=False)
        look_again(process)
        time.sleep(5)
        assert process.events("resynced")[-1]["incomplete"] == 0
        assert process.events("clone_deleted") == []
        assert warmed(operator, alice, image_id, locations=False) == before


@pytest.mark.usefixtures("image_cache")
def test_the_least_recently_used_entry_makes_room(
    worker: Worker, images: Images, bob: Person, operator: Person
) -> None:
    with worker(settings("cache", targets=("local-1",), each={"max_count": 2})) as process:
        check_the_least_recently_used_goes(process, images, bob, operator, restart=False)


@pytest.mark.usefixtures("image_cache")
def test_a_dry_run_only_says_what_would_go(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(settings("cache", reclaim={"dry_run": True})) as process:
        process.wait_ready()
        deleted, declined = images(), images()
        # By which it is proven later that the deleted one is gone
        images(visibility="private", image_volume_prewarm="no")
        before = {
            one: set(warmed(operator, alice, one, locations=False).values())
            for one in (deleted, declined)
        }
        alice.delete_image(deleted)
        alice.property(declined, "image_volume_prewarm", "no")

        def told(image_id: str) -> set[str]:
            return {
                line["volume_id"] for line in about(process, "volume_would_be_deleted", image_id)
            }

        for image_id in (deleted, declined):
            soon(lambda one=image_id: told(one) >= before[one], what="it says so")
        time.sleep(3)
        shown = process.run(
            "resync", "--dry-run", "-f", "value", "-c", "Handler", "-c", "Image"
        ).stdout
        for image_id, volumes in before.items():
            assert ids(operator, image_id) == volumes
            assert is_idle(operator, image_id)
            assert told(image_id) == volumes
            assert f"reclaim {image_id}" in shown
        configure(process, settings("cache", reclaim={"grace": 0}))

        def are_gone() -> bool:
            look_again(process)
            return not of_image(operator, deleted) + of_image(operator, declined)

        until(are_gone, what="gone")
