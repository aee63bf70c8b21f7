"""Rules for keeping images warm: targets that can't be used, sizes that are allocated, wishes that
are inherited."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from scripts.cloud.operate import TARGETS, groups, is_warm, of_image, until
from scripts.cloud.people import Person
from tests.worker_process import WorkerProcess

Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]
Types = Callable[..., tuple[str, str]]


def checked(answer: Any) -> Any:
    assert answer.status_code < 400, answer.text
    return answer


@pytest.fixture
def types(admin: Person, operator: Person) -> Iterator[Types]:
    """Makes volume types on the backend local-1, by id and name; they go at the end of the test,
    with their volumes."""
    made: list[str] = []
    cinder = admin.connection.block_storage

    def make(*, encrypted: bool = False) -> tuple[str, str]:
        name = f"type-{uuid.uuid4().hex[:8]}"
        body = {"volume_type": {"name": name, "extra_specs": {"volume_backend_name": "local-1"}}}
        type_id = str(checked(cinder.post("/types", json=body)).json()["volume_type"]["id"])
        made.append(type_id)
        if encrypted:
            luks = {
                "provider": "luks",
                "control_location": "front-end",
                "cipher": "aes-xts-plain64",
                "key_size": 256,
            }
            checked(cinder.post(f"/types/{type_id}/encryption", json={"encryption": luks}))
        return type_id, name

    yield make
    names = [
        checked(cinder.get(f"/types/{type_id}")).json()["volume_type"]["name"] for type_id in made
    ]

    def left() -> list[Any]:
        return [volume for volume in operator.volumes() if volume["volume_type"] in names]

    def emptied() -> bool:
        for volume in left():
            if volume["status"] in ("available", "error"):
                operator.delete_volume(volume["id"])
        return not left()

    until(emptied, what="volumes of the types are deleted")
    for type_id in made:
        checked(cinder.delete(f"/types/{type_id}"))


def with_target(volume_type: str, **more: Any) -> dict[str, Any]:
    """The configuration of a worker with one more target, `third`."""
    settings = dict(groups(**more))
    settings["prewarm"] = {**settings["prewarm"], "targets": ",".join((*TARGETS, "third"))}
    settings["target:third"] = {"volume_type": volume_type, "strategy": "cache"}
    return settings


def of_type(operator: Person, image_id: str, volume_type: str) -> list[Any]:
    return [
        volume for volume in of_image(operator, image_id) if volume["volume_type"] == volume_type
    ]


def test_a_target_of_an_encrypted_type_is_named_and_gets_nothing(
    worker: Worker, images: Images, types: Types, alice: Person, operator: Person
) -> None:
    _, locked = types(encrypted=True)
    with worker(with_target(locked)) as process:
        process.wait_ready()
        image_id = images()
        until(lambda: is_warm(operator, alice, image_id), what="the others are warm")
        until(lambda: process.metric("jobs_total", target="third", outcome="skip") >= 1)
        assert of_type(operator, image_id, locked) == []
        assert process.metric("target_usable", target="third") == 0
        assert any(
            f"{locked} are encrypted" in line["error"] for line in process.events("target_unusable")
        )
        shown = process.run("explain", image_id, "--target", "third", "-f", "value")
        assert "are encrypted" in shown.stdout
        assert process.stop() == 0


def test_cinder_tells_of_each_volume_whether_it_is_encrypted(
    types: Types, operator: Person
) -> None:
    # What the worker goes by where its login may not ask for the encryption of types
    _, locked = types(encrypted=True)
    operator.blank(locked)
    shown = next(volume for volume in operator.volumes() if volume["volume_type"] == locked)
    assert shown["encrypted"] is True


def test_a_type_that_is_renamed_is_its_own_targets_trouble(
    worker: Worker, images: Images, types: Types, alice: Person, operator: Person, admin: Person
) -> None:
    type_id, name = types()
    cinder = admin.connection.block_storage

    def rename(to: str) -> None:
        checked(cinder.put(f"/types/{type_id}", json={"volume_type": {"name": to}}))

    settings = with_target(name)
    settings["prewarm"] = {**settings["prewarm"], "targets": f"{TARGETS[0]},{TARGETS[1]},third"}
    with worker(settings) as process:
        process.wait_ready()
        rename(f"{name}-renamed")
        try:
            until(lambda: process.events("target_unusable"), what="it is named")
            assert process.probe("/readyz")[0] == 200
            image_id = images()
            until(lambda: is_warm(operator, alice, image_id), what="the others are warm")
            # A restart does not end it either, and uploads go on
            assert process.stop() == 0
            process.start()
            process.wait_ready()
            with contextlib.ExitStack() as stack:
                source = alice.blank("local-1")
                stack.callback(alice.delete_volume, source)
                upload = alice.queued("upload", image_volume_source=source)
                stack.callback(alice.delete_image, upload)
                until(lambda: alice.show(upload)["status"] == "active", what="an upload")
        finally:
            rename(name)
        until(
            lambda: process.metric("target_usable", target="third") == 1,
            what="it is usable again",
        )
        assert process.stop() == 0


def test_max_size_bounds_what_is_allocated(
    worker: Worker, images: Images, types: Types, operator: Person
) -> None:
    # On local-1 Glance's store allocates 1 GiB, on the third target Cinder would allocate 16,000
    _, name = types()
    settings = with_target(name)
    settings["prewarm"] = {**settings["prewarm"], "max_size": 100 << 30}
    with worker(settings) as process:
        process.wait_ready()
        image_id = images(min_disk=16_000)
        until(lambda: len(of_type(operator, image_id, "local-1")) == 1, what="the copy by Glance")
        until(lambda: process.metric("jobs_total", target="third", outcome="skip") >= 1)
        assert of_type(operator, image_id, name) == []
        assert {volume["size"] for volume in of_image(operator, image_id)} == {1}
        shown = process.run("explain", image_id, "--target", "third", "-f", "value")
        assert "min_disk" in shown.stdout


def test_restored_and_cloned_volumes_are_no_uses(
    worker: Worker, images: Images, bob: Person, operator: Person
) -> None:
    settings = dict(groups())
    settings["prewarm"] = {**settings["prewarm"], "when": "used"}
    cinder = bob.connection.block_storage
    with worker(settings) as process, contextlib.ExitStack() as stack:
        process.wait_ready()
        image_id = images()
        first = bob.volume(image_id, "local-1")
        stack.callback(bob.delete_volume, first.id)
        body = {"snapshot": {"volume_id": first.id, "name": "snapshot"}}
        snapshot = checked(cinder.post("/snapshots", json=body)).json()["snapshot"]["id"]

        def available() -> bool:
            return bool(
                cinder.get(f"/snapshots/{snapshot}").json()["snapshot"]["status"] == "available"
            )

        def gone() -> bool:
            return bool(cinder.get(f"/snapshots/{snapshot}").status_code == 404)

        until(available)

        def skipped() -> float:
            return process.metric("jobs_total", target="local-1", outcome="skip")

        for source in ({"snapshot_id": snapshot}, {"source_volid": first.id}):
            for _ in range(2):
                before = skipped()
                stack.callback(bob.delete_volume, bob.blank("local-1", **source))
                if "source_volid" in source:
                    # As long as nobody has looked at a clone it counts as a use
                    until(lambda before=before: skipped() > before, what="it is looked at")
        checked(cinder.delete(f"/snapshots/{snapshot}"))
        until(gone)
        assert of_image(operator, image_id) == []
        stack.callback(bob.delete_volume, bob.volume(image_id, "local-1").id)
        until(lambda: of_type(operator, image_id, "local-1"), what="a second use makes it warm")
        assert process.stop() == 0


def test_a_yes_that_an_upload_of_cinders_has_inherited_is_no_wish(
    worker: Worker, images: Images, bob: Person, operator: Person
) -> None:
    settings = dict(groups())
    settings["prewarm"] = {**settings["prewarm"], "visibilities": "public", "min_size": 1 << 40}
    with contextlib.ExitStack() as stack:
        golden = images(image_volume_prewarm="yes")
        source = bob.volume(golden, "local-1")
        stack.callback(bob.delete_volume, source.id)
        inherited = bob.upload(source.id, "inherited")
        stack.callback(bob.delete_image, inherited)
        until(lambda: bob.show(inherited)["status"] == "active", what="Cinder's upload")
        assert bob.show(inherited)["image_volume_prewarm"] == "yes"
        asked = images()
        with worker(settings) as process:
            process.wait_ready()
            bob.property(inherited, "name", "renamed")
            until(lambda: process.metric("jobs_total", handler="prewarm", outcome="skip") >= 2)
            shown = process.run("explain", inherited, "--target", "local-1", "-f", "value").stdout
            assert f"yes/{inherited}" in shown
            # An owner's wish names the image
            alice_asks = f"yes/{asked}"
            Person("alice").property(asked, "image_volume_prewarm", alice_asks)
            until(lambda: of_type(operator, asked, "local-1"), what="the wish")
            bob.property(inherited, "image_volume_prewarm", alice_asks)
            until(lambda: process.metric("jobs_total", handler="prewarm", outcome="skip") >= 6)
            assert [image for image in (golden, inherited) if of_image(operator, image)] == []
            assert process.stop() == 0
