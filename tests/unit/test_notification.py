"""Every recorded notification is read; nothing from outside gets past as anything but values or
Malformed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.errors import Malformed
from worker.core.notification import Notification, decode

RECORDED = sorted((Path(__file__).parents[1] / "fixtures" / "notifications").glob("*.jsonl"))
IMAGE = "f8195267-dc43-443b-86bf-8a5200144f25"
VOLUME = "38adcc12-ea51-4d39-adea-b5a4c4162d30"


def envelope(message: object) -> bytes:
    return json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(message)}).encode()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_notifications_are_read_with_their_subject(path: Path) -> None:
    for line in lines(path):
        notification = Notification.of(decode(str(line["raw"]).encode()))
        message = line["message"]
        assert isinstance(message, dict)
        assert notification.event_type == message["event_type"]
        assert notification.message_id == message["message_id"]
        assert notification.timestamp is not None
        assert abs(notification.timestamp - float(str(line["time"]))) < 60
        if notification.event_type.startswith("image."):
            assert notification.image_id
        if notification.event_type.startswith("volume."):
            assert notification.volume_id


def test_recorded_files_are_there() -> None:
    assert len(RECORDED) > 20


def test_a_volume_made_from_an_image_names_it_as_its_source() -> None:
    path = next(path for path in RECORDED if path.stem == "volume-from-image-cloned")
    seen = [Notification.of(decode(str(line["raw"]).encode())) for line in lines(path)]
    ends = [n for n in seen if n.event_type == "volume.create.end" and n.source_image_id]
    assert ends
    # Users' volumes are no Image-Volumes: nobody has to look again because of them
    assert {n.image_id for n in ends} == {""}


def test_the_image_volume_of_an_upload_names_its_image() -> None:
    path = next(path for path in RECORDED if path.stem == "volume-upload-by-clone-raw")
    seen = [Notification.of(decode(str(line["raw"]).encode())) for line in lines(path)]
    created = {n.image_id for n in seen if n.event_type == "image.create"}
    assert created & {n.image_id for n in seen if n.event_type == "volume.create.end"}


def test_a_bare_notification_is_read_as_well() -> None:
    body = json.dumps(
        {"event_type": "image.update", "payload": {"id": IMAGE, "status": "active"}}
    ).encode()
    notification = Notification.of(decode(body))
    assert (notification.image_id, notification.status) == (IMAGE, "active")


def test_a_text_payload_has_no_subject() -> None:
    notification = Notification.of(
        decode(envelope({"event_type": "image.upload", "payload": "Failed", "priority": "ERROR"}))
    )
    assert (notification.image_id, notification.priority) == ("", "error")


def test_metadata_names_image_and_target() -> None:
    payload = {
        "volume_id": VOLUME,
        "display_name": "whatever",
        "metadata": [
            {"key": "glance_image_id", "value": IMAGE},
            {"key": "image_volume_worker", "value": "fast"},
        ],
    }
    notification = Notification.of(
        decode(envelope({"event_type": "volume.create.end", "payload": payload}))
    )
    assert (notification.image_id, notification.target, notification.volume_id) == (
        IMAGE,
        "fast",
        VOLUME,
    )


@pytest.mark.parametrize(
    "image_id", ["../../v2/tasks", "f8195267", f"{IMAGE}/file", 7, None, ["x"], {}]
)
def test_what_is_no_image_id_is_none(image_id: object) -> None:
    message = {"event_type": "image.update", "payload": {"id": image_id, "status": "active"}}
    assert Notification.of(decode(envelope(message))).image_id == ""


def test_the_token_of_the_context_is_dropped() -> None:
    message = {
        "event_type": "image.update",
        "payload": {"id": IMAGE},
        "_context_auth_token": "gAAAAAB-secret",
    }
    assert "gAAAAAB-secret" not in repr(Notification.of(decode(envelope(message))))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"image.update"',
        b"{}",
        b'{"event_type": 7}',
        b'{"event_type": ""}',
        b'{"oslo.version": "2.0", "oslo.message": "{"}',
        b'{"oslo.version": "2.0", "oslo.message": 7}',
        b'{"oslo.version": "2.0", "oslo.message": "[1]"}',
        b"[" * 100_000,
    ],
)
def test_anything_else_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        Notification.of(decode(body))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)
fields = st.sampled_from(
    [
        "id",
        "image_id",
        "status",
        "metadata",
        "glance_metadata",
        "display_name",
        "volume_id",
        "volume_type",
        "request_spec",
    ]
)


@given(
    event_type=st.sampled_from(
        ["image.update", "volume.create.end", "scheduler.create_volume", "image_volume_cache.miss"]
    ),
    payload=st.dictionaries(fields, json_values) | json_values,
    timestamp=json_values,
)
def test_no_payload_gets_past_as_anything_but_text(
    event_type: str, payload: object, timestamp: object
) -> None:
    body = envelope({"event_type": event_type, "payload": payload, "timestamp": timestamp})
    notification = Notification.of(decode(body))
    texts = (
        notification.status,
        notification.image_id,
        notification.volume_id,
        notification.target,
    )
    assert all(isinstance(text, str) for text in texts)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_malformed(body: bytes) -> None:
    try:
        event_type = Notification.of(decode(body)).event_type
    except Malformed:
        event_type = "none"
    assert event_type
