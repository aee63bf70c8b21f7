"""Routing: which messages become which jobs; and what users' volumes tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import handlers
from worker.core.handler import Watch
from worker.core.job import Key
from worker.core.newest import Newest
from worker.core.notification import Notification, decode
from worker.core.outcome import Done, Outcome
from worker.core.uses import Uses
from worker.engine.router import Router
from worker.observe.creations import Creations
from worker.observe.metrics import Metrics
from worker.testing.fake_cloud import FakeCloud, notification
from worker.testing.rig import FAST, SLOW, Rig, Scripted

IMAGE = "f8195267-dc43-443b-86bf-8a5200144f25"
VOLUME = "38adcc12-ea51-4d39-adea-b5a4c4162d30"
RECORDED = Path(__file__).parents[1] / "fixtures" / "notifications"
UPLOAD = Key("upload", IMAGE)
BOTH = {Key("prewarm", IMAGE, "fast"), Key("prewarm", IMAGE, "slow")}


@pytest.fixture
async def rig() -> Rig:
    return Rig(FakeCloud(), targets=(FAST, SLOW))


def keys(rig: Rig, event_type: str, **payload: object) -> set[Key]:
    return {job.key for job in rig.dispatcher.route(notification(event_type, payload)).jobs}


@pytest.mark.parametrize(
    ("event_type", "payload", "expected"),
    [
        ("image.activate", {"id": IMAGE, "status": "active"}, BOTH),
        ("image.update", {"id": IMAGE, "status": "active"}, BOTH),
        ("image.upload", {"id": IMAGE, "status": "active"}, BOTH),
        ("image.update", {"id": IMAGE, "status": "active", "properties": {"image_volume_source": VOLUME}},
            {*BOTH, UPLOAD}),
        ("image.update", {"id": IMAGE, "status": "queued"}, {UPLOAD}),
        ("image.update", {"id": IMAGE, "status": "saving"}, set()),
        ("image.create", {"id": IMAGE, "status": "queued"}, {UPLOAD}),
        ("image.delete", {"id": IMAGE, "status": "deleted"}, {Key("reclaim", IMAGE)}),
        ("image_volume_cache.evict", {"image_id": IMAGE, "host": "h@b#p"}, BOTH),
        ("volume.create.end", {"volume_id": VOLUME, "display_name": f"image-{IMAGE}", "metadata": []},
            {*BOTH, UPLOAD}),
        ("volume.create.end", {"volume_id": VOLUME, "display_name": f"image-{IMAGE}", "metadata": [
            {"key": "glance_image_id", "value": IMAGE}, {"key": "image_volume_worker", "value": "upload"}]}, {UPLOAD}),
        ("volume.create.end", {"volume_id": VOLUME, "display_name": f"image-{IMAGE}", "metadata": [
            {"key": "glance_image_id", "value": IMAGE}]}, BOTH),
        ("volume.create.end", {"volume_id": VOLUME, "display_name": "mine", "metadata": []}, set()),
        (
            "volume.create.end",
            {"volume_id": VOLUME, "display_name": "x", "metadata": [
                {"key": "glance_image_id", "value": IMAGE}, {"key": "image_volume_worker", "value": "slow"}]},
            {Key("prewarm", IMAGE, "slow")},
        ),
        ("image.activate", {"id": "no uuid", "status": "active"}, set()),
        ("compute.instance.update", {"id": IMAGE}, set()),
    ],
)  # fmt: skip
async def test_routes(
    rig: Rig, event_type: str, payload: dict[str, object], expected: set[Key]
) -> None:
    assert keys(rig, event_type, **payload) == expected


async def test_a_message_nobody_can_read_becomes_a_dead_letter_with_its_bytes(rig: Rig) -> None:
    async with rig:
        routed = rig.dispatcher.route(b"\xffnonsense")
        assert routed.letter
        assert routed.letter.body == b"\xffnonsense"
        await rig.dispatcher.accept([routed])
        assert [letter.body for letter in rig.lanes.dead_letters()] == [b"\xffnonsense"]


async def test_every_routed_event_type_was_recorded_or_is_known_not_to_be() -> None:
    seen = {
        json.loads(line)["message"]["event_type"]
        for path in RECORDED.glob("*.jsonl")
        for line in path.read_text().splitlines()
    }
    never_recorded = {"image_volume_cache.miss", "image_volume_cache.evict"}
    assert frozenset().union(*handlers.ROUTES.values()) - seen == never_recorded


@pytest.fixture
async def located_rig() -> Rig:
    """A worker that knows which store is on which target."""
    rig = Rig(FakeCloud(stores={"cinder-1": "fast", "cinder-2": "slow"}))
    await rig.prewarm.prepare({})
    return rig


async def test_a_copy_concerns_the_target_where_it_has_arrived(located_rig: Rig) -> None:
    """As Glance tells of it: it takes one store after the other off its list, then ends."""
    told = []
    for line in (RECORDED / "image-import-copy-image.jsonl").read_text().splitlines():
        body = json.loads(line)["raw"].encode()
        notification = Notification.of(decode(body))
        if (
            "os_glance_importing_to_stores" in notification.properties
            and notification.status == "active"
        ):
            concerned = {
                job.key.target
                for job in located_rig.dispatcher.route(body).jobs
                if job.key.handler == "prewarm"
            }
            told.append((notification.event_type, notification.importing, concerned))
    both = {"cinder-1", "cinder-2"}
    assert told == [
        ("image.update", both, {"fast", "slow"}),
        ("image.update", both, {"fast", "slow"}),
        ("image.prepare", both, set()),
        ("image.upload", both, set()),
        ("image.update", {"cinder-2"}, {"fast"}),
        ("image.prepare", {"cinder-2"}, set()),
        ("image.upload", {"cinder-2"}, set()),
        ("image.update", set(), {"fast", "slow"}),
        ("image.update", set(), {"fast", "slow"}),
    ]


async def test_what_a_failed_import_has_left_behind_hides_no_change(located_rig: Rig) -> None:
    left = {"os_glance_importing_to_stores": "cinder-1", "os_glance_import_task": ""}
    for event_type in ("image.update", "image.update", "image.upload"):
        assert keys(located_rig, event_type, id=IMAGE, status="active", properties=left) == BOTH


async def test_only_so_many_copies_are_remembered(located_rig: Rig) -> None:
    located_rig.prewarm._imports._coming = Newest(2)
    running = {"os_glance_importing_to_stores": "cinder-1", "os_glance_import_task": "one"}
    for number in range(4):
        keys(
            located_rig,
            "image.update",
            id=f"{number:08}{IMAGE[8:]}",
            status="active",
            properties=running,
        )
    assert len(located_rig.prewarm._imports._coming) == 2


@pytest.mark.parametrize("keys", [lambda _: 1 / 0, lambda _: [("prewarm", IMAGE)], lambda _: None])
async def test_a_handler_that_fails_on_a_notification_is_named_and_the_others_hear_it(
    keys: Any,
) -> None:
    rig = Rig(FakeCloud(), targets=(FAST, SLOW))
    plug_in = Scripted(answering_nothing)
    plug_in.event_types, plug_in.keys = frozenset({"image.update"}), keys  # type: ignore[method-assign]
    router = Router(
        handlers=[plug_in, *rig.handlers.values()],
        metrics=Metrics(),
        creations=Creations(metrics=Metrics(), uses=Uses()),
    )
    routed = router.route(
        notification("image.update", {"id": IMAGE, "status": "active", "password": "secret"})
    )
    assert {job.key for job in routed.jobs} == BOTH
    assert routed.letter
    assert "handler h fails" in routed.letter.reason
    assert b"secret" not in (routed.letter.body or b"")


async def answering_nothing(_key: Key, _watch: Watch) -> Outcome:
    return Done()
